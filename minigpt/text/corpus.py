"""Text on disk to ids on disk: read as a stream, encoded once, memory-mapped ever after.

A file of ids is named by the SHA-256 of its text, so that a text that changed in any way is never taken for the one
encoded before; it depends on nothing else, for another vocabulary is a table applied as ids are read. Beside it lie
small index files, named by the sources' paths, sizes and times, which spare an unchanged text from being read again.
"""

import hashlib
import json
import time
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from tqdm import tqdm

from minigpt.errors import UserError, some_of
from minigpt.files import remove_torn, user_path, written_whole
from minigpt.text.decoding import decode
from minigpt.text.sources import Source, find_sources, keep_standard_input
from minigpt.text.tokenizer import (
    CODE_POINTS,
    TOKENIZERS,
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    code_points,
    name_characters,
)

LARGEST_VOCABULARY = 1 << 18  # Unicode has about 155,000 characters; what has more is no text


class StoredIds:
    """Ids in a file, memory-mapped: only what is asked for is read. A ``table`` gives other ids for them.

    What another process is sent of it is where to find it, so each that gathers batches maps the file itself.
    """

    def __init__(self, path: str, places: range, table: NDArray[np.unsignedinteger] | None = None) -> None:
        self._found_at = path, places, table
        self._ids = np.asarray(np.load(path, mmap_mode="r"))[places.start : places.stop]
        self._table = table

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, places: slice | NDArray[np.integer]) -> NDArray[np.unsignedinteger]:
        ids = self._ids[places]
        return ids if self._table is None else self._table[ids]

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredIds, self._found_at


Ids = NDArray[np.integer] | StoredIds


@dataclass(frozen=True)
class Corpus:
    """A text as ids."""

    name: str  # what the user called it
    characters: str  # its own, sorted by code point, which the file of ids numbers
    vocabulary: str  # the characters that the method `ids` numbers
    sha256: str  # of the text in UTF-8, hexadecimal
    path: str  # the file of ids, in NumPy's .npy format
    length: int  # number of ids
    first: tuple[int, ...] = ()  # where each of its characters occurs first; of bytes that is of no interest
    notes: tuple[str, ...] = ()  # what a user should know of how it was read, as sentences

    def __len__(self) -> int:
        return self.length

    def ids(self, places: range | None = None) -> StoredIds:
        """The ids at contiguous places, of the whole text by default."""
        same = self.vocabulary == self.characters
        table = None if same else CharTokenizer(self.vocabulary).encode(self.characters)
        return StoredIds(self.path, range(len(self)) if places is None else places, table)

    def renumbered(self, vocabulary: str) -> "Corpus":
        """The same text, its ids those of ``vocabulary``; a UserError names the characters that this lacks."""
        if vocabulary != self.characters:
            try:
                CharTokenizer(vocabulary).encode(self.characters)
            except UserError as error:
                raise UserError(f"In the corpus {self.name}: {error}") from error
        return replace(self, vocabulary=vocabulary)

    def counts(self, places: range) -> NDArray[np.int64]:
        """How often each id occurs at ``places``, which are contiguous."""
        counts, ids, step = np.zeros(len(self.vocabulary), dtype=np.int64), self.ids(places), 1 << 22
        for start in range(0, len(places), step):
            counts += np.bincount(ids[start : start + step], minlength=len(counts))
        return counts


@dataclass
class DataSettings:
    """Which texts there are, and how they become batches.

    Args:
        corpus: a text file, a folder of them, a glob, a list of these, or a named corpus (shakespeare,
            tinyshakespeare, enwik8, text8). Files may be compressed: .gz, .xz, .bz2, .zst, .zip. "-" is the standard
            input, which is read once and kept under data_dir; the setting then names that file.
        suffixes: endings of the files to read in a folder or an archive, whatever their case.
        block_size: characters in a window: the model's context.
        batch_size: windows in a training batch, over all devices together.
        val_fraction: part of the corpus that is the validation split, unless there is a val_corpus.
        test_fraction: part of the corpus, at its end, that is the test split, unless there is a test_corpus; may be 0.
        val_corpus: a text of its own to validate on.
        test_corpus: a text of its own to test on.
        tokenizer: "char", one id per character; or "byte", one per byte of UTF-8, which makes any file trainable.
            ("bpe" is for predict with an imported model of word pieces.)
        min_count: characters rarer than this in the training split become one unknown symbol, never generated.
        seed: decides which windows are in which training batch.
        overfit_one_batch: train on the first batch for ever. A model that can't learn it by heart is broken.
        eval_batch_size: windows per device and batch when validating, testing and predicting.
        num_workers: processes that gather batches; 0 gathers them in the training process, which is fast enough.
        encoding: of the text files, as Python names it: utf-8, latin-1, utf-16, ...
        data_dir: folder for named corpora and encoded text.
        predict_corpus: the text that ``predict`` scores.
        vocabulary: the characters to know; by default those of the texts, or those of the checkpoint.
        base_vocabulary: characters that have the first ids; by default those of the model that --init_from names.
        mirror: where to get a named corpus from instead of its home: a URL or a path.
        max_unpacked_gb: the most that one compressed file may unpack to, in 10^9 bytes.
        scoring_batch_size: the former name of eval_batch_size.

    Raises:
        UserError: a size or fraction is out of range.
    """

    corpus: str | list[str] = "shakespeare"
    suffixes: str | list[str] = ".txt"
    block_size: int = 256
    batch_size: int = 32
    val_fraction: float = 0.05
    test_fraction: float = 0.05
    val_corpus: str | list[str] | None = None
    test_corpus: str | list[str] | None = None
    tokenizer: Literal["char", "byte", "bpe"] = "char"
    min_count: int = 1
    seed: int = 1337
    overfit_one_batch: bool = False
    eval_batch_size: int = 32
    num_workers: int = 0
    encoding: str = "utf-8"
    data_dir: str = "data"
    predict_corpus: str | None = None
    vocabulary: str | None = None
    base_vocabulary: str | None = None
    mirror: str | None = None
    max_unpacked_gb: float = 100.0
    scoring_batch_size: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) is None and field.default is not None:
                raise UserError(f"data.{field.name} is null; it needs a value.")
        if self.scoring_batch_size is not None and self.eval_batch_size == DataSettings.eval_batch_size:
            self.eval_batch_size = self.scoring_batch_size
        least = {"block_size": 1, "batch_size": 1, "eval_batch_size": 1, "min_count": 1, "seed": 0, "num_workers": 0}
        for name, low in least.items():
            if (value := getattr(self, name)) < low:
                raise UserError(f"data.{name} is {value}; it must be at least {low}.")
        if self.num_workers > 256:
            raise UserError(f"data.num_workers is {self.num_workers}; it must be at most 256.")
        if self.min_count > 1 and self.tokenizer == "byte":
            raise UserError(f"data.min_count is {self.min_count}; it must be 1 with the tokenizer byte.")
        val, test = 1e-9 if self.val_corpus else self.val_fraction, 0.0 if self.test_corpus else self.test_fraction
        if not 0 < val < 1 or not 0 <= test < 1 > val + test:
            raise UserError(
                f"val_fraction = {self.val_fraction} and test_fraction = {self.test_fraction} leave no sound split: "
                "validation must be more than 0, test at least 0, and together they must leave something to train on."
            )
        for name in ("corpus", "val_corpus", "test_corpus", "predict_corpus"):  # kept in checkpoints as plain text
            if (given := getattr(self, name)) is not None:
                parts = [keep_standard_input(self.data_dir) if part == "-" else str(part) for part in listed(given)]
                setattr(self, name, parts if isinstance(given, list) else parts[0])

    def places(self, length: int) -> dict[str, range]:
        """The places of each split in a corpus of that length: side by side in this order, covering all of it.

        A split that has a text of its own gets none.
        """
        val, test = (0 if self.val_corpus else self.val_fraction), (0 if self.test_corpus else self.test_fraction)
        val_start, test_start = int(length * round(1 - val - test, 9)), int(length * round(1 - test, 9))
        return {"train": range(val_start), "val": range(val_start, test_start), "test": range(test_start, length)}

    def open(self, corpus: str | list[str]) -> Corpus:
        """Encode a corpus, see :func:`find_sources`, or find it encoded.

        Raises:
            UserError: there is no such corpus, it can't be read, is empty or damaged, is not in that encoding, changes
                while it is read, or has far too many characters; or its ids can't be written.
        """
        if self.tokenizer == "bpe":
            raise UserError(
                "data.tokenizer is bpe, but a model of word pieces is imported, not trained here: what its tokenizer "
                "leaves out of a text can't be scored. Train on characters or bytes, char or byte."
            )
        name, folder, skipped = ", ".join(listed(corpus)), user_path(self.data_dir), list[str]()
        try:
            (folder / "ids").mkdir(parents=True, exist_ok=True)
            # Of several processes that want the same text, one prepares it and the others wait.
            with FileLock(folder / ".lock"):
                sources = find_sources(corpus, folder, self.mirror, listed(self.suffixes), skipped)
                text = self._prepare(name, sources, folder / "ids")
        except (OSError, NotImplementedError) as error:  # the latter where a file system knows no locks
            raise UserError(
                f"The corpus {name} can't be read, or {folder}, where its ids are kept, not be written: {error}. "
                "Nothing there was changed. Another folder is chosen with --data.data_dir."
            ) from error
        told = [f"{name}: {len(sources):,} texts are read: {some_of(list(map(str, sources)))}."] if sources[1:] else []
        if skipped:
            told.append(f"{name}: {len(skipped):,} files are not read, see --data.suffixes: {some_of(skipped)}.")
        odd = [] if self.tokenizer == "byte" else remarks(name, text.characters)
        return replace(text, name=name, notes=(*told, *text.notes, *odd))

    def open_in_pieces(self, corpus: str | list[str], tokenizer: BPETokenizer) -> Corpus:
        """A corpus in the ids of an imported tokenizer of word pieces; it is read into memory as a whole.

        Raises:
            UserError: see :meth:`open`; or no piece is left of the text.
        """
        text = replace(self, tokenizer="char").open(corpus)
        ids = tokenizer.encode(CharTokenizer(text.characters).decode(text.ids()[:]))
        if not len(ids):
            raise UserError(f"The model's tokenizer leaves nothing of the corpus {text.name}.")
        key = hashlib.sha256((text.sha256 + tokenizer.source).encode()).hexdigest()[:20]
        path = Path(text.path).with_name(f"{key}.bpe.npy")
        with written_whole(path) as file:
            np.save(file, ids)
        known = tokenizer.source
        return replace(text, characters=known, vocabulary=known, path=str(path), length=len(ids), first=())

    def open_splits(self) -> dict[str, Corpus]:
        """The text of each split, as it is; a note names the characters that training will never see."""
        text = self.open(self.corpus)
        texts = {"train": text}
        for name, own in (("val", self.val_corpus), ("test", self.test_corpus)):
            texts[name] = self.open(own) if own else text
        stop = self.places(len(text))["train"].stop
        learned = {c for c, place in zip(text.characters, text.first, strict=False) if place < stop}
        learned |= set(self.base_vocabulary or "")  # by the model before
        late = set().union(*(other.characters for other in texts.values())) - learned
        if late and self.tokenizer == "char":
            note = f"{name_characters(''.join(sorted(late)))}: in the validation or test split only, never trained on."
            texts["train"] = replace(text, notes=(*text.notes, note))
        return texts

    def _prepare(self, name: str, sources: list[Source], folder: Path) -> Corpus:
        remove_torn(folder)  # nobody else writes under the lock
        stats = [source.stat() for source in sources]
        key = hashlib.sha256(json.dumps([2, stats, self.tokenizer, self.encoding]).encode()).hexdigest()[:20]
        index = folder / f"{key}.json"
        if index.exists():
            known = json.loads(index.read_text())
            text = Corpus(**{**known, "first": tuple(known["first"]), "notes": tuple(known["notes"])})
            if Path(text.path).exists():
                return text
        text = self._scan(name, sources, folder)
        if not Path(text.path).exists():
            self._encode(text, sources)
        if [source.stat() for source in sources] != stats:
            raise UserError(f"The corpus {name} changed while it was read. Try again when it is still.")
        # A file touched this very second could change once more without its time telling.
        if time.time_ns() - max(stat[4] for stat in stats) > 1_000_000_000:
            with written_whole(index) as file:
                file.write(json.dumps(asdict(text)).encode())
        return text

    def _scan(self, name: str, sources: list[Source], folder: Path) -> Corpus:
        """Read everything once: which characters there are and where first, how many, and the fingerprint of all."""
        digest, length, changes = hashlib.sha256(), 0, defaultdict[str, list[str]](list)
        first = np.full(CODE_POINTS, -1)  # where each character occurs first
        known = b""  # the ASCII characters seen so far, which are the most, are dropped before looking closer
        for text in self._read(sources, "reading", changes):
            raw = text if isinstance(text, bytes) else text.encode()
            digest.update(raw)
            if isinstance(text, str) and (first[code_points(raw.translate(None, known).decode())] < 0).any():
                codes = code_points(text)
                new = np.flatnonzero(first[codes] < 0)
                found, places = np.unique(codes[new], return_index=True)
                first[found] = length + new[places]
                known = bytes(np.flatnonzero(first[:128] >= 0).tolist())
            length += len(text)
        characters = "".join(map(chr, np.flatnonzero(first >= 0)))
        if self.tokenizer == "byte":
            characters = ByteTokenizer.BYTES
        if not length:
            raise UserError(f"In the corpus {name}: it is empty; there is no character to learn from.")
        if len(characters) > LARGEST_VOCABULARY:
            raise UserError(
                f"In the corpus {name}: it has {len(characters):,} different characters, more than any text. It is "
                "something else, or in another encoding (--data.encoding). As bytes it can be trained on: "
                "--data.tokenizer byte."
            )
        sha256 = digest.hexdigest()
        path = folder / f"{sha256[:20]}.{self.tokenizer}.npy"
        notes = tuple(f"{some_of(names)}: {what}" for what, names in changes.items())
        places = tuple(first[first >= 0].tolist())
        return Corpus(name, characters, characters, sha256, str(path), length, places, notes)

    def _encode(self, text: Corpus, sources: list[Source]) -> None:
        tokenizer, written = TOKENIZERS[self.tokenizer](text.characters), 0
        with written_whole(Path(text.path)) as file:
            header = {"descr": np.dtype(tokenizer.dtype).str, "fortran_order": False, "shape": (len(text),)}
            np.lib.format.write_array_header_1_0(file, header)
            for chunk in self._read(sources, "encoding", defaultdict(list)):
                ids = tokenizer.encode(chunk) if isinstance(chunk, str) else np.frombuffer(chunk, np.uint8)
                written += len(ids)
                if written > len(text):
                    break  # or a file that grows as fast as it is read would never end
                file.write(ids.data)
            if written != len(text):
                raise UserError(f"The corpus {text.name} changed while it was read. Try again when it is still.")

    def _read(self, sources: list[Source], doing: str, changes: dict[str, list[str]]) -> Iterator[str | bytes]:
        """The sources in turn, in chunks: bytes as they are, or text whose every line end is a newline.

        A text that doesn't end its last line is followed by a newline, unless it is the last.
        """
        size = sum(source.path.stat().st_size for source in sources)
        with tqdm(total=size, desc=doing, unit="B", unit_scale=True, delay=1) as progress:
            for source in sources:
                chunks = source.chunks(self.max_unpacked_gb)
                chunk: str | bytes = ""
                for chunk in chunks if self.tokenizer == "byte" else decode(source, chunks, self.encoding, changes):
                    progress.update(len(chunk))
                    yield chunk
                if isinstance(chunk, str) and source is not sources[-1] and not chunk.endswith("\n"):
                    yield "\n"


def listed(given: str | list[str]) -> list[str]:
    """One text, or several, as a list."""
    return given if isinstance(given, list) else [given]


def remarks(name: str, characters: str) -> Iterator[str]:
    """What is odd about the characters of a text."""
    if control := [c for c in characters if unicodedata.category(c) == "Cc" and c not in "\t\n"]:
        yield f"{name} holds control characters, which nobody sees: {name_characters(''.join(control))}."
    parts = {c: unicodedata.normalize("NFD", c) for c in characters}
    if double := "".join(c for c in parts if c not in parts[c] and parts.keys() >= set(parts[c])):
        yield f"{name} holds, it seems, the same letters whole (NFC) and in parts (NFD): {name_characters(double)}."

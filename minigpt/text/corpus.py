"""Text on disk to ids on disk: read as a stream, encoded once, memory-mapped ever after.

The ids lie under the data folder in a file named by the SHA-256 of the text and its vocabulary, so that a text
that changed in any way is never taken for the one encoded before. Beside it lie small index files, named by the
sources' paths, sizes and times, which spare an unchanged text from being read again.
"""

import codecs
import encodings
import errno
import hashlib
import io
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from tqdm import tqdm

from minigpt.errors import UserError
from minigpt.files import written_whole
from minigpt.text.sources import Source, find_sources
from minigpt.text.tokenizer import CODE_POINTS, TOKENIZERS, ByteTokenizer, code_points

LARGEST_VOCABULARY = 1 << 18  # Unicode has about 155,000 characters; what has more is no text
BOM = "\ufeff"


@dataclass(frozen=True)
class Corpus:
    """A text as ids.

    Args:
        name: what the user called it.
        vocabulary: the characters that the ids number.
        sha256: of the text (UTF-8), a hexadecimal fingerprint.
        path: the file of ids, in NumPy's ``.npy`` format.
        length: number of ids.
        notes: what was changed in reading it, as sentences for the user.
    """

    name: str
    vocabulary: str
    sha256: str
    path: str
    length: int
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.length

    def ids(self) -> NDArray[np.unsignedinteger]:
        """All ids, (length,), memory-mapped: read from disk as they are touched."""
        return np.asarray(np.load(self.path, mmap_mode="r"))

    def counts(self, places: range) -> NDArray[np.int64]:
        """How often each id occurs at ``places``, which are contiguous."""
        counts = np.zeros(len(self.vocabulary), dtype=np.int64)
        ids = self.ids()
        for start in range(places.start, places.stop, 1 << 22):
            counts += np.bincount(ids[start : min(start + (1 << 22), places.stop)], minlength=len(counts))
        return counts


def check_fractions(val_fraction: float | None, test_fraction: float | None) -> None:
    """Raise a UserError unless there is something to train and to validate on. None: that split is another text."""
    val = 1e-9 if val_fraction is None else val_fraction
    test = test_fraction or 0.0
    if not 0 < val < 1 or not 0 <= test < 1 > val + test:
        raise UserError(
            f"val_fraction = {val_fraction} and test_fraction = {test_fraction} leave no sound split: validation "
            "must be more than 0, test at least 0, and together they must leave something to train on."
        )


def split_places(length: int, val_fraction: float, test_fraction: float) -> dict[str, range]:
    """The places of a text that are its training, validation and test split: side by side, covering all of it."""
    val_start = int(length * round(1 - val_fraction - test_fraction, 9))
    test_start = int(length * round(1 - test_fraction, 9))
    return {"train": range(val_start), "val": range(val_start, test_start), "test": range(test_start, length)}


@dataclass(frozen=True)
class CorpusReader:
    """How texts are read and where their ids are kept.

    Args:
        data_dir: the folder that keeps named corpora and files of ids.
        tokenizer: "char" or "byte".
        encoding: of the text files; bytes are taken as they are.
        mirror: where to fetch a named corpus from instead of its public home.
        max_unpacked_gb: the most that one compressed file may unpack to, in 10^9 bytes.
    """

    data_dir: Path
    tokenizer: Literal["char", "byte"] = "char"
    encoding: str = "utf-8"
    mirror: str | None = None
    max_unpacked_gb: float = 100.0

    def open(self, corpus: str | list[str], vocabulary: str | None = None) -> Corpus:
        """Encode a corpus, or find it encoded.

        Args:
            corpus: see :func:`minigpt.text.sources.find_sources`.
            vocabulary: the characters to number; by default those of the text, sorted by code point.

        Raises:
            UserError: there is no such corpus, it is empty or damaged, it is not in that encoding, it changes while
                it is read, it has characters outside ``vocabulary``, or far too many different ones.
            OSError: a file can't be read, or the ids can't be written.
        """
        folder = self.data_dir / "ids"
        folder.mkdir(parents=True, exist_ok=True)
        name = corpus if isinstance(corpus, str) else ", ".join(corpus)
        # Of several processes that want the same text, one prepares it and the others wait.
        with FileLock(self.data_dir / ".lock"):
            for torn in folder.glob("*.part"):  # left by a process that was killed; nobody else writes under the lock
                torn.unlink()
            sources = find_sources(corpus, self.data_dir, self.mirror)
            stats = [source.stat() for source in sources]
            settings = [stats, self.tokenizer, self.encoding, vocabulary]
            index = folder / f"{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:20]}.json"
            if index.exists():
                known = json.loads(index.read_text())
                if Path(known["path"]).exists():
                    return Corpus(**{**known, "name": name, "notes": tuple(known["notes"])})
            try:
                result = self._encode(name, sources, vocabulary, folder)
            except ValueError as error:
                raise UserError(f"In the corpus {name}: {error}") from error
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
                    raise
                raise OSError(
                    f"The ids of the corpus {name} don't fit into {folder} ({error.strerror}). Nothing there was "
                    "changed. Make room, or choose another folder with --data.data_dir."
                ) from error
            if [source.stat() for source in sources] != stats:
                raise UserError(f"The corpus {name} changed while it was read. Try again when it is still.")
            # A file touched this very second could change once more without its time telling.
            if time.time_ns() - max(stat[4] for stat in stats) > 1_000_000_000:
                with written_whole(index) as file:
                    file.write(json.dumps(asdict(result)).encode())
            return result

    def _encode(self, name: str, sources: list[Source], vocabulary: str | None, folder: Path) -> Corpus:
        scan = self._scan(sources)
        if not scan.length:
            raise UserError("it is empty; there is no character to learn from.")
        if vocabulary is None:
            if len(scan.vocabulary) > LARGEST_VOCABULARY:
                raise UserError(
                    f"it has {len(scan.vocabulary):,} different characters, more than any text: it is something else, "
                    "or in another encoding (--data.encoding). As bytes it can be trained on: --data.tokenizer byte."
                )
            vocabulary = scan.vocabulary
        tokenizer = TOKENIZERS[self.tokenizer](vocabulary)
        key = f"{scan.sha256} {self.tokenizer} {vocabulary}".encode("utf-8", "surrogatepass")
        path = folder / f"{hashlib.sha256(key).hexdigest()[:20]}.npy"
        if not path.exists():
            with written_whole(path) as file:
                header = {"descr": np.dtype(tokenizer.dtype).str, "fortran_order": False, "shape": (scan.length,)}
                np.lib.format.write_array_header_1_0(file, header)
                texts = self._read(sources, "encoding")
                written = 0

                def encoded() -> Iterator[memoryview]:
                    nonlocal written
                    for text in texts:
                        ids = tokenizer.encode(text) if isinstance(text, str) else np.frombuffer(text, np.uint8)
                        written += len(ids)
                        if written > scan.length:
                            break  # or a file that grows as fast as it is read would never end
                        yield ids.data

                on_the_other_core(file.write, encoded())
                if written != scan.length:
                    raise UserError("it changed while it was read. Try again when it is still.")
        return Corpus(name, vocabulary, scan.sha256, str(path), scan.length, scan.notes)

    def _scan(self, sources: list[Source]) -> "_Scan":
        """Read everything once: what characters there are, how many, and the fingerprint of all."""
        digest, length = hashlib.sha256(), 0
        seen = np.zeros(CODE_POINTS, dtype=np.bool_)
        known = b""  # the ASCII characters seen so far, which are the most, are dropped before looking closer
        notes: list[str] = []

        def look_at(texts: Iterator[str | bytes]) -> Iterator[bytes]:
            nonlocal length, known
            for text in texts:
                length += len(text)
                raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
                if isinstance(text, str) and (rest := raw.translate(None, known)):
                    seen[code_points(rest.decode("utf-8", "surrogatepass"))] = True
                    known = bytes(np.flatnonzero(seen[:128]).tolist())
                yield raw

        on_the_other_core(digest.update, look_at(self._read(sources, "reading", notes)))
        characters = "".join(map(chr, np.flatnonzero(seen)))
        vocabulary = characters if self.tokenizer == "char" else ByteTokenizer.BYTES
        return _Scan(digest.hexdigest(), vocabulary, length, tuple(notes))

    def _read(self, sources: list[Source], doing: str, notes: list[str] | None = None) -> Iterator[str | bytes]:
        """The sources in turn, in chunks: bytes as they are, or text whose every line end is a newline.

        A text that doesn't end its last line is followed by a newline, unless it is the last.
        """
        size = sum(source.path.stat().st_size for source in sources)
        with tqdm(total=size, desc=doing, unit="B", unit_scale=True, delay=1) as progress:
            for source in sources:
                chunks: Iterator[bytes] = source.chunks(self.max_unpacked_gb)
                chunk: str | bytes = ""
                for chunk in chunks if self.tokenizer == "byte" else self._decode(source, chunks, notes):
                    progress.update(len(chunk))
                    yield chunk
                if isinstance(chunk, str) and source is not sources[-1] and not chunk.endswith("\n"):
                    yield "\n"

    def _decode(self, source: Source, chunks: Iterator[bytes], notes: list[str] | None) -> Iterator[str]:
        decoder = io.IncrementalNewlineDecoder(incremental_decoder(self.encoding), translate=True)
        read, first = 0, True
        for chunk in itertools.chain(chunks, [b""]):
            read += len(chunk)
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                # The decoder was handed this chunk behind what it had kept of the last one.
                place = read - len(error.object) + error.start
                raise UserError(
                    f"{source} is not {self.encoding}: byte {place} (0x{error.object[error.start]:02x}) begins no "
                    "character. If it is in another encoding, name it, for instance: --data.encoding latin-1. "
                    "Any file can be trained on as bytes: --data.tokenizer byte."
                ) from error
            if first and text:
                first = False
                if text[0] == BOM:
                    text = text[1:]
                    if notes is not None:
                        notes.append(f"{source}: its byte-order mark was dropped.")
            if text:
                yield text
        ends = decoder.newlines or ()
        if notes is not None and set(ends if isinstance(ends, tuple) else (ends,)) - {"\n"}:
            notes.append(f"{source}: its line ends, not all of them newlines, became newlines.")


@dataclass(frozen=True)
class _Scan:
    sha256: str
    vocabulary: str
    length: int
    notes: tuple[str, ...]


def on_the_other_core(work: Callable[[Any], Any], items: Iterable[Any]) -> None:
    """Call ``work`` on each of ``items`` in turn, in a thread, while the next one is made."""
    with ThreadPoolExecutor(1) as thread:
        pending: Future[Any] | None = None
        for item in items:
            if pending:
                pending.result()
            pending = thread.submit(work, item)
        if pending:
            pending.result()


def incremental_decoder(encoding: str) -> codecs.IncrementalDecoder:
    """A decoder of ``encoding``.

    Raises:
        UserError: there is no such encoding of text.
    """
    # Python's own encodings only: some packages, `future_typing` among them, register one that answers to any name.
    codec = encodings.search_function(encoding.lower())
    if codec is None or codec.incrementaldecoder is None or not codec._is_text_encoding:
        raise UserError(f"There is no text encoding {encoding!r}; utf-8, utf-16, latin-1 and cp1252 are some.")
    return codec.incrementaldecoder()

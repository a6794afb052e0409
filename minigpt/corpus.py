"""Text on disk to ids on disk: read once, encoded once, memory-mapped ever after.

The ids lie under the data folder in a file named by the SHA-256 of the text and its vocabulary, so that a text
that changed in any way is never taken for the one encoded before.
"""

import codecs
import encodings
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from minigpt.files import written_whole
from minigpt.sources import text_files
from minigpt.tokenizer import CharTokenizer, code_points

CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class Corpus:
    """A text as ids.

    Args:
        name: what the user called it.
        vocabulary: the characters that the ids number.
        sha256: of the text (UTF-8), a hexadecimal fingerprint.
        path: the file of ids, in NumPy's ``.npy`` format.
        length: number of characters.
    """

    name: str
    vocabulary: str
    sha256: str
    path: Path
    length: int

    def __len__(self) -> int:
        return self.length

    def ids(self) -> NDArray[np.unsignedinteger]:
        """All ids, (number of characters,), memory-mapped: read from disk as they are touched."""
        return np.asarray(np.load(self.path, mmap_mode="r"))


def open_corpus(name: str, data_dir: Path, vocabulary: str | None = None, encoding: str = "utf-8") -> Corpus:
    """Encode a corpus, or find it encoded.

    Args:
        name: a path or a name; see :func:`minigpt.sources.text_files`.
        data_dir: the folder that keeps named corpora and files of ids.
        vocabulary: the characters to number; by default those of the text, sorted by code point.
        encoding: of the text files.

    Raises:
        ValueError: there is no such corpus, it is empty, it is not in that encoding, it changes while it is read,
            or it has characters outside ``vocabulary``.
    """
    files = text_files(name, data_dir)
    digest = hashlib.sha256()
    seen = np.zeros(0x110000, dtype=np.bool_)
    length = 0
    for text in read_text(files, encoding):
        digest.update(text.encode("utf-8", "surrogatepass"))
        seen[code_points(text)] = True
        length += len(text)
    if not length:
        raise ValueError(f"The corpus {name} is empty: there is no character to learn from.")
    vocabulary = vocabulary or "".join(map(chr, np.flatnonzero(seen)))
    tokenizer = CharTokenizer(vocabulary)
    key = hashlib.sha256((digest.hexdigest() + vocabulary).encode("utf-8", "surrogatepass")).hexdigest()
    path = data_dir / "ids" / f"{key[:20]}.npy"
    if not path.exists():
        with written_whole(path) as file:
            header = {"descr": np.dtype(tokenizer.dtype).str, "fortran_order": False, "shape": (length,)}
            np.lib.format.write_array_header_1_0(file, header)
            try:
                again = hashlib.sha256()
                for text in read_text(files, encoding):
                    again.update(text.encode("utf-8", "surrogatepass"))
                    file.write(tokenizer.encode(text).tobytes())
                if again.digest() != digest.digest():
                    raise ValueError("the text changed while it was read; try again when it is still.")
            except ValueError as error:
                raise ValueError(f"In the corpus {name}: {error}") from error
    return Corpus(name, vocabulary, digest.hexdigest(), path, length)


def read_text(files: list[Path], encoding: str) -> Iterator[str]:
    """The text of ``files`` in turn, in chunks. Every line end becomes a newline; a byte-order mark is dropped.

    A file that doesn't end its last line is followed by a newline, unless it is the last file.

    Raises:
        ValueError: a file is not in that encoding.
    """
    for file in files:
        text = ""
        for text in _read_file(file, encoding):
            yield text
        if file is not files[-1] and not text.endswith("\n"):
            yield "\n"


def _read_file(path: Path, encoding: str) -> Iterator[str]:
    decoder = io.IncrementalNewlineDecoder(incremental_decoder(encoding), translate=True)
    read = 0
    with path.open("rb") as file:
        while True:
            chunk = file.read(CHUNK_BYTES)
            read += len(chunk)
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                # The decoder was handed this chunk behind what it had kept of the last one.
                place = read - len(error.object) + error.start
                raise ValueError(
                    f"{path} is not {encoding}: byte {place} (0x{error.object[error.start]:02x}) begins no character. "
                    "If it is in another encoding, name it, for instance: --data.encoding latin-1"
                ) from error
            if text:
                yield text
            if not chunk:
                return


def incremental_decoder(encoding: str) -> codecs.IncrementalDecoder:
    """A decoder of ``encoding``; of UTF-8, one that drops a byte-order mark.

    Raises:
        ValueError: there is no such encoding of text.
    """
    # Python's own encodings only: some packages, `future_typing` among them, register one that answers to any name.
    codec = encodings.search_function(encoding.lower())
    if codec is None or codec.incrementaldecoder is None or not codec._is_text_encoding:
        raise ValueError(
            f"There is no text encoding {encoding!r}. Some that there are: utf-8, utf-16, latin-1, cp1252."
        )
    if codec.name == "utf-8":
        codec = encodings.search_function("utf_8_sig")
        assert codec is not None
    return codec.incrementaldecoder()

"""Bytes to text: decoded as a stream, with one kind of line end; and a look at what encoding bytes seem to be in."""

import codecs
import encodings
import io
import itertools
from collections.abc import Iterator
from contextlib import suppress

from minigpt.errors import UserError

BOM = "\ufeff"
# Of Central Europe, Russia (two), Japan, China (two) and Korea.
OTHERS = ("cp1250", "cp1251", "koi8-r", "cp932", "gb18030", "big5", "cp949")


def decode(source: object, chunks: Iterator[bytes], encoding: str, changes: dict[str, list[str]]) -> Iterator[str]:
    """The text of ``chunks``, without a byte-order mark, every line end a newline.

    Args:
        source: what it is called.
        chunks: its bytes.
        encoding: as Python names it.
        changes: to what was changed in reading, as a sentence's end, the name is added; a ``defaultdict(list)``.

    Raises:
        UserError: the bytes are not in that encoding, or there is none of that name.
    """
    # Python's own encodings only: some packages, `future_typing` among them, register one that answers to any name.
    codec = encodings.search_function(encoding.lower())
    if codec is None or codec.incrementaldecoder is None or not codec._is_text_encoding:
        raise UserError(f"There is no text encoding {encoding!r}; utf-8, utf-16, latin-1 and cp1252 are some.")
    decoder = io.IncrementalNewlineDecoder(codec.incrementaldecoder(), translate=True)
    read, first = 0, True
    for chunk in itertools.chain(chunks, [b""]):
        if not read and not codec.name.startswith(("utf-16", "utf-32")) and (wide := wide_encoding(chunk)):
            raise UserError(f"{source} is not {encoding}, its first bytes say, but {wide}: --data.encoding {wide}.")
        read += len(chunk)
        try:
            text = decoder.decode(chunk, final=not chunk)
            text.encode()  # raises at half a surrogate pair, which some encodings can write, and which is no character
        except UnicodeDecodeError as error:
            # The decoder was handed this chunk behind what it had kept of the last one.
            place = read - len(error.object) + error.start
            raise UserError(
                f"{source} is not {encoding}: byte {place} (0x{error.object[error.start]:02x}) begins no "
                f"character. {advice(error.object, error.start)}Any file can be trained on as bytes: "
                "--data.tokenizer byte."
            ) from error
        except UnicodeError as error:
            raise UserError(f"{source} is not {encoding}: {error}.") from error
        if first and text.startswith(BOM):
            text = text[1:]
            changes["the byte-order mark was dropped."].append(str(source))
            first = False
        if text:
            first = False
            yield text
    if "\r" in "".join(decoder.newlines or ""):
        changes["line ends that were not newlines became newlines."].append(str(source))


def wide_encoding(head: bytes) -> str | None:
    """UTF-16 or UTF-32, if the beginning of a text shows it: by a byte-order mark, or by where bytes of 0 stand.

    In UTF-16 they are high bytes, so all are at even or all at odd places, where few other values occur.
    """
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    for name, high, low in (("utf-16-be", head[::2], head[1::2]), ("utf-16-le", head[1::2], head[::2])):
        if high.count(0) >= max(20, 20 * low.count(0)) and 2 * len(set(high)) < len(set(low)):
            return name
    return None


def advice(raw: bytes, place: int) -> str:
    """How other encodings read what stands at a place, of those that can read all of it: a person sees which is right.

    Bytes 0x80 to 0x9f are quotes and dashes in Windows' encodings, and nothing in Latin-1.
    """
    start = raw.rfind(b"\n", 0, place) + 1
    sample, readings = raw[start : start + 10_000], dict[str, str]()
    western = "latin-1" if set(sample).isdisjoint(range(0x80, 0xA0)) else "cp1252"
    for name in (western, *OTHERS):
        decoder = codecs.getincrementaldecoder(name)
        with suppress(UnicodeDecodeError):
            decoder().decode(sample)
            readings.setdefault(decoder().decode(raw[start : place + 8])[-16:], name)
    shown = ", ".join(f"{name} it reads {text!r}" for text, name in readings.items())
    return f"With --data.encoding {shown}. " if shown else ""

"""Text to ids and back: one id per character, or per byte of UTF-8; or per piece of a word, for imported models."""

import codecs
import re
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from minigpt.errors import UserError, some_of

CODE_POINTS = 0x110000
# In a vocabulary it stands for all that the vocabulary lacks. It is half a surrogate pair, no character, so no text
# holds it. It is shown as Unicode's replacement character.
UNKNOWN, SHOWN = "\udfff", "\ufffd"
# Characters that differ by typography only.
TYPOGRAPHY = (
    "'\u2018\u2019\u201a\u201b\u0060\u00b4\u2032\u02bc",  # apostrophes and single quotes
    '"\u201c\u201d\u201e\u201f\u00ab\u00bb\u2033',  # double quotes
    "-\u2010\u2011\u2012\u2013\u2014\u2015\u2212",  # hyphens, dashes, minus
    " \t\u00a0\u2002\u2003\u2007\u2009\u202f\u3000",
)
Decoder = Callable[[Sequence[int], bool], str]  # the next ids, and whether they are the last, to text


def code_points(text: str) -> NDArray[np.unsignedinteger]:
    """The Unicode code point of every character, in an unsigned type wide enough for this text."""
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), dtype=np.uint8)
    narrow = text.encode("utf-16-le", "surrogatepass")
    if len(narrow) == 2 * len(text):  # no character beyond the first 65,536
        return np.frombuffer(narrow, dtype="<u2")
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def name_characters(characters: str, limit: int = 10) -> str:
    """Characters as a user can recognise them, such as ``'é' (U+00E9)``, at most ``limit`` of them."""
    return some_of([f"{character!r} (U+{ord(character):04X})" for character in characters], limit)


class CharTokenizer:
    """Characters to ids and back. The id of a character is its place in the vocabulary.

    A vocabulary that holds :data:`UNKNOWN` gives the id of that to every character it lacks.

    Args:
        vocabulary: every known character, once each.

    Raises:
        UserError: the vocabulary is empty or names a character twice.
    """

    def __init__(self, vocabulary: str) -> None:
        if not vocabulary:
            raise UserError("The vocabulary is empty; it needs at least one character.")
        if len(set(vocabulary)) != len(vocabulary):
            raise UserError("The vocabulary names a character twice.")
        self.vocabulary = vocabulary
        self.source = vocabulary  # what a checkpoint keeps, of which this is made again
        self.unknown = vocabulary.find(UNKNOWN) if UNKNOWN in vocabulary else None
        self._codes = np.array([ord(character) for character in vocabulary], dtype="<u4")
        lacking = len(vocabulary) if self.unknown is None else self.unknown
        table_type = np.uint8 if max(lacking, len(vocabulary) - 1) < 256 else np.uint32
        self._id_of_code = np.full(CODE_POINTS, lacking, dtype=table_type)
        self._id_of_code[self._codes] = np.arange(len(vocabulary))
        self._shown = self._codes.copy()
        self._shown[self._codes == ord(UNKNOWN)] = ord(SHOWN)
        # ASCII text, the most common by far, is translated by Python's own bytes, several times as fast.
        self._known_ascii = "".join(c for c in vocabulary if c.isascii()).encode("ascii")
        small = self._id_of_code[:256] if len(vocabulary) <= 256 else np.zeros(256)
        self._ascii_table = small.astype(np.uint8).tobytes()

    @property
    def start(self) -> str:
        """What stands before the beginning of a text: a newline, or the first character where there is none."""
        return "\n" if "\n" in self.vocabulary else self.vocabulary[0]

    @property
    def dtype(self) -> type[np.unsignedinteger]:
        """The smallest unsigned type that holds every id."""
        return next(t for t in (np.uint8, np.uint16, np.uint32) if len(self.vocabulary) - 1 <= np.iinfo(t).max)

    def encode(self, text: str) -> NDArray[np.unsignedinteger]:
        """Ids of the characters of ``text``, of :attr:`dtype`.

        Raises:
            UserError: characters are not in the vocabulary, nor is :data:`UNKNOWN`; the message names them.
        """
        if self.dtype is np.uint8 and text.isascii():
            raw = text.encode("ascii")
            if self.unknown is not None or not raw.translate(None, self._known_ascii):
                return np.frombuffer(raw.translate(self._ascii_table), dtype=np.uint8)
        codes = code_points(text)
        ids = self._id_of_code[codes]
        if self.unknown is None and (lacking := ids == len(self.vocabulary)).any():
            unknown = np.unique(codes[lacking])
            raise UserError(
                f"{name_characters(''.join(map(chr, unknown)))}: not among the {len(self.vocabulary)} characters of "
                "the model's vocabulary, so the model has no id for it. Remove or replace it."
            )
        return ids.astype(self.dtype, copy=False)

    def lookalikes(self, text: str) -> dict[str, str]:
        """Characters of ``text`` that are not known, each with what is known and differs by typography only.

        That is another quote, dash or space, or the same letter in another of Unicode's normal forms.
        """
        found = {}
        for unit in dict.fromkeys(re.findall(r".[\u0300-\u036f]*", text, re.DOTALL)):  # a letter with its accents
            forms = [unicodedata.normalize(form, unit) for form in ("NFC", "NFD", "NFKC", "NFKD")]
            alike = [other for group in TYPOGRAPHY if unit in group for other in group]
            known = [other for other in (unit, *forms, *alike) if set(other) <= set(self.vocabulary)]
            if known and known[0] != unit:
                found[unit] = known[0]
        return found

    def decode(self, ids: NDArray[np.integer]) -> str:
        """The text of ``ids``; the unknown symbol becomes U+FFFD."""
        return self._shown[ids].tobytes().decode("utf-32-le", "surrogatepass")

    def decoder(self, before: Sequence[int] = ()) -> Decoder:
        """A function for ids that come little by little, after those ``before``: it gives what of their text is certain
        so far.
        """
        return lambda ids, final: self.decode(np.array(ids, dtype=np.intp))

    def label(self, token: int) -> str:
        """How one id is shown."""
        return chr(self._shown[token])

    def byte_counts(self) -> list[int]:
        """How many bytes of UTF-8 each id stands for."""
        return [len(character.encode("utf-8", "surrogatepass")) for character in self.vocabulary]

    def character_counts(self) -> list[int]:
        """How many characters each id begins."""
        return [1] * len(self.vocabulary)


class ByteTokenizer(CharTokenizer):
    """Bytes of UTF-8 as ids: 256 of them, whatever the text. Its vocabulary shows byte b as the character U+00b."""

    BYTES = "".join(map(chr, range(256)))

    def __init__(self, vocabulary: str = BYTES) -> None:
        if vocabulary != self.BYTES:
            raise UserError("The byte tokenizer has a vocabulary of its own, the 256 bytes; it can't be given one.")
        super().__init__(vocabulary)

    def encode(self, text: str) -> NDArray[np.unsignedinteger]:
        return np.frombuffer(text.encode("utf-8", "surrogatepass"), dtype=np.uint8)

    def lookalikes(self, text: str) -> dict[str, str]:
        return {}  # every character is known

    def decode(self, ids: NDArray[np.integer]) -> str:
        """The text of ``ids``; bytes that make no character become U+FFFD."""
        return np.asarray(ids).astype(np.uint8).tobytes().decode("utf-8", "replace")

    def decoder(self, before: Sequence[int] = ()) -> Decoder:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        return lambda ids, final: decoder.decode(bytes(ids), final)

    def label(self, token: int) -> str:
        return chr(token) if 32 <= token < 127 else f"\\x{token:02x}"

    def byte_counts(self) -> list[int]:
        return [1] * 256

    def character_counts(self) -> list[int]:
        return [0 if 0x80 <= byte < 0xC0 else 1 for byte in range(256)]  # those between continue a character


class BPETokenizer(CharTokenizer):
    """Pieces of words by byte-pair encoding (Sennrich et al. 2016), as OpenAI's GPT-1 reads them, for imported models.

    It may lose a part of the text: GPT-1's own makes all letters small, and leaves out accents and newlines. So what
    such a model is worth can't be told per character, only per token.

    Args:
        source: the text of a ``tokenizer.json``, as the library ``tokenizers`` reads it.

    Raises:
        UserError: the library is missing, or it can't read that.
    """

    vocabulary: tuple[str, ...]  # type: ignore[assignment]  # a piece may have several characters

    def __init__(self, source: str) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise UserError(
                "The model reads pieces of words, for which the package tokenizers is needed: "
                "pip install tokenizers (or minigpt[huggingface])."
            ) from error
        try:
            self._library = Tokenizer.from_str(source)
        except Exception as error:  # of no kind of its own
            raise UserError(f"The tokenizer of pieces can't be read: {error}.") from error
        self._library.no_truncation()
        self._library.no_padding()
        pieces = [self._library.id_to_token(i) for i in range(self._library.get_vocab_size())]
        self.source, self.vocabulary = source, tuple(piece for piece in pieces if piece is not None)
        if not pieces or None in pieces:
            raise UserError(f"The ids of the {len(pieces):,} pieces of the tokenizer have gaps.")
        named = getattr(self._library.model, "unk_token", None)
        self.unknown = self._library.token_to_id(named) if named else None

    @property
    def start(self) -> str:
        """What stands before the beginning of a text: a newline where it is known, or else the end of a sentence."""
        candidates = (text for text in ("\n", ".", *self.vocabulary) if set(self._ids(text)) - {self.unknown})
        return next(candidates)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._library.encode(text, add_special_tokens=False).ids
        return ids

    def encode(self, text: str) -> NDArray[np.unsignedinteger]:
        """Ids of the pieces of ``text``, of :attr:`dtype`.

        Raises:
            UserError: it has half a surrogate pair, or characters that the tokenizer would leave out without a word.
        """
        if halves := sorted({c for c in text if "\ud800" <= c <= "\udfff"}):
            raise UserError(f"{name_characters(''.join(halves))}: half a surrogate pair, which no tokenizer knows.")
        encoding = self._library.encode(text, add_special_tokens=False)
        if self.unknown is None:
            read = {place for start, end in encoding.offsets for place in range(start, end)}
            if lost := sorted({c for place, c in enumerate(text) if place not in read and not c.isspace()}):
                raise UserError(f"{name_characters(''.join(lost))}: no piece of the tokenizer has it. Remove it.")
        return np.array(encoding.ids, dtype=self.dtype)

    def lookalikes(self, text: str) -> dict[str, str]:
        return {}

    def decode(self, ids: NDArray[np.integer]) -> str:
        """The text of ``ids``; whatever was lost when it was encoded is not in it."""
        text: str = self._library.decode(np.asarray(ids).tolist(), skip_special_tokens=False)
        return text

    def decoder(self, before: Sequence[int] = ()) -> Decoder:
        """As of characters. Whether a piece begins after a space is known from those before it."""
        ids, told = list(before), len(self._library.decode(list(before), skip_special_tokens=False))

        def decode(new: Sequence[int], final: bool) -> str:
            nonlocal told
            ids.extend(new)
            text: str = self._library.decode(ids, skip_special_tokens=False)
            if not final:
                text = text.rstrip(SHOWN)  # the beginning of a character of several bytes
            piece, told = text[told:], max(told, len(text))
            return piece

        return decode

    def label(self, token: int) -> str:
        return self.vocabulary[token]

    def byte_counts(self) -> list[int]:
        return [len(piece.encode()) for piece in self.vocabulary]

    def character_counts(self) -> list[int]:
        return [len(piece) for piece in self.vocabulary]


TOKENIZERS = {"char": CharTokenizer, "byte": ByteTokenizer, "bpe": BPETokenizer}

"""Text to ids and back, one id per character."""

import numpy as np
from numpy.typing import NDArray

_CODE_POINTS = 0x110000


def code_points(text: str) -> NDArray[np.uint32]:
    """The Unicode code point of every character."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def name_characters(characters: str, limit: int = 10) -> str:
    """Characters as a user can recognise them, such as ``'é' (U+00E9)``, at most ``limit`` of them."""
    names = [f"{character!r} (U+{ord(character):04X})" for character in characters[:limit]]
    return ", ".join(names) + (f" and {len(characters) - limit} more" if len(characters) > limit else "")


class CharTokenizer:
    """Characters to ids and back. The id of a character is its place in the vocabulary.

    Args:
        vocabulary: every known character, once each.

    Raises:
        ValueError: the vocabulary is empty or names a character twice.
    """

    def __init__(self, vocabulary: str) -> None:
        if not vocabulary:
            raise ValueError("The vocabulary is empty; it needs at least one character.")
        self.vocabulary = vocabulary
        self._codes = code_points(vocabulary)
        self._unknown = len(vocabulary)
        self._id_of_code = np.full(_CODE_POINTS, self._unknown, dtype=np.uint32)
        self._id_of_code[self._codes] = np.arange(len(vocabulary), dtype=np.uint32)
        if len(set(vocabulary)) != len(vocabulary):
            raise ValueError("The vocabulary names a character twice.")

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
            ValueError: a character is not in the vocabulary; the message names all of them.
        """
        codes = code_points(text)
        ids = self._id_of_code[codes]
        unknown = np.unique(codes[ids == self._unknown])
        if len(unknown):
            raise ValueError(
                f"{name_characters(''.join(map(chr, unknown)))}: not among the {len(self.vocabulary)} characters of "
                "the model's vocabulary, so the model has no id for it. Remove or replace it."
            )
        return ids.astype(self.dtype)

    def decode(self, ids: NDArray[np.integer]) -> str:
        """The text of ``ids``."""
        return self._codes[ids].tobytes().decode("utf-32-le", "surrogatepass")

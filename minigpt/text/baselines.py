"""How predictable a text is without any learning: the ladder against which a model's loss means something."""

import gzip
import lzma
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

SAMPLE = 10_000_000  # ids; enough for the figures, and quick


def ladder(ids: NDArray[np.integer], characters_of: NDArray[np.integer]) -> dict[str, float]:
    """Bits per character that simple means need for a text.

    Args:
        ids: the text; of a longer one the first 10,000,000 ids are looked at.
        characters_of: characters that each id of the vocabulary begins.

    Returns:
        By name, from the worst to the best as a rule: "uniform" (every id equally likely); "order 0", "order 1" and
        "order 2", the empirical entropy of an id given the 0, 1 or 2 before it (Shannon 1951, equation 1), which
        flatters a short text, whose contexts hardly recur; "gzip" and "xz", what those programs need.
    """
    ids = np.ascontiguousarray(ids[:SAMPLE])
    characters = max(1, int(characters_of[ids].sum()))
    per_character = len(ids) / characters
    result = {"uniform": np.log2(len(characters_of)) * per_character}
    for order in range(3):
        result[f"order {order}"] = conditional_entropy(ids, order) * per_character
    # The compressors get one byte per id, or four: what the characters are called is no matter of prediction.
    raw = ids.astype(np.uint8 if len(characters_of) <= 256 else np.uint32).tobytes()
    result["gzip"] = 8 * len(gzip.compress(raw, 9)) / characters
    result["xz"] = 8 * len(lzma.compress(raw, preset=6)) / characters
    return {name: float(value) for name, value in result.items()}


def conditional_entropy(ids: NDArray[np.integer], order: int) -> float:
    """H(next id | the ``order`` ids before it), in bits, of the counts in ``ids``."""
    if len(ids) <= order:
        return 0.0
    joint = _entropy_of_ngrams(ids, order + 1)
    return max(0.0, joint - (_entropy_of_ngrams(ids[:-1], order) if order else 0.0))


def _entropy_of_ngrams(ids: NDArray[np.integer], n: int) -> float:
    """The entropy of the ``n`` ids that stand together, in bits."""
    base = int(ids.max()) + 1
    keys = np.zeros(len(ids) - n + 1, dtype=np.int64)
    for i in range(n):
        keys = keys * base + ids[i : len(ids) - n + 1 + i]
    counts = np.bincount(keys) if base**n <= 1 << 24 else np.unique(keys, return_counts=True)[1]
    probabilities = counts[counts > 0] / len(keys)
    return float(-(probabilities * np.log2(probabilities)).sum())


def show(ladder: dict[str, float], own: float | None = None) -> Iterator[str]:
    """The ladder as lines of a table, with the model's own figure among them where it belongs."""
    rungs = dict(ladder) | ({"this model": own} if own is not None else {})
    for name, bits in sorted(rungs.items(), key=lambda rung: -rung[1]):
        yield f"  {name:<12}{bits:8.4f} bits per character" + ("   <--" if name == "this model" else "")

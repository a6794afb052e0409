"""How predictable a text is without any learning: the baselines against which a model's loss means something."""

import gzip
import lzma
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

SAMPLE = 10_000_000  # ids; enough for the figures, and quick


def baselines(ids: NDArray[np.integer], characters_of: NDArray[np.integer]) -> dict[str, float]:
    """Bits per character that simple predictors need for a text.

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
    # The compressors get one byte per id, or four: what the characters are called is no matter of prediction.
    raw = ids.astype(np.uint8 if len(characters_of) <= 256 else np.uint32).tobytes()
    bits = {"uniform": len(ids) * np.log2(len(characters_of))}
    bits |= {f"order {order}": len(ids) * conditional_entropy(ids, order) for order in range(3)}
    bits |= {"gzip": 8 * len(gzip.compress(raw, 9)), "xz": 8 * len(lzma.compress(raw, preset=6))}
    return {name: float(value / characters) for name, value in bits.items()}


def conditional_entropy(ids: NDArray[np.integer], order: int) -> float:
    """H(next id | the ``order`` ids before it), in bits, of the counts in ``ids``."""
    if len(ids) <= order:
        return 0.0
    return max(0.0, _entropy_of_ngrams(ids, order + 1) - (_entropy_of_ngrams(ids[:-1], order) if order else 0.0))


def _entropy_of_ngrams(ids: NDArray[np.integer], n: int) -> float:
    """The entropy of the ``n`` ids that stand together, in bits."""
    base = int(ids.max()) + 1
    keys = np.zeros(len(ids) - n + 1, dtype=np.int64)
    for i in range(n):
        keys = keys * base + ids[i : len(ids) - n + 1 + i]
    counts = np.bincount(keys) if base**n <= 1 << 24 else np.unique(keys, return_counts=True)[1]
    probabilities = counts[counts > 0] / len(keys)
    return float(-(probabilities * np.log2(probabilities)).sum())


def table(baselines: dict[str, float], own: float | None = None) -> Iterator[str]:
    """The baselines as lines of a table, with the model's own bits per character among them where it belongs."""
    rows = baselines | ({"this model": own} if own is not None else {})
    for name, bits in sorted(rows.items(), key=lambda row: -row[1]):
        yield f"  {name:<12}{bits:8.4f} bits per character" + ("   <--" if name == "this model" else "")

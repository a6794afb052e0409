"""Character n-grams as baselines: what counting the training text predicts of another one."""

import numpy as np
from numpy.typing import NDArray

from minigpt.text.corpus import Ids

CHUNK = 1 << 22  # ids of the training text that are looked at together


def ngram_bits(train: Ids, windows: NDArray[np.integer], vocab_size: int, orders: int = 5) -> NDArray[np.float64]:
    """Bits that n-gram models of the training text need for each token of other texts.

    The model of order k knows how often each token follows the k tokens before it in the training text. Where it has
    seen little it listens to that of order k - 1, and in the end to the uniform distribution (Witten and Bell 1991,
    method C): p(c | h) = (count(hc) + distinct(h) p(c | h')) / (count(h) + distinct(h)), where distinct(h) is the
    number of different tokens after h and h' is h without its first token.

    Only contexts that occur in ``windows`` are counted, so the memory that is needed doesn't grow with the text.

    Args:
        train: ids of the training text.
        windows: ids of the texts to predict, (W, T + 1).
        vocab_size: how many ids there are.
        orders: the highest order.

    Returns:
        (orders + 1, W, T + 1 - orders): those of the last tokens of each window, which have ``orders`` tokens before
        them. (The entropies of :mod:`minigpt.text.baselines` are those of a text that predicts itself.)
    """
    targets = windows[:, orders:].astype(np.int64)
    p, bits = np.full(targets.shape, 1 / vocab_size), []
    for order in range(orders + 1):
        wanted, where = np.unique(_contexts(windows, order, vocab_size)[:, orders - order :], return_inverse=True)
        pairs, counts = _followers(train, order, wanted, vocab_size)
        total = np.bincount(pairs // vocab_size, counts, len(wanted))
        distinct = np.bincount(pairs // vocab_size, minlength=len(wanted))
        keys = where.reshape(targets.shape) * vocab_size + targets
        found = np.minimum(np.searchsorted(pairs, keys), max(len(pairs) - 1, 0))
        count = np.where(pairs[found] == keys, counts[found], 0) if len(pairs) else np.zeros(keys.shape)
        n, d = total[keys // vocab_size], distinct[keys // vocab_size]
        p = np.where(n > 0, (count + d * p) / np.maximum(n + d, 1), p)
        bits.append(-np.log2(p))
    return np.stack(bits)


def _contexts(ids: NDArray[np.integer], order: int, vocab_size: int) -> NDArray[np.uint64]:
    """A number for the ``order`` ids before each but the first ``order`` ids, along the last axis.

    It is exact while vocab_size to the power of ``order`` is less than 2^64; beyond that two contexts may share one,
    by a chance of about one in 10^19.
    """
    length = ids.shape[-1] - order
    keys = np.zeros((*ids.shape[:-1], length), dtype=np.uint64)
    for i in range(order):
        keys = keys * np.uint64(vocab_size | 1) + ids[..., i : i + length].astype(np.uint64)
    return keys


def _followers(
    train: Ids, order: int, wanted: NDArray[np.uint64], vocab_size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which ids follow the contexts ``wanted``, as place of the context * vocab_size + id, sorted; and how often."""
    found: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64)]
    counted: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64)]
    for start in range(0, len(train) - order, CHUNK):
        ids = train[start : start + CHUNK + order]
        keys = _contexts(ids, order, vocab_size)
        place = np.minimum(np.searchsorted(wanted, keys), len(wanted) - 1)
        seen = wanted[place] == keys
        pairs, counts = np.unique(place[seen] * vocab_size + ids[order:][seen], return_counts=True)
        found.append(pairs)
        counted.append(counts)
    pairs, where = np.unique(np.concatenate(found), return_inverse=True)
    return pairs, np.bincount(where, np.concatenate(counted), len(pairs)).astype(np.int64)

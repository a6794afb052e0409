"""From logits to the next token."""

import math

import torch
from torch import Tensor

from minigpt.course.exercises import sizes

LESSON = 10
TITLE = "Choosing the next character"
DRAWS = 160  # of ten answers that keep one too many, nine are right by chance
STUB = '''
import torch


def choose(logits_V, temperature, top_k, uniform):
    """Draw the next id.

    Args:
        logits_V: the model's output at the last position, (V,).
        temperature: logits are divided by it; below 1 the likely gets likelier. 0 takes the likeliest.
        top_k: only the k largest logits stay; None keeps all.
        uniform: a random number from 0 to 1, not 1. The answer is the first id at which the sum of the probabilities
            of all ids up to it, in the order of the ids, is larger than this number.

    Returns:
        an id, a whole number from 0 to V - 1
    """
    raise NotImplementedError
'''
HINTS = [
    "Three probabilities, 0.2, 0.5 and 0.3, and a random number 0.6: which id? And for 0.1?",
    "logits, probabilities and their running sums are (V,). The answer is one number.",
    "temperature 0: argmax. Else divide; all but the k largest to -inf; softmax; cumsum; count the sums <= uniform",
    "minigpt/generation.py, probabilities and draw",
]


def inputs(generator: torch.Generator) -> tuple[Tensor, float, int | None, float]:
    V, k = 8 + sizes(generator, 1)[0], 3 + sizes(generator, 1)[0]
    logits_V = 2 * torch.randn(V, generator=generator, dtype=torch.float64)
    kind = int(torch.randint(8, (), generator=generator))
    temperature = (0.0, 0.6, 0.6, 0.6, 1.7, 1.7, 1.7, 1.0)[kind]
    top_k = (None, k, k, None, k, k, None, k)[kind]
    return logits_V, temperature, top_k, float(torch.rand((), generator=generator, dtype=torch.float64))


def specification(logits_V: Tensor, temperature: float, top_k: int | None, uniform: float) -> int:
    logits = logits_V.tolist()
    if temperature == 0:
        return logits.index(max(logits))
    kept = sorted(range(len(logits)), key=lambda i: -logits[i])[:top_k]
    weights = [math.exp((logits[i] - max(logits)) / temperature) if i in kept else 0.0 for i in range(len(logits))]
    total, seen = sum(weights), 0.0
    for i, weight in enumerate(weights):
        seen += weight / total
        if weight and seen > uniform:
            return i
    return max(kept)


def _choose(
    logits_V: Tensor,
    temperature: float,
    top_k: int | None,
    uniform: float,
    times: bool = False,
    hidden: float = -math.inf,
) -> int:
    if temperature == 0:
        return int(logits_V.argmax())
    logits_V = logits_V * temperature if times else logits_V / temperature
    if top_k is not None:
        logits_V = logits_V.masked_fill(logits_V < logits_V.topk(top_k).values[-1], hidden)
    sums_V = logits_V.softmax(-1).cumsum(-1)
    return int((sums_V <= uniform * sums_V[-1]).sum())


def solution(logits_V: Tensor, temperature: float, top_k: int | None, uniform: float) -> int:
    return _choose(logits_V, temperature, top_k, uniform)


def _sorted(logits_V: Tensor, temperature: float, top_k: int | None, uniform: float) -> int:
    if temperature == 0:
        return int(logits_V.argmax())
    sorted_V, order_V = (logits_V / temperature).sort(descending=True)
    if top_k is not None:
        sorted_V[top_k:] = -math.inf
    return int(order_V[min(int((sorted_V.softmax(-1).cumsum(-1) <= uniform).sum()), len(order_V) - 1)])


def _not_renormalised(logits_V: Tensor, temperature: float, top_k: int | None, uniform: float) -> int:
    if temperature == 0:
        return int(logits_V.argmax())
    probabilities_V = (logits_V / temperature).softmax(-1)
    if top_k is not None:
        probabilities_V = probabilities_V.masked_fill(logits_V < logits_V.topk(top_k).values[-1], 0.0)
    return min(int((probabilities_V.cumsum(-1) <= uniform).sum()), len(logits_V) - 1)


def _place_among_kept(logits_V: Tensor, temperature: float, top_k: int | None, uniform: float) -> int:
    if temperature == 0 or top_k is None:
        return _choose(logits_V, temperature, top_k, uniform)
    return min(int(((logits_V.topk(top_k).values / temperature).softmax(-1).cumsum(-1) <= uniform).sum()), top_k - 1)


def _cut_after(logits_V: Tensor, temperature: float, top_k: int | None, uniform: float) -> int:
    if temperature == 0:
        return int(logits_V.argmax())
    probabilities, end = (logits_V / temperature).softmax(-1).tolist(), 0.0
    kept = logits_V.topk(top_k or len(logits_V)).indices.tolist()
    for i, probability in enumerate(probabilities):
        end += probability if i in kept else 0.0
        if uniform < end:
            return i
    return max(kept)


WRONG = [
    ("You multiply by the temperature: divide by it.", lambda z, t, k, u: _choose(z, t, k, u, times=True)),
    (
        "At temperature 0 you divide by 0, and draw the first id of what comes of it: take the likeliest there.",
        lambda z, t, k, u: _choose(z, t, k, u) if t else 0,
    ),
    (
        "At temperature 0 you divide by 0, and draw the last id of what comes of it: take the likeliest there.",
        lambda z, t, k, u: _choose(z, t, k, u) if t else len(z) - 1,
    ),
    ("You give the place among the k that are kept: wanted is the id.", _place_among_kept),
    ("You cut to the k largest after the softmax, and draw as if they summed to 1: cut before it.", _cut_after),
    ("You ignore the temperature.", lambda z, t, k, u: _choose(z, t and 1.0, k, u)),
    ("You ignore top_k.", lambda z, t, k, u: _choose(z, t, None, u)),
    ("You always take the likeliest: draw.", lambda z, t, k, u: int(z.argmax())),
    ("You sum the probabilities from the likeliest down: sum them in the order of the ids.", _sorted),
    (
        "You cut to the k largest after the softmax, so that what is left doesn't sum to 1: cut before it.",
        _not_renormalised,
    ),
    (
        "You set the logits that are cut to 0: exp(0) is 1. Use -inf.",
        lambda z, t, k, u: _choose(z, t, k, u, hidden=0.0),
    ),
    ("You keep one more than k.", lambda z, t, k, u: _choose(z, t, k and k + 1, u)),
    ("You keep one fewer than k.", lambda z, t, k, u: _choose(z, t, k and k - 1, u)),
    ("Your answer is one too high.", lambda z, t, k, u: min(_choose(z, t, k, u) + 1, len(z) - 1)),
    ("You draw uniformly: all ids alike.", lambda z, t, k, u: int(u * len(z))),
]

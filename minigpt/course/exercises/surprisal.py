"""What each token costs."""

import math

import torch
from torch import Tensor

from minigpt.course.exercises import sizes

LESSON = 1
TITLE = "The price of a character"
STUB = '''
import torch


def surprisal(probabilities_TV, ids_T):
    """What each token costs, in nats: -log of the probability that it was given.

    Args:
        probabilities_TV: what was expected at each of T positions, (T, V): V probabilities that sum to 1.
        ids_T: the token that came at each position, (T,), whole numbers from 0 to V - 1.

    Returns:
        (T,)
    """
    raise NotImplementedError
'''
HINTS = [
    "If the model gave the right character the probability 1, what should it cost? And if 0.5?",
    "probabilities_TV is (T, V), ids_T is (T,); wanted is (T,): one probability out of each row.",
    "for each position t: take probabilities_TV[t, ids_T[t]]; then minus the natural logarithm of it",
    "-probabilities_TV[torch.arange(len(ids_T)), ids_T].log(); the program starts from logits: F.cross_entropy in "
    "minigpt/training/module.py",
]


def inputs(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    T, V = sizes(generator, 2, least=5)
    scores_TV = torch.randn(T, V, generator=generator, dtype=torch.float64)
    return scores_TV.softmax(-1).requires_grad_(), torch.randint(V, (T,), generator=generator)


def specification(probabilities_TV: Tensor, ids_T: Tensor) -> Tensor:
    return torch.stack([-probabilities_TV[t, int(ids_T[t])].log() for t in range(len(ids_T))])


def solution(probabilities_TV: Tensor, ids_T: Tensor) -> Tensor:
    return -probabilities_TV[torch.arange(len(ids_T)), ids_T].log()


def _taken(probabilities_TV: Tensor, ids_T: Tensor) -> Tensor:
    return probabilities_TV[torch.arange(len(ids_T)), ids_T]


WRONG = [
    (
        "The sign is missing: a cost is positive, and the logarithm of a probability negative.",
        lambda p, ids: _taken(p, ids).log(),
    ),
    ("You take the logarithm to base 2, which gives bits; wanted are nats.", lambda p, ids: -_taken(p, ids).log2()),
    ("You return the probability itself: take minus its logarithm.", lambda p, ids: _taken(p, ids)),
    ("You return 1 - p: that is how often it is wrong, not what it costs.", lambda p, ids: 1 - _taken(p, ids)),
    ("You return 1 / p: take its logarithm.", lambda p, ids: 1 / _taken(p, ids)),
    ("You return the mean; wanted is the cost at each position.", lambda p, ids: -_taken(p, ids).log().mean()),
    (
        "You return the entropy, the cost to be expected; wanted is the cost of what came.",
        lambda p, ids: -(p * p.log()).sum(-1),
    ),
    (
        "You take the likeliest token's probability; wanted is that of the one that came.",
        lambda p, ids: -p.amax(-1).log(),
    ),
    (
        "You take the logarithm to base 10; wanted is the natural one.",
        lambda p, ids: -_taken(p, ids).log() / math.log(10),
    ),
]

RAISES = [
    (
        "gather wants an index with as many dimensions: ids.unsqueeze(-1), and squeeze(-1) afterwards.",
        lambda probabilities, ids: probabilities.gather(-1, ids),
    ),
]

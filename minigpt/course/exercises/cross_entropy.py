"""The loss."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.course.exercises import sizes

Answer = Callable[..., Any]

LESSON = 3
TITLE = "The loss that training makes small"
STUB = '''
import torch


def cross_entropy(logits_BTV, targets_BT):
    """The mean surprisal of the targets, in nats.

    Args:
        logits_BTV: a number for each token of the vocabulary, at each position, (B, T, V). The probabilities are
            exp(logit) / (the sum of exp over all V).
        targets_BT: the ids that came, (B, T).

    Returns:
        one number: a tensor without dimensions. It must not overflow for logits of 1000.
    """
    raise NotImplementedError
'''
HINTS = [
    "exp(1000) is infinite. What can be taken from all logits of a position without a change of the probabilities?",
    "logits_BTV is (B, T, V); the normaliser is (B, T); the logits of the targets are (B, T); wanted is ().",
    "-log(exp(z) / sum(exp)) = log(sum(exp)) - z; torch.logsumexp computes the first part without overflow",
    "minigpt/training/module.py: F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())",
]


def inputs(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    B, T, V = sizes(generator, 3, least=3)
    logits_BTV = 3 * torch.randn(B, T, V, generator=generator, dtype=torch.float64)
    targets_BT = torch.randint(V, (B, T), generator=generator)
    logits_BTV[0, 0] += 1000
    logits_BTV[1, 2, targets_BT[1, 2]] -= 1000  # as probability it is 0, and its logarithm is not finite
    return logits_BTV.requires_grad_(), targets_BT


def specification(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    B, T, V = logits_BTV.shape
    total = logits_BTV.new_zeros(())
    for b in range(B):
        for t in range(T):
            most = float(logits_BTV[b, t].detach().max())
            normaliser = sum(((logits_BTV[b, t, v] - most).exp() for v in range(V)), logits_BTV.new_zeros(()))
            total = total + normaliser.log() + most - logits_BTV[b, t, int(targets_BT[b, t])]
    return total / (B * T)


def solution(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    taken_BT = logits_BTV.gather(-1, targets_BT.unsqueeze(-1)).squeeze(-1)
    return (logits_BTV.logsumexp(-1) - taken_BT).mean()


def _naive(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    probabilities_BTV = logits_BTV.exp() / logits_BTV.exp().sum(-1, keepdim=True)
    return -probabilities_BTV.gather(-1, targets_BT.unsqueeze(-1)).log().mean()


def _minus_largest_of_all(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    less_BTV = logits_BTV - logits_BTV.max()
    taken_BT = less_BTV.gather(-1, targets_BT.unsqueeze(-1)).squeeze(-1)
    return (less_BTV.exp().sum(-1).log() - taken_BT).mean()


def _logarithm_of_softmax(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    return -logits_BTV.softmax(-1).gather(-1, targets_BT.unsqueeze(-1)).log().mean()


def _per_batch(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    return solution(logits_BTV, targets_BT) * targets_BT.shape[1]


def _over(dimension: int) -> Answer:
    def wrong(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
        log_BTV = logits_BTV - logits_BTV.logsumexp(dimension, keepdim=True)
        return -log_BTV.gather(-1, targets_BT.unsqueeze(-1)).mean()

    return wrong


WRONG = [
    (
        "exp overflows: your loss is not a number for logits of 1000. Subtract the largest first, or use logsumexp.",
        _naive,
    ),
    (
        "You take the logarithm of a softmax: a probability of e^-1000 is 0 by then, and its logarithm is infinite. "
        "Use log_softmax or logsumexp, which never make the probability.",
        _logarithm_of_softmax,
    ),
    (
        "You subtract the largest of all logits: where a position's own are far below it, exp gives 0 and the "
        "logarithm is infinite. Subtract the largest of each position.",
        _minus_largest_of_all,
    ),
    ("You sum over all positions; wanted is the mean.", lambda z, y: solution(z, y) * y.numel()),
    ("You divide by B alone: the mean is over all B * T positions.", _per_batch),
    ("Your softmax runs over the positions; it must run over the vocabulary.", _over(1)),
    ("Your softmax runs over the batch; it must run over the vocabulary.", _over(0)),
    ("The sign is wrong: training would make the right answer unlikely.", lambda z, y: -solution(z, y)),
    ("You count only the last position. Every position is an example.", lambda z, y: solution(z[:, -1:], y[:, -1:])),
    (
        "You measure in bits; wanted are nats: no logarithm to base 2.",
        lambda z, y: solution(z, y) / torch.log(torch.tensor(2.0, dtype=z.dtype)),
    ),
    (
        "You leave out the normaliser: -logit alone can be made small without end.",
        lambda z, y: -z.gather(-1, y.unsqueeze(-1)).mean(),
    ),
    (
        "You use the model's probability instead of its logarithm.",
        lambda z, y: -z.softmax(-1).gather(-1, y.unsqueeze(-1)).mean(),
    ),
]

RAISES = [
    (
        "F.cross_entropy and F.nll_loss take (N, V) and (N): flatten batch and positions of both into one dimension.",
        lambda logits, targets: F.cross_entropy(logits, targets),
    ),
    (
        "gather wants an index with as many dimensions: targets.unsqueeze(-1), and squeeze(-1) afterwards.",
        lambda logits, targets: logits.gather(-1, targets),
    ),
]

"""Layer normalisation."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from minigpt.course.exercises import sizes

Answer = Callable[..., Any]

LESSON = 8
TITLE = "Layer normalisation"
STUB = '''
import torch


def layer_norm(x_BTC, weight_C, bias_C, eps):
    """Bring the channels of each position to mean 0 and variance 1, then scale and shift them (Ba et al. 2016).

    Args:
        x_BTC: (B, T, C)
        weight_C: gains, (C,)
        bias_C: (C,)
        eps: added to the variance, under the root. The variance is the biased one: divided by C.

    Returns:
        (B, T, C)
    """
    raise NotImplementedError
'''
HINTS = [
    "One position of one text: which numbers is its mean the mean of?",
    "mean and variance are (B, T, 1): over the last dimension, which is kept so that they can be taken from (B, T, C).",
    "(x - mean) / sqrt(variance + eps) * weight + bias",
    "minigpt/model.py, LayerNorm.forward: torch.var_mean(x_BTC, -1, correction=0, keepdim=True), then one line",
]


def inputs(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, float]:
    B, T, C = sizes(generator, 3, least=3)
    x_BTC = 0.5 + 2 * torch.randn(B, T, C, generator=generator, dtype=torch.float64)
    x_BTC[0, 0] *= 0.03  # so small that eps counts
    weight_C = 1 + 0.2 * torch.randn(C, generator=generator, dtype=torch.float64)
    bias_C = 0.2 * torch.randn(C, generator=generator, dtype=torch.float64)
    eps = 1e-3 * (1 + float(torch.rand((), generator=generator)))
    return x_BTC.requires_grad_(), weight_C.requires_grad_(), bias_C.requires_grad_(), eps


def specification(x_BTC: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float) -> Tensor:
    B, T, C = x_BTC.shape
    positions = []
    for b in range(B):
        for t in range(T):
            channels = [x_BTC[b, t, c] for c in range(C)]
            mean = sum(channels[1:], channels[0]) / C
            squares = [(value - mean) ** 2 for value in channels]
            variance = sum(squares[1:], squares[0]) / C
            normed = [(channels[c] - mean) / (variance + eps) ** 0.5 * weight_C[c] + bias_C[c] for c in range(C)]
            positions.append(torch.stack(normed))
    return torch.stack(positions).view(B, T, C)


def solution(x_BTC: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float) -> Tensor:
    return _over(-1)(x_BTC, weight_C, bias_C, eps)


def _over(dimension: int | tuple[int, ...], correction: int = 0) -> Answer:
    def norm(x_BTC: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float) -> Tensor:
        variance, mean = torch.var_mean(x_BTC, dimension, correction=correction, keepdim=True)
        return (x_BTC - mean) / (variance + eps).sqrt() * weight_C + bias_C

    return norm


def _eps_outside(x_BTC: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float) -> Tensor:
    deviation, mean = torch.std_mean(x_BTC, -1, correction=0, keepdim=True)
    return (x_BTC - mean) / (deviation + eps) * weight_C + bias_C


def _without_mean(x_BTC: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float) -> Tensor:
    return x_BTC / (x_BTC.square().mean(-1, keepdim=True) + eps).sqrt() * weight_C + bias_C


def _by_variance(x_BTC: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float) -> Tensor:
    variance, mean = torch.var_mean(x_BTC, -1, correction=0, keepdim=True)
    return (x_BTC - mean) / (variance + eps) * weight_C + bias_C


def _detached(x_BTC: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float) -> Tensor:
    variance, mean = torch.var_mean(x_BTC.detach(), -1, correction=0, keepdim=True)
    return (x_BTC - mean) / (variance + eps).sqrt() * weight_C + bias_C


BATCH = "You normalise over the batch: that is batch norm. Here each position is normalised by its own channels."

WRONG = [
    (BATCH, _over(0)),
    (f"{BATCH} (And the variance is divided by the number of values, not by one less.)", _over(0, correction=1)),
    ("You normalise over batch and positions, as batch norm does: each position has its own mean.", _over((0, 1))),
    (
        "You normalise over batch and positions, as batch norm does, by a variance divided by one less than the number "
        "of values: each position has its own mean and variance, the latter divided by C.",
        _over((0, 1), correction=1),
    ),
    (
        "You normalise over the positions of a text: the mean would know the future. Each position has its own.",
        _over(1),
    ),
    (
        "You normalise over the positions of a text, by a variance divided by T - 1: each position has its own mean "
        "and variance, the latter divided by C.",
        _over(1, correction=1),
    ),
    ("You normalise over positions and channels together: each position has its own mean.", _over((1, 2))),
    ("Your variance is divided by C - 1: wanted is the biased one, divided by C.", _over(-1, correction=1)),
    ("Your eps stands outside the root: it is added to the variance, under it.", _eps_outside),
    ("You don't take the mean off: that is another norm, RMSNorm.", _without_mean),
    ("You divide by the variance: divide by its root.", _by_variance),
    ("You add 1e-5, PyTorch's usual eps: add the one that is given.", lambda x, w, b, eps: _over(-1)(x, w, b, 1e-5)),
    ("Your eps is missing.", lambda x, w, b, eps: _over(-1)(x, w, b, 0.0)),
    ("Gain and bias are missing.", lambda x, w, b, eps: _over(-1)(x, torch.ones_like(w), torch.zeros_like(b), eps)),
    ("You add the bias before you scale.", lambda x, w, b, eps: (_over(-1)(x, torch.ones_like(w), b, eps)) * w),
    ("The values are right, but no gradient flows through mean and variance: don't detach them.", _detached),
]

KEPT = "A mean or variance has lost a dimension: over the channels, with keepdim=True, it is (B, T, 1)."
RAISES = [(KEPT, lambda x, w, b, eps: x - x.mean(-1)), (KEPT, lambda x, w, b, eps: x - x.mean(1))]

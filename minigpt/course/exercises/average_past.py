"""Attention without a choice: the mean of the past."""

import torch
from torch import Tensor

from minigpt.course.exercises import sizes

LESSON = 4
TITLE = "Averaging the past"
STUB = '''
import torch


def average_past(x_BTC):
    """At each position the mean of the vectors up to it, itself included.

    Args:
        x_BTC: (B, T, C)

    Returns:
        (B, T, C), at position t the mean of x_BTC[:, 0], ... x_BTC[:, t]
    """
    raise NotImplementedError
'''
HINTS = [
    "Write it as a loop first. Then: which matrix, multiplied with x, does the same?",
    "A (T, T) matrix times (B, T, C) is (B, T, C). Row t of the matrix has t + 1 numbers that are not 0.",
    "ones below and on the diagonal; divide each row by its sum; multiply. Or: softmax over scores of 0, -inf above it",
    "minigpt/model.py, attend: softmax(scores.masked_fill(future, -inf)) @ value, with all scores 0",
]


def inputs(generator: torch.Generator) -> tuple[Tensor]:
    B, T, C = sizes(generator, 3)
    return (torch.randn(B, T, C, generator=generator, dtype=torch.float64).requires_grad_(),)


def specification(x_BTC: Tensor) -> Tensor:
    B, T, _ = x_BTC.shape
    rows = []
    for b in range(B):
        row = []
        for t in range(T):
            total = x_BTC[b, 0]
            for s in range(1, t + 1):
                total = total + x_BTC[b, s]
            row.append(total / (t + 1))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def solution(x_BTC: Tensor) -> Tensor:
    T = x_BTC.shape[1]
    weight_TS = torch.ones(T, T, dtype=x_BTC.dtype).tril()
    return weight_TS / weight_TS.sum(-1, keepdim=True) @ x_BTC


def _strictly(x_BTC: Tensor) -> Tensor:
    T = x_BTC.shape[1]
    weight_TS = torch.ones(T, T, dtype=x_BTC.dtype).tril(-1)
    return weight_TS / weight_TS.sum(-1, keepdim=True).clamp(min=1) @ x_BTC


def _strictly_by_division(x_BTC: Tensor) -> Tensor:
    T = x_BTC.shape[1]
    weight_TS = torch.ones(T, T, dtype=x_BTC.dtype).tril(-1)
    return weight_TS / weight_TS.sum(-1, keepdim=True) @ x_BTC


def _one_more(x_BTC: Tensor) -> Tensor:
    T = x_BTC.shape[1]
    weight_TS = torch.ones(T, T, dtype=x_BTC.dtype).tril(1)
    return weight_TS / weight_TS.sum(-1, keepdim=True) @ x_BTC


def _columns(x_BTC: Tensor) -> Tensor:
    T = x_BTC.shape[1]
    weight_TS = torch.ones(T, T, dtype=x_BTC.dtype).tril()
    return weight_TS / weight_TS.sum(0, keepdim=True) @ x_BTC


WRONG = [
    (
        "You average over the future too: at position t only 0 to t count.",
        lambda x: x.mean(1, keepdim=True).expand_as(x),
    ),
    ("You leave out the position itself: the mean is over 0 to t.", _strictly),
    ("You see one position too far: a mask that is off by one lets t see t + 1.", _one_more),
    ("You sum and don't divide: wanted is the mean.", lambda x: x.cumsum(1)),
    (
        "You leave out the position itself, so position 0 averages nothing and is no number: the mean is over 0 to t.",
        _strictly_by_division,
    ),
    (
        "You divide by t at position t: from 0 to t there are t + 1 vectors.",
        lambda x: x.cumsum(1) / torch.arange(x.shape[1]).clamp(min=1).view(-1, 1),
    ),
    (
        "You sum and count over the batch, which is the first dimension: sum over the positions, dimension 1.",
        lambda x: x.cumsum(0) / torch.arange(1, len(x) + 1).view(-1, 1, 1),
    ),
    (
        "You sum over the batch, its first dimension: sum over the positions, dimension 1.",
        lambda x: x.cumsum(0) / torch.arange(1, x.shape[1] + 1).view(-1, 1),
    ),
    ("You divide by T everywhere: at position t there are t + 1 vectors.", lambda x: x.cumsum(1) / x.shape[1]),
    ("You divide each column by its sum; the rows must sum to 1.", _columns),
    (
        "You average over the channels: wanted is the mean over positions.",
        lambda x: x.mean(-1, keepdim=True).expand_as(x),
    ),
    ("You look at the future instead of the past.", lambda x: solution(x.flip(1)).flip(1)),
    (
        "You average over the batch: the texts of a batch know nothing of each other.",
        lambda x: solution(x).mean(0, keepdim=True).expand_as(x),
    ),
]

RAISES = [
    (
        "Numbers for T positions meet C channels: divide by a column, [:, None]; weights (T, T) need @ and not *.",
        lambda x: x.cumsum(1) / torch.arange(1, x.shape[1] + 1),
    ),
    (
        "Weights (T, T) stand on the left, (T, T) @ (B, T, C): they mix positions, not channels.",
        lambda x: x @ torch.ones(x.shape[1], x.shape[1], dtype=x.dtype),
    ),
]

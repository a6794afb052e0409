"""Sines that tell positions apart."""

import math

import torch
from torch import Tensor

LESSON = 7
TITLE = "Order: a table of sines"
STUB = '''
import torch


def position_table(block_size, n_embd):
    """A vector for each position: PE(t, 2i) = sin(t / 10000^(2i/C)), PE(t, 2i+1) = cos(t / 10000^(2i/C)).

    (Vaswani et al. 2017, section 3.5)

    Args:
        block_size: positions, T.
        n_embd: channels, C, an even number.

    Returns:
        (T, C), float64
    """
    raise NotImplementedError
'''
HINTS = [
    "How many different frequencies are there? Which channels share one?",
    "t is a column (T, 1), the frequency a row (C / 2): angles (T, C / 2). Sine and cosine take turns along C.",
    "angle = t / 10000 ** (2i / C), 2i = 0, 2, 4 ...; stack sine and cosine in a last dimension of 2; flatten it",
    "minigpt/model.py, SinusoidalEmbedding.__init__: two lines",
]


def inputs(generator: torch.Generator) -> tuple[int, int]:
    return int(torch.randint(5, 12, (), generator=generator)), 2 * int(torch.randint(7, 10, (), generator=generator))


def specification(block_size: int, n_embd: int) -> Tensor:
    table_TC = torch.empty(block_size, n_embd, dtype=torch.float64)
    for t in range(block_size):
        for i in range(n_embd // 2):
            angle = t / 10000 ** (2 * i / n_embd)
            table_TC[t, 2 * i] = math.sin(angle)
            table_TC[t, 2 * i + 1] = math.cos(angle)
    return table_TC


def _angles(block_size: int, n_embd: int, base: float = 10000.0) -> Tensor:
    exponent_I = torch.arange(0, n_embd, 2, dtype=torch.float64) / n_embd
    return torch.arange(block_size, dtype=torch.float64).unsqueeze(1) / base**exponent_I


def _table(angle_TI: Tensor) -> Tensor:
    return torch.stack((angle_TI.sin(), angle_TI.cos()), dim=-1).flatten(1)


def solution(block_size: int, n_embd: int) -> Tensor:
    return _table(_angles(block_size, n_embd))


def _doubled(block_size: int, n_embd: int) -> Tensor:
    exponent_I = 2 * torch.arange(0, n_embd, 2, dtype=torch.float64) / n_embd
    return _table(torch.arange(block_size, dtype=torch.float64).unsqueeze(1) / 10000**exponent_I)


def _halves(block_size: int, n_embd: int) -> Tensor:
    angle_TI = _angles(block_size, n_embd)
    return torch.cat((angle_TI.sin(), angle_TI.cos()), dim=-1)


def _swapped(block_size: int, n_embd: int) -> Tensor:
    angle_TI = _angles(block_size, n_embd)
    return torch.stack((angle_TI.cos(), angle_TI.sin()), dim=-1).flatten(1)


def _every_channel(block_size: int, n_embd: int) -> Tensor:
    exponent_C = torch.arange(n_embd, dtype=torch.float64) / n_embd
    angle_TC = torch.arange(block_size, dtype=torch.float64).unsqueeze(1) / 10000**exponent_C
    return torch.where(torch.arange(n_embd) % 2 == 0, angle_TC.sin(), angle_TC.cos())


def _from_one(block_size: int, n_embd: int) -> Tensor:
    return solution(block_size + 1, n_embd)[1:]


WRONG = [
    ("Your sines stand in the first half of the channels and your cosines in the second: they take turns.", _halves),
    ("Sine and cosine are swapped: even channels have the sine.", _swapped),
    ("Your exponent is twice too large: for channels 2i and 2i + 1 it is 2i / C.", _doubled),
    ("Each channel has a frequency of its own; channels 2i and 2i + 1 share one.", _every_channel),
    ("Your positions begin at 1: the first is 0.", _from_one),
    ("You multiply by 10000^(2i/C) instead of dividing.", lambda T, C: _table(_angles(T, C, 1 / 10000))),
    ("You use 1,000 instead of 10,000.", lambda T, C: _table(_angles(T, C, 1000.0))),
    ("Your table stands on its side: wanted is (T, C).", lambda T, C: solution(T, C).T),
]

RAISES = [
    (
        "Positions and frequencies need a dimension each: arange(T)[:, None] / (...) is a row for each position.",
        lambda T, C: torch.arange(T) / 10000 ** (torch.arange(0, C, 2) / C),
    ),
]

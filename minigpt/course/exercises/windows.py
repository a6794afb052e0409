"""Inputs, and targets one later."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from minigpt.course.exercises import sizes

Answer = Callable[..., Any]

LESSON = 2
TITLE = "Windows: every position is an example"
STUB = '''
import torch


def windows(ids_N, starts_B, block_size):
    """Cut windows out of a text: what the model reads, and what it is to predict at each position.

    Args:
        ids_N: a text as ids, (N,).
        starts_B: where the windows begin, (B,); none begins later than at N - block_size - 1.
        block_size: tokens of a window, T.

    Returns:
        inputs (B, T), and targets (B, T): at each position the id that follows the input there.
    """
    raise NotImplementedError
'''
HINTS = [
    "In the window 'the ra' of 'the rat': what is the target of its first character, and of its last?",
    "ids_N is (N,), starts_B is (B,). Both results are (B, T). One window needs T + 1 ids.",
    "at = starts, as a column, plus 0, 1, ... T - 1, as a row; inputs = ids at these; targets = ids at these + 1",
    "minigpt/text/windows.py: ids[starts_B[:, None] + arange(T + 1)], then [:, :-1] and [:, 1:]",
]


def inputs(generator: torch.Generator) -> tuple[Tensor, Tensor, int]:
    B, T = sizes(generator, 2, least=3)
    N = 40 + sizes(generator, 1)[0]
    ids_N = torch.randperm(N, generator=generator)
    return ids_N, torch.randint(1, N - T - 1, (B,), generator=generator), T


def specification(ids_N: Tensor, starts_B: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    inputs_BT = torch.empty(len(starts_B), block_size, dtype=ids_N.dtype)
    targets_BT = inputs_BT.clone()
    for b in range(len(starts_B)):
        for t in range(block_size):
            inputs_BT[b, t] = ids_N[starts_B[b] + t]
            targets_BT[b, t] = ids_N[starts_B[b] + t + 1]
    return inputs_BT, targets_BT


def solution(ids_N: Tensor, starts_B: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    windows_BT = ids_N[starts_B[:, None] + torch.arange(block_size + 1)]
    return windows_BT[:, :-1], windows_BT[:, 1:]


def _shifted(by: int) -> Answer:
    def wrong(ids_N: Tensor, starts_B: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
        positions_BT = starts_B[:, None] + torch.arange(block_size)
        return ids_N[positions_BT], ids_N[(positions_BT + by) % len(ids_N)]

    return wrong


def _last_only(ids_N: Tensor, starts_B: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    return solution(ids_N, starts_B, block_size)[0], ids_N[starts_B + block_size]


def _too_short(ids_N: Tensor, starts_B: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    inputs_BT, targets_BT = solution(ids_N, starts_B, block_size)
    return inputs_BT[:, :-1], targets_BT[:, :-1]


def _transposed(ids_N: Tensor, starts_B: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    inputs_BT, targets_BT = solution(ids_N, starts_B, block_size)
    return inputs_BT.T, targets_BT.T


WRONG = [
    ("Your targets are the inputs: shifted by 0. Then the task is to copy, and the loss falls to 0.", _shifted(0)),
    ("Your targets are two later than the inputs: shift by 1.", _shifted(2)),
    ("Your targets are one earlier than the inputs: the model would predict what it has read.", _shifted(-1)),
    ("You give only the last position a target. Every position is an example: T of them in a window.", _last_only),
    ("Your windows have T - 1 positions: cut T + 1 ids, and both parts have T.", _too_short),
    ("Your windows stand in columns: wanted is (B, T), a window in each row.", _transposed),
    ("You swap inputs and targets.", lambda ids, starts, T: solution(ids, starts, T)[::-1]),
    ("Your windows begin one too late.", lambda ids, starts, T: solution(ids, starts + 1, T)),
    ("Your windows begin at 0 and not at their starts.", lambda ids, starts, T: solution(ids, starts * 0, T)),
]

RAISES = [
    (
        "Starts and steps need a dimension each: starts[:, None] + arange is (B, T), a row for each start.",
        lambda ids, starts, size: ids[starts + torch.arange(size)],
    ),
    (
        "There are B starts, where Python takes one number, as in a slice: index by starts[:, None] + arange.",
        lambda ids, starts, size: ids[starts : starts + size],
    ),
]

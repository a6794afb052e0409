"""Channels to heads."""

import torch
from torch import Tensor

from minigpt.course.exercises import sizes

LESSON = 6
TITLE = "Heads: the same channels, shared out"
STUB = '''
import torch


def split_heads(qkv_BTE, n_head):
    """Share out the channels of queries, keys and values to the heads.

    Args:
        qkv_BTE: what one linear map gives, (B, T, E) with E = 3 * C: C channels of queries, then C of keys, then C of
            values. Head h has the channels h * D to (h + 1) * D of each, D = C / H.
        n_head: H.

    Returns:
        query, key and value, each (B, H, T, D)
    """
    raise NotImplementedError
'''
HINTS = [
    "view only says anew how one row of numbers in memory is to be read. In which order do they lie there?",
    "(B, T, 3 * H * D) can be viewed as (B, T, 3, H, D) ; other views mix them. From there to three of (B, H, T, D).",
    "chunk into three of (B, T, C); view each as (B, T, H, D); transpose 1 and 2",
    "minigpt/model.py: self.qkv(x_BTC).view(B, T, 3, n_head, C // n_head).permute(2, 0, 3, 1, 4)",
]


def inputs(generator: torch.Generator) -> tuple[Tensor, int]:
    B, T, H, D = sizes(generator, 4)
    return torch.randn(B, T, 3 * H * D, generator=generator, dtype=torch.float64).requires_grad_(), H


def specification(qkv_BTE: Tensor, n_head: int) -> tuple[Tensor, ...]:
    B, T, E = qkv_BTE.shape
    C = E // 3
    D = C // n_head
    parts = []
    for part in range(3):
        part_BHTD = torch.empty(B, n_head, T, D, dtype=qkv_BTE.dtype)
        for h in range(n_head):
            for d in range(D):
                part_BHTD[:, h, :, d] = qkv_BTE[:, :, part * C + h * D + d]
        parts.append(part_BHTD)
    return tuple(parts)


def solution(qkv_BTE: Tensor, n_head: int) -> tuple[Tensor, ...]:
    B, T, E = qkv_BTE.shape
    return tuple(qkv_BTE.view(B, T, 3, n_head, E // 3 // n_head).permute(2, 0, 3, 1, 4))


def _viewed(qkv_BTE: Tensor, n_head: int) -> tuple[Tensor, ...]:
    B, T, E = qkv_BTE.shape
    return tuple(part.reshape(B, n_head, T, E // 3 // n_head) for part in qkv_BTE.chunk(3, -1))


def _parts_last(qkv_BTE: Tensor, n_head: int) -> tuple[Tensor, ...]:
    B, T, E = qkv_BTE.shape
    return tuple(qkv_BTE.view(B, T, n_head, 3, E // 3 // n_head).permute(3, 0, 2, 1, 4))


def _interleaved(qkv_BTE: Tensor, n_head: int) -> tuple[Tensor, ...]:
    B, T, E = qkv_BTE.shape
    return tuple(part.view(B, T, E // 3 // n_head, n_head).permute(0, 3, 1, 2) for part in qkv_BTE.chunk(3, -1))


def _not_moved(qkv_BTE: Tensor, n_head: int) -> tuple[Tensor, ...]:
    return tuple(part.transpose(1, 2) for part in solution(qkv_BTE, n_head))


WRONG = [
    (
        "You view (B, T, C) as (B, H, T, D), which mixes positions. View as (B, T, H, D), then transpose.",
        _viewed,
    ),
    (
        "Your heads have queries, keys and values side by side; here all queries come first, then keys, then values.",
        _parts_last,
    ),
    ("Your heads have every H-th channel: head h has D channels that lie side by side.", _interleaved),
    (
        "The transpose is missing: wanted is (B, H, T, D), so that a product runs over the positions of one head.",
        _not_moved,
    ),
    ("You swap keys and values.", lambda x, n: (solution(x, n)[0], solution(x, n)[2], solution(x, n)[1])),
    ("You swap queries and keys.", lambda x, n: (solution(x, n)[1], solution(x, n)[0], solution(x, n)[2])),
    ("You give all heads together: (B, 1, T, C).", lambda x, n: tuple(part.unsqueeze(1) for part in x.chunk(3, -1))),
    ("Your heads stand in the reverse order.", lambda x, n: tuple(part.flip(1) for part in solution(x, n))),
]

RAISES = [
    (
        "The numbers don't lie in memory as your view wants them. reshape would run, and mix heads with positions: "
        "view as (B, T, H, D) first, and transpose then.",
        lambda qkv, n_head: [part.view(len(qkv), n_head, qkv.shape[1], -1) for part in qkv.chunk(3, -1)],
    ),
    (
        "The last dimension holds queries, keys and values, 3 C: take it apart into three before the heads.",
        lambda qkv, n_head: qkv.view(*qkv.shape[:2], n_head, qkv.shape[2] // 3 // n_head),
    ),
]

"""Attention."""

import math

import torch
from torch import Tensor

from minigpt.course.exercises import sizes

LESSON = 5
TITLE = "Attention: query, key, value"
STUB = '''
import math

import torch


def attend(query_BHTD, key_BHSD, value_BHSD):
    """softmax(Q K^T / sqrt(D)) V, without the future (Vaswani et al. 2017, equation 1).

    Args:
        query_BHTD: what each position looks for, (B, H, T, D).
        key_BHSD: what each position offers to be found by, (B, H, S, D). The queries are the last T of S positions.
        value_BHSD: what each position gives, (B, H, S, D).

    Returns:
        (B, H, T, D): at each position the mean of the values up to it, weighted by how well their keys fit its query.
    """
    raise NotImplementedError
'''
HINTS = [
    "Which positions may the first query see, if there are 3 queries and 5 keys? And the last?",
    "scores (B, H, T, S) = query (B, H, T, D) @ key transposed (B, H, D, S); then (B, H, T, S) @ (B, H, S, D).",
    "scores = Q K^T / sqrt(D); where s > t + (S - T): -inf; softmax over the last dimension; times V",
    "minigpt/model.py, CausalSelfAttention.attend: five lines",
]


def inputs(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    B, H, T, D, more = sizes(generator, 5)
    S = T + more
    shapes = ((B, H, T, D), (B, H, S, D), (B, H, S, D))
    made = [2 * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    # All scores of the first head are far below -10,000, so that hiding the future by such a number shows it.
    made[0][:, 0], made[1][:, 0] = -1e5 * (1 + made[0][:, 0].abs()), 1 + made[1][:, 0].abs()
    return made[0].requires_grad_(), made[1].requires_grad_(), made[2].requires_grad_()


def specification(query_BHTD: Tensor, key_BHSD: Tensor, value_BHSD: Tensor) -> Tensor:
    B, H, T, D = query_BHTD.shape
    S = key_BHSD.shape[2]
    texts = []
    for b in range(B):
        heads = []
        for h in range(H):
            rows = []
            for t in range(T):
                seen = range(t + S - T + 1)
                scores = []
                for s in seen:
                    score = query_BHTD.new_zeros(())
                    for d in range(D):
                        score = score + query_BHTD[b, h, t, d] * key_BHSD[b, h, s, d]
                    scores.append(score / math.sqrt(D))
                most = max(float(score.detach()) for score in scores)  # taken from all, for exp would overflow, or be 0
                weights = [(score - most).exp() for score in scores]
                total = sum(weights[1:], weights[0])
                row = weights[0] / total * value_BHSD[b, h, 0]
                for s in seen[1:]:
                    row = row + weights[s] / total * value_BHSD[b, h, s]
                rows.append(row)
            heads.append(torch.stack(rows))
        texts.append(torch.stack(heads))
    return torch.stack(texts)


def solution(query_BHTD: Tensor, key_BHSD: Tensor, value_BHSD: Tensor) -> Tensor:
    return _attend(query_BHTD, key_BHSD, value_BHSD)


def _attend(
    query_BHTD: Tensor,
    key_BHSD: Tensor,
    value_BHSD: Tensor,
    scale: float | None = None,
    future: int = 1,
    aligned: bool = True,
    hidden: float = -math.inf,
    over: int = -1,
) -> Tensor:
    """Attention, and with other arguments what goes wrong with it."""
    T, S, D = query_BHTD.shape[-2], *key_BHSD.shape[-2:]
    future_TS = torch.ones(T, S, dtype=torch.bool).triu((S - T if aligned else 0) + future)
    scores_BHTS = query_BHTD @ key_BHSD.transpose(-2, -1) * (1 / math.sqrt(D) if scale is None else scale)
    return scores_BHTS.masked_fill(future_TS, hidden).softmax(over) @ value_BHSD


def _masked_after(query_BHTD: Tensor, key_BHSD: Tensor, value_BHSD: Tensor) -> Tensor:
    T, S, D = query_BHTD.shape[-2], *key_BHSD.shape[-2:]
    pattern_BHTS = (query_BHTD @ key_BHSD.transpose(-2, -1) / math.sqrt(D)).softmax(-1)
    return pattern_BHTS.tril(S - T) @ value_BHSD


def _future(rows: Tensor, columns: Tensor, diagonal: int = 1) -> Tensor:
    return torch.ones(rows.shape[2], columns.shape[2], dtype=torch.bool).triu(diagonal)


LARGE = (
    "All scores of a head may be so small that exp gives 0, and 0/0: use softmax, or subtract the largest score first."
)


def _by_hand(query_BHTD: Tensor, key_BHSD: Tensor, value_BHSD: Tensor) -> Tensor:
    scores_BHTS = query_BHTD @ key_BHSD.transpose(-2, -1) / math.sqrt(key_BHSD.shape[-1])
    future_TS = _future(query_BHTD, key_BHSD, key_BHSD.shape[2] - query_BHTD.shape[2] + 1)
    weights_BHTS = scores_BHTS.masked_fill(future_TS, -math.inf).exp()
    return weights_BHTS / weights_BHTS.sum(-1, keepdim=True) @ value_BHSD


def _by_loops(query_BHTD: Tensor, key_BHSD: Tensor, value_BHSD: Tensor) -> float:
    score = (query_BHTD[0, 0, 0] @ key_BHSD[0, 0, 0]).item()
    return math.exp(score) / math.exp(score)


def _past_hidden(query_BHTD: Tensor, key_BHSD: Tensor, value_BHSD: Tensor) -> Tensor:
    past_TS = ~_future(query_BHTD, key_BHSD, key_BHSD.shape[2] - query_BHTD.shape[2] + 1)
    scores_BHTS = query_BHTD @ key_BHSD.transpose(-2, -1) / math.sqrt(key_BHSD.shape[-1])
    return scores_BHTS.masked_fill(past_TS, -math.inf).softmax(-1) @ value_BHSD


WRONG = [
    (
        "The scale is missing: divide the scores by sqrt(D), or softmax gets the sharper the wider a head is.",
        lambda q, k, v: _attend(q, k, v, 1.0),
    ),
    ("You divide by D: wanted is its square root.", lambda q, k, v: _attend(q, k, v, 1 / q.shape[-1])),
    (
        "You scale by sqrt(C), the channels of all heads: queries and keys of a head have D channels.",
        lambda q, k, v: _attend(q, k, v, 1 / math.sqrt(q.shape[1] * q.shape[-1])),
    ),
    ("You multiply by sqrt(D): divide by it.", lambda q, k, v: _attend(q, k, v, math.sqrt(q.shape[-1]))),
    (
        "The mask is missing: each position sees the future, and learns to copy it.",
        lambda q, k, v: _attend(q, k, v, future=10**6),
    ),
    (
        "The mask is off by one: each position sees the one after it, which is its answer.",
        lambda q, k, v: _attend(q, k, v, future=2),
    ),
    ("The mask is off by one the other way: a position must see itself.", lambda q, k, v: _attend(q, k, v, future=0)),
    (
        "Your mask begins at the first key. The queries are the last T of S positions: the first sees S - T before it.",
        lambda q, k, v: _attend(q, k, v, aligned=False),
    ),
    (
        "You mask after the softmax: what is hidden still takes its part of the sum. Set the scores to -inf before it.",
        _masked_after,
    ),
    (
        "You hide the future by scores of 0: exp(0) is 1, so it is still seen. Use -inf.",
        lambda q, k, v: _attend(q, k, v, hidden=0.0),
    ),
    ("You hide the future by scores of -1: small, but seen. Use -inf.", lambda q, k, v: _attend(q, k, v, hidden=-1.0)),
    (
        "You hide the future by scores of -10,000: where all others are smaller still, it is seen. Use -inf.",
        lambda q, k, v: _attend(q, k, v, hidden=-1e4),
    ),
    (
        "Your softmax runs over the queries: it must run over the positions looked at, the last dimension.",
        lambda q, k, v: _attend(q, k, v, over=-2),
    ),
    (
        "Your softmax runs over the heads: it must run over the positions looked at.",
        lambda q, k, v: _attend(q, k, v, over=1).nan_to_num(),
    ),
    (LARGE, _by_hand),
    ("You hide the past, and show the future: what is hidden lies above the diagonal, triu.", _past_hidden),
    (
        "Your mask begins at T - S instead of S - T, and hides too much: the first query sees S - T before it.",
        lambda q, k, v: (
            (q @ k.mT / math.sqrt(q.shape[-1]))
            .masked_fill(_future(q, k, q.shape[2] - k.shape[2] + 1), -math.inf)
            .softmax(-1)
            @ v
        ),
    ),
    ("You use the keys as values.", lambda q, k, v: _attend(q, k, k)),
    (
        "Queries and keys are swapped.",
        lambda q, k, v: _attend(k[:, :, -q.shape[2] :], torch.cat((k[:, :, : -q.shape[2]], q), 2), v),
    ),
]

MASK = "Your mask hasn't the form of the scores, T x S: there may be more keys than queries."
PRODUCT = "In a product D must meet D: query (T, D) @ transposed keys (D, S), and then (T, S) @ value (S, D)."
RAISES = [
    (MASK, lambda q, k, v: (q @ k.mT).masked_fill(_future(q, q), 0)),
    (MASK, lambda q, k, v: q @ k.mT + _future(q, q)),
    (MASK, lambda q, k, v: (q @ k.mT).masked_fill(_future(k, k), 0)),
    (MASK, lambda q, k, v: q @ k.mT + _future(k, k)),
    (PRODUCT, lambda q, k, v: q @ k),
    (LARGE, _by_loops),
    (
        "You exchange the wrong dimensions: of the keys the last two, transpose(-2, -1).",
        lambda q, k, v: q @ k.transpose(1, 2),
    ),
]

"""The logit lens."""

from collections.abc import Callable

import torch
from torch import Tensor

from minigpt.course.child import Function
from minigpt.course.exercises import sizes

LESSON = 11
TITLE = "The logit lens: what would it say if it stopped here?"
Norm = Callable[[Tensor], Tensor]
STUB = '''
import torch


def lens(stream_STC, norm, embedding_VC):
    """What the model would answer if it ended after each stage.

    Args:
        stream_STC: the residual stream after each of S stages, (S, T, C).
        norm: the model's final norm, a function from (..., C) to (..., C).
        embedding_VC: the token embedding, (V, C), which decodes as well: the logit of a token is the product of its
            row with the normed stream.

    Returns:
        logits, (S, T, V)
    """
    raise NotImplementedError
'''
HINTS = [
    "What does the model do with the last stage to get its logits? Do the same with each.",
    "(S, T, C) times (C, V) is (S, T, V).",
    "norm the stream; multiply with the transposed embedding",
    "minigpt/model.py: token_embedding.decode(final_norm(x_BTC)); minigpt/glassbox/lens.py",
]


def inputs(generator: torch.Generator) -> tuple[Tensor, Norm, Tensor]:
    S, T, C, V = sizes(generator, 4, least=3)
    norm = Function("norm", torch.randn(2, C, generator=generator, dtype=torch.float64))
    stream_STC = torch.randn(S, T, C, generator=generator, dtype=torch.float64)
    stream_STC = stream_STC * torch.linspace(0.3, 4.0, S, dtype=torch.float64).view(S, 1, 1)
    embedding_VC = torch.randn(V, C, generator=generator, dtype=torch.float64)
    return stream_STC.requires_grad_(), norm, embedding_VC.requires_grad_()


def specification(stream_STC: Tensor, norm: Norm, embedding_VC: Tensor) -> Tensor:
    S, T, C = stream_STC.shape
    stages = []
    for s in range(S):
        positions = []
        for t in range(T):
            x_C = norm(stream_STC[s, t])
            positions.append(
                torch.stack([sum(x_C[c] * row[c] for c in range(1, C)) + x_C[0] * row[0] for row in embedding_VC])
            )
        stages.append(torch.stack(positions))
    return torch.stack(stages)


def solution(stream_STC: Tensor, norm: Norm, embedding_VC: Tensor) -> Tensor:
    return norm(stream_STC) @ embedding_VC.T


def _last_statistics(stream_STC: Tensor, norm: Norm, embedding_VC: Tensor) -> Tensor:
    last = stream_STC[-1:]
    scale = last.std(-1, correction=0, keepdim=True) / stream_STC.std(-1, correction=0, keepdim=True)
    shift = stream_STC - stream_STC.mean(-1, keepdim=True)
    zero = norm(torch.zeros_like(stream_STC))
    return ((norm(stream_STC) - zero) / scale + zero + 0 * shift) @ embedding_VC.T


WRONG = [
    (
        "The final norm is missing: early stages are small, and would look unsure only for that.",
        lambda x, n, e: x @ e.T,
    ),
    ("You norm the logits: norm the stream, then decode.", lambda x, n, e: x @ e.T - (x @ e.T).mean(-1, keepdim=True)),
    ("You decode only the last stage: wanted is each.", lambda x, n, e: n(x[-1:]) @ e.T),
    (
        "You decode the mean over the stages: each by itself.",
        lambda x, n, e: (n(x.mean(0, keepdim=True)) @ e.T).expand(len(x), -1, -1),
    ),
    ("You return probabilities: wanted are logits.", lambda x, n, e: (n(x) @ e.T).softmax(-1)),
    ("You return log-probabilities: wanted are logits.", lambda x, n, e: (n(x) @ e.T).log_softmax(-1)),
    (
        "You use each stage's statistics wrongly: the norm's mean and deviation are to be computed anew at each stage.",
        _last_statistics,
    ),
    ("You norm twice.", lambda x, n, e: n(n(x)) @ e.T),
    ("Your result is (S, V, T): wanted is (S, T, V).", lambda x, n, e: (n(x) @ e.T).transpose(-2, -1)),
]

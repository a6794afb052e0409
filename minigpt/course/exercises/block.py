"""A block."""

from collections.abc import Callable

import torch
from torch import Tensor

from minigpt.course.child import Function as Sent
from minigpt.course.exercises import sizes

LESSON = 8
TITLE = "The block: attention, then feed-forward, each added to the stream"
Function = Callable[[Tensor], Tensor]
STUB = '''
def block(x_BTC, attention, feed_forward, norm_1, norm_2):
    """One block as GPT-1 has it: what each half computes is added to the stream, then the stream is normed.

    (Post-norm: Radford et al. 2018, equation 2; Vaswani et al. 2017, section 3.1)

    Args:
        x_BTC: the residual stream, (B, T, C).
        attention, feed_forward, norm_1, norm_2: functions from (B, T, C) to (B, T, C).

    Returns:
        (B, T, C)
    """
    raise NotImplementedError
'''
HINTS = [
    "What is the way by which the input itself comes to the end, whatever attention does?",
    "All is (B, T, C), so the two halves can be added to the stream.",
    "stream = norm_1(stream + attention(stream)); then the same with feed_forward and norm_2",
    "minigpt/model.py, Block.forward, where norm is post: two lines",
]


def inputs(generator: torch.Generator) -> tuple[Tensor, Function, Function, Function, Function]:
    B, T, C = sizes(generator, 3)
    weight = torch.randn(6, C, C, generator=generator, dtype=torch.float64)
    gain_and_bias = 0.3 * weight[3:5, :2] + torch.tensor([1.0, 0.0], dtype=torch.float64).view(2, 1)
    x_BTC = torch.randn(B, T, C, generator=generator, dtype=torch.float64)
    mixing, alone = Sent("mixing", weight[:1]), Sent("alone", weight[1:3])
    return x_BTC.requires_grad_(), mixing, alone, Sent("norm", gain_and_bias[0]), Sent("norm", gain_and_bias[1])


def specification(
    x_BTC: Tensor, attention: Function, feed_forward: Function, norm_1: Function, norm_2: Function
) -> Tensor:
    middle_BTC = norm_1(torch.stack([x + y for x, y in zip(x_BTC, attention(x_BTC), strict=True)]))
    return norm_2(torch.stack([x + y for x, y in zip(middle_BTC, feed_forward(middle_BTC), strict=True)]))


def solution(x_BTC: Tensor, attention: Function, feed_forward: Function, norm_1: Function, norm_2: Function) -> Tensor:
    x_BTC = norm_1(x_BTC + attention(x_BTC))
    return norm_2(x_BTC + feed_forward(x_BTC))


def _pre(x: Tensor, a: Function, f: Function, n1: Function, n2: Function) -> Tensor:
    x = x + a(n1(x))
    return x + f(n2(x))


def _without_residuals(x: Tensor, a: Function, f: Function, n1: Function, n2: Function) -> Tensor:
    return n2(f(n1(a(x))))


def _parallel(x: Tensor, a: Function, f: Function, n1: Function, n2: Function) -> Tensor:
    return n2(n1(x + a(x)) + f(x))


def _first_residual_kept(x: Tensor, a: Function, f: Function, n1: Function, n2: Function) -> Tensor:
    return n2(x + f(n1(x + a(x))))


def _norm_inside(x: Tensor, a: Function, f: Function, n1: Function, n2: Function) -> Tensor:
    x = x + n1(a(x))
    return x + n2(f(x))


WRONG = [
    ("That is pre-norm, as GPT-2 has it: GPT-1 norms after each addition.", _pre),
    ("The residuals are missing: each half must be added to the stream.", _without_residuals),
    (
        "The second residual is missing: add the stream to what the feed-forward gives.",
        lambda x, a, f, n1, n2: n2(f(n1(x + a(x)))),
    ),
    (
        "The first residual is missing: add the stream to what attention gives.",
        lambda x, a, f, n1, n2: solution(n1(a(x)), lambda y: y * 0, f, lambda y: y, n2),
    ),
    ("Your second half adds to the block's input: it adds to what the first half gave.", _first_residual_kept),
    ("Your feed-forward reads the block's input: it reads what the first half gave.", _parallel),
    ("Your norms are around the halves alone: norm the sum.", _norm_inside),
    ("The two norms are swapped: each has gains of its own.", lambda x, a, f, n1, n2: solution(x, a, f, n2, n1)),
    ("Feed-forward comes first in yours: attention does.", lambda x, a, f, n1, n2: solution(x, f, a, n1, n2)),
    ("The norms are missing.", lambda x, a, f, n1, n2: solution(x, a, f, lambda y: y, lambda y: y)),
    ("The last norm is missing.", lambda x, a, f, n1, n2: solution(x, a, f, n1, lambda y: y)),
]

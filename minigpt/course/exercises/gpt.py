"""The whole model."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from minigpt.course.child import Function as Sent
from minigpt.course.exercises import sizes

LESSON = 12
TITLE = "GPT: from ids to logits"
Function = Callable[[Tensor], Tensor]
STUB = '''
def gpt(ids_BT, token_VC, position_TC, blocks, final_norm):
    """The logits of the next character at each position (Radford et al. 2018, section 3.1, equation 2).

    Args:
        ids_BT: the characters read, as integers below V, (B, T).
        token_VC: a vector for each character, (V, C). They encode and decode: GPT-1 has one matrix for both.
        position_TC: a vector for each of these T positions, (T, C).
        blocks: a list of functions from (B, T, C) to (B, T, C), in their order.
        final_norm: a function from (B, T, C) to (B, T, C), for the end of the stream. (In a post-norm model it gives
            back what it gets, for there the last block has a norm at its end.)

    Returns:
        (B, T, V), before any softmax: cross_entropy and choose make that themselves
    """
    raise NotImplementedError
'''
HINTS = [
    "What does the first block read? What does the second? And what turns C numbers into one for each character?",
    "token_VC[ids_BT] is (B, T, C); position_TC goes onto each of the B. At the end (B, T, C) @ (C, V) is (B, T, V).",
    "x = token_VC[ids_BT] + position_TC; for each block: x = block(x); final_norm(x) @ token_VC transposed",
    "minigpt/model.py, GPT.forward: its last five lines, and TokenEmbedding.decode",
]


def inputs(generator: torch.Generator) -> tuple[Any, ...]:
    B, T, V, C, n_layer = sizes(generator, 5)
    ids_BT = torch.randint(V, (B, T), generator=generator)
    token_VC, position_TC = (torch.randn(n, C, generator=generator, dtype=torch.float64) for n in (V, T))
    weight = torch.randn(n_layer, 2, C, C, generator=generator, dtype=torch.float64)
    blocks = [Sent("alone", two) if i == 1 else Sent("mixing", two[:1]) for i, two in enumerate(weight)]
    norm = Sent("norm", 0.3 * weight[0, 1, :2] + torch.tensor([[1.0], [0.0]], dtype=torch.float64))
    return ids_BT, token_VC.requires_grad_(), position_TC.requires_grad_(), blocks, norm


def specification(
    ids_BT: Tensor, token_VC: Tensor, position_TC: Tensor, blocks: list[Function], final_norm: Function
) -> Tensor:
    B, T = ids_BT.shape
    stream_BTC = torch.stack(
        [torch.stack([token_VC[ids_BT[b, t]] + position_TC[t] for t in range(T)]) for b in range(B)]
    )
    for block in blocks:
        stream_BTC = block(stream_BTC)
    normed_BTC = final_norm(stream_BTC)
    logits = [[torch.stack([vector @ normed_BTC[b, t] for vector in token_VC]) for t in range(T)] for b in range(B)]
    return torch.stack([torch.stack(row) for row in logits])


def solution(
    ids_BT: Tensor, token_VC: Tensor, position_TC: Tensor, blocks: list[Function], final_norm: Function
) -> Tensor:
    x_BTC = token_VC[ids_BT] + position_TC
    for block in blocks:
        x_BTC = block(x_BTC)
    return final_norm(x_BTC) @ token_VC.T


def _embeddings_to_each_block(ids: Tensor, w: Tensor, p: Tensor, blocks: list[Function], norm: Function) -> Tensor:
    x = w[ids] + p
    return norm(torch.stack([block(x) for block in blocks]).sum(0)) @ w.T


def _positions_before_each_block(ids: Tensor, w: Tensor, p: Tensor, blocks: list[Function], norm: Function) -> Tensor:
    x = w[ids]
    for block in blocks:
        x = block(x + p)
    return norm(x) @ w.T


def _through(blocks: list[Function], x: Tensor) -> Tensor:
    for block in blocks:
        x = block(x)
    return x


def _added(block: Function) -> Function:
    return lambda x: x + block(x)


def _identity(x: Tensor) -> Tensor:
    return x


WRONG = [
    (
        "The positions are missing: add position_TC to the vectors of the characters.",
        lambda i, w, p, b, n: n(_through(b, w[i])) @ w.T,
    ),
    (
        "Each character gets the vector of the first position: add all of position_TC, a row for each of the T.",
        lambda i, w, p, b, n: solution(i, w, p[:1], b, n),
    ),
    (
        "You add the positions at the end: they come into the stream at its beginning, before the first block.",
        lambda i, w, p, b, n: n(_through(b, w[i]) + p) @ w.T,
    ),
    (
        "You multiply by the positions: add them.",
        lambda i, w, p, b, n: n(_through(b, w[i] * p)) @ w.T,
    ),
    (
        "The final norm is missing: it comes after the last block, before the logits.",
        lambda i, w, p, b, n: solution(i, w, p, b, _identity),
    ),
    (
        "Your final norm stands before the first block: it belongs after the last.",
        lambda i, w, p, b, n: solution(i, w, p, [n, *b], _identity),
    ),
    (
        "You norm after each block: final_norm comes once, at the end.",
        lambda i, w, p, b, n: solution(i, w, p, [it for block in b for it in (block, n)], _identity),
    ),
    ("The blocks are missing: the stream goes through each of them.", lambda i, w, p, b, n: solution(i, w, p, [], n)),
    (
        "Only the last block has an effect in yours: the second reads what the first gave.",
        lambda i, w, p, b, n: solution(i, w, p, b[-1:], n),
    ),
    ("Only the first block has an effect in yours: all of them do.", lambda i, w, p, b, n: solution(i, w, p, b[:1], n)),
    ("You leave out the first block.", lambda i, w, p, b, n: solution(i, w, p, b[1:], n)),
    ("You leave out the last block.", lambda i, w, p, b, n: solution(i, w, p, b[:-1], n)),
    ("You take the first block each time.", lambda i, w, p, b, n: solution(i, w, p, [b[0]] * len(b), n)),
    (
        "You take two blocks, however many there are: go through the list in a loop.",
        lambda i, w, p, b, n: solution(i, w, p, b[:2], n),
    ),
    (
        "You take at most three blocks, however many there are: go through the list in a loop.",
        lambda i, w, p, b, n: solution(i, w, p, b[:3], n),
    ),
    ("Your blocks come in reverse order.", lambda i, w, p, b, n: solution(i, w, p, b[::-1], n)),
    (
        "All of your blocks read the embeddings, and you add what they give: each reads what the one before gave.",
        _embeddings_to_each_block,
    ),
    (
        "You add to the stream what a block gives: a block has added it already, and gives the stream.",
        lambda i, w, p, b, n: solution(i, w, p, list(map(_added, b)), n),
    ),
    (
        "You add the positions before each block: they come into the stream once, at its beginning.",
        _positions_before_each_block,
    ),
    ("You give probabilities: leave out the softmax.", lambda i, w, p, b, n: solution(i, w, p, b, n).softmax(-1)),
    (
        "You give log-probabilities: leave out the log_softmax.",
        lambda i, w, p, b, n: solution(i, w, p, b, n).log_softmax(-1),
    ),
    (
        "You give the last position alone: each position has logits.",
        lambda i, w, p, b, n: solution(i, w, p, b, n)[:, -1],
    ),
    (
        "You give the last position alone: each position has logits, not only one.",
        lambda i, w, p, b, n: solution(i, w, p, b, n)[:, -1:],
    ),
    (
        "You scale the logits by 1/sqrt(C), as attention does its scores: nothing is scaled here.",
        lambda i, w, p, b, n: solution(i, w, p, b, n) / w.shape[1] ** 0.5,
    ),
    (
        "You multiply the vectors of the characters by sqrt(C), as Vaswani et al. do: GPT-1 doesn't.",
        lambda i, w, p, b, n: n(_through(b, w[i] * w.shape[1] ** 0.5 + p)) @ w.T,
    ),
    ("You give the stream: decode it, by token_VC transposed.", lambda i, w, p, b, n: n(_through(b, w[i] + p))),
    (
        "You decode by a copy that is cut off from the gradient: the one matrix learns from both of its ends.",
        lambda i, w, p, b, n: n(_through(b, w[i] + p)) @ w.detach().T,
    ),
]

RAISES = [
    (
        "A list is called like a function: blocks is one, so call each of its functions, in a loop.",
        lambda i, w, p, b, n: b(p),
    ),
    (
        "A tensor is called like a function: token_VC is a table, look the ids up by token_VC[ids_BT].",
        lambda i, w, p, b, n: w(i),
    ),
    (
        "In a product C must meet C: token_VC is (V, C), and to decode it is (B, T, C) @ (C, V).",
        lambda i, w, p, b, n: (w[i] + p) @ w,
    ),
    (
        "In a product C must meet C: token_VC is (V, C), and to decode it is transposed, and on the right.",
        lambda i, w, p, b, n: w @ (w[i] + p),
    ),
    ("The ids are whole numbers: they look rows up, token_VC[ids_BT].", lambda i, w, p, b, n: i @ w),
    (
        "A row is looked up that isn't there. position_TC has those of these T positions already: add it whole.",
        lambda i, w, p, b, n: w[i] + p[i],
    ),
    (
        "Logits, which have V numbers, meet something with C channels: positions and norm belong before the decoding.",
        lambda i, w, p, b, n: n((w[i] + p) @ w.T),
    ),
    (
        "There are fewer blocks than you take, and may be more: go through the list in a loop.",
        lambda i, w, p, b, n: b[2](b[1](b[0](w[i] + p))),
    ),
    (
        "The blocks are functions, no modules of PyTorch: call one after the other, in a loop.",
        lambda i, w, p, b, n: torch.nn.Sequential(*b)(w[i] + p),
    ),
]

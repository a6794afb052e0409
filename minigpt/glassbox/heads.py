"""What the attention heads of a model look at, and whether that matters to it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from minigpt.errors import UserError
from minigpt.glassbox.trace import Activations, Intervention, Traceable, observe
from minigpt.text.tokenizer import CharTokenizer

# What a head may look at in any text, and what only in a text that is written in lines and words.
GENERAL = ("previous character", "first character", "same character", "induction")
LANDMARKS: dict[str, Callable[[str], bool]] = {
    "last line end": lambda character: character == "\n",
    "last space": lambda character: character.isspace() and character != "\n",
    "last capital": str.isupper,
}
KINDS = (*GENERAL, *LANDMARKS)
# A name needs this much of the attention, this many times the null, and bits that rise by this many standard errors.
# By 0.4 the place is what the head mostly does, though it may rest elsewhere when it has nothing to find. The null
# counts in short windows and small vocabularies, where chance alone scores high. 4 errors leave a chance of 0.0006 for
# a head that doesn't matter, with 16 windows; less would name one now and then, for a model has many heads.
ENOUGH, TIMES_NULL, ERRORS = 0.4, 3.0, 4.0


@dataclass(frozen=True)
class Change:
    """What a loss rises by without a head: the mean over windows and its standard error, in bits per token."""

    bits: float
    error: float

    @property
    def clear(self) -> bool:
        return self.bits > ERRORS * self.error

    def __str__(self) -> str:
        return f"{self.bits:+.3f} ± {self.error:.3f}"


@dataclass(frozen=True)
class HeadScore:
    """What one head looks at, and what the model loses without it."""

    layer: int
    head: int
    kind: str  # of the KINDS the one whose score lies highest above its null
    score: float  # the share of the head's attention that lies there; of text and repeats the one nearer to its null
    null: float  # the share if it looked at all positions alike
    text: Change  # without the head, on the text
    repeated: Change  # on the second half of the random repeats, which an induction head predicts
    first: Change  # on the first half, which nothing predicts: the control
    name: str  # the kind if score and loss agree on it, else "none"


@dataclass(frozen=True)
class HeadScores:
    """What :func:`head_scores` finds; ``print`` shows it as a table. Scores are (L, H) by kind, nulls by kind."""

    rows: list[HeadScore]  # of each head, block by block
    text: dict[str, Tensor]  # scores on the text
    text_nulls: dict[str, float]
    repeats: dict[str, Tensor]  # scores on random repeats
    repeats_nulls: dict[str, float]
    windows: int  # of the text, and as many random repeats

    def __str__(self) -> str:
        lines = [
            f"{self.windows} windows of the text, {self.windows} random repeats; bits per token, ± standard error",
            "                                              bits more without the head on",
            "head   looks at                  score   null  the text        repeated half",
        ]
        for row in self.rows:
            name = row.name if row.name != "none" else f"none ({row.kind})"
            place = f"{row.layer}.{row.head}"
            lines.append(
                f"{place:5}  {name:25} {row.score:5.2f}  {row.null:5.2f}  {row.text!s:14}  {row.repeated!s}".rstrip()
            )
        return "\n".join([*lines, "none (a kind): the nearest kind, which score and loss don't both bear out"])


def head_scores(model: Traceable, text: str | NDArray[np.integer], windows: int = 16, seed: int = 0) -> HeadScores:
    """What each head looks at, on a text and on random repeats, and what the model loses when the head is off.

    Random repeats are half a window of ids drawn alike from those in the text, then the same half again: nothing but
    looking back predicts them (Olsson et al. 2022). A head gets a name only if it scores at least 0.4 and 3 times the
    null, and the loss without it rises by more than 4 standard errors. A general kind must score so on the text and
    on the repeats, and the loss may rise on the text or on the repeated half; induction must raise that of the
    repeated half, and more than that of the first; landmarks are only in the text. A head may well do something that
    has no name here: "none" is an answer.

    All windows are read in one batch, once and then again without each head.

    Args:
        model: what ``minigpt.load`` gives, or a ``GPTLightningModule``.
        text: a text, or ids; it is cut into windows of ``block_size`` tokens.
        windows: how many of them are read, evenly chosen, at most.
        seed: of the random repeats.

    Raises:
        UserError: the text has unknown characters, or less than two windows, of which no error can be told.
    """
    gpt, tokenizer, T = model.gpt, model.tokenizer, model.gpt.config.block_size
    ids = tokenizer.encode(text) if isinstance(text, str) else np.asarray(text)
    count = min(windows, len(ids) // T)
    if count < 2:
        raise UserError(
            f"The scores of heads need two windows of {T:,} tokens or more, but the text has {len(ids):,} tokens and "
            f"{windows} windows are asked for. Give a longer text, or ask for more windows."
        )
    chosen = np.linspace(0, len(ids) // T - 1, count).astype(int)
    text_BT = torch.from_numpy(ids[: len(ids) // T * T].reshape(-1, T)[chosen].astype("int64"))
    half = T // 2
    blocks_BT = np.random.default_rng(seed).choice(np.unique(ids), (count, half)).astype("int64")
    repeats_BT = torch.from_numpy(np.tile(blocks_BT, 2))

    on_text, on_repeats = observe(gpt, text_BT), observe(gpt, repeats_BT)
    text_scores, text_nulls = scores(on_text, tokenizer), nulls(text_BT, tokenizer)
    repeats_scores, repeats_nulls = scores(on_repeats, tokenizer), nulls(repeats_BT, tokenizer)
    rows = []
    for layer in range(gpt.config.n_layer):
        for head in range(gpt.config.n_head):
            # Of each kind the score and null by which it is judged: those that lie nearer together.
            judged = {}
            for kind in KINDS:
                both = [(float(text_scores[kind][layer, head]), text_nulls[kind])]
                if kind in GENERAL:
                    both.append((float(repeats_scores[kind][layer, head]), repeats_nulls[kind]))
                judged[kind] = min(both, key=lambda pair: float(np.nan_to_num(pair[0] - pair[1], nan=-1)))
            kind = max(KINDS, key=lambda kind: float(np.nan_to_num(judged[kind][0] - judged[kind][1], nan=-1)))
            score, null = judged[kind]
            off = [Intervention("head", layer, head)]
            text_more = (observe(gpt, text_BT, off).bits - on_text.bits)[:, 1:]
            repeats_more = (observe(gpt, repeats_BT, off).bits - on_repeats.bits)[:, 1:]
            # The first token of the second half can't be told from a new one.
            parts = (text_more, repeats_more[:, half:], repeats_more[:, : half - 1])
            whole, repeated, first = map(_change, parts)
            matters = repeated.clear and repeated.bits > first.bits
            if kind != "induction":
                matters = whole.clear or (kind in GENERAL and repeated.clear)
            named = score >= max(ENOUGH, TIMES_NULL * null) and matters
            rows.append(HeadScore(layer, head, kind, score, null, whole, repeated, first, kind if named else "none"))
    return HeadScores(rows, text_scores, text_nulls, repeats_scores, repeats_nulls, count)


def _change(more_BT: Tensor) -> Change:
    mean_B = more_BT.cpu().double().mean(-1)
    return Change(float(mean_B.mean()), float(mean_B.std() / len(mean_B) ** 0.5))


def scores(activations: Activations, tokenizer: CharTokenizer) -> dict[str, Tensor]:
    """How much of its attention each head puts where a head of each of the :data:`KINDS` would look, (L, H) by kind.

    It is the mean over the positions that have such a place; NaN where none has. The places are, for a position t:

    - previous character: t - 1.
    - first character: 0, for t > 0.
    - same character: each earlier position with the same token.
    - induction: each position after one with the same token, up to t - 2: t - 1 and t itself are left out, or a head
      that looks at the previous character would look like one of induction in "aba" (Olsson et al. 2022).
    - last line end, last space, last capital: the last before t, if t is none itself.

    One pass of the model is enough for it, and no ablation is made: see :func:`head_scores` for what a head does.
    """
    places = targets(activations.ids_BT, tokenizer)
    return {kind: _pooled(_mass(activations.pattern, places[kind])) for kind in KINDS}


def nulls(ids_BT: Tensor, tokenizer: CharTokenizer) -> dict[str, float]:
    """What a head would score that looks at all positions up to its own alike; of :func:`scores`, by kind."""
    places = targets(ids_BT, tokenizer)
    uniform_TS = torch.ones(ids_BT.shape[-1], ids_BT.shape[-1], device=ids_BT.device).tril()
    uniform_TS /= uniform_TS.sum(-1, keepdim=True)
    return {kind: float(_pooled(_mass(uniform_TS[None, None, None], places[kind]))) for kind in KINDS}


def targets(ids_BT: Tensor, tokenizer: CharTokenizer) -> dict[str, Tensor]:
    """The places where a head of each kind would look, True at position t and place s; (B, T, S) by kind."""
    ids_BT = ids_BT.long()
    position_S = torch.arange(ids_BT.shape[-1], device=ids_BT.device)
    position_T1 = position_S.unsqueeze(1)
    before_TS = position_S < position_T1
    same_BTS = (ids_BT.unsqueeze(-1) == ids_BT.unsqueeze(-2)) & before_TS
    found = {
        "previous character": (position_S == position_T1 - 1).expand_as(same_BTS),
        "first character": ((position_S == 0) & before_TS).expand_as(same_BTS),
        "same character": same_BTS,
        "induction": F.pad(same_BTS[..., :-1], (1, 0)) & (position_S < position_T1 - 1),
    }
    characters = [tokenizer.decode(np.array([i])) for i in range(len(tokenizer.vocabulary))]
    for kind, is_landmark in LANDMARKS.items():
        landmark_V = torch.tensor([is_landmark(character) for character in characters], device=ids_BT.device)
        last_BT = torch.where(landmark_V[ids_BT], position_S, -1).cummax(-1).values
        found[kind] = (position_S == last_BT.unsqueeze(-1)) & before_TS
    return found


def _mass(pattern: Tensor, target_BTS: Tensor) -> Tensor:
    """The attention on the targets at each position, (L, B, H, T); NaN where a position has none."""
    mass = (pattern * target_BTS.unsqueeze(-3)).sum(-1)
    return mass.masked_fill(~target_BTS.any(-1).unsqueeze(-2), torch.nan)


def _pooled(mass: Tensor) -> Tensor:
    """Its mean over all positions of all windows that have a target, (L, H)."""
    return mass.movedim(-2, 1).flatten(2).nanmean(-1)

"""What the attention heads of a model look at, and whether that matters to it."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.glassbox.trace import Activations
from minigpt.text.tokenizer import CharTokenizer

# What a head may look at in any text, and what only in a text that is written in lines and words.
GENERAL = ("previous character", "first character", "same character", "induction")
LANDMARKS: dict[str, Callable[[str], bool]] = {
    "last line end": lambda character: character == "\n",
    "last space": lambda character: character.isspace() and character != "\n",
    "last capital": str.isupper,
}
KINDS = (*GENERAL, *LANDMARKS)


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
    return {kind: float(_pooled(_mass(uniform_TS[None, None], places[kind]))) for kind in KINDS}


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

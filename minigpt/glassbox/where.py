"""Where in a text a head or a neuron is strongest."""

import itertools
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from minigpt.cost import flops_per_token
from minigpt.errors import UserError
from minigpt.glassbox.trace import Activations, Traceable, in_float32, observe, projection_by_head
from minigpt.glassbox.validation import MOST, open_split
from minigpt.text.corpus import DataSettings, Ids

NEWLINES = ("\n", "\\x0a")  # as a tokenizer of characters and one of bytes show them
BLANKS = {" ": "\u00b7", "\t": "\u2192", **dict.fromkeys(NEWLINES, "\u21b5")}
BEFORE, AFTER = 40, 20  # tokens of context that a place is given with
NEAR = 6  # of places that are no farther apart than these many tokens, the strongest stands for all
ALIKE = 20  # of places with the same tokens before them, these many, too
TOKENS, SCORES = 1 << 12, 1 << 26  # of a batch, at most: tokens, and attention scores of all heads together


@dataclass(frozen=True)
class Place:
    """One place at which a head or neuron is strong. ``print`` shows it in a line of 80 columns."""

    position: int  # of the token, in the text
    value: float  # how strong it is
    before: str
    token: str
    after: str
    source: str | None = None  # of a head: the token that it looks at most,
    distance: int | None = None  # how many tokens before this one that stands (0: it is this one),
    weight: float | None = None  # and how much of its attention it gives it

    def __str__(self) -> str:
        before, after, looks = 35, AFTER, ""
        if self.source is not None:
            before, after = 17, 12
            looks = f"  {visible(self.source):>4} {self.distance:4} back {self.weight:4.0%}"
        context = f"{_shown(self.before)[-before:]:>{before}}[{visible(self.token)}]{_shown(self.after)[:after]}"
        return f"{self.position:10,} {self.value:7.2f} {context:{before + after + 3}}{looks}".rstrip()


def visible(token: str) -> str:
    """A token in which white space can be seen."""
    return BLANKS.get(token, token)


def _shown(text: str) -> str:
    return "".join(visible(c) if c in BLANKS or c.isprintable() else "\ufffd" for c in text)


def strongest(
    model: Traceable,
    text: DataSettings | NDArray[np.integer],
    layer: int,
    head: int | None = None,
    neuron: int | None = None,
    count: int = 20,
    most: int | None = None,
) -> list[Place]:
    """The places at which a head or a neuron is strongest, the strongest first; only those where it is above 0.

    A neuron is as strong as its value after the GELU; a head as what it adds to the residual stream is long (the
    Euclidean norm). Of strong places close together, and of those after the same text, only the best is kept. Windows
    overlap by half and only the later half of each counts, so that but for the very first tokens the model has at
    least half a window before it.

    Args:
        model: what ``minigpt.load`` gives, or a ``GPTLightningModule``.
        text: data, of which the validation split is read; or ids of the model's, (N,).
        layer: the block, numbered from 0.
        head: which head of it; or
        neuron: which channel inside its feed-forward.
        count: how many places are wanted.
        most: how many windows are read at most; of a longer text some all over it, the same every time. By default
            as many as take a minute or so on two cores.

    Raises:
        UserError: there is no such head or neuron, or there is nothing to read.
    """
    config = model.gpt.config
    if (head is None) == (neuron is None):
        raise UserError("The places of either a head or a neuron can be found: give one of the two.")
    name, index, size = ("neuron", neuron, 4 * config.n_embd) if head is None else ("head", head, config.n_head)
    for what, value, bound in (("layer", layer, config.n_layer), (name, index, size)):
        if not 0 <= operator.index(value) < bound:  # type: ignore[arg-type]
            raise UserError(f"{what} is {value}; of this model it must be from 0 to {bound - 1}.")
    return _strongest(model, text, [(layer, head, neuron)], count, most)[0]


def strongest_of_heads(
    model: Traceable, text: DataSettings | NDArray[np.integer], count: int = 20, most: int | None = None
) -> dict[tuple[int, int], list[Place]]:
    """What :func:`strongest` finds for each head, by its block and number, while the text is read once."""
    config = model.gpt.config
    heads = list(itertools.product(range(config.n_layer), range(config.n_head)))
    return dict(zip(heads, _strongest(model, text, [(*head, None) for head in heads], count, most), strict=True))


def _strongest(
    model: Traceable,
    text: DataSettings | NDArray[np.integer],
    parts: list[tuple[int, int | None, int | None]],
    count: int,
    most: int | None,
) -> list[list[Place]]:
    """The places of each part: a block, and a head or a neuron of it."""
    gpt, tokenizer, config = model.gpt, model.tokenizer, model.gpt.config
    if count < 1 or (most is not None and most < 1):
        raise UserError(f"count is {count} and most is {most}; both must be at least 1.")
    ids: Ids | NDArray[np.integer]
    if isinstance(text, DataSettings):
        corpus, splits = open_split(tokenizer, text)
        ids, places = corpus.ids(), splits["val"]
    else:
        ids, places = np.asarray(text), range(len(text))
    if not places:
        raise UserError("The text is empty; there is no place to look for.")

    T = min(config.block_size, len(places))
    step = max(1, T // 2)  # from window to window, and of each window after the first what counts
    windows = 1 - (T - len(places)) // step
    limit = most or max(1, int(MOST / (flops_per_token(config) / 3 * T)))  # a third is forward
    B = max(1, min(TOKENS // T, SCORES // (config.n_layer * config.n_head * T * T)))
    if windows > limit:
        B = max(1, min(B, limit // 16))  # or a few batches would not be all over the text
    batches = -(-windows // B)
    chosen = np.linspace(0, batches - 1, batches if windows <= limit else limit // B).round().astype(int)
    best: list[list[Place]] = [[] for _ in parts]
    for number in chosen.tolist():
        rows = np.arange(number * B, min(windows, (number + 1) * B))
        places_BT = places.start + rows[:, None] * step + np.arange(T)
        ids_BT = torch.from_numpy(ids[np.minimum(places_BT, places.stop - 1)].astype("int64"))
        seen = observe(gpt, ids_BT)
        counted_BT = places_BT < places.stop
        counted_BT[rows > 0, : T - step] = False
        # The windows of a batch stand side by side: what counts of them is one stretch of text.
        b_of, t_of = counted_BT.nonzero()
        for part, (layer, head, neuron) in enumerate(parts):
            strength_BT = strength(seen, layer, head, neuron).cpu().numpy()
            found = best[part]
            least = found[-1].value if len(found) == count else 0.0
            for i in _apart(strength_BT[counted_BT], least):
                b, t = b_of[i], int(t_of[i])
                at = int(places_BT[b, t])
                looks: dict[str, Any] = {}
                if head is not None:
                    weight, s = seen.values[f"blocks.{layer}.attention.softmax"][b, head, t].max(-1)
                    source = tokenizer.label(int(ids_BT[b, s]))
                    looks = {"source": source, "distance": t - int(s), "weight": float(weight)}
                found.append(
                    Place(
                        at,
                        float(strength_BT[b, t]),
                        tokenizer.decode(ids[max(places.start, at - BEFORE) : at]),
                        tokenizer.label(int(ids_BT[b, t])),
                        tokenizer.decode(ids[at + 1 : min(places.stop, at + 1 + AFTER)]),
                        **looks,
                    )
                )
            best[part] = _thinned(found)[:count]
    return best


def strength(seen: Activations, layer: int, head: int | None = None, neuron: int | None = None) -> Tensor:
    """How strong a neuron, or else a head, is at each position, (B, T); see :func:`strongest`."""
    if head is None:
        return seen.values[f"blocks.{layer}.feed_forward.gelu"][..., neuron]
    weight_CD = projection_by_head(seen.gpt.blocks[layer])[head]
    D = weight_CD.shape[1]
    with in_float32(weight_CD):
        collected_BTD = seen.values[f"blocks.{layer}.attention.heads"][..., head * D : (head + 1) * D]
        return (collected_BTD @ weight_CD.T).norm(dim=-1)


def _apart(strengths: NDArray[np.floating], least: float) -> Iterator[int]:
    """The places of a stretch, (N,), that are above ``least``, the strongest first, without those NEAR a stronger."""
    free = strengths > least
    for place in np.argsort(-strengths, kind="stable").tolist():
        if free[place]:
            free[max(0, place - NEAR) : place + NEAR + 1] = False
            yield place


def _thinned(places: list[Place]) -> list[Place]:
    """Places, the strongest first, without those near to or alike a stronger one."""
    kept, known = list[Place](), set[str]()
    for place in sorted(places, key=lambda it: (-it.value, it.position)):
        alike = place.before[-ALIKE:] + place.token
        if alike not in known and all(abs(place.position - other.position) > NEAR for other in kept):
            kept.append(place)
            known.add(alike)
    return kept

"""The page's requests, answered by PyTorch. ``page/worker.js`` answers the same ones in the page itself.

A request is plain data that anybody may have written, so nothing in it is taken on trust. What is not right ends in a
:class:`~minigpt.errors.UserError`.
"""

import base64
import functools
import math
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from minigpt.cost import flops_per_token
from minigpt.errors import UserError
from minigpt.fast import apply, why_not
from minigpt.generation import generate
from minigpt.glassbox.lens import attribute, lens
from minigpt.glassbox.trace import Intervention, Model, Trace, observe, trace
from minigpt.model import GPT
from minigpt.run import load_gpt, written_at
from minigpt.sampling import Sampling

MODELS, TRACES = 8, 4  # that are kept: the page asks for many things that one pass through the model tells
CHANGES, TEXTS = 512, 8  # interventions of a request at most, and other texts that they take values of
WRITTEN, COST = 1024, 3e11  # tokens that a request may ask for at most, and floating-point operations for them
LARGEST_MAP = 4096  # rows


class Answers:
    """Answers requests; many threads may ask at the same time.

    Args:
        models: which models there are now: checkpoints, by their steps.
    """

    def __init__(self, models: Callable[[], Mapping[int, Path]]) -> None:
        self._models = models
        self._computing = threading.Lock()
        self._loaded = functools.lru_cache(MODELS)(load)
        self._traced = functools.lru_cache(TRACES)(self._trace)

    def answer(self, request: object) -> dict[str, Any]:
        """The result of a request, as ``page/worker.js`` gives it; numbers in rows are NumPy's arrays.

        Raises:
            UserError: something in it isn't right.
        """
        if not isinstance(request, dict):
            raise UserError("A request is an object with a method.")
        method, step = request.get("method"), whole(request, "step", 0)
        if not isinstance(method, str) or method not in METHODS:
            raise UserError(f"There is no such method; there are {', '.join(METHODS)}.")
        key = self.key(step)
        model = self._loaded(*key)
        ids = ids_of(request, "ids", model.gpt)
        changes = interventions_of(request, model.gpt)
        if method == "write":
            return write(request, model, ids, changes)
        if method == "probe":  # the page's engine is held to PyTorch, and this is PyTorch
            return {"worst": 0, "first": None}
        # One pass uses all cores, and of those who ask for the same one only the first has it computed.
        with self._computing:
            traced = self._traced(key, ids, changes)
        return METHODS[method](request, traced)

    def key(self, step: int) -> tuple[Path, int]:
        """The file of the model of that step, and when it was written."""
        if (path := self._models().get(step)) is None:
            raise UserError(f"There is no model of step {step}.")
        return path, written_at(path)

    def model(self, step: int) -> Model:
        """The model of that step."""
        return self._loaded(*self.key(step))

    def load(self, path: Path) -> Model:
        """The model of a checkpoint, kept as those are that are asked for."""
        return self._loaded(path, written_at(path))

    def _trace(self, key: tuple[Path, int], ids: tuple[int, ...], changes: tuple[Intervention, ...]) -> Trace:
        found = trace(self._loaded(*key), ids, changes)
        if not found.logits.isfinite().all():
            raise UserError(
                "What the model computes is not a number: its training diverged, or the changes to it are too large."
            )
        return found


def load(path: Path, written: int) -> Model:
    """The model of a checkpoint that was written then."""
    gpt, tokenizer = load_gpt(path)
    apply(gpt)
    return Model(gpt, tokenizer)


def read(request: dict[str, Any], traced: Trace) -> dict[str, Any]:
    return {"surprisal": traced.nats.numpy(), "logits": traced.logits.flatten().numpy()}


def maps(request: dict[str, Any], traced: Trace) -> dict[str, Any]:
    pattern_LHTS, n = traced.pattern.numpy(), len(traced.tokens)
    size = min(n, whole(request, "size", 1, LARGEST_MAP))
    starts = np.arange(size) * n // size  # of the cells; each shows the largest weight of those it stands for
    largest = np.maximum.reduceat(np.maximum.reduceat(pattern_LHTS, starts, axis=-2), starts, axis=-1)
    return {"size": size, "maps": np.floor(255 * np.sqrt(largest) + 0.5).astype(np.uint8).flatten()}


def pattern(request: dict[str, Any], traced: Trace) -> dict[str, Any]:
    config = traced.gpt.config
    layer, head = whole(request, "layer", 0, config.n_layer - 1), whole(request, "head", 0, config.n_head - 1)
    return {"pattern": traced.pattern[layer, head].flatten().numpy()}


def stages(request: dict[str, Any], traced: Trace) -> dict[str, Any]:
    n = len(traced.tokens)
    start = whole(request, "from", 0, n - 1)
    end = whole(request, "to", start + 1, n)
    probabilities_SWV = lens(traced, slice(start, end)).softmax(-1)
    probability, best = probabilities_SWV.max(-1)
    right = torch.full_like(probability, math.nan)
    next_ids = traced.ids_BT[start + 1 : end + 1]
    known = probabilities_SWV[:, : len(next_ids)]
    right[:, : len(next_ids)] = known.gather(-1, next_ids.expand(len(known), -1).unsqueeze(-1)).squeeze(-1)
    names = ["embedding_dropout"]
    for i in range(traced.gpt.config.n_layer):
        names += [f"blocks.{i}.residual_middle", f"blocks.{i}"]
    found = {"best": best.int(), "probability": probability, "right": right}
    return {"stages": names, **{name: value.flatten().numpy() for name, value in found.items()}}


def attribution(request: dict[str, Any], traced: Trace) -> dict[str, Any]:
    last = traced.gpt.config.vocab_size - 1
    position = whole(request, "position", 0, len(traced.tokens) - 1)
    chosen = whole(request, "chosen", 0, last)
    against = None if request.get("against") is None else whole(request, "against", 0, last)
    found = attribute(traced, position, chosen, against)
    rows = {name: getattr(found, name).tolist() for name in ("heads", "feed_forwards", "biases")}
    numbers = {name: getattr(found, name) for name in ("logit", "token", "place", "final_bias", "replaced")}
    return {**numbers, **rows, "sources": found.sources[..., : position + 1].tolist()}


class Changed(nn.Module):
    """A model under interventions, as ``generate`` takes one. Positions beyond the window's end are not there yet."""

    def __init__(self, gpt: GPT, changes: Iterable[Intervention]) -> None:
        super().__init__()
        self.config, self.token_embedding = gpt.config, gpt.token_embedding
        self.gpt, self.changes = gpt, changes

    def forward(self, ids_BT: Tensor, caches: None = None) -> Tensor:
        length = ids_BT.shape[1]
        there = [
            it if it.positions is None else replace(it, positions=tuple(p for p in it.positions if p < length))
            for it in self.changes
        ]
        return observe(self.gpt, ids_BT, there).logits


def write(
    request: dict[str, Any], model: Model, ids: tuple[int, ...], changes: tuple[Intervention, ...]
) -> dict[str, Any]:
    gpt, config = model.gpt, model.gpt.config
    cached = not changes and why_not(gpt) is None
    # A window that is cached is read about twice as it fills, and one that isn't is read for each token.
    read = 3 if cached else config.block_size
    most = int(np.clip(COST / (flops_per_token(config) / 3 * read), 1, WRITTEN))  # a third is forward
    count, draws = whole(request, "count", 1, most), request.get("draws")
    if not isinstance(draws, list) or len(draws) != count or not all(is_number(u) and 0 <= u < 1 for u in draws):
        raise UserError(f"draws must be {count} numbers, each at least 0 and less than 1.")
    given = {name: request[name] for name in ("temperature", "top_p", "min_p") if request.get(name) is not None}
    for name, value in given.items():
        if not is_number(value):
            raise UserError(f"{name} must be a number.")
    top_k = None if request.get("top_k") is None else whole(request, "top_k", 1)
    sampling = Sampling(**{"temperature": 1.0, **given}, top_k=top_k and min(top_k, config.vocab_size))
    if changes:  # what is wrong with them is told at once
        observe(gpt, torch.tensor([ids]), changes)
        gpt = cast(GPT, Changed(gpt, changes))
    numbers = (torch.tensor([[u]], dtype=torch.float64) for u in draws)
    never = model.tokenizer.unknown
    if request.get("never") is not None:
        never = whole(request, "never", 0, config.vocab_size - 1)
    drawn = list(generate(gpt, [ids], sampling, [0], never=never, cached=cached, numbers=numbers))
    return {"ids": [i for (i,), _ in drawn], "surprisal": [-log_probability for _, (log_probability,) in drawn]}


METHODS: dict[str, Callable[[dict[str, Any], Trace], dict[str, Any]]] = {
    "read": read,
    "maps": maps,
    "pattern": pattern,
    "lens": stages,
    "attribute": attribution,
}
METHODS |= dict.fromkeys(("write", "probe"), read)  # which need no trace


def whole(request: Mapping[str, Any], name: str, least: int, most: int | None = None) -> int:
    """A whole number of a request.

    Raises:
        UserError: it is none, or out of range.
    """
    value = request.get(name)
    if type(value) is not int or value < least or (most is not None and value > most):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise UserError(f"{name} must be a whole number {bounds}.")
    return value


def is_number(value: object) -> bool:
    """Whether it is a number that float holds."""
    return type(value) in (int, float) and -1e300 < cast(float, value) < 1e300


def ids_of(request: Mapping[str, Any], name: str, gpt: GPT) -> tuple[int, ...]:
    """The ids of a text that fits the window.

    Raises:
        UserError: they are none.
    """
    ids, V, most = request.get(name), gpt.config.vocab_size, gpt.config.block_size
    if not isinstance(ids, list) or not 1 <= len(ids) <= most or not all(type(i) is int and 0 <= i < V for i in ids):
        raise UserError(f"{name} must be a list of 1 to {most} whole numbers, ids from 0 to {V - 1}.")
    return tuple(ids)


def interventions_of(request: Mapping[str, Any], gpt: GPT) -> tuple[Intervention, ...]:
    """The interventions of a request. Whether the parts that they name are there is for :func:`observe` to tell.

    Raises:
        UserError: something is none.
    """
    given, names = request.get("interventions") or [], {field.name for field in fields(Intervention)}
    if not isinstance(given, list) or len(given) > CHANGES or not all(isinstance(it, dict) for it in given):
        raise UserError(f"interventions must be a list of at most {CHANGES} objects.")
    found = []
    for it in given:
        it = {name: value for name, value in it.items() if value is not None}
        if not isinstance(it.get("part"), str) or not it.keys() <= names:
            raise UserError(f"An intervention has a part, which is a name, and may have {', '.join(sorted(names))}.")
        for name in it.keys() & {"layer", "index"}:
            whole(it, name, 0)
        for name in it.keys() & {"mean_of", "patch_from"}:
            it[name] = ids_of(it, name, gpt)
        positions = it.get("positions", [])
        if not isinstance(positions, list) or not all(type(p) is int and p >= 0 for p in positions):
            raise UserError("The positions of an intervention must be a list of whole numbers.")
        if len(positions) > gpt.config.block_size:
            raise UserError("An intervention names more positions than the window has.")
        if not is_number(it.get("scale", 0)):
            raise UserError("The scale of an intervention must be a number.")
        found.append(Intervention(**it))
    if len({text for it in found for text in (it.mean_of, it.patch_from) if text is not None}) > TEXTS:
        raise UserError(f"The interventions take values of more than {TEXTS} texts.")
    return tuple(found)


def as_json(value: Any) -> Any:
    """A result with its arrays as JSON carries them: by the name of their kind, base64 of little-endian bytes."""
    if isinstance(value, dict):
        return {name: as_json(item) for name, item in value.items()}
    if isinstance(value, np.ndarray):
        little = value.astype(value.dtype.newbyteorder("<"))
        return {value.dtype.name: base64.b64encode(little.tobytes()).decode()}
    return value

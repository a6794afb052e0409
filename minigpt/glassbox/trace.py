"""Every activation of a model while it reads a text, and the same with parts of the model switched off or replaced.

The values come from ``model.py`` itself. A *shell*, a second set of modules around the same weights, reads the text
with hooks on its named modules. So what a learner changes in ``model.py`` shows here, nothing is ever left behind in
the model, and many threads may look into one model at once. A hook of your own on the model acts here too.
"""

import math
import operator
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MethodType
from typing import Any, Literal, Protocol, cast, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.errors import UserError
from minigpt.fast import take_out
from minigpt.generation import Writer
from minigpt.model import GPT
from minigpt.text.tokenizer import CharTokenizer

Part = Literal[
    "embedding", "residual", "residual_middle", "block", "attention", "head", "feed_forward", "neuron", "position"
]


class Traceable(Protocol):
    """What :func:`trace` looks into: what ``minigpt.load`` gives, or a ``GPTLightningModule``, in training too."""

    gpt: GPT
    tokenizer: CharTokenizer


@dataclass(frozen=True)
class Intervention:
    """One change to what a model computes, as plain data. By default it switches the part off.

    ``Intervention("head", layer=1, index=2)`` takes away what head 2 of block 1 writes;
    ``Intervention("neuron", 0, 17, scale=3)`` makes neuron 17 of block 0 three times as strong;
    ``Intervention("residual", 1, positions=(4,), patch_from="JULIET:")`` lets block 1 read at position 4 what it
    would read there in another text (activation patching, Vig et al. 2020).

    Layers, heads, neurons and positions are numbered from 0. ``Intervention(**dataclasses.asdict(it))`` is ``it``
    again, also by way of JSON.

    Raises:
        UserError: something that must be a number is none.
    """

    # embedding: the residual stream at the bottom. residual, residual_middle: the stream before block ``layer`` (or
    #     after the last, layer = n_layer), and between the block's halves; in post-norm, after the norm there.
    # attention, feed_forward: what that half of the block adds to the stream; block: both. (In post-norm the norms
    #     still act on the stream of a block that is off.)
    # head: what it writes, before the output projection. neuron: one channel inside the feed-forward, after the GELU.
    # position: what later positions see of these ``positions``: through head ``index`` of block ``layer``, through all
    #     heads of that block, or, without a layer, through all. Each position still sees itself.
    part: Part
    layer: int | None = None
    index: int | None = None  # of the head or neuron
    positions: tuple[int, ...] | None = None  # where the value is changed; everywhere by default
    scale: float = 0.0  # the value is multiplied by it (for a position: the weights before the pattern sums to 1)
    # Instead of the product, what the unchanged model computes for another text, which may be given as its ids:
    mean_of: str | tuple[int, ...] | None = None  # the mean over all its positions
    patch_from: str | tuple[int, ...] | None = None  # the value at the same position

    def __post_init__(self) -> None:
        # Plain numbers and a tuple, also if they come as a tensor's, as NumPy's or as a list from JSON.
        try:
            for name in ("layer", "index"):
                if getattr(self, name) is not None:
                    object.__setattr__(self, name, operator.index(getattr(self, name)))
            for name in ("positions", "mean_of", "patch_from"):
                value = getattr(self, name)
                if value is not None and (name == "positions" or not isinstance(value, str)):
                    object.__setattr__(self, name, tuple(map(operator.index, value)))
            object.__setattr__(self, "scale", float(self.scale))
        except (TypeError, ValueError) as error:
            raise UserError(
                "An intervention's layer and index are whole numbers, the ids of a text and its positions a list of "
                f"such, and its scale is a number; but {error}."
            ) from error

    def __str__(self) -> str:
        place = ".".join(str(number) for number in (self.layer, self.index) if number is not None)
        positions = "" if self.positions is None else ", ".join(map(str, self.positions))
        how = f"times {self.scale:g}" if self.scale else "off"
        if self.mean_of is not None:
            how = f"mean of {self.mean_of!r}"
        if self.patch_from is not None:
            how = f"from {self.patch_from!r}"
        if self.part == "position":
            seen_by = f" for {'block' if self.index is None else 'head'} {place}" if place else ""
            return f"position {positions} {how}{seen_by}"
        return " ".join(filter(None, (self.part, place, positions and f"at {positions}", how)))


class _Values(dict[str, Tensor]):
    def __missing__(self, name: str) -> Tensor:
        raise UserError(
            f"There is no {name!r}: no module of this name was called. The glass box finds what a model computes by "
            "the names at the top of model.py. Keep them where you change a formula, also in a forward of your own."
        )


class Activations:
    """All that was computed for a batch of B sequences of T tokens; L blocks, H heads, and the letters of model.py.

    ``values`` holds each by its name in ``model.py``; the properties stack them over the blocks. Of a
    :class:`Trace`, which has one text, the shapes are without B. Everything is float32, on the model's device, and
    as interventions left it. A :class:`UserError` says what a changed model.py doesn't compute.

    Attributes:
        gpt: the shell. It shares the model's weights; of a model in training, look before they change.
        ids_BT: what was read.
        values: by name; beside those listed in model.py ``embedding``, what goes into ``embedding_dropout``,
            ``logits``, and of each attention ``.scores``, what goes into the softmax, and ``.heads``, what goes into
            the output projection.
    """

    def __init__(self, gpt: GPT, ids_BT: Tensor, values: dict[str, Tensor]) -> None:
        self.gpt, self.ids_BT, self.values = gpt, ids_BT, _Values(values)

    def _stack(self, name: str) -> Tensor:
        return torch.stack([self.values[f"blocks.{i}{name}"] for i in range(len(self.gpt.blocks))])

    def _split(self, x_LBTC: Tensor) -> Tensor:
        """The channels of each head: (L, B, H, T, D) from (L, B, T, C)."""
        return x_LBTC.unflatten(-1, (self.gpt.config.n_head, -1)).transpose(-3, -2)

    @cached_property
    def token(self) -> Tensor:
        """What the token embedding adds to the residual stream, (B, T, C)."""
        return self.values["embedding"] - self.position

    @cached_property
    def position(self) -> Tensor:
        """What the position embedding adds to the residual stream, (T, C)."""
        return self.values["position_embedding"]

    @cached_property
    def embedding(self) -> Tensor:
        """The residual stream at the bottom: token plus position, (B, T, C)."""
        return self.values["embedding_dropout"]

    @cached_property
    def residual_before(self) -> Tensor:
        """The residual stream that each block reads, (L, B, T, C)."""
        return torch.cat((self.embedding.unsqueeze(0), self.residual_after[:-1]))

    @cached_property
    def residual_middle(self) -> Tensor:
        """The residual stream between the halves of each block, (L, B, T, C)."""
        return self._stack(".residual_middle")

    @cached_property
    def residual_after(self) -> Tensor:
        """The residual stream after each block, (L, B, T, C)."""
        return self._stack("")

    @cached_property
    def query(self) -> Tensor:
        """What each position looks for, (L, B, H, T, D)."""
        return self._split(self._stack(".attention.qkv").chunk(3, -1)[0])

    @cached_property
    def key(self) -> Tensor:
        """By what each position is found, (L, B, H, T, D)."""
        return self._split(self._stack(".attention.qkv").chunk(3, -1)[1])

    @cached_property
    def value(self) -> Tensor:
        """What each position hands on where it is found, (L, B, H, T, D)."""
        return self._split(self._stack(".attention.qkv").chunk(3, -1)[2])

    @cached_property
    def pattern(self) -> Tensor:
        """How much each position takes from itself and those before it, (L, B, H, T, S): each row sums to 1."""
        return self._stack(".attention.softmax")

    @cached_property
    def head(self) -> Tensor:
        """What each head collects: its pattern times its values, before the output projection, (L, B, H, T, D)."""
        return self._split(self._stack(".attention.heads"))

    @cached_property
    def head_output(self) -> Tensor:
        """What each head adds to the residual stream, (L, B, H, T, C); with the projection's bias they are all that
        attention adds."""
        weights_LHCD = torch.stack([projection_by_head(block) for block in self.gpt.blocks])
        by_head = weights_LHCD if self.head.dim() == 4 else weights_LHCD.unsqueeze(1)
        with in_float32(weights_LHCD):
            return self.head @ by_head.transpose(-2, -1)

    @cached_property
    def attention(self) -> Tensor:
        """What the attention of each block adds to the residual stream, (L, B, T, C)."""
        return self._stack(".attention")

    @cached_property
    def neurons(self) -> Tensor:
        """The neurons of each feed-forward, after the GELU, (L, B, T, 4C)."""
        return self._stack(".feed_forward.gelu")

    @cached_property
    def feed_forward(self) -> Tensor:
        """What the feed-forward of each block adds to the residual stream, (L, B, T, C)."""
        return self._stack(".feed_forward")

    @cached_property
    def logits(self) -> Tensor:
        """Of the token after each position, (B, T, V)."""
        return self.values["logits"]

    @cached_property
    def log_probabilities(self) -> Tensor:
        """Natural logarithms of the probabilities of the token after each position, (B, T, V)."""
        return self.logits.log_softmax(-1)

    @cached_property
    def nats(self) -> Tensor:
        """The loss of each token in nats, its surprisal, (B, T). Nothing predicts the first: NaN."""
        next_ids = self.ids_BT[..., 1:].long().unsqueeze(-1)
        nats = -self.log_probabilities[..., :-1, :].gather(-1, next_ids).squeeze(-1)
        return F.pad(nats, (1, 0), value=math.nan)

    @property
    def bits(self) -> Tensor:
        """The loss of each token, in bits, (B, T); the first is NaN."""
        return self.nats / math.log(2)


class Trace(Activations):
    """What a model computes while it reads one text: the properties of :class:`Activations`, without B.

    ``print`` shows what each token cost, what the model had expected in its place, and what it expects next.

    Attributes:
        text: what was read; tokens: it, one by one, as they are shown; tokenizer: what made them.
        interventions: what was changed.
    """

    def __init__(
        self, batch: Activations, text: str, tokenizer: CharTokenizer, interventions: Sequence[Intervention]
    ) -> None:
        values = {name: value if name == "position_embedding" else value[0] for name, value in batch.values.items()}
        super().__init__(batch.gpt, batch.ids_BT[0], values)
        self.text, self.tokenizer, self.interventions = text, tokenizer, tuple(interventions)
        self.tokens = [tokenizer.label(int(i)) for i in self.ids_BT]

    @property
    def loss(self) -> float:
        """The mean loss of a token in nats; NaN for a text of one."""
        return float(self.nats[1:].double().mean())

    def expected(self, position: int, count: int = 3) -> list[tuple[str, float]]:
        """The likeliest tokens after ``position``, each with its probability."""
        probabilities, ids = self.log_probabilities[position].exp().topk(min(count, self.logits.shape[-1]))
        return [(self.tokenizer.label(int(i)), float(p)) for p, i in zip(probabilities, ids, strict=True)]

    def __str__(self) -> str:
        mean = f", {self.loss / math.log(2):.3f} bits each from the second on" if len(self.tokens) > 1 else ""
        lines = [f"{len(self.tokens)} token{'s' * (len(self.tokens) > 1)}{mean}"]
        lines += [f"changed: {intervention}" for intervention in self.interventions]
        lines.append("position  token   bits   expected")
        for t, (token, bits) in enumerate(zip([*map(_quote, self.tokens), "next"], [*self.bits, None], strict=True)):
            cost = f"{bits:6.2f}" if t and bits is not None else "     -"
            guesses = "  ".join(f"{_quote(it)} {p:.0%}" for it, p in self.expected(t - 1)) if t else ""
            lines.append(f"{t:8}  {token:6}{cost}   {guesses}".rstrip())
        return "\n".join(lines)


class Model(Writer):
    """What ``minigpt.load`` gives: a trained model that writes, and that one can look into."""

    def trace(self, text: str, interventions: Iterable[Intervention] = ()) -> Trace:
        """See :func:`trace`."""
        return trace(self, text, interventions)


def trace(model: Traceable, text: str | Sequence[int], interventions: Iterable[Intervention] = ()) -> Trace:
    """What ``model`` computes while it reads ``text``, by the formulas of model.py in float32.

    It is a pure function: nothing stays in the model, after an error neither, and threads may ask at the same time.

    Args:
        model: what ``minigpt.load`` gives, or a ``GPTLightningModule``, in training too.
        text: at least one token, at most ``block_size``; or its ids.
        interventions: what to change on the way, in this order where two meet.

    Raises:
        UserError: the text is empty, too long or has unknown characters; or a part isn't there.
    """
    interventions, tokenizer = list(interventions), model.tokenizer
    ids_BT = _encode(model.gpt, tokenizer, text)
    shown = text if isinstance(text, str) else tokenizer.decode(ids_BT[0].numpy())
    return Trace(observe(model.gpt, ids_BT, interventions, tokenizer), shown, tokenizer, interventions)


@torch.no_grad()
def observe(
    gpt: GPT, ids_BT: Tensor, interventions: Sequence[Intervention] = (), tokenizer: CharTokenizer | None = None
) -> Activations:
    """What ``gpt`` computes for a batch of ids, (B, T): :func:`trace` without the texts.

    Args:
        gpt: the model.
        ids_BT: token ids, at most ``block_size`` of a sequence.
        interventions: what to change, in every sequence alike.
        tokenizer: reads the texts of ``mean_of`` and ``patch_from``.

    Raises:
        UserError: a part that is to be changed isn't there, or model.py lacks a module by which it is looked at.
    """
    ids_BT = ids_BT.to(gpt.token_embedding.weight.device)
    for intervention in interventions:
        _check(intervention, gpt, ids_BT.shape[1])
    sources: dict[str | tuple[int, ...], Activations] = {}
    for text in {text for it in interventions for text in (it.mean_of, it.patch_from) if text is not None}:
        if tokenizer is None and isinstance(text, str):
            raise UserError(f"An intervention takes values of the text {text!r}; observe needs the tokenizer for that.")
        sources[text] = observe(gpt, _encode(gpt, tokenizer, text))
    edits: dict[str, list[Callable[[Tensor], Tensor]]] = {}
    for intervention in interventions:
        for name, channels in _places(intervention, gpt):
            edits.setdefault(name, []).append(_edit(intervention, name, channels, sources, ids_BT.shape[1]))
    shell, values, hooks = make_shell(gpt), _Values(), []
    modules = dict(shell.named_modules())

    def change(name: str, value: Tensor) -> Tensor:
        for edit in edits.get(name, ()):
            value = edit(value)
        values[name] = value.clone()  # for a changed model.py may go on to change it in place
        return value

    def look(path: str, name: str | None = None) -> None:
        """Keep, and change, what comes out of a module; under another name, what goes into it."""
        if (module := modules.get(path)) is None:
            return
        if name:
            hook: Any = module.register_forward_pre_hook(lambda _, args: (change(name, args[0]), *args[1:]))
        else:
            hook = module.register_forward_hook(lambda _, args, output: change(path, output))
        hooks.append(hook)

    look("embedding_dropout", "embedding")
    for path in ("token_embedding", "position_embedding", "embedding_dropout"):
        look(path)
    for i in range(len(shell.blocks)):
        block = f"blocks.{i}"
        look(f"{block}.attention.softmax", f"{block}.attention.scores")
        look(f"{block}.attention.projection", f"{block}.attention.heads")
        parts = ("attention.qkv", "attention.softmax", "attention", "residual_middle", "feed_forward.gelu")
        for path in (*(f"{block}.{part}" for part in parts), f"{block}.feed_forward", block):
            look(path)
    with in_float32(ids_BT):
        values["logits"] = shell(ids_BT)
    for hook in hooks:
        hook.remove()
    for name in edits:
        values[name]  # or it is an error: what should have been changed was never computed
    return Activations(shell, ids_BT, values)


def in_float32(where: Tensor) -> torch.autocast:
    """A context without autocast on the device of a tensor."""
    return torch.autocast(where.device.type, enabled=False)


def make_shell(gpt: GPT) -> GPT:
    """The same model by the formulas of model.py, in float32 and evaluation mode, around the same weights.

    Weights of another type are converted; all others are shared, not copied. Hooks on the model are on the shell too.
    """

    def twin(module: nn.Module) -> nn.Module:
        new = object.__new__(type(module))
        state = vars(new)  # with dictionaries of its own, so that nothing done to it reaches the module
        state |= {name: OrderedDict(v) if name.endswith("_hooks") else v for name, v in vars(module).items()}
        state["_parameters"] = {n: p if p is None else p.detach().float() for n, p in module._parameters.items()}
        state["_buffers"] = {
            n: b.float() if b is not None and b.is_floating_point() else b for n, b in module._buffers.items()
        }
        state["_modules"] = {n: m if m is None else twin(m) for n, m in module._modules.items()}
        # A method that was put on this one module works on the new one.
        methods = {n: m for n, m in state.items() if isinstance(m, MethodType) and m.__self__ is module}
        state |= {n: MethodType(m.__func__, new) for n, m in methods.items()}
        state["training"], state["_compiled_call_impl"] = False, None
        return new

    shell: Any = twin(getattr(gpt, "_orig_mod", gpt))  # the model that torch.compile was given
    take_out(shell)
    return cast(GPT, shell)


def projection_by_head(block: Any) -> Tensor:
    """The output projection of a block's attention, cut into what each head sends through it: (H, C, D)."""
    weight_CC: Tensor = block.attention.projection.weight
    return weight_CC.unflatten(1, (block.attention.n_head, -1)).transpose(0, 1)


def _quote(token: str) -> str:
    return repr(token) if len(token) == 1 else f"'{token}'"  # a byte is shown as \x0a already


def _encode(gpt: GPT, tokenizer: CharTokenizer | None, text: str | Sequence[int]) -> Tensor:
    """The ids of a text that fits the window, (1, T); of ids, no tokenizer is needed."""
    ids = tokenizer.encode(text) if isinstance(text, str) and tokenizer else np.array(text, np.int64)
    if not 1 <= len(ids) <= gpt.config.block_size:
        raise UserError(
            f"The text has {len(ids):,} tokens; a trace needs at least one, "
            f"and the model's window holds {gpt.config.block_size:,}."
        )
    if not 0 <= ids.min() <= ids.max() < gpt.config.vocab_size:
        raise UserError(f"The ids of a text are from 0 to {gpt.config.vocab_size - 1}, those that the model knows.")
    return torch.from_numpy(ids.astype("int64")).unsqueeze(0)


def _check(it: Intervention, gpt: GPT, length: int) -> None:
    """Raise a UserError where ``it`` names something that isn't there, or says two things at once."""
    config = gpt.config
    if it.part not in get_args(Part):
        raise UserError(f"{it.part!r} is no part of a model; parts are {', '.join(get_args(Part))}.")
    layered, indexed = it.part != "embedding", it.part in ("head", "neuron")
    layers = config.n_layer + (it.part == "residual")
    count = 4 * config.n_embd if it.part == "neuron" else config.n_head
    if it.part == "position":
        layered, indexed = it.layer is not None or it.index is not None, it.index is not None
        if it.positions is None:
            raise UserError("To switch positions off or to scale them, say which: positions=(0, 3), say.")
        if it.mean_of is not None or it.patch_from is not None or it.scale < 0:
            raise UserError(
                "A position can be switched off, or scaled by more than 0. To replace what stands there, take the part "
                "'residual'."
            )
    numbers = (("layer", it.layer, layered, layers), ("index", it.index, indexed, count))
    for name, value, wanted, most in numbers:
        if wanted != (value is not None):
            verb = "takes no" if not wanted else "needs an" if name == "index" else "needs a"
            raise UserError(f"An intervention on {it.part!r} {verb} {name}.")
        if value is not None and not 0 <= value < most:
            raise UserError(f"{name} is {value}; for the part {it.part!r} it must be from 0 to {most - 1}.")
    if (it.scale != 0) + (it.mean_of is not None) + (it.patch_from is not None) > 1:
        raise UserError("An intervention has a scale, the mean of a text, or a text to patch from: one of the three.")
    if not math.isfinite(it.scale):
        raise UserError(f"scale is {it.scale}; it must be a finite number.")
    if outside := [p for p in it.positions or () if not 0 <= p < length]:
        raise UserError(
            f"Position {outside[0]} is to be changed, but the text has {length}, numbered from 0 to {length - 1}."
        )


def _places(it: Intervention, gpt: GPT) -> list[tuple[str, slice]]:
    """The names of the values that an intervention changes, each with the channels that it changes there."""
    everything, D = slice(None), gpt.config.n_embd // gpt.config.n_head
    block, i = f"blocks.{it.layer}", it.index or 0
    match it.part:
        case "embedding":
            return [("embedding_dropout", everything)]
        case "residual":
            return [(f"blocks.{it.layer - 1}" if it.layer else "embedding_dropout", everything)]
        case "head":
            return [(f"{block}.attention.heads", slice(i * D, (i + 1) * D))]
        case "neuron":
            return [(f"{block}.feed_forward.gelu", slice(i, i + 1))]
        case "block":
            return [(f"{block}.attention", everything), (f"{block}.feed_forward", everything)]
        case "position":
            layers = range(gpt.config.n_layer) if it.layer is None else [it.layer]
            return [(f"blocks.{j}.attention.scores", everything) for j in layers]
        case part:
            return [(f"{block}.{part}", everything)]


def _edit(
    it: Intervention, name: str, channels: slice, sources: dict[str | tuple[int, ...], Activations], length: int
) -> Callable[[Tensor], Tensor]:
    """The function that changes one value, (B, T, channels) or scores, (B, H, T, S), as ``it`` says."""
    rows = list(range(length) if it.positions is None else it.positions)
    new: Tensor | None = None
    if it.mean_of is not None:
        new = sources[it.mean_of].values[name][0, :, channels].mean(0)
    elif it.patch_from is not None:
        source_TC = sources[it.patch_from].values[name][0, :, channels]
        if max(rows, default=0) >= len(source_TC):
            raise UserError(
                f"Position {max(rows)} is to be patched from {it.patch_from!r}, which has {len(source_TC)}, numbered "
                f"from 0 to {len(source_TC) - 1}. Name the positions to patch, or take a text as long as the other."
            )
        new = source_TC[rows]

    def scale_scores(scores_BHTS: Tensor) -> Tensor:
        # exp(score + log(scale)): the softmax then shares out what is left. A position always sees itself.
        heads = slice(None) if it.index is None else slice(it.index, it.index + 1)
        later_TS = torch.ones_like(scores_BHTS[0, 0]).tril(-1)
        chosen_S = torch.zeros_like(later_TS[0])
        chosen_S[rows] = math.log(it.scale) if it.scale else -math.inf
        scores_BHTS = scores_BHTS.clone()
        scores_BHTS[:, heads] += torch.where(later_TS > 0, chosen_S, 0.0)
        return scores_BHTS

    def replace(value_BTC: Tensor) -> Tensor:
        value_BTC = value_BTC.clone()
        value_BTC[:, rows, channels] = value_BTC[:, rows, channels] * it.scale if new is None else new
        return value_BTC

    return scale_scores if it.part == "position" else replace

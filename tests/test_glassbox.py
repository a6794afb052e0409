"""What the glass box shows, held to the model itself and to computations of its own; also see test_parity.py."""

import copy
import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

import minigpt
from minigpt.errors import UserError
from minigpt.fast import FastAttention, put_in
from minigpt.glassbox.lens import attribute, lens
from minigpt.glassbox.trace import Intervention, Model, Part, Trace, observe, trace
from minigpt.model import GPT, Block, CausalSelfAttention, GPTConfig, Softmax
from minigpt.text.tokenizer import ByteTokenizer, CharTokenizer
from minigpt.training.data import CharDataModule
from minigpt.training.module import GPTLightningModule

quick = settings(deadline=None, derandomize=True, max_examples=25)


def build(config: GPTConfig, seed: int = 0) -> GPT:
    """A model whose attention is far from uniform, with gains of the norms around 1 and biases around 0."""
    gpt = GPT(config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in gpt.named_parameters():
        mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        parameter.data.normal_(mean, 0.2, generator=generator)
    return gpt.eval()


def make_model(seed: int = 0, **changes: Any) -> Model:
    """A small model that knows the letters a to z and the space."""
    shape = {"vocab_size": 27, "block_size": 12, "n_layer": 2, "n_head": 2, "n_embd": 12, "norm": "pre"}
    return Model(build(GPTConfig(**{**shape, **changes}), seed), CharTokenizer("abcdefghijklmnopqrstuvwxyz "))


each_norm = pytest.mark.parametrize("norm", ["post", "pre"])
TEXT, OTHER = "the cat sat", "two old rats"


@st.composite
def cases(draw: st.DrawFn) -> tuple[Model, str, str]:
    """A model of any architecture and shape, and two texts of any lengths that it can read."""
    n_head, window = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    config = GPTConfig(
        vocab_size=draw(st.sampled_from([1, 2, 27, 300])),
        block_size=window,
        n_layer=draw(st.integers(1, 3)),
        n_head=n_head,
        n_embd=2 * n_head * draw(st.integers(1, 4)),
        norm=draw(st.sampled_from(["post", "pre"])),
        positions=draw(st.sampled_from(["learned", "sinusoidal"])),
    )
    vocabulary = "".join(chr(0x4E00 + i) for i in range(config.vocab_size))
    text = st.text(st.sampled_from(vocabulary), min_size=1, max_size=window)
    model = Model(build(config, draw(st.integers(0, 99))), CharTokenizer(vocabulary))
    return model, draw(text), draw(text)


def ids_of(model: Any, text: str) -> Tensor:
    return torch.tensor(model.tokenizer.encode(text).tolist()).unsqueeze(0)


@torch.no_grad()
def logits_of(model: Any, text: str) -> Tensor:
    return model.gpt(ids_of(model, text))[0]


@torch.no_grad()
def finish(gpt: GPT, x_TC: Tensor, layer: int) -> Tensor:
    """The logits for a residual stream that block ``layer`` reads."""
    x_BTC = x_TC.unsqueeze(0)
    for block in list(gpt.blocks)[layer:]:
        x_BTC = block(x_BTC)
    return gpt.token_embedding.decode(gpt.final_norm(x_BTC))[0]


@contextmanager
def changed(model: Model) -> Iterator[Any]:
    """A copy of the model whose weights one may change."""
    with torch.no_grad():
        yield Model(copy.deepcopy(model.gpt), model.tokenizer)


# What is shown


@quick
@given(cases())
def test_without_an_intervention_every_number_is_the_models_own(case: tuple[Model, str, str]) -> None:
    model, text, _ = case
    it, config, T = model.trace(text), model.gpt.config, len(text)
    L, H, C = config.n_layer, config.n_head, config.n_embd
    assert torch.equal(it.logits, logits_of(model, text)), "to the bit"
    for name, shape in {
        "token": (T, C),
        "position": (T, C),
        "embedding": (T, C),
        "residual_before": (L, T, C),
        "residual_middle": (L, T, C),
        "residual_after": (L, T, C),
        "query": (L, H, T, C // H),
        "key": (L, H, T, C // H),
        "value": (L, H, T, C // H),
        "pattern": (L, H, T, T),
        "head": (L, H, T, C // H),
        "head_output": (L, H, T, C),
        "attention": (L, T, C),
        "neurons": (L, T, 4 * C),
        "feed_forward": (L, T, C),
        "logits": (T, config.vocab_size),
        "log_probabilities": (T, config.vocab_size),
        "nats": (T,),
        "bits": (T,),
    }.items():
        assert getattr(it, name).shape == shape, name
        assert getattr(it, name).dtype == torch.float32, name
    close = torch.testing.assert_close
    close(it.pattern.sum(-1), torch.ones(L, H, T))
    assert (it.pattern.triu(1) == 0).all()
    scores_LHTT = (it.query @ it.key.transpose(-2, -1) / math.sqrt(C // H)).masked_fill(
        torch.ones(T, T).triu(1).bool(), -math.inf
    )
    close(it.pattern, scores_LHTT.softmax(-1))
    close(it.head, it.pattern @ it.value, rtol=1e-4, atol=1e-5)
    blocks: list[Any] = list(model.gpt.blocks)
    bias_LC = torch.stack([block.attention.projection.bias for block in blocks]).detach()
    close(it.attention, it.head_output.sum(1) + bias_LC.unsqueeze(1), rtol=1e-4, atol=1e-4)
    for i, block in enumerate(blocks):
        middle, after = it.residual_before[i] + it.attention[i], it.residual_middle[i] + it.feed_forward[i]
        post = config.norm == "post"
        assert torch.equal(it.residual_middle[i], block.norm_1(middle).detach() if post else middle)
        assert torch.equal(it.residual_after[i], block.norm_2(after).detach() if post else after)
        assert torch.equal(it.feed_forward[i], block.feed_forward.contract(it.neurons[i]).detach())
    close(it.token + it.position, it.embedding)
    assert math.isnan(it.nats[0])
    if T > 1:
        close(it.nats[1:], F.cross_entropy(it.logits[:-1], ids_of(model, text)[0, 1:], reduction="none"))
        assert it.loss == pytest.approx(float(it.bits[1:].mean()) * math.log(2), abs=1e-5)


@quick
@given(cases(), st.data())
def test_the_last_lens_is_the_output_and_an_attribution_adds_up(
    case: tuple[Model, str, str], data: st.DataObject
) -> None:
    model, text, _ = case
    it, gpt = model.trace(text), model.gpt
    stages = lens(it)
    assert stages.shape == (2 * gpt.config.n_layer + 1, len(text), gpt.config.vocab_size)
    torch.testing.assert_close(stages[-1], it.logits)
    torch.testing.assert_close(stages[0], gpt.token_embedding.decode(gpt.final_norm(it.embedding)).detach())
    character = data.draw(st.sampled_from(model.tokenizer.vocabulary))
    against = data.draw(st.none() | st.sampled_from(model.tokenizer.vocabulary))
    for position in range(len(text)):
        parts = attribute(it, position, character, against)
        expected = it.logits[position, model.tokenizer.encode(character)[0]].item()
        if against is not None:
            expected -= it.logits[position, model.tokenizer.encode(against)[0]].item()
        size = max(1, abs(expected))
        assert parts.logit == pytest.approx(expected, abs=1e-5 * size)
        assert parts.total == pytest.approx(expected, abs=1e-4 * size)
        assert parts.replaced == 0
        torch.testing.assert_close(parts.sources.sum(-1), parts.heads, rtol=1e-4, atol=1e-4)
        assert (parts.sources[:, :, position + 1 :] == 0).all()
        assert sum(value for _, value in parts.ranked()) == pytest.approx(parts.total, abs=1e-5 * size)


@each_norm
def test_an_attribution_holds_each_part_to_account(norm: str) -> None:
    """A part's share is what its own output, run through the frozen norms alone, adds to the logit."""
    model = make_model(norm=norm)
    blocks: list[Any] = list(model.gpt.blocks)
    it, t, a = model.trace(TEXT), 5, 3
    parts = attribute(it, t, "d")

    def logit(embedding: Tensor, writings: list[tuple[Tensor, Tensor]], with_bias: bool) -> float:
        """The logit of a stream to which only some of the parts write."""

        def frozen(norm: Any, true: Tensor, x: Tensor) -> Tensor:
            if isinstance(norm, nn.Identity):
                return x
            scale = norm.weight.detach() / (true.var(correction=0) + norm.eps).sqrt()
            return (x - x.mean()) * scale + norm.bias.detach() * with_bias

        x = embedding
        for i, block in enumerate(blocks):
            x, true = x + writings[i][0], it.residual_before[i, t] + it.attention[i, t]
            x = frozen(block.norm_1, true, x) if norm == "post" else x
            x, true = x + writings[i][1], it.residual_middle[i, t] + it.feed_forward[i, t]
            x = frozen(block.norm_2, true, x) if norm == "post" else x
        x = frozen(model.gpt.final_norm, it.residual_after[-1, t], x)
        return float(x @ model.gpt.token_embedding.weight[a].detach())

    nothing = torch.zeros(12)
    silent = [(nothing, nothing), (nothing, nothing)]
    assert parts.token == pytest.approx(logit(it.token[t], silent, False), abs=1e-5)
    assert parts.place == pytest.approx(logit(it.position[t], silent, False), abs=1e-5)
    for i in range(2):
        alone = list(silent)
        alone[i] = (nothing, it.feed_forward[i, t])
        assert parts.feed_forwards[i].item() == pytest.approx(logit(nothing, alone, False), abs=1e-5)
        for h in range(2):
            alone[i] = (it.head_output[i, h, t], nothing)
            assert parts.heads[i, h].item() == pytest.approx(logit(nothing, alone, False), abs=1e-5)
            of_source = it.pattern[i, h, t, 2] * it.value[i, h, 2]
            weight = blocks[i].attention.projection.weight.detach()[:, 6 * h : 6 * h + 6]
            alone[i] = (weight @ of_source, nothing)
            assert parts.sources[i, h, 2].item() == pytest.approx(logit(nothing, alone, False), abs=1e-5)
    biases = [(block.attention.projection.bias.detach(), nothing) for block in blocks]
    assert parts.biases.sum().item() + parts.final_bias == pytest.approx(logit(nothing, biases, True), abs=1e-5)
    assert (parts.final_bias != 0) == (norm == "pre")


@each_norm
def test_an_attribution_is_honest_about_what_was_replaced(norm: str) -> None:
    model = make_model(norm=norm)
    for intervention, silent in [
        (Intervention("head", 1, 0), ["heads", "sources"]),
        (Intervention("head", 1, 0, patch_from=OTHER), ["sources"]),
        (Intervention("attention", 1, scale=2), ["heads", "sources"]),
        (Intervention("block", 1), ["heads", "sources", "feed_forwards"]),
        (Intervention("feed_forward", 1), ["feed_forwards"]),
        (Intervention("feed_forward", 1, patch_from=OTHER), []),
        (Intervention("neuron", 1, 5), []),
        (Intervention("position", positions=(1,)), []),
        (Intervention("embedding", patch_from=OTHER), ["token", "place"]),
        (Intervention("residual", 1, patch_from=OTHER), ["token", "place"]),
        (Intervention("residual_middle", 1, patch_from=OTHER), ["token", "place", "heads", "sources"]),
        (Intervention("residual", 2, mean_of=OTHER), ["token", "place", "heads", "sources", "feed_forwards"]),
    ]:
        it = model.trace(TEXT, [intervention])
        parts = attribute(it, 4, "z", against="q")
        assert parts.total == pytest.approx(parts.logit, abs=1e-4), intervention
        stream = intervention.part in ("embedding", "residual", "residual_middle", "attention")
        assert (parts.replaced != 0) == stream, intervention
        assert ("what was replaced" in str(parts)) == stream
        for name in silent:
            value = torch.as_tensor(getattr(parts, name))
            assert (value if value.dim() == 0 else value[1] if value.dim() == 1 else value[1, 0]).abs().sum() == 0
        if norm == "pre" and intervention.part == "residual" and intervention.layer == 1:
            assert parts.heads[0].abs().sum() == 0
            assert parts.heads[1].abs().min() > 0


def test_by_default_the_attribution_is_of_the_character_that_follows() -> None:
    model = make_model()
    it = model.trace(TEXT)
    assert [attribute(it, t).character for t in range(10)] == list(TEXT[1:])
    assert attribute(it).position == 10
    assert attribute(it).character == it.expected(10)[0][0]
    assert attribute(it, -2).position == 9
    lines = str(attribute(it, 4, "a", against="o")).splitlines()
    assert lines[0].endswith("'a' against 'o' after position 4")
    values = [abs(float(line.split()[0])) for line in lines[1:]]
    assert values == sorted(values, reverse=True)


def test_printed_a_trace_tells_what_each_character_cost() -> None:
    model = make_model()
    it = model.trace("the", [Intervention("head", 1, 0, positions=(0, 2))])
    lines = str(it).splitlines()
    assert lines[0].startswith("3 tokens, ")
    assert lines[1] == "changed: head 1.0 at 0, 2 off"
    assert "'h'" in lines[4]
    assert f"{it.bits[1]:.2f}" in lines[4]
    assert f"{it.expected(0)[0][0]!r} {it.expected(0)[0][1]:.0%}" in lines[4]
    assert lines[-1].split()[:2] == ["3", "next"]
    assert str(model.trace("t")).splitlines()[0] == "1 token"
    assert sum(p for _, p in it.expected(2, 99)) == pytest.approx(1)


# Interventions, each against another computation


@quick
@given(cases(), st.sampled_from([0.0, -1.0, 2.5]), st.data())
def test_a_part_is_scaled_as_its_weights_would_be(
    case: tuple[Model, str, str], scale: float, data: st.DataObject
) -> None:
    model, text, _ = case
    config = model.gpt.config
    layer, head = data.draw(st.integers(0, config.n_layer - 1)), data.draw(st.integers(0, config.n_head - 1))
    neuron, D = data.draw(st.integers(0, 4 * config.n_embd - 1)), config.n_embd // config.n_head

    def expected(change: Callable[[Any], None]) -> Tensor:
        with changed(model) as other:
            change(other.gpt.blocks[layer])
            return logits_of(other, text)

    def scale_head(block: Any) -> None:
        block.attention.projection.weight[:, head * D : (head + 1) * D] *= scale

    def scale_neuron(block: Any) -> None:
        block.feed_forward.contract.weight[:, neuron] *= scale

    def scale_attention(block: Any) -> None:
        block.attention.projection.weight.mul_(scale)
        block.attention.projection.bias.mul_(scale)

    def scale_feed_forward(block: Any) -> None:
        block.feed_forward.contract.weight.mul_(scale)
        block.feed_forward.contract.bias.mul_(scale)

    def scale_both(block: Any) -> None:
        scale_attention(block)
        scale_feed_forward(block)

    changes: list[tuple[Part, int | None, Callable[[Any], None]]] = [
        ("head", head, scale_head),
        ("neuron", neuron, scale_neuron),
        ("attention", None, scale_attention),
        ("feed_forward", None, scale_feed_forward),
        ("block", None, scale_both),
    ]
    for part, index, change in changes:
        found = model.trace(text, [Intervention(part, layer, index, scale=scale)]).logits
        torch.testing.assert_close(found, expected(change), rtol=1e-3, atol=1e-3, msg=part)

    def scale_head_and_neuron(block: Any) -> None:
        scale_head(block)
        scale_neuron(block)

    both = [Intervention("neuron", layer, neuron, scale=scale), Intervention("head", layer, head, scale=scale)]
    torch.testing.assert_close(model.trace(text, both).logits, expected(scale_head_and_neuron), rtol=1e-3, atol=1e-3)


@quick
@given(cases(), st.data())
def test_the_stream_goes_on_from_what_was_put_there(case: tuple[Model, str, str], data: st.DataObject) -> None:
    model, text, other = case
    length, config = min(len(text), len(other)), model.gpt.config
    text, other = text[:length], other[:length]
    positions = data.draw(st.lists(st.integers(0, length - 1), unique=True).map(tuple))
    layer = data.draw(st.integers(0, config.n_layer))
    mine, theirs = model.trace(text), model.trace(other)
    streams = [(it.embedding, *it.residual_after) for it in (mine, theirs)]
    ways: list[tuple[dict[str, Any], Tensor]] = [
        ({"scale": 0.5}, streams[0][layer] * 0.5),
        ({"patch_from": other}, streams[1][layer]),
        ({"mean_of": other}, streams[1][layer].mean(0).expand(length, -1)),
    ]
    for changes, new in ways:
        x_TC = streams[0][layer].clone()
        x_TC[list(positions)] = new[list(positions)]
        found = model.trace(text, [Intervention("residual", layer, positions=positions, **changes)])
        torch.testing.assert_close(found.logits, finish(model.gpt, x_TC, layer))
        if layer == 0:
            same = model.trace(text, [Intervention("embedding", positions=positions, **changes)])
            assert torch.equal(same.logits, found.logits)
    for it in (
        Intervention("residual", config.n_layer, patch_from=other),
        Intervention("residual_middle", config.n_layer - 1, patch_from=other),
        Intervention("embedding", patch_from=other),
    ):
        torch.testing.assert_close(model.trace(text, [it]).logits, theirs.logits, msg=str(it))


class Without(Softmax):
    """The pattern with some columns masked below the diagonal, and shared out again; an example in plain loops."""

    def __init__(self, columns: tuple[int, ...], scale: float, heads: list[int]) -> None:
        super().__init__()
        self.columns, self.scale, self.heads = columns, scale, heads

    def forward(self, x: Tensor) -> Tensor:
        pattern_BHTS = x.softmax(-1)
        for h, t in itertools.product(self.heads, range(x.shape[-2])):
            for s in self.columns:
                if s < t:
                    pattern_BHTS[:, h, t, s] *= self.scale
            pattern_BHTS[:, h, t] /= pattern_BHTS[:, h, t].sum(-1, keepdim=True)
        return pattern_BHTS


@each_norm
@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_a_position_that_is_off_is_seen_by_itself_alone(norm: str, scale: float) -> None:
    model = make_model(norm=norm)
    for layer, index, layers, heads in [(None, None, [0, 1], [0, 1]), (1, None, [1], [0, 1]), (0, 1, [0], [1])]:
        found = model.trace(TEXT, [Intervention("position", layer, index, (0, 4), scale)])
        with changed(model) as other:
            for i in layers:
                other.gpt.blocks[i].attention.softmax = Without((0, 4), scale, heads)
            torch.testing.assert_close(found.logits, logits_of(other, TEXT), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.pattern.sum(-1), torch.ones(2, 2, 11))
        if scale == 0:
            for i, h in itertools.product(layers, heads):
                assert (found.pattern[i, h].tril(-1)[:, [0, 4]] == 0).all()


PARTS: dict[Part, Callable[[Trace], Tensor]] = {  # what each part of block 1 is, beside its index
    "embedding": lambda it: it.embedding,
    "residual": lambda it: it.residual_before[1],
    "residual_middle": lambda it: it.residual_middle[1],
    "attention": lambda it: it.attention[1],
    "head": lambda it: it.head[1, 1],
    "feed_forward": lambda it: it.feed_forward[1],
    "neuron": lambda it: it.neurons[1, :, 1:2],
}


@each_norm
@pytest.mark.parametrize("part", PARTS)
def test_a_value_is_changed_where_it_is_asked_and_nowhere_else(norm: str, part: Part) -> None:
    model, look = make_model(norm=norm), PARTS[part]
    place = {
        "part": part,
        "layer": None if part == "embedding" else 1,
        "index": 1 if part in ("head", "neuron") else None,
    }
    before, source = look(model.trace(TEXT)), look(model.trace(OTHER))
    chosen, others = [2, 5], [0, 1, 3, 4, 6, 7, 8, 9, 10]
    ways: list[tuple[dict[str, Any], Tensor]] = [
        ({}, torch.zeros_like(before)),
        ({"scale": -2}, before * -2),
        ({"mean_of": OTHER}, source.mean(0).expand_as(before)),
        ({"patch_from": OTHER}, source[: len(before)]),
    ]
    for how, expected in ways:
        after = model.trace(TEXT, [Intervention(**place, positions=(2, 5), **how)])  # type: ignore[arg-type]
        torch.testing.assert_close(look(after)[chosen], expected[chosen])
        assert torch.equal(look(after)[others], before[others])
        assert torch.equal(after.logits[:2], model.trace(TEXT).logits[:2]), "nothing earlier changes"
        assert not torch.allclose(after.logits[5], model.trace(TEXT).logits[5])
        nothing = model.trace(TEXT, [Intervention(**place, positions=(), **how)])  # type: ignore[arg-type]
        assert torch.equal(nothing.logits, model.trace(TEXT).logits)


@quick
@given(cases())
def test_a_text_patched_into_itself_changes_nothing(case: tuple[Model, str, str]) -> None:
    model, text, _ = case
    expected = model.trace(text).logits
    layers = range(model.gpt.config.n_layer)
    changes = [Intervention("position", positions=tuple(range(len(text))), scale=1)]
    for part in (part for part in get_args(Part) if part != "position"):
        for layer in [None] if part == "embedding" else layers:
            changes.append(Intervention(part, layer, 0 if part in ("head", "neuron") else None, patch_from=text))
    assert torch.equal(model.trace(text, changes).logits, expected)


def test_several_changes_of_one_value_are_made_in_their_order() -> None:
    model = make_model()
    double, mean = Intervention("neuron", 0, 3, scale=2), Intervention("neuron", 0, 3, mean_of=OTHER)
    average = model.trace(OTHER).neurons[0, :, 3].mean()
    torch.testing.assert_close(model.trace(TEXT, [mean, double]).neurons[0, :, 3], (2 * average).expand(11))
    torch.testing.assert_close(model.trace(TEXT, [double, mean]).neurons[0, :, 3], average.expand(11))
    twice = model.trace(TEXT, iter([double, double])).neurons[0, :, 3]
    torch.testing.assert_close(twice, 4 * model.trace(TEXT).neurons[0, :, 3])


def test_a_batch_shows_what_each_of_its_texts_shows_alone() -> None:
    model = make_model()
    changes = [Intervention("head", 0, 1), Intervention("residual", 1, positions=(2,), patch_from=OTHER)]
    ids_BT = torch.cat([ids_of(model, text) for text in (TEXT, OTHER[:11])])
    batch = observe(model.gpt, ids_BT, changes, model.tokenizer)
    for b, text in enumerate((TEXT, OTHER[:11])):
        alone = model.trace(text, changes)
        for name in ("pattern", "head_output", "neurons", "residual_before"):
            torch.testing.assert_close(getattr(batch, name)[:, b], getattr(alone, name), msg=name)
        torch.testing.assert_close(batch.nats[b], alone.nats, equal_nan=True)
        torch.testing.assert_close(lens(batch)[:, b], lens(alone))


@pytest.mark.parametrize(
    ("it", "expected"),
    [
        (Intervention("embedding"), "embedding off"),
        (Intervention("head", 1, 2, positions=(0, 3), scale=0.5), "head 1.2 at 0, 3 times 0.5"),
        (Intervention("block", 1, mean_of="a\n"), "block 1 mean of 'a\\n'"),
        (Intervention("residual", 0, positions=(4,), patch_from="b"), "residual 0 at 4 from 'b'"),
        (Intervention("position", positions=(0, 3)), "position 0, 3 off"),
        (Intervention("position", 1, positions=(0,), scale=2), "position 0 times 2 for block 1"),
        (Intervention("position", 1, 0, positions=(0,)), "position 0 off for head 1.0"),
    ],
)
def test_an_intervention_says_what_it_does(it: Intervention, expected: str) -> None:
    assert str(it) == expected


def test_an_intervention_survives_json() -> None:
    it = Intervention("head", 1, 0, positions=(1, 2), patch_from="é\n")
    again = Intervention(**json.loads(json.dumps(dataclasses.asdict(it))))
    assert again == it
    assert hash(again) == hash(it)
    from_tensors = Intervention("neuron", torch.tensor(1), torch.tensor([3]).argmax(), positions=torch.arange(2))  # type: ignore[arg-type]
    assert from_tensors == Intervention("neuron", 1, 0, positions=(0, 1))
    assert json.dumps(dataclasses.asdict(from_tensors))


# What stays in the model: nothing


def fingerprint(model: Any) -> list[Any]:
    """All that a trace might have changed in a model and around it."""
    state: list[Any] = [torch.get_rng_state().tolist(), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")]
    for name, module in model.gpt.named_modules():
        hooks = {k: list(v.items()) for k, v in vars(module).items() if k.endswith("_hooks")}
        state.append((name, id(module), type(module), module.training, hooks, sorted(vars(module))))
    for name, weight in itertools.chain(model.gpt.named_parameters(), model.gpt.named_buffers()):
        state.append(
            (name, id(weight), weight._version, weight.dtype, weight.requires_grad, weight.grad, weight.tolist())
        )
    return state


class MyError(Exception):
    pass


def test_nothing_stays_in_the_model_after_an_error_either() -> None:
    model = make_model(attn_pdrop=0.5, positions="sinusoidal")
    model.gpt.train()
    put_in(model.gpt)
    seen: list[Tensor] = []
    model.gpt.blocks[0].register_forward_hook(lambda _, args, output: seen.append(output))
    before = fingerprint(model)
    it = model.trace(TEXT, [Intervention("head", 0, 0), Intervention("residual", 1, mean_of=OTHER)])
    lens(it), attribute(it), it.head_output, str(it)
    it.residual_after.zero_(), it.logits.zero_()
    assert fingerprint(model) == before
    for text, changes in [
        ("x" * 13, []),
        (TEXT, [Intervention("head", 9, 9)]),
        (TEXT, [Intervention("residual", 1, patch_from="short")]),
    ]:
        with pytest.raises(UserError):
            model.trace(text, changes)
        assert fingerprint(model) == before

    def mine(*_: object) -> None:
        raise MyError

    handle = model.gpt.blocks[1].register_forward_hook(mine)
    with_hook = fingerprint(model)
    with pytest.raises(MyError):
        model.trace(TEXT, [Intervention("head", 0, 0)])
    assert fingerprint(model) == with_hook
    handle.remove()
    assert fingerprint(model) == before
    assert len(seen) == 4, "a hook sees each reading: that of the text, those of the sources, and the interrupted one"


def test_a_hook_of_ones_own_acts_and_stays() -> None:
    model = make_model()
    off = model.trace(TEXT, [Intervention("attention", 0)])
    block: Any = model.gpt.blocks[0]
    nothing = nn.Parameter(torch.zeros(()))
    handle = block.attention.register_forward_hook(lambda _, args, output: output * nothing)
    before = fingerprint(model)
    it = model.trace(TEXT)
    assert torch.equal(it.logits, off.logits)
    assert (it.attention[0] == 0).all()
    assert not it.logits.requires_grad
    assert attribute(it).total == pytest.approx(attribute(it).logit, abs=1e-4)
    assert fingerprint(model) == before
    handle.remove()
    assert not torch.equal(model.trace(TEXT).logits, off.logits)


def test_many_threads_look_into_one_model() -> None:
    model = make_model()
    put_in(model.gpt)
    changes = [
        [],
        [Intervention("head", 0, 0)],
        [Intervention("head", 1, 1, scale=3)],
        [Intervention("residual", 1, patch_from=OTHER)],
        [Intervention("neuron", 0, 3, mean_of=OTHER)],
        [Intervention("position", positions=(0,))],
        [Intervention("feed_forward", 0)],
        [Intervention("block", 1), Intervention("embedding", scale=2, positions=(3,))],
    ]
    alone = [model.trace(TEXT, change).logits for change in changes]
    assert len({tuple(logits.flatten().tolist()) for logits in alone}) == 8
    before = fingerprint(model)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: model.trace(TEXT, changes[n % 8]).logits, range(160)))
    assert all(torch.equal(logits, alone[n % 8]) for n, logits in enumerate(found))
    assert fingerprint(model) == before


# Models of all kinds


def test_a_loaded_model_is_read_by_the_formulas(in_trained: Path) -> None:
    model, reference = minigpt.load("best"), minigpt.load("best", fast=False, precision="float32")
    block: Any = model.gpt.blocks[0]
    assert type(block.attention) is FastAttention
    text = "the cat sat on a"
    it = model.trace(text)
    assert torch.equal(it.logits, logits_of(reference, text))
    assert type(block.attention) is FastAttention
    assert type(it.gpt.blocks[0].attention) is CausalSelfAttention
    weights = it.gpt.state_dict()
    assert all(w.data_ptr() == weights[name].data_ptr() for name, w in model.gpt.state_dict().items()), "no copies"
    exact = (it.logits, it.head_output, lens(it))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = minigpt.load("best", precision="bfloat16").trace(text)
        for ours, expected in zip((rounded.logits, rounded.head_output, lens(rounded)), exact, strict=True):
            assert torch.equal(ours, expected)


class Looker(Callback):
    """Looks into the model after each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        it = trace(module, "the cat sat", [Intervention("head", 0, 1)])  # type: ignore[arg-type]
        lens(it), attribute(it)
        self.losses.append(trace(module, "the cat sat").loss)  # type: ignore[arg-type]
        assert module.gpt.training  # type: ignore[union-attr]


def test_a_run_that_is_looked_at_ends_in_the_same_bits(workplace: Path) -> None:
    def fit(*callbacks: Callback) -> GPTLightningModule:
        quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        data = CharDataModule("text.txt", block_size=16, batch_size=8)
        torch.manual_seed(1)
        shape: dict[str, Any] = {"block_size": 16, "n_layer": 1, "n_head": 2, "n_embd": 16}
        module = GPTLightningModule(data.vocabulary, learning_rate=0.01, warmup_steps=1, **shape)
        quiet |= {"enable_checkpointing": False, "limit_val_batches": 0}
        trainer = Trainer(accelerator="cpu", max_steps=12, callbacks=list(callbacks), **quiet)
        trainer.fit(module, data)
        return module

    looker = Looker()
    alone, watched = fit(), fit(looker)
    assert len(looker.losses) == 12
    assert looker.losses[-1] < looker.losses[0]
    assert alone.gpt.config.attn_pdrop > 0, "dropout draws numbers, which nobody else may take"
    for name, weight in alone.state_dict().items():
        assert torch.equal(weight, watched.state_dict()[name]), name
    expected = trace(watched, TEXT).logits
    assert torch.equal(expected, trace(watched.eval(), TEXT).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_another_type_are_converted(dtype: torch.dtype) -> None:
    model = make_model()
    model.gpt.to(dtype)
    it = model.trace(TEXT, [Intervention("head", 0, 1, scale=1.0)])
    with changed(model) as other:
        assert torch.equal(it.logits, logits_of(Model(other.gpt.float(), other.tokenizer), TEXT))
    assert attribute(it).total == pytest.approx(attribute(it).logit, abs=1e-4)
    assert model.gpt.token_embedding.weight.dtype == dtype


def test_a_model_of_bytes_is_read_byte_by_byte() -> None:
    model = Model(build(GPTConfig(vocab_size=256, block_size=8, n_layer=1, n_head=1, n_embd=4)), ByteTokenizer())
    it = model.trace("aé", [Intervention("residual", 1, positions=[2], patch_from="漢")])  # type: ignore[arg-type]
    assert it.tokens == ["a", "\\xc3", "\\xa9"]
    assert torch.equal(it.residual_after[0, 2], model.trace("漢").residual_after[0, 2])
    assert len(str(it).splitlines()) == 7
    assert "'\\xa9'" in str(it)
    with pytest.raises(UserError, match="'é' is 2 tokens"):
        attribute(it, 0, "é")


def test_a_block_that_stands_in_two_places_is_changed_in_one() -> None:
    model = make_model()
    model.gpt.blocks[1] = model.gpt.blocks[0]
    assert torch.equal(model.trace(TEXT).logits, logits_of(model, TEXT))
    found = model.trace(TEXT, [Intervention("head", 1, 0)])
    with changed(model) as other:
        other.gpt.blocks[1] = copy.deepcopy(other.gpt.blocks[0])
        other.gpt.blocks[1].attention.projection.weight[:, :6] = 0
        torch.testing.assert_close(found.logits, logits_of(other, TEXT))
    assert (found.head[1, 0] == 0).all()
    assert (found.head[0, 0] != 0).any()


def test_a_compiled_model_is_read_without_compiling() -> None:
    model = make_model()
    expected = model.trace(TEXT, [Intervention("head", 1, 0)]).logits
    compiled: Any = torch.compile(model.gpt)
    assert torch.equal(trace(Model(compiled, model.tokenizer), TEXT, [Intervention("head", 1, 0)]).logits, expected)
    model.gpt.compile()
    assert torch.equal(model.trace(TEXT, [Intervention("head", 1, 0)]).logits, expected)


class MyGPT(GPT):
    """Says everything twice as loud, by a forward of its own."""

    def __init__(self, config: GPTConfig, factor: float) -> None:
        super().__init__(config)
        self.factor = factor

    def forward(self, ids_BT: Tensor, caches: Any = None) -> Tensor:
        return super().forward(ids_BT, caches) * self.factor


class InPlace(Block):
    """Changes the stream in place, as many models do."""

    def forward(self, x_BTC: Tensor, cache: Any = None) -> Tensor:
        x_BTC += self.attention(self.norm_1(x_BTC), cache)
        x_BTC = self.residual_middle(x_BTC)
        x_BTC += self.feed_forward(self.norm_2(x_BTC))
        return x_BTC


class Fused(CausalSelfAttention):
    """Never forms the pattern."""

    def attend(self, query_BHTD: Tensor, key_BHSD: Tensor, value_BHSD: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query_BHTD, key_BHSD, value_BHSD, is_causal=True)


def test_what_one_changed_in_the_model_shows() -> None:
    model = make_model()
    plain = model.trace(TEXT)
    loud = MyGPT(model.gpt.config, 2.0)
    loud.load_state_dict(model.gpt.state_dict())
    assert torch.equal(Model(loud.eval(), model.tokenizer).trace(TEXT).logits, plain.logits * 2)

    with changed(model) as other:
        for block in other.gpt.blocks:
            block.__class__ = InPlace
        found = other.trace(TEXT)
        for name in ("embedding", "residual_before", "residual_middle", "residual_after", "logits"):
            assert torch.equal(getattr(found, name), getattr(plain, name)), name

    with changed(model) as other:
        attention = other.gpt.blocks[1].attention
        attention.forward = MethodType(lambda self, x, cache=None: CausalSelfAttention.forward(self, x) * 3, attention)
        found = other.trace(TEXT)
        assert torch.equal(found.attention[1], plain.attention[1] * 3)
        assert torch.equal(found.head, plain.head), "what is inside shows too"
        assert (other.trace(TEXT, [Intervention("attention", 1)]).attention[1] == 0).all()

    with changed(model) as other:
        prune.l1_unstructured(other.gpt.blocks[0].attention.qkv, "weight", 0.5)
        with torch.enable_grad():
            weight_norm(other.gpt.blocks[1].attention.projection)
        assert torch.equal(other.trace(TEXT).logits, logits_of(other, TEXT))
        assert attribute(other.trace(TEXT)).replaced == 0

    with changed(model) as other:
        other.gpt.blocks[1].attention.__class__ = Fused
        found = other.trace(TEXT, [Intervention("head", 1, 0)])
        torch.testing.assert_close(found.logits, model.trace(TEXT, [Intervention("head", 1, 0)]).logits)
        with pytest.raises(UserError, match=r"no 'blocks\.1\.attention\.softmax'.*the names at the top of model\.py"):
            print(found.pattern)
        with pytest.raises(UserError, match=r"no 'blocks\.1\.attention\.scores'"):
            other.trace(TEXT, [Intervention("position", positions=(0,))])

    with changed(model) as other:
        del other.gpt.blocks[0].residual_middle
        other.gpt.blocks[0].residual_middle = lambda x: x
        assert torch.equal(other.trace(TEXT).pattern, plain.pattern)
        with pytest.raises(UserError, match=r"no 'blocks\.0\.residual_middle'"):
            lens(other.trace(TEXT))


# Mistakes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"part": "haed", "layer": 0}, "'haed' is no part of a model; parts are embedding, residual, "),
        ({"part": "head", "layer": 0}, "An intervention on 'head' needs an index."),
        ({"part": "head", "index": 0}, "An intervention on 'head' needs a layer."),
        ({"part": "attention", "layer": 0, "index": 1}, "An intervention on 'attention' takes no index."),
        ({"part": "embedding", "layer": 0}, "An intervention on 'embedding' takes no layer."),
        ({"part": "head", "layer": 2, "index": 0}, "layer is 2; for the part 'head' it must be from 0 to 1."),
        ({"part": "head", "layer": -1, "index": 0}, "layer is -1"),
        ({"part": "residual", "layer": 3}, "layer is 3; for the part 'residual' it must be from 0 to 2."),
        ({"part": "head", "layer": 1, "index": 2}, "index is 2; for the part 'head' it must be from 0 to 1."),
        ({"part": "neuron", "layer": 1, "index": 48}, "index is 48; for the part 'neuron' it must be from 0 to 47."),
        ({"part": "block", "layer": 1, "positions": (11,)}, "Position 11 is to be changed, but the text has 11, numb"),
        ({"part": "block", "layer": 1, "positions": (-1,)}, "Position -1 is to be changed, but the text has 11"),
        ({"part": "block", "layer": 1, "positions": 4}, "positions a list of such, and its scale is a number; but"),
        ({"part": "block", "layer": 1.5}, "layer and index are whole numbers"),
        ({"part": "block", "layer": "1"}, "layer and index are whole numbers"),
        ({"part": "block", "layer": 1, "scale": "loud"}, "its scale is a number"),
        ({"part": "block", "layer": 1, "scale": math.nan}, "scale is nan; it must be a finite number"),
        ({"part": "block", "layer": 1, "mean_of": "a", "patch_from": TEXT}, "one of the three"),
        ({"part": "block", "layer": 1, "mean_of": "a", "scale": 2}, "one of the three"),
        ({"part": "block", "layer": 1, "mean_of": "Ä"}, "'Ä' (U+00C4): not among the 27 characters"),
        ({"part": "block", "layer": 1, "mean_of": ""}, "The text has 0 tokens"),
        (
            {"part": "block", "layer": 1, "patch_from": "short"},
            "Position 10 is to be patched from 'short', which has 5, numbered from 0 to 4.",
        ),
        ({"part": "position"}, "say which: positions=(0, 3), say."),
        ({"part": "position", "positions": (1,), "index": 0}, "An intervention on 'position' needs a layer."),
        ({"part": "position", "positions": (1,), "mean_of": "a"}, "take the part 'residual'"),
        ({"part": "position", "positions": (1,), "scale": -1}, "scaled by more than 0"),
    ],
)
def test_a_wrong_intervention_says_what_would_do(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        make_model().trace(TEXT, [Intervention(**settings)])
    assert message in str(error.value)


def test_other_mistakes_say_what_would_do() -> None:
    model = make_model()
    for text, message in [
        ("", "The text has 0 tokens; a trace needs at least one"),
        ("x" * 13, "The text has 13 tokens; .* window holds 12"),
        ("Äh", r"'Ä' \(U\+00C4\): not among the 27"),
    ]:
        with pytest.raises(UserError, match=message):
            model.trace(text)
    it = model.trace("the")
    for arguments, message in [
        ({"position": 3}, "There is no position 3; the text has 3, numbered from 0"),
        ({"character": "ab"}, "'ab' is 2 tokens; an attribution is of one"),
        ({"against": ""}, "'' is 0 tokens"),
        ({"character": "Ä"}, "not among the 27"),
    ]:
        with pytest.raises(UserError, match=message):
            attribute(it, **arguments)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="values of the text 'the'; observe needs the tokenizer"):
        observe(model.gpt, ids_of(model, TEXT), [Intervention("block", 0, mean_of="the")])

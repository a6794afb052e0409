"""The transformer against its definition and against PyTorch's functions; for Hugging Face's, see test_parity.py."""

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from minigpt import plain
from minigpt.cost import make_config
from minigpt.model import GELU, GPT, Dropout, GPTConfig, LayerNorm, Softmax

GPT1 = GPTConfig(vocab_size=23, block_size=16, n_layer=2, n_head=2, n_embd=12)
SHAPES = [
    dataclasses.replace(GPT1, norm=norm, positions=positions)  # type: ignore[arg-type]
    for norm, positions in itertools.product(("post", "pre"), ("learned", "sinusoidal"))
]
each_shape = pytest.mark.parametrize("config", SHAPES, ids=lambda c: f"{c.norm}-{c.positions}")


def build(config: GPTConfig) -> GPT:
    """A model with weights of size 1/5, so that attention is far from uniform."""
    gpt = GPT(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in gpt.parameters():
        parameter.data.normal_(0, 0.2, generator=generator)
    return gpt.eval()


def random_ids(batch: int, length: int) -> torch.Tensor:
    return torch.randint(23, (batch, length), generator=torch.Generator().manual_seed(1))


@each_shape
def test_a_future_character_changes_no_earlier_logit(config: GPTConfig) -> None:
    gpt = build(config)
    ids = random_ids(3, 16)
    before = gpt(ids)
    for place in range(16):
        changed = ids.clone()
        changed[:, place] = (changed[:, place] + 1) % 23
        after = gpt(changed)
        assert torch.equal(after[:, :place], before[:, :place])
        assert not torch.allclose(after[:, place:], before[:, place:])


def test_the_three_functions_are_pytorchs() -> None:
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)) * 3
    torch.testing.assert_close(LayerNorm(7)(x), F.layer_norm(x, (7,)))
    torch.testing.assert_close(GELU()(x), F.gelu(x, approximate="tanh"))
    torch.testing.assert_close(Softmax()(x), F.softmax(x, -1))
    assert torch.isfinite(Softmax()(1000 * x)).all()


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_zeroes_its_share_and_keeps_the_mean(rate: float) -> None:
    dropout, x = Dropout(rate), torch.ones(1001, 333)
    torch.manual_seed(1)
    y = dropout(x)
    assert float((y == 0).float().mean()) == pytest.approx(rate, abs=0.004)  # more than 4 standard deviations
    torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 1 / (1 - rate)))
    assert torch.equal(dropout.eval()(x), x)


def test_without_a_rate_dropout_draws_nothing() -> None:
    before = torch.get_rng_state()
    x = torch.randn(3)
    after = torch.get_rng_state()
    assert not torch.equal(before, after)
    assert torch.equal(Dropout(0.0)(x), x)
    assert torch.equal(torch.get_rng_state(), after)


def test_gpt1_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        gpt = GPT(GPTConfig())
    assert sum(p.numel() for p in gpt.parameters()) == 116_534_784


def test_the_output_head_is_the_token_embedding() -> None:
    gpt = build(GPT1)
    shapes = [tuple(p.shape) for p in gpt.parameters()]
    assert shapes.count((23, 12)) == 1
    logits = gpt(random_ids(2, 4))
    gpt.token_embedding.weight.data[5] = 0
    assert (gpt(random_ids(2, 4))[..., 5] == 0).all()
    assert logits[..., 5].abs().min() > 0


def test_printed_a_model_tells_its_rates_and_sizes() -> None:
    text = repr(GPT(GPTConfig(vocab_size=23, block_size=16, n_layer=2, n_head=2, n_embd=12, attn_pdrop=0.25)))
    for part in ("TokenEmbedding(23, 12)", "Dropout(p=0.25", "in_features=12, out_features=48", "LayerNorm((12,)"):
        assert part in text


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.uint16])
def test_ids_of_any_integer_type_are_taken(dtype: torch.dtype) -> None:
    gpt, ids = build(GPT1), random_ids(2, 5)
    assert torch.equal(gpt(ids.to(dtype)), gpt(ids))


def test_weights_start_as_gpt1s_do() -> None:
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(vocab_size=100, block_size=64, n_layer=2, n_head=2, n_embd=128))
    for name, parameter in gpt.named_parameters():
        if parameter.dim() > 1:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05), name
            assert parameter.mean().abs().item() < 2e-3, name
        else:
            assert (parameter == (1 if "norm" in name and name.endswith("weight") else 0)).all(), name


def test_every_promised_activation_can_be_hooked() -> None:
    gpt = build(GPT1)
    names = ["token_embedding", "position_embedding", "embedding_dropout", "final_norm"]
    for part in ("norm_1", "norm_2", "attention", "attention.qkv", "attention.softmax", "residual_middle"):
        names.append(f"blocks.0.{part}")
    names += ["blocks.0.feed_forward", "blocks.0.feed_forward.gelu", "blocks.0"]
    seen: dict[str, torch.Tensor] = {}
    for name in names:
        gpt.get_submodule(name).register_forward_hook(lambda m, i, out, name=name: seen.__setitem__(name, out))
    logits = gpt(random_ids(3, 16))
    assert set(seen) == set(names)
    pattern = seen["blocks.0.attention.softmax"]
    assert pattern.shape == (3, 2, 16, 16)
    torch.testing.assert_close(pattern.sum(-1), torch.ones(3, 2, 16))
    assert (pattern.triu(1) == 0).all()
    torch.testing.assert_close(F.linear(seen["final_norm"], gpt.token_embedding.weight), logits)


def test_sines_and_cosines_are_those_of_the_paper() -> None:
    table = GPT(GPTConfig(vocab_size=2, block_size=50, n_layer=1, n_head=1, n_embd=6, positions="sinusoidal"))
    for t, i in [(0, 0), (7, 1), (49, 2)]:
        angle = torch.tensor(t / 10000 ** (2 * i / 6))
        row = table.position_embedding(torch.tensor([t]))[0]
        torch.testing.assert_close(row[2 * i : 2 * i + 2], torch.stack((angle.sin(), angle.cos())))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_head": 5}, "n_head = 5 does not divide n_embd = 12; 4 would do"),
        ({"n_layer": 0}, "n_layer is 0; it must be a whole number, at least 1"),
        ({"n_embd": -8}, "n_embd is -8"),
        ({"attn_pdrop": 1.0}, "attn_pdrop is 1.0; a dropout rate"),
        ({"norm": "mid"}, "norm is 'mid'; it must be post or pre"),
        ({"positions": "sinusoidal", "n_embd": 9, "n_head": 3}, "n_embd = 9 is odd"),
    ],
)
def test_wrong_settings_say_what_would_do(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config(**dataclasses.asdict(GPT1) | changes)


def test_a_sequence_longer_than_the_window_is_refused() -> None:
    with pytest.raises(ValueError, match="17 tokens, more than block_size = 16"):
        build(GPT1)(random_ids(1, 17))


def test_the_plain_loop_trains_and_writes(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plain, "STEPS", 100)
    monkeypatch.setattr(plain, "WARMUP", 20)
    plain.main("text.txt")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("step 100: ")
    loss = float(lines[1].removeprefix("on text that it has not read: ").removesuffix(" nats per character"))
    assert loss < 2.5  # from 2.8, where each of the 17 characters is as likely as the others
    assert len("\n".join(lines[3:])) >= 200

"""Decay groups and the learning rate."""

import copy
import math
from typing import Any

import pytest
import torch

from minigpt.model import GPT, GPTConfig
from minigpt.optim import MuonAdamW, Schedule, decay_groups, hidden_matrices, learning_rate_factor, orthogonalise
from minigpt.training.module import GPTLightningModule


def test_matrices_and_embeddings_decay_and_nothing_else_does() -> None:
    gpt = GPT(GPTConfig(vocab_size=7, block_size=8, n_layer=2, n_head=2, n_embd=4))
    decay, no_decay = decay_groups(dict(gpt.named_parameters()), 0.01)
    names = {id(p): name for name, p in gpt.named_parameters()}
    decayed = {names[id(p)] for p in decay["params"]}
    spared = {names[id(p)] for p in no_decay["params"]}
    assert (decay["weight_decay"], no_decay["weight_decay"]) == (0.01, 0.0)
    assert decayed | spared == set(names.values())
    assert not decayed & spared
    assert {"token_embedding.weight", "position_embedding.weight", "blocks.1.attention.qkv.weight"} <= decayed
    assert all(name.endswith(".bias") or ".norm_" in name for name in spared)
    assert not any(name.endswith(".bias") or ".norm_" in name for name in decayed)


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest() -> None:
    gpt = GPT(GPTConfig(vocab_size=7, block_size=8, n_layer=2, n_head=2, n_embd=4, norm="pre"))
    kinds = ("attention.qkv", "attention.projection", "feed_forward.expand", "feed_forward.contract")
    hidden = hidden_matrices(dict(gpt.named_parameters()))
    assert list(hidden) == [f"blocks.{i}.{kind}.weight" for i in (0, 1) for kind in kinds]


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_a_step_of_muon_moves_all_directions_alike(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape), torch.float32))
    assert ((values > 0.5) & (values < 1.5)).all()


def test_both_optimizers_in_one_step_like_pytorch_s_two_apart_and_go_on_from_a_saved_state() -> None:
    torch.manual_seed(0)
    one = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    two = copy.deepcopy(one)
    muon: dict[str, Any] = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}
    adamw: dict[str, Any] = {"lr": 0.003, "fused": True}

    def both() -> MuonAdamW:
        matrices, rest = ([p for p in one.parameters() if (p.dim() == 2) == hidden] for hidden in (True, False))
        return MuonAdamW(matrices, [{"params": rest}], muon, adamw, torch.bfloat16)

    together = both()
    apart = [
        torch.optim.Muon([p for p in two.parameters() if p.dim() == 2], **muon),
        torch.optim.AdamW([p for p in two.parameters() if p.dim() < 2], **adamw),
    ]
    for step in range(6):
        x = torch.randn(5, 3)
        for model, optimizers in ((one, [together]), (two, apart)):
            for optimizer in optimizers:
                optimizer.zero_grad()
            model(x).square().sum().backward()
            for optimizer in optimizers:
                optimizer.step()
        for a, b in zip(one.parameters(), two.parameters(), strict=True):
            assert torch.equal(a, b), step
        if step == 2:
            saved = copy.deepcopy(together.state_dict())
            together = both()
            together.load_state_dict(saved)


def test_muon_computes_in_the_precision_of_the_run() -> None:
    module = GPTLightningModule("abc", block_size=8, n_layer=1, n_head=2, n_embd=4, optimizer="muon")
    in_bfloat16, in_float32 = (module.make_optimizer(precision) for precision in ("bf16-mixed", "32-true"))
    assert isinstance(in_bfloat16, MuonAdamW)
    assert isinstance(in_float32, MuonAdamW)
    assert (in_bfloat16.dtype, in_float32.dtype) == (torch.bfloat16, torch.float32)


def rate(step: int, schedule: Schedule = "cosine") -> float:
    return learning_rate_factor(step, schedule, warmup_steps=100, max_steps=1100, decay_fraction=0.5)


def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero() -> None:
    assert [rate(0), rate(50), rate(100), rate(1100), rate(5000)] == [0, 0.5, 1, 0, 0]
    assert rate(350) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert rate(600) == pytest.approx(0.5)
    falling = [rate(step) for step in range(100, 1101)]
    assert falling == sorted(falling, reverse=True)


def test_the_learning_rate_can_fall_in_a_straight_line_or_late() -> None:
    assert [rate(step, "linear") for step in (50, 100, 350, 850, 1100)] == pytest.approx([0.5, 1, 0.75, 0.25, 0])
    assert [rate(step, "constant") for step in (50, 100, 550, 825, 1100)] == pytest.approx([0.5, 1, 1, 0.5, 0])


def test_without_warmup_the_learning_rate_begins_at_its_peak() -> None:
    assert learning_rate_factor(0, "cosine", warmup_steps=0, max_steps=10, decay_fraction=0) == 1

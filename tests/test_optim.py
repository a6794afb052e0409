"""Decay groups and the learning rate."""

import math

import pytest

from minigpt.model import GPT, GPTConfig
from minigpt.optim import decay_groups, warmup_cosine


def test_matrices_and_embeddings_decay_and_nothing_else_does() -> None:
    gpt = GPT(GPTConfig(vocab_size=7, block_size=8, n_layer=2, n_head=2, n_embd=4))
    decay, no_decay = decay_groups(gpt, 0.01)
    names = {id(p): name for name, p in gpt.named_parameters()}
    decayed = {names[id(p)] for p in decay["params"]}
    spared = {names[id(p)] for p in no_decay["params"]}
    assert (decay["weight_decay"], no_decay["weight_decay"]) == (0.01, 0.0)
    assert decayed | spared == set(names.values())
    assert not decayed & spared
    assert {"token_embedding.weight", "position_embedding.weight", "blocks.1.attention.qkv.weight"} <= decayed
    assert all(name.endswith(".bias") or ".norm_" in name for name in spared)
    assert not any(name.endswith(".bias") or ".norm_" in name for name in decayed)


def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero() -> None:
    def rate(step: int) -> float:
        return warmup_cosine(step, warmup_steps=100, max_steps=1100)

    assert rate(0) == 0
    assert rate(50) == 0.5
    assert rate(100) == 1
    assert rate(350) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert rate(600) == pytest.approx(0.5)
    assert rate(1100) == 0
    assert rate(5000) == 0
    falling = [rate(step) for step in range(100, 1101)]
    assert falling == sorted(falling, reverse=True)


def test_without_warmup_the_learning_rate_begins_at_its_peak() -> None:
    assert warmup_cosine(0, warmup_steps=0, max_steps=10) == 1

"""Decay groups, the learning rate, and GPT-1's optimizer against the one that OpenAI published."""

import copy
import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from minigpt.model import GPT, GPTConfig
from minigpt.optim import MuonAdamW, Schedule, decay_groups, hidden_matrices, learning_rate_factor, orthogonalise
from minigpt.training.data import make_loader
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


# GPT-1's optimizer. OpenAI's code (finetune-transformer-lm, opt.py) differs from PyTorch's AdamW and clipping in three
# places, and its cosine from ours in one: each can be chosen in the transcription. All is in float64.

Arrays = dict[str, np.ndarray]
STEPS, WARMUP, PEAK = 100, 20, 2.5e-3


class Recorder(Callback):
    """Keeps the gradients of each step as they were before clipping, and the weights before the run and after it."""

    def __init__(self) -> None:
        self.gradients: list[Arrays] = []
        self.weights: list[Arrays] = []

    def keep_weights(self, module: Any) -> None:
        self.weights.append({name: p.detach().numpy().copy() for name, p in module.gpt.named_parameters()})

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.keep_weights(module)

    def on_after_backward(self, trainer: Trainer, module: Any) -> None:
        self.gradients.append({name: p.grad.numpy().copy() for name, p in module.gpt.named_parameters()})

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.keep_weights(module)


@functools.cache
def record(decay: float) -> Recorder:
    """100 steps of a small model by GPT-1's optimizer, with a larger learning rate and a shorter warm-up."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several would only wait for each other
    torch.manual_seed(0)
    shape: dict[str, Any] = {"block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 12}
    module = GPTLightningModule("abcdefg", learning_rate=PEAK, warmup_steps=WARMUP, weight_decay=decay, **shape)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))  # or no gradient would be large enough to be clipped
    batches: Any = [(ids[:, :-1], ids[:, 1:]) for ids in torch.randint(7, (STEPS, 4, 9))]
    recorder = Recorder()
    trainer = Trainer(
        accelerator="cpu",
        precision="64-true",
        max_steps=STEPS,
        gradient_clip_val=1.0,
        limit_val_batches=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[recorder],
    )
    trainer.fit(module, make_loader(batches, num_workers=0))
    torch.set_num_threads(threads)
    return recorder


def come_to(
    recorder: Recorder,
    decay: float,
    openais: str = "",
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    clip: float = 1.0,
    warmup: int = WARMUP,
    decay_vectors: bool = False,
) -> Arrays:
    """The weights after Adam has taken the recorded gradients; ``openais`` names what is as OpenAI published it."""
    weights = {name: weight.copy() for name, weight in recorder.weights[0].items()}
    mean, square = ({name: np.zeros_like(weight) for name, weight in weights.items()} for _ in range(2))
    for step, gradients in enumerate(recorder.gradients):
        done = step / STEPS if "cosine" in openais else (step - warmup) / (STEPS - warmup)
        rate = PEAK * (step / warmup if step <= warmup else (1 + np.cos(np.pi * done)) / 2)
        to_1, to_2 = 1 - b1 ** (step + 1), 1 - b2 ** (step + 1)  # what the running means have gathered so far
        corrected = rate * np.sqrt(to_2) / to_1
        norm = np.sqrt(sum(np.sum(g**2) for g in gradients.values()))
        for name, w in weights.items():
            g = gradients[name] * min(1, clip / (norm if "clipping" in openais else norm + 1e-6))
            mean[name] = b1 * mean[name] + (1 - b1) * g
            square[name] = b2 * square[name] + (1 - b2) * g**2
            floor = eps if "epsilon" in openais else eps * np.sqrt(to_2)
            decays = decay if w.ndim > 1 or decay_vectors else 0.0
            shrunk = (corrected if "decay" in openais else rate) * decays * w
            weights[name] = w - corrected * mean[name] / (np.sqrt(square[name]) + floor) - shrunk
    return weights


def distance(recorder: Recorder, weights: Arrays) -> float:
    """The greatest difference to what the run came to, as a part of the greatest way that a weight of it went."""
    first, last = recorder.weights
    way = max(np.abs(last[name] - first[name]).max() for name in last)
    return float(max(np.abs(last[name] - weights[name]).max() for name in last) / way)


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_a_run_takes_the_steps_of_adam_with_decoupled_decay(decay: float) -> None:
    recorder = record(decay)
    norms = [math.sqrt(sum(float((g**2).sum()) for g in step.values())) for step in recorder.gradients]
    assert len(norms) == STEPS
    assert min(norms) < 1 < max(norms), "some are clipped and some are not"
    assert distance(recorder, come_to(recorder, decay)) < 1e-10


@pytest.mark.parametrize(
    ("part", "decay", "least", "most"),
    [
        ("decay", 0.01, 1e-3, 2e-2),
        ("epsilon", 0.0, 1e-5, 1e-3),
        ("clipping", 0.0, 1e-8, 1e-6),
        ("cosine", 0.0, 0.01, 0.2),
    ],
)
def test_where_openais_code_steps_otherwise_the_difference_is_small(
    part: str, decay: float, least: float, most: float
) -> None:
    """docs/paper-ledger.md tells these numbers."""
    found = distance(record(decay), come_to(record(decay), decay, openais=part))
    assert least < found < most, found


@pytest.mark.parametrize(
    "wrong",
    [
        {"decay": 0.0},
        {"decay_vectors": True},
        {"b1": 0.8999},
        {"b2": 0.9989},
        {"eps": 1e-7},
        {"clip": 1.001},
        {"clip": math.inf},
        {"warmup": WARMUP + 1},
    ],
    ids=str,
)
def test_another_setting_of_the_optimizer_would_be_found_out(wrong: dict[str, Any]) -> None:
    assert distance(record(0.01), come_to(record(0.01), **{"decay": 0.01, **wrong})) > 1e-5

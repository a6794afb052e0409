"""What a recipe will cost, told before it is trained."""

import re
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from conftest import assert_clear_error, run_minigpt
from minigpt.cost import flops_per_token
from minigpt.model import GPT, GPTConfig
from minigpt.training import plan


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "CALIBRATION", 0.1)


def numbers(text: str, label: str) -> list[float]:
    """The numbers in the line that begins with ``label``."""
    line = next(line for line in text.splitlines() if line.strip().startswith(label))
    return [float(n.replace(",", "")) for n in re.findall(r"\d[\d,]*\.?\d*", line)]


def test_plan_tells_the_cost_and_leaves_nothing_behind(workplace: Path) -> None:
    more = ("--trainer.accumulate_grad_batches", 2, "--model.n_embd", 64, "--film.per_doubling", 1)
    result = run_minigpt("plan", "--config", "tiny.yaml", *more)
    assert result.code == 0, result.err
    parameters = sum(p.numel() for p in GPT(GPTConfig(17, 16, 2, 2, 64)).parameters())
    assert f"{parameters:,} parameters" in result.out
    assert numbers(result.out, "weights") == numbers(result.out, "gradients") == [round(4 * parameters / 1e6, 1)]
    assert numbers(result.out, "optimizer") == [pytest.approx(8 * parameters / 1e6, abs=0.1)]
    assert f"{2 * 8 * 16} characters a step" in result.out
    assert "On the disk: a film of 7 frames, 1." in result.out
    for line in ("24 steps", "6 validations", "3 samples", "start-up"):
        assert re.search(rf"^  {line} +\d+\.\d (s|min)", result.out, re.M), result.out
    assert sorted(path.name for path in workplace.iterdir()) == ["data", "text.txt", "tiny.yaml"]


def test_plan_counts_what_fit_does(workplace: Path) -> None:
    # Epochs of 8 steps, with a validation after every 3 steps and, as always, after the last.
    epochs = ("--config", "tiny.yaml", "--trainer.max_steps", -1, "--trainer.max_epochs", 2)
    every = ("--trainer.accumulate_grad_batches", 5, "--trainer.val_check_interval", 15, "--sampler.every_n_steps", 3)
    planned, done = run_minigpt("plan", *epochs, *every), run_minigpt("fit", *epochs, *every)
    curves = EventAccumulator("lightning_logs/tiny/version_0").Reload()
    steps, validations = len(curves.Scalars("train/loss")), len(curves.Scalars("val/loss"))
    assert (steps, validations) == (16, 6)
    counts = rf"^  {steps} steps .*\n  {validations} validations .*\n  {done.out.count('--- step')} samples "
    assert re.search(counts, planned.out, re.M), planned.out + planned.err


def test_plan_keeps_the_limits_and_asks_for_an_end(workplace: Path) -> None:
    limits = ("--trainer.max_steps", -1, "--trainer.max_epochs", 1, "--trainer.limit_train_batches", 0.1)
    result = run_minigpt("plan", "--config", "tiny.yaml", *limits)
    assert re.search(r"^  3 steps .*\n  1 validations .*\n  together", result.out, re.M), result.out + result.err
    endless = run_minigpt("plan", "--config", "tiny.yaml", "--trainer.max_steps", -1, "--trainer.max_epochs", -1)
    assert_clear_error(endless, "--trainer.max_steps N")


def test_muon_keeps_less_and_more_windows_take_more_memory(workplace: Path) -> None:
    wide = ("plan", "--config", "tiny.yaml", "--model.n_embd", 64)
    adamw, muon, large = (
        run_minigpt(*wide, *flags).out for flags in ((), ("--model.optimizer", "muon"), ("--data.batch_size", 32))
    )
    assert numbers(muon, "optimizer")[0] < numbers(adamw, "optimizer")[0]
    assert numbers(large, "activations")[0] > 3 * numbers(adamw, "activations")[0]


def test_plan_refuses_what_fit_refuses(workplace: Path) -> None:
    assert_clear_error(run_minigpt("plan"), "needs a recipe")
    assert_clear_error(run_minigpt("plan", "--config", "tiny.yaml", "--model.n_head", 3), "does not divide")


def test_flops_are_six_for_each_weight_of_a_matrix_and_those_of_attention() -> None:
    config = GPTConfig(vocab_size=65, block_size=256, n_layer=6, n_head=6, n_embd=384)
    matrices = sum(p.numel() for name, p in GPT(config).named_parameters() if p.dim() == 2 and "position" not in name)
    assert flops_per_token(config) == 6 * matrices + 12 * 6 * 384 * 256


def test_plan_counts_no_validation_where_there_is_none(workplace: Path) -> None:
    result = run_minigpt("plan", "--config", "tiny.yaml", "--trainer.limit_val_batches", 0)
    assert result.code == 0, result.err
    assert "validations" not in result.out

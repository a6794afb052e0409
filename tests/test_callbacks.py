"""What a run shows while it trains."""

import copy
import io
import random
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tqdm import tqdm

from conftest import ROOT, assert_clear_error, run_minigpt
from minigpt.training import checkpoints
from minigpt.training.callbacks import ProgressBar, TextSampler, print_above_progress
from minigpt.training.module import GPTLightningModule

BAR = ("--config", "tiny.yaml", "--trainer.enable_progress_bar", "true", "--sampler.every_n_steps", 0)


def test_one_bar_counts_the_steps_of_all_epochs(workplace: Path) -> None:
    epochs = ("--trainer.max_steps", -1, "--trainer.max_epochs", 2, "--trainer.limit_train_batches", 6)
    shown = run_minigpt("fit", *BAR, *epochs, "--trainer.accumulate_grad_batches", 2, "--data.batch_size", 4).err
    lines = [line for line in re.split("[\r\n]", shown) if line]
    assert all(re.match(r"\d/6 \|", line) for line in lines), shown
    assert lines[-1].startswith("6/6 ")
    for part in ("loss=", "char/s=", "val=", "bits/char="):
        assert part in lines[-1]
    assert len(lines) < 8, "a log file gets a line at the start, at each validation, and now and then"


def test_a_run_of_one_step_shows_what_is_known(workplace: Path) -> None:
    shown = run_minigpt("fit", *BAR, "--trainer.max_steps", 1, "--trainer.log_every_n_steps", 10).err
    assert re.search(r"1/1 .*, val=\d", shown)
    assert "nan" not in shown
    assert "char" not in shown


def test_a_step_that_is_not_logged_waits_for_none_of_its_numbers(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU each of these would let it stand still."""
    read = []

    def counting(real: Callable[[torch.Tensor], Any]) -> Callable[[torch.Tensor], Any]:
        def look(tensor: torch.Tensor) -> Any:
            file = Path(sys._getframe(1).f_code.co_filename)
            read.extend([file] if file.is_relative_to(ROOT / "minigpt" / "training") else [])
            return real(tensor)

        return look

    for name in ("__float__", "__bool__", "__int__", "item", "tolist"):
        monkeypatch.setattr(torch.Tensor, name, counting(getattr(torch.Tensor, name)))
    flags = ("--trainer.max_steps", 48, "--trainer.log_every_n_steps", 16, "--trainer.limit_val_batches", 0)
    assert run_minigpt("fit", "--config", "tiny.yaml", *flags, "--sampler.every_n_steps", 0).code == 0
    assert 9 <= len(read) < 48, "three times the loss, the norms and whether they are finite; and what is saved"


def test_processes_ask_each_other_for_a_signal_where_they_wait_anyway(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "step_is_done", lambda trainer: True)
    monkeypatch.setattr(checkpoints, "validation_is_due", lambda trainer: False)
    trainer: Any = types.SimpleNamespace(world_size=2, log_every_n_steps=20, global_step=0)
    asked = []
    stop = checkpoints.GracefulStop(checkpoints.RunCheckpoint())
    monkeypatch.setattr(stop, "_stop_if_asked", lambda trainer: asked.append(trainer.global_step))
    for trainer.global_step in range(1, 101):
        stop.on_train_batch_end(trainer, None)  # type: ignore[arg-type]
    assert asked == [20, 40, 50, 60, 80, 100]


def test_in_80_columns_loss_speed_and_validation_are_seen() -> None:
    postfix = "loss=1.234, char/s=102,345, val=1.6155, bits/char=1.780"
    bar = tqdm.format_meter(11999, 12000, 7200, ncols=80, bar_format=ProgressBar.BAR_FORMAT, postfix=postfix)
    assert len(bar) <= 80
    assert "loss=1.234, char/s=102,345, val=1.6155" in bar


def test_a_character_that_the_stream_cannot_show_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="cp1252", write_through=True))
    print_above_progress("café жук")
    assert shown.getvalue().decode("cp1252").strip() == "café ???"


def test_sampling_takes_every_setting_and_checks_it_first(workplace: Path) -> None:
    fit = ("fit", "--config", "tiny.yaml", "--trainer.max_steps", 8)
    greedy = run_minigpt(*fit, "--sampler.temperature", 0, "--sampler.prompt", "the cat")
    chosen = run_minigpt(*fit, "--sampler.top_k", 1, "--sampler.prompt", "the cat", "--sampler.seed", 5)
    (first,), (second,) = (re.findall(r"--- step 8 ---\nthe cat(.{20})\n", r.out, re.S) for r in (greedy, chosen))
    assert first == second
    assert_clear_error(run_minigpt(*fit, "--sampler.top_p", 2), "top_p is 2")
    assert_clear_error(run_minigpt(*fit, "--sampler.prompt", "Ω", "--sampler.every_n_steps", 1000), "Ω")
    assert_clear_error(run_minigpt(*fit, "--sampler.every_n_steps", -1), "sampler.every_n_steps is -1")


def test_sampling_leaves_weights_mode_and_random_state_as_they_were() -> None:
    module = GPTLightningModule("\nabc", n_layer=1, n_head=1, n_embd=8, block_size=8)
    weights = copy.deepcopy(module.state_dict())
    module.gpt.blocks[0].eval()
    modes = [part.training for part in module.modules()]
    states = torch.get_rng_state(), random.getstate()
    assert len(TextSampler(max_new_tokens=30).write(module)) == 30
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert [part.training for part in module.modules()] == modes
    assert all(torch.equal(weight, weights[name]) for name, weight in module.state_dict().items())


def test_predict_writes_no_file_that_it_should_not(in_trained: Path) -> None:
    predict = ("predict", "--ckpt_path", "last", "--data.predict_corpus", "text.txt")
    text = Path("text.txt").read_text()
    for output, words in {
        "./text.txt": "is there already",
        ".": "is there already",
        "text.txt/x.csv": "can't be written",
    }.items():
        assert_clear_error(run_minigpt(*predict, "--output", output), words)
    assert Path("text.txt").read_text() == text

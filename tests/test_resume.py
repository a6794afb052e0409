"""Stopped anywhere and resumed, a run ends in the same bits, with its curves in one piece."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from conftest import assert_clear_error, run_minigpt
from test_cli import curve

CONFIG = ("--config", "tiny.yaml", "--trainer.max_steps", 12, "--trainer.val_check_interval", 8)


class StopAt(Callback):
    """Sends this process a signal during a batch."""

    def __init__(self, batch: int, number: int = int(signal.SIGTERM)) -> None:
        self.batch = batch
        self.number = number
        self.seen = 0

    def on_train_batch_start(self, *args: Any) -> None:
        self.seen += 1
        if self.seen == self.batch:
            os.kill(os.getpid(), self.number)


def last(name: str) -> dict[str, Any]:
    return torch.load(f"lightning_logs/{name}/version_0/checkpoints/last.ckpt", weights_only=True)


def assert_same(a: Any, b: Any, path: str = "") -> None:
    """Equal to the last bit, all the way down."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{path}[{i}]")
    else:
        assert a == b, path


@pytest.mark.parametrize(
    ("settings", "number"),
    [
        pytest.param(("--trainer.precision", "32-true"), signal.SIGTERM, id="fp32"),
        pytest.param(("--trainer.precision", "32-true"), signal.SIGINT, id="fp32-ctrl-c"),
        pytest.param(
            ("--trainer.accumulate_grad_batches", 2, "--data.batch_size", 80),
            signal.SIGTERM,
            id="bf16-accumulate-epochs",
        ),
        pytest.param(("--data.num_workers", 2, "--trainer.val_check_interval", 3), signal.SIGTERM, id="workers"),
    ],
)
def test_a_run_stopped_at_any_batch_ends_in_the_same_bits(
    workplace: Path, settings: tuple[object, ...], number: signal.Signals
) -> None:
    assert run_minigpt("fit", *CONFIG, *settings, "--name", "whole").code == 0
    whole = last("whole")
    assert whole["global_step"] == 12
    accumulated = 2 if "--trainer.accumulate_grad_batches" in settings else 1
    for batch in range(1, 12 * accumulated + 1, 1 if settings[0] == "--trainer.precision" else 3):
        name = f"stopped{batch}"
        callback = ("--trainer.callbacks", "test_resume.StopAt", "--trainer.callbacks.batch", batch)
        stop = (*callback, "--trainer.callbacks.number", int(number))
        stopped = run_minigpt("fit", *CONFIG, *settings, *stop, "--name", name)
        if last(name)["global_step"] == 12:  # asked to stop when all was done
            assert stopped.code == 0, stopped.err
            assert_same(last(name)["state_dict"], whole["state_dict"])
            continue
        assert stopped.code == 128 + number, stopped.err
        assert f"fit --ckpt_path lightning_logs/{name}/version_0/checkpoints/last.ckpt" in stopped.out
        assert last(name)["global_step"] == -(-batch // accumulated)
        resumed = run_minigpt(
            *("fit", *CONFIG, *settings, "--name", name, "--ckpt_path", "last"), "--trainer.callbacks", "null"
        )
        assert resumed.code == 0, resumed.err
        ended = last(name)
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "hyper_parameters"):
            assert_same(ended[part], whole[part], part)
        for tag in ("train/loss", "train/grad_norm", "val/loss", "lr-AdamW/decay"):
            runs = (Path(f"lightning_logs/{n}/version_0") for n in ("whole", name))
            curves = [curve(run, tag) for run in runs]
            assert curves[0] == curves[1], (tag, batch)
        assert [p.name for p in Path(f"lightning_logs/{name}").iterdir()] == ["version_0"]


def test_gradient_clipping_can_be_off(workplace: Path) -> None:
    assert run_minigpt("fit", *CONFIG, "--trainer.gradient_clip_val", 0).code == 0
    losses = [loss for _, loss in curve(Path("lightning_logs/tiny/version_0"), "val/loss")]
    assert losses[-1] < losses[0]


def test_ctrl_c_exits_with_130(workplace: Path) -> None:
    callback = ("--trainer.callbacks", "test_resume.StopAt", "--trainer.callbacks.batch", 3)
    stopped = run_minigpt("fit", *CONFIG, *callback, "--trainer.callbacks.number", int(signal.SIGINT))
    assert stopped.code == 130
    assert "Stopped after step 3; nothing is lost." in stopped.out


def test_a_resumed_run_needs_its_checkpoint_alone_and_may_go_further(workplace: Path) -> None:
    assert run_minigpt("fit", *CONFIG).code == 0
    checkpoint = "lightning_logs/tiny/version_0/checkpoints/last.ckpt"
    assert_clear_error(run_minigpt("fit", "--ckpt_path", checkpoint), "is complete: it has done 12 of max_steps = 12")
    assert run_minigpt("fit", "--ckpt_path", checkpoint, "--trainer.max_steps", 16).code == 0
    assert last("tiny")["global_step"] == 16
    assert [step for step, _ in curve(Path("lightning_logs/tiny/version_0"), "train/loss")] == list(range(16))


def test_killed_at_once_a_run_resumes_from_its_last_checkpoint(workplace: Path) -> None:
    """SIGKILL, from outside, at a moment nobody chose."""
    long = (*CONFIG, "--trainer.max_steps", 400, "--trainer.val_check_interval", 100)
    assert run_minigpt("fit", *long, "--name", "whole").code == 0
    fit = [sys.executable, "-m", "minigpt", "fit", *map(str, long), "--name", "killed"]
    saving = ["--checkpoint.every_n_steps", "1"]
    with subprocess.Popen([*fit, *saving], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        file = Path("lightning_logs/killed/version_0/checkpoints/last.ckpt")
        for _ in range(600):
            if file.exists() or process.poll() is not None:
                break
            time.sleep(0.1)
        process.kill()
    assert last("killed")["global_step"] >= 1
    assert last("killed")["global_step"] < 400, "it was killed before it was done"
    resumed = run_minigpt("fit", "--ckpt_path", file)
    assert resumed.code == 0, resumed.err
    assert_same(last("killed")["state_dict"], last("whole")["state_dict"])


@pytest.mark.slow
def test_two_processes_train_as_one(workplace: Path) -> None:
    """To rounding: they share each batch, and their gradients are averaged."""
    dropout = [flag for name in ("embd", "attn", "resid") for flag in (f"--model.{name}_pdrop", "0")]
    exact = [*map(str, CONFIG), "--trainer.precision", "32-true", *dropout]
    assert run_minigpt("fit", *exact, "--name", "one").code == 0
    two = ["--name", "two", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    command = [sys.executable, "-m", "minigpt", "fit", *exact, *two]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert result.returncode == 0, result.stderr
    assert [p.name for p in Path("lightning_logs/two").iterdir()] == ["version_0"]
    one, two_weights = last("one")["state_dict"], last("two")["state_dict"]
    for name, weight in one.items():
        torch.testing.assert_close(two_weights[name], weight, rtol=1e-3, atol=1e-5, msg=name)
    one_curve, two_curve = (curve(Path(f"lightning_logs/{name}/version_0"), "val/loss") for name in ("one", "two"))
    assert [step for step, _ in two_curve] == [step for step, _ in one_curve]
    assert [loss for _, loss in two_curve] == pytest.approx([loss for _, loss in one_curve], rel=1e-4)
    assert result.stdout.count("Best: ") == 1

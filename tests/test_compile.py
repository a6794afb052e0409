"""Training with compiled kernels: the same model, the same promises."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from conftest import Result, assert_clear_error, run_minigpt
from minigpt.fast import FastDropout
from minigpt.training import plan
from test_cli import curve
from test_resume import CONFIG, assert_same, last

compiles = pytest.mark.skipif(not shutil.which("g++"), reason="compiling for a CPU needs a C++ compiler")
COMPILED = ("--model.compile", "true")
NO_DROPOUT = [flag for name in ("embd", "attn", "resid") for flag in (f"--model.{name}_pdrop", 0)]


def fit(name: str, *flags: object) -> Result:
    torch._dynamo.reset()  # PyTorch compiles a function only so often; a run is usually a process of its own
    return run_minigpt("fit", *CONFIG, "--name", name, *flags)


@compiles
@pytest.mark.soak
def test_what_compiled_dropout_drops_passes_no_gradient() -> None:
    torch.manual_seed(0)
    dropout, x_BC = FastDropout(0.5), torch.ones(64, 64, requires_grad=True)
    y_BC = torch.compile(lambda x_BC: 3 * dropout(x_BC))(x_BC)
    y_BC.sum().backward()
    assert 0.4 < (y_BC == 0).float().mean() < 0.6
    assert torch.equal(x_BC.grad, y_BC.detach())  # type: ignore[arg-type]


@compiles
@pytest.mark.soak
def test_compiled_a_run_learns_the_same_to_rounding(workplace: Path) -> None:
    exact = ("--trainer.precision", "32-true", *NO_DROPOUT)
    assert fit("plain", *exact).code == 0
    result = fit("compiled", *exact, *COMPILED)
    assert result.code == 0, result.err
    assert "compiled for training" in result.out
    for tag in ("train/loss", "train/grad_norm", "val/loss"):
        plain, compiled = (curve(Path(f"lightning_logs/{name}/version_0"), tag) for name in ("plain", "compiled"))
        assert [value for _, value in compiled] == pytest.approx([value for _, value in plain], rel=1e-4), tag
    assert list(last("compiled")["state_dict"]) == list(last("plain")["state_dict"])


@compiles
@pytest.mark.soak
def test_a_compiled_run_stopped_and_resumed_ends_in_the_same_bits(workplace: Path) -> None:
    assert torch.get_num_threads() > 1 or os.cpu_count() == 1, "one thread adds up in order by itself"
    assert fit("whole", *COMPILED).code == 0
    stop = ("--trainer.callbacks", "test_resume.StopAt", "--trainer.callbacks.batch", 5)
    assert fit("stopped", *COMPILED, *stop).code == 128 + 15
    torch._dynamo.reset()
    resumed = run_minigpt("fit", "--ckpt_path", "last", "--name", "stopped", "--trainer.callbacks", "null")
    assert resumed.code == 0, resumed.err
    assert "compiled for training" in resumed.out  # as the checkpoint says, without the flag
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "callbacks"):
        assert_same(last("stopped")[part], last("whole")[part], part)
    other = run_minigpt("fit", "--ckpt_path", "last", "--trainer.max_steps", 13, "--model.compile", "false")
    assert other.code == 0, other.err
    assert "The run computed otherwise so far: compile True." in other.out


@compiles
@pytest.mark.soak
def test_plan_tells_how_long_compiling_takes(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "CALIBRATION", 0.1)
    result = run_minigpt("plan", *CONFIG, *COMPILED)
    assert result.code == 0, result.err
    assert "  compiling  " in result.out
    assert "compiling" not in run_minigpt("plan", *CONFIG).out


@pytest.mark.soak
def test_without_a_compiler_the_user_is_told(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(workplace / "cache"))
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("/nonexistent",))
    assert_clear_error(fit("none", *COMPILED), "needs a compiler", "Train without it")


def test_what_trains_is_compiled_and_what_scores_is_not(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []

    def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def counted(batch: tuple[Tensor, Tensor]) -> Tensor:
            rows.append(len(batch[0]))
            return function(batch)

        return counted

    monkeypatch.setattr(torch, "compile", compiled)
    result = run_minigpt("fit", *CONFIG, *COMPILED)
    assert result.code == 0, result.err
    assert "compiled for training" in result.out
    assert rows == [8] * 12
    settings = last("tiny")["settings"]
    assert settings["model"]["compile"]
    assert settings["trainer"]["deterministic"], "or no run could be repeated to the bit"

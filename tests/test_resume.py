"""Stopped anywhere and resumed, a run ends in the same bits, with its curves in one piece."""

import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer

from conftest import Result, assert_clear_error, run_minigpt
from minigpt.records import METRICS, read_rows
from minigpt.run import FORMAT, RunFolder, find_checkpoint, read_checkpoint, write_checkpoint
from minigpt.training.proof import compare, read_curves

CONFIG: tuple[object, ...] = ("--config", "tiny.yaml", "--trainer.max_steps", 12, "--trainer.val_check_interval", 8)
CONFIG += ("--film.per_doubling", 1)
EPOCHS = ("--trainer.accumulate_grad_batches", 2, "--data.batch_size", 80)  # in bfloat16, with dropout
MATRIX = {
    "fp32": ("--trainer.precision", "32-true"),
    "bf16-accumulate-epochs": EPOCHS,
    "workers-pre": ("--data.num_workers", 2, "--model.norm", "pre", "--model.positions", "sinusoidal"),
    "early-stopping": ("--model.learning_rate", 1.0, "--early_stopping.patience", 1, "--trainer.max_steps", 40),
    "muon": ("--model.optimizer", "muon", "--model.schedule", "constant", "--trainer.precision", "bf16-mixed"),
    "bytes": ("--data.tokenizer", "byte"),
}
BEFORE = Path(__file__).parent / "before_rooms"


class KeepEveryStep(Callback):
    """Copies the run's folder as it stands after each optimizer step, to runs of their own."""

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        run = Path(trainer.default_root_dir)
        copy = run.parent.with_name(f"{run.parent.name}-{trainer.global_step}") / run.name
        if trainer.global_step and not copy.exists():
            shutil.copytree(run, copy)


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
    return read_checkpoint(RunFolder.first(name).last)


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


def rows(name: str) -> list[dict[str, str]]:
    """The ``metrics.csv`` of a run, without times and speeds."""
    times = ("seconds", "train/tokens_per_second", "train/mfu")
    return [
        {key: value for key, value in row.items() if key not in times}
        for row in read_rows(RunFolder.first(name).path / METRICS)
    ]


def assert_resumes_to_the_bits_of(whole: str, name: str) -> Result:
    """Resumed from its last checkpoint, the run ``name`` ends as ``whole`` did."""
    resumed = run_minigpt("fit", "--ckpt_path", RunFolder.first(name).last, "--trainer.callbacks", "null")
    assert resumed.code == 0, resumed.err
    for part, (count, places) in compare(RunFolder.first(whole), RunFolder.first(name)).items():
        assert count > 1 or part == "global_step"
        assert places == [], (name, part, places)
    assert rows(name) == rows(whole)
    assert [folder.name for folder in Path("lightning_logs", name).iterdir()] == ["version_0"]
    return resumed


def resume_from(steps: range | None, *settings: object) -> None:
    """Train, keeping every step, and resume from some of them, or from all."""
    callbacks = ("--checkpoint.every_n_steps", 1, "--trainer.callbacks", "test_resume.KeepEveryStep")
    whole = run_minigpt("fit", *CONFIG, "--trainer.val_check_interval", 4, *settings, *callbacks)
    assert whole.code == 0, whole.err
    assert last("tiny")["global_step"] == (8 if "--early_stopping.patience" in settings else 12)
    for step in steps or range(1, last("tiny")["global_step"]):
        assert last(f"tiny-{step}")["global_step"] == step
        resumed = assert_resumes_to_the_bits_of("tiny", f"tiny-{step}")
        assert (
            ("has not improved" in resumed.out)
            == ("has not improved" in whole.out)
            == ("--early_stopping.patience" in settings)
        )


def test_a_run_resumed_within_an_epoch_and_at_its_end_and_at_a_validation_ends_in_the_same_bits(
    workplace: Path,
) -> None:
    resume_from(range(1, 8, 3), *EPOCHS, "--model.learning_rate", 1.0)  # with which no later loss is the best


@pytest.mark.soak
@pytest.mark.parametrize("settings", [pytest.param(value, id=key) for key, value in MATRIX.items()])
def test_a_run_resumed_from_any_of_its_steps_ends_in_the_same_bits(
    workplace: Path, settings: tuple[object, ...]
) -> None:
    resume_from(None, *settings)


def stop_and_resume(batches: range, number: signal.Signals, *settings: object) -> None:
    """Stop a run by a signal in one batch or another, and resume it."""
    assert run_minigpt("fit", *CONFIG, *settings, "--name", "whole").code == 0
    for batch in batches:
        name = f"stopped{batch}"
        callback = ("--trainer.callbacks", "test_resume.StopAt", "--trainer.callbacks.batch", batch)
        stop = (*callback, "--trainer.callbacks.number", int(number))
        stopped = run_minigpt("fit", *CONFIG, *settings, *stop, "--name", name)
        if last(name)["global_step"] == 12:  # asked to stop when all was done
            assert stopped.code == 0, stopped.err
            assert_same(last(name)["state_dict"], last("whole")["state_dict"])
            continue
        step = -(-batch // (2 if settings == EPOCHS else 1))  # the step that the batch is of is finished
        assert stopped.code == 128 + number, stopped.err
        assert f"Stopped after step {step}; nothing is lost." in stopped.out
        assert f"fit --ckpt_path {RunFolder.first(name).last}" in stopped.out
        assert last(name)["global_step"] == step
        assert_resumes_to_the_bits_of("whole", name)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_stopped_by_a_signal_is_saved_and_goes_on(workplace: Path, number: signal.Signals) -> None:
    stop_and_resume(range(3, 4), number)


@pytest.mark.soak
@pytest.mark.parametrize("settings", [MATRIX["fp32"], EPOCHS])
def test_a_run_stopped_in_any_batch_ends_in_the_same_bits(workplace: Path, settings: tuple[object, ...]) -> None:
    stop_and_resume(range(1, 25, 3) if settings == EPOCHS else range(1, 13), signal.SIGTERM, *settings)


def test_a_run_outside_the_main_thread_leaves_signals_alone(workplace: Path) -> None:
    results: list[Result] = []
    thread = threading.Thread(target=lambda: results.append(run_minigpt("fit", *CONFIG)))
    thread.start()
    thread.join()
    assert results[0].code == 0, results[0].err
    assert last("tiny")["global_step"] == 12


def test_gradient_clipping_can_be_off(workplace: Path) -> None:
    assert run_minigpt("fit", *CONFIG, "--trainer.gradient_clip_val", 0).code == 0
    losses = [loss for _, loss in read_curves(RunFolder.first("tiny"))["val/loss"]]
    assert losses[-1] < losses[0]


def test_a_resumed_run_needs_its_checkpoint_alone_and_may_go_further(workplace: Path) -> None:
    assert run_minigpt("fit", *CONFIG).code == 0
    run = RunFolder.first("tiny")
    assert_clear_error(run_minigpt("fit", "--ckpt_path", run.last), "is complete: it has done 12 of max_steps = 12")
    assert run_minigpt("fit", "--ckpt_path", run.last, "--trainer.max_steps", 16).code == 0
    assert last("tiny")["global_step"] == 16
    assert [step for step, _ in read_curves(run)["train/loss"]] == list(range(16))


def test_a_run_of_the_version_before_goes_on_is_scored_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = RunFolder.first("before")
    shutil.copytree(BEFORE / "version_0", run.path)
    shutil.copy(BEFORE / "words.txt", "words.txt")
    assert last("before")["global_step"] == 13
    assert last("before")["datamodule_hyper_parameters"]["eval_batch_size"] == 32
    assert run_minigpt("corpus", "--config", run.config).code == 0
    resumed = run_minigpt("fit", "--ckpt_path", run.last, "--data.eval_batch_size", 7)  # was scoring_batch_size
    assert resumed.code == 0, resumed.err
    assert last("before")["global_step"] == 24
    assert last("before")["datamodule_hyper_parameters"]["eval_batch_size"] == 7
    losses = [loss for _, loss in read_curves(run)["val/loss"]]
    assert min(losses) == pytest.approx(2.7815, abs=0.002)
    assert find_checkpoint("best").name.endswith(f"-val{min(losses):.4f}.ckpt")
    assert not list(run.checkpoints.glob("step000008*"))  # the best before it, which the old version wrote
    written = run_minigpt("generate", "--ckpt_path", "best", "--max_new_tokens", 30)
    assert written.code == 0, written.err
    assert len(written.out.strip("\n")) > 20
    scored = run_minigpt("test", "--ckpt_path", BEFORE / "version_0/checkpoints/last.ckpt")
    assert scored.code == 0, scored.err
    found = next(line for line in scored.out.splitlines() if "test/loss" in line)
    assert float(found.strip("│ \n").split()[-1]) == pytest.approx(2.8549, abs=0.003)


def test_the_best_checkpoint_has_the_lowest_loss_as_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = RunFolder.first("tiny")
    run.checkpoints.mkdir(parents=True)
    names = ["step000001-val10.5000", "step000002-val9.5000", "step000003-val9.5000", "step000003-val1.0000 (copy)"]
    for name in ("last", *names):
        (run.checkpoints / f"{name}.ckpt").touch()
    assert find_checkpoint("best", "tiny") == run.scored(3, 9.5)


def test_a_run_deletes_only_checkpoints_that_it_wrote(in_trained: Path) -> None:
    checkpoints = RunFolder.first("tiny").checkpoints
    best = find_checkpoint("best")
    mine = [checkpoints / f"{best.stem} (copy).ckpt", checkpoints / "step000001-val9.0000.ckpt", checkpoints / "a.part"]
    for path in mine:
        shutil.copy(best, path)
    assert run_minigpt("fit", "--ckpt_path", "last", "--trainer.max_steps", 48).code == 0
    assert find_checkpoint("best") != best
    assert not best.exists()
    assert all(path.exists() for path in mine)
    assert not find_checkpoint("last").is_symlink()


def test_a_file_is_a_runs_only_in_the_folder_of_a_run(in_trained: Path) -> None:
    alone, checkpoint = Path("checkpoints/alone.ckpt"), last("tiny")
    checkpoint["callbacks"]["RunCheckpoint"]["best_score"] = 0.1
    alone.parent.mkdir()
    write_checkpoint(checkpoint, alone)
    assert RunFolder.of(alone) is RunFolder.of(alone.absolute()) is None
    # Without its best one, a copy has no best score to beat.
    result = run_minigpt("fit", "--ckpt_path", alone, "--trainer.max_steps", 32, "--name", "new")
    assert result.code == 0, result.err
    assert f"Best: {float(find_checkpoint('best', 'new').stem.split('-val')[1]):.4f}" in result.out
    assert list(Path("checkpoints").iterdir()) == [alone]


@pytest.mark.parametrize("inside", [".", "checkpoints"])
def test_a_run_goes_on_from_within_its_folder(in_trained: Path, monkeypatch: pytest.MonkeyPatch, inside: str) -> None:
    run = RunFolder(RunFolder.first("tiny").path.absolute())
    monkeypatch.chdir(run.path / inside)
    path = os.path.relpath(run.last)
    text = ("--data.corpus", in_trained / "text.txt", "--data.data_dir", in_trained / "data")
    result = run_minigpt("fit", "--ckpt_path", path, "--trainer.max_steps", 26, *text)
    assert result.code == 0, result.err
    assert read_checkpoint(run.last)["global_step"] == 26
    assert Path(result.out.split("fit --ckpt_path ")[1].split(" ")[0]).samefile(run.last)
    assert len(list(in_trained.rglob("last.ckpt"))) == 1
    assert [step for step, _ in read_curves(run)["train/loss"]] == list(range(26))


def test_a_resumed_run_gets_its_text_as_before(workplace: Path) -> None:
    """From the config in its own folder, for a checkpoint may come from anybody."""
    got = ("--data.data_dir", "elsewhere", "--data.max_unpacked_gb", 50)
    assert run_minigpt("fit", *CONFIG, *got).code == 0
    shutil.rmtree("elsewhere")
    assert run_minigpt("fit", "--ckpt_path", "last", "--trainer.max_steps", 16).code == 0
    assert Path("elsewhere").is_dir()
    assert not Path("data").exists()
    assert yaml.safe_load(RunFolder.first("tiny").config.read_text())["data"]["max_unpacked_gb"] == 50
    assert "elsewhere" not in str({k: v for k, v in last("tiny").items() if k != "state_dict"})


def test_a_checkpoint_of_a_newer_format_is_refused(in_trained: Path) -> None:
    newer = {**last("tiny"), "minigpt_format": FORMAT + 1}
    write_checkpoint(newer, Path("newer.ckpt"))
    for command in ("generate", "fit"):
        result = run_minigpt(command, "--ckpt_path", "newer.ckpt")
        assert_clear_error(result, f"newer.ckpt has format {FORMAT + 1}", "Install a newer")

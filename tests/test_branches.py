"""A run is never set back: going on from anything but its newest state, or otherwise, begins a new one."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import Result, assert_clear_error, make_text, run_minigpt
from minigpt.records import METRICS, read_rows
from minigpt.run import RunFolder, find_checkpoint, read_checkpoint
from minigpt.training.proof import read_curves

OLD = RunFolder.first("tiny")
NEW = RunFolder(OLD.path.with_name("version_1"))


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder, by the digest of what it holds."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def fit(*args: object) -> Result:
    result = run_minigpt("fit", *args)
    assert result.code == 0, result.err
    return result


def test_an_older_state_goes_on_in_a_new_run_and_the_old_one_stays(in_trained: Path) -> None:
    older = OLD.checkpoints / "as it was.ckpt"
    shutil.copy(OLD.last, older)
    best = find_checkpoint("best")
    fit("--ckpt_path", "last", "--trainer.max_steps", 40)
    before = contents(OLD.path)
    result = fit("--ckpt_path", older, "--trainer.max_steps", 40)
    assert "in a new run, because its own run has come to step 40" in result.out
    assert contents(OLD.path) == before
    assert json.loads(NEW.parent.read_text()) == {"parent": str(older), "parent_step": 24}
    assert read_checkpoint(NEW.last)["global_step"] == 40
    assert [row["step"] for row in read_rows(NEW.path / METRICS)] == [str(step) for step in range(1, 41)]
    for tag in ("train/loss", "val/loss"):
        assert read_curves(NEW)[tag] == read_curves(OLD)[tag]
    assert [path.name for path in NEW.checkpoints.glob("step*")] != [best.name]


def test_a_new_run_begins_with_its_checkpoint_as_the_last_and_the_best(in_trained: Path) -> None:
    best = find_checkpoint("best")
    step = read_checkpoint(best)["global_step"]
    result = fit(
        "--ckpt_path", best, "--branch", "true", "--model.learning_rate", 0.0001, "--trainer.max_steps", step + 1
    )
    assert "as --branch asks, with model.learning_rate 0.0001 instead of 0.003." in result.out
    checkpoint = read_checkpoint(NEW.last)
    assert checkpoint["hyper_parameters"]["learning_rate"] == 0.0001
    assert checkpoint["callbacks"]["RunCheckpoint"]["best_score"] <= float(best.stem.split("val")[1]) + 1e-4
    assert list(NEW.checkpoints.glob("step*"))


def test_a_changed_setting_is_refused_without_branch_and_a_changed_shape_with_it(in_trained: Path) -> None:
    further = ("--ckpt_path", "last", "--trainer.max_steps", 32)
    before = contents(in_trained)
    assert_clear_error(run_minigpt("fit", *further, "--data.batch_size", 4), "made with 8", "--branch true")
    for flag, value, made_with in (("--model.n_embd", 32, 16), ("--data.block_size", 8, 16)):
        result = run_minigpt("fit", *further, "--branch", "true", flag, value)
        assert_clear_error(result, f"{flag[2:]} is given as {value}", f"made with {made_with}")
        assert "--branch" not in result.err
    assert contents(in_trained) == before
    fit(*further, "--branch", "true", "--data.batch_size", 4)
    assert read_checkpoint(NEW.last)["datamodule_hyper_parameters"]["batch_size"] == 4


def test_a_name_of_its_own_begins_a_new_run(in_trained: Path) -> None:
    before = contents(OLD.path)
    fit("--ckpt_path", OLD.last, "--trainer.max_steps", 26, "--name", "other")
    assert contents(OLD.path) == before
    assert read_checkpoint(RunFolder.first("other").last)["global_step"] == 26


def test_a_refused_resume_leaves_no_trace(in_trained: Path) -> None:
    Path("other.txt").write_text(make_text(6000, seed=9))
    run_minigpt("corpus", "--data.corpus", "other.txt")  # its ids are kept in data/
    before = contents(Path("lightning_logs"))
    for more in ((), ("--branch", "true")):
        flags = ("--ckpt_path", "last", "--trainer.max_steps", 40, "--data.corpus", "other.txt")
        assert_clear_error(run_minigpt("fit", *flags, *more), "its content differs")
        assert contents(Path("lightning_logs")) == before
        assert [path.name for path in Path("lightning_logs/tiny").iterdir()] == ["version_0"]


@pytest.mark.soak
def test_what_ends_a_run_is_told_with_the_flag_by_which_it_goes_on(workplace: Path) -> None:
    flags = ("--config", "tiny.yaml", "--trainer.max_steps", 100_000)
    result = fit(*flags, "--trainer.max_time", "00:00:00:01")
    assert "its max_time is over" in result.out
    done = read_checkpoint(OLD.last)["global_step"]
    assert_clear_error(run_minigpt("fit", "--ckpt_path", "last"), "has used up its max_time")
    command = result.out.split("train it on: ")[1].splitlines()[0].split()
    fit(*command[command.index("fit") + 1 :])
    assert read_checkpoint(OLD.last)["global_step"] > done
    result = fit(*flags, "--early_stopping.stopping_threshold", 99, "--name", "threshold")
    assert "Stopping threshold reached: val/loss" in result.out


@pytest.mark.soak
@pytest.mark.parametrize(("value", "batches"), [("1", 1), ("1.0", 13)])
def test_a_whole_number_is_a_count(workplace: Path, value: str, batches: int) -> None:
    """Whichever of int | float and float | int the typing module met first: here the latter, as for most users."""
    code = (
        "import typing; typing.Union[float, int, None]; import sys, minigpt.__main__ as m; "
        "from lightning.pytorch import Trainer; fit = Trainer.fit; "
        "Trainer.fit = lambda self, *a, **k: (fit(self, *a, **k), print('batches', self.num_val_batches)); m.main()"
    )
    flags = "fit --config tiny.yaml --trainer.max_steps 1 --trainer.val_check_interval 1 --data.eval_batch_size 3"
    command = [sys.executable, "-c", code, *flags.split(), "--trainer.limit_val_batches", value]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert f"batches [{batches}]" in result.stdout, result.stdout + result.stderr


def test_a_part_of_an_epoch_is_an_interval_of_validation(workplace: Path) -> None:
    result = fit("--config", "tiny.yaml", "--trainer.val_check_interval", 0.25, "--trainer.max_steps", 22)
    assert [step for step, _ in read_curves(OLD)["val/loss"]] == [8, 17, 21], result.out


def test_a_folder_that_no_run_can_have_is_refused(workplace: Path) -> None:
    result = run_minigpt("fit", "--config", "tiny.yaml", "--trainer.default_root_dir", "elsewhere")
    assert_clear_error(result, "one folder, lightning_logs/NAME/version_N", "--name")
    assert not Path("elsewhere").exists()


def test_the_baselines_are_those_of_the_characters_that_were_scored(in_trained: Path) -> None:
    limited = ("--trainer.limit_test_batches", 2, "--data.eval_batch_size", 3, "--trainer.logger", "true")
    assert "How predictable the 96 characters scored are" in run_minigpt("test", "--ckpt_path", "last", *limited).out
    assert "How predictable the 600 characters scored are" in run_minigpt("test", "--ckpt_path", "last").out


def test_a_csv_logger_of_the_users_own_loses_no_rows(workplace: Path) -> None:
    logger = ("--trainer.logger", "lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir", "csv")
    fit("--config", "tiny.yaml", *logger, "--trainer.logger.version", 7)
    rows = next(Path("csv").rglob("metrics.csv")).read_text()
    fit("--ckpt_path", "last", "--trainer.max_steps", 32)
    assert rows in [path.read_text() for path in Path("csv").rglob("metrics*.csv")]


LONG = ["fit", "--config", "tiny.yaml", "--trainer.max_steps", "100000"]


@pytest.mark.soak
@pytest.mark.skipif(os.name != "posix", reason="a hang-up is POSIX's")
def test_a_hang_up_saves_the_run(workplace: Path) -> None:
    with subprocess.Popen([sys.executable, "-m", "minigpt", *LONG], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if "--- step 8" in line)
        process.send_signal(signal.SIGHUP)
        out = process.stdout.read()
    assert process.returncode == 128 + 1
    assert f"Stopped after step {read_checkpoint(OLD.last)['global_step']}" in out


@pytest.mark.soak
@pytest.mark.parametrize("lines", [1, 7])
def test_a_reader_that_leaves_lets_the_run_save_and_stop(workplace: Path, lines: int) -> None:
    """As ``fit 2>&1 | head -7`` does, and ``head -1``, which leaves before training has begun."""
    command = [sys.executable, "-m", "minigpt", *LONG]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        for _ in range(lines):
            process.stdout.readline()
        process.stdout.close()
    assert process.returncode == 141
    assert read_checkpoint(OLD.last)["global_step"] > 0


@pytest.mark.soak
def test_a_full_log_file_ends_no_training(workplace: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    command = [sys.executable, "-m", "minigpt", "fit", "--config", "tiny.yaml"]
    with Path("/dev/full").open("wb") as full:
        assert subprocess.run(command, stdout=full, stderr=full, check=False).returncode == 0
    assert read_checkpoint(OLD.last)["global_step"] == 24


def test_the_schedule_is_stretched_to_a_new_end_and_the_rates_are_told(in_trained: Path) -> None:
    result = fit("--ckpt_path", "last", "--trainer.max_steps", 48)
    assert "The learning rate goes on at" in result.out
    assert "until step 48" in result.out


def test_learning_rates_rise_once_more_where_that_is_asked_for(in_trained: Path) -> None:
    fit("--ckpt_path", "last", "--trainer.max_steps", 48, "--rewarm", 4)
    fit("--ckpt_path", "last", "--trainer.max_steps", 60)
    rates = [float(row["lr-AdamW/decay"]) for row in read_rows(OLD.path / METRICS)][24:]
    assert rates[0] == 0
    assert rates[1] == pytest.approx(rates[2] / 2, rel=0.1)
    assert max(rates) == rates[4]
    assert read_checkpoint(OLD.last)["hyper_parameters"]["rewarm_start"] == 24
    assert_clear_error(run_minigpt("fit", "--config", "tiny.yaml", "--rewarm", 4), "--ckpt_path")


def test_settings_stand_against_the_state_of_the_optimizer(in_trained: Path) -> None:
    flags = (
        "--model.learning_rate",
        0.5,
        "--model.beta2",
        0.9,
        "--model.weight_decay",
        0.3,
        "--model.schedule",
        "linear",
    )
    fit("--ckpt_path", "last", "--branch", "true", "--trainer.max_steps", 48, *flags)
    group = read_checkpoint(NEW.last)["optimizer_states"][0]["param_groups"][0]
    assert (group["initial_lr"], group["betas"][1], group["weight_decay"]) == (0.5, 0.9, 0.3)
    rates = [float(row["lr-AdamW/decay"]) for row in read_rows(NEW.path / METRICS)][24:]
    assert rates[0] == pytest.approx(0.5 * 24 / 44, rel=0.01), "from the first step on"


def test_a_run_that_was_stopped_early_is_continued_by_more_patience(workplace: Path) -> None:
    flags = ("--config", "tiny.yaml", "--early_stopping.min_delta", 9, "--early_stopping.patience", 1)
    result = fit(*flags, "--trainer.max_steps", 80)
    stopped = read_checkpoint(OLD.last)["global_step"]
    assert stopped < 80
    assert f"Stopped after step {stopped}: val/loss has not improved for 1 validations." in result.out
    refused = run_minigpt("fit", "--ckpt_path", "last")
    assert_clear_error(refused, "was stopped early", "give --early_stopping.patience more than 1")
    fit("--ckpt_path", "last", "--early_stopping.patience", 50)
    assert read_checkpoint(OLD.last)["global_step"] == 80

"""Every run leaves its curves as a table, and ``runs`` sets runs beside each other."""

import csv
import itertools
import json
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import assert_clear_error, run_minigpt
from minigpt.records import METRICS, read_rows
from minigpt.run import RunFolder
from minigpt.training.curves import MetricsCSV
from test_cli import curve

# metrics.csv


def test_a_run_leaves_its_curves_as_a_table_of_plain_numbers(trained: Path) -> None:
    run = RunFolder(trained / RunFolder.first("tiny").path)
    text = (run.path / METRICS).read_text(encoding="utf-8")
    head, *rows = csv.reader(text.splitlines())
    assert head[:2] == ["step", "seconds"]
    assert [int(row[0]) for row in rows] == list(range(1, 25))
    assert all(re.fullmatch(r"(\d+(\.\d+)?)?", cell) for row in rows for cell in row)
    for name in ("train/loss", "train/grad_norm", "train/tokens_per_second", "lr-AdamW/decay", "val/loss"):
        points = [(int(row[0]) - 1, float(row[head.index(name)])) for row in rows if row[head.index(name)]]
        shown = curve(run.path, name.replace("lr-", "train/lr-"))  # so that TensorBoard has them behind the losses
        assert points == [(step, pytest.approx(value, rel=1e-7)) for step, value in shown]


OTHER = "{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: elsewhere}}"


@pytest.mark.parametrize("logger", ["false", pytest.param(OTHER, marks=pytest.mark.soak)])
def test_a_run_without_a_logger_or_with_another_leaves_it_too(workplace: Path, logger: str) -> None:
    short = ("fit", "--config", "tiny.yaml", "--trainer.max_steps", 8, "--sampler.every_n_steps", 0)
    result = run_minigpt(*short, "--trainer.logger", logger)
    assert result.code == 0, result.err
    rows = read_rows(Path("lightning_logs/tiny/version_0") / METRICS)
    assert [row["step"] for row in rows] == [str(step) for step in range(1, 9)]
    assert bool(list(Path().rglob(f"elsewhere/**/{METRICS}"))) == (logger == OTHER)


def begin(folder: Path, step: int = 0) -> MetricsCSV:
    logger = MetricsCSV(folder, step)
    logger.log_graph()
    return logger


def log(logger: MetricsCSV, steps: range) -> None:
    for step in steps:
        logger.log_metrics({"train/loss": 1 / step}, step - 1)
        if step % 4 == 0:
            logger.log_metrics({"val/loss": 2 / step}, step - 1)
            logger.save()


def test_a_resumed_run_goes_on_where_the_rows_of_its_checkpoint_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(100.0, 0.5)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    log(begin(tmp_path), range(1, 11))
    path = tmp_path / METRICS
    assert [row["step"] for row in read_rows(path)] == [str(step) for step in range(1, 10)]  # 10 was not saved yet
    whole = read_rows(path)
    with path.open("a") as file:
        file.write("10,5.0")  # torn by a kill
    log(begin(tmp_path, 6), range(7, 13))
    rows = read_rows(path)
    assert rows[:6] == whole[:6]
    assert [{**row, "seconds": ""} for row in rows[:9]] == [{**row, "seconds": ""} for row in whole]
    seconds = [float(row["seconds"]) for row in rows]
    assert seconds == [0.5 * step for step in range(1, 13)], "the time of both parts, added up"


def test_rows_wait_while_a_spreadsheet_locks_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(*args: Any, **settings: Any) -> None:
        raise PermissionError

    logger = begin(tmp_path)
    log(logger, range(1, 5))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", locked)
        log(logger, range(5, 10))
    logger.save()
    assert [row["step"] for row in read_rows(tmp_path / METRICS)] == [str(step) for step in range(1, 10)]


WRITER = """
import sys
from pathlib import Path
from minigpt.training.curves import MetricsCSV
folder = Path(sys.argv[1])
logger = MetricsCSV(folder)
logger.log_graph()
for step in range(10**9):
    logger.log_metrics({"train/loss": step} | {f"value{step // 500}": step}, step)
    if step % 3 == 0:
        logger.save()
        (folder / "checkpoint").write_text(f"{step + 1}!")
        logger.log_metrics({"late": step}, step)
"""


@pytest.mark.soak
def test_a_kill_leaves_whole_rows_to_the_last_checkpoint(tmp_path: Path) -> None:
    draw = random.Random(1)
    for kill in range(5):
        folder = tmp_path / str(kill)
        folder.mkdir()
        with subprocess.Popen([sys.executable, "-c", WRITER, folder]) as process:
            while not (folder / "checkpoint").exists():
                time.sleep(0.01)
            time.sleep(draw.uniform(0.1, 2))
            process.kill()
        saved = (folder / "checkpoint").read_text()
        steps = [int(row["step"]) for row in read_rows(folder / METRICS)]
        assert steps == list(range(1, len(steps) + 1))
        assert not saved.endswith("!") or len(steps) >= int(saved[:-1]) > 100


# runs


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a few runs, as their text files tell of them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    config = yaml.safe_load((trained / RunFolder.first("tiny").config).read_text())

    def make(run: str, losses: dict[int, float], seed: int = 1337, **model: Any) -> Path:
        folder = tmp_path / "lightning_logs" / run
        folder.mkdir(parents=True)
        settings = {**config, "seed_everything": seed, "model": {**config["model"], **model}}
        (folder / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
        lines = [f"{step},{step / 2},1.5,{loss}" for step, loss in losses.items()]
        (folder / METRICS).write_text("\n".join(["step,seconds,train/loss,val/loss", *lines, ""]))
        return folder

    for version, seed in enumerate((1, 2, 3)):
        make(f"tiny/version_{version}", {8: 2.5, 16: 2.2 + seed / 10, 24: 2.7}, seed)
    make("tiny/version_3", {8: 2.6, 16: float("nan")}, 4)  # not complete
    make("tiny/version_10", {8: 2.5, 24: 2.0}, 1, learning_rate=0.01, schedule="linear")
    branch = make("tiny/version_11", {24: 2.25}, 3)
    parent = {"parent": "lightning_logs/tiny/version_2/checkpoints/step000016-val2.5000.ckpt", "parent_step": 16}
    (branch / "run.json").write_text(json.dumps(parent))
    old = make("older/version_0", {})
    (old / METRICS).unlink()
    (old / "checkpoints").mkdir()
    (old / "checkpoints" / "step000016-val2.5432.ckpt").touch()
    return tmp_path


def test_runs_are_set_beside_each_other(place: Path) -> None:
    result = run_minigpt("runs")
    assert result.code == 0, result.err
    older, tiny = result.out.strip().split("\n\n")
    assert re.search(r"\b0 +16/24 +1337 +2\.5432 +16$", older, re.M)
    lines = tiny.splitlines()
    assert lines[0] == "tiny: text.txt, 2 layers x 16 wide, 2 heads, window 16"
    assert re.fullmatch(r" *1 +24/24 +2 +2\.4000 +16 +0:00:12", lines[3])
    assert re.fullmatch(r" *3 +16/24 +4 +2\.6000 +8 +0:00:08", lines[5])
    words = " ".join(tiny.split())
    assert "2.0000 24 0:00:12 model.learning_rate 0.01, model.schedule linear 11 24/24" in words
    assert "from tiny/version_2 at step 16" in words
    assert words.endswith("3 seeds: mean 2.4000, sample standard deviation 0.1000")
    assert max(map(len, result.out.splitlines())) <= 80
    assert run_minigpt("runs", "--name", "older").out.split() == older.split()


def test_runs_as_data_say_the_same(place: Path) -> None:
    data = json.loads(run_minigpt("runs", "--json").out)
    table = list(csv.DictReader(run_minigpt("runs", "--csv").out.splitlines()))
    assert [row["run"] for row in data] == [row["run"] for row in table]
    assert [row["version"] for row in data] == [0, 0, 1, 2, 3, 10, 11]
    for row, cells in zip(data, table, strict=True):
        assert row.keys() == cells.keys()
        assert cells["best_loss"] == str(row["best_loss"])
        assert (cells["complete"], cells["corpus"]) == (str(row["complete"]).lower(), "text.txt")
    assert (data[1]["seeds"], data[1]["seeds_mean"]) == (3, pytest.approx(2.4))
    assert data[5]["differs"] == {"model.learning_rate": "0.01", "model.schedule": "linear"}
    assert (data[6]["parent_step"], data[6]["seeds"]) == (16, None)


@pytest.mark.parametrize("against", ["tiny/version_10", "lightning_logs/tiny/version_10/", "tiny"])
def test_runs_are_set_against_one(place: Path, against: str) -> None:
    shutil.rmtree("lightning_logs/tiny/version_11")  # so that 10 is the newest
    result = run_minigpt("runs", "--against", against)
    assert result.code == 0, result.err
    told = result.out[result.out.index("tiny/version_1:") :].splitlines()[:4]
    assert told == [
        "tiny/version_1: best loss 2.4000, +0.4000 against tiny/version_10",
        "    seed_everything 2 instead of 1",
        "    model.learning_rate 0.003 instead of 0.01",
        "    model.schedule cosine instead of linear",
    ]
    data = json.loads(run_minigpt("runs", "--against", against, "--json").out)
    assert data[2]["loss_difference"] == pytest.approx(0.4)
    assert data[2]["instead_of"]["model.schedule"] == "linear"


def test_a_run_that_is_not_there_is_a_mistake(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for flag in ("--name", "--against"):
        assert_clear_error(run_minigpt("runs", flag, "nobody"), f"{flag} nobody", "no such run")
    (place / "empty").mkdir()
    monkeypatch.chdir(place / "empty")
    assert "There is no run in lightning_logs" in run_minigpt("runs").out
    assert run_minigpt("runs", "--json").out.strip() == "[]"
    assert run_minigpt("runs", "--csv").code == 0


def test_damaged_and_foreign_folders_are_named_and_passed_over(place: Path) -> None:
    logs = Path("lightning_logs")
    config = (logs / "tiny/version_0/config.yaml").read_bytes()
    damages: list[tuple[str, bytes]] = [
        ("config.yaml", config[: len(config) // 2]),
        ("config.yaml", b"a: [1, 2"),
        ("config.yaml", b""),
        ("config.yaml", b"\xff\xfe\x00"),
        ("config.yaml", b"model: 3\n"),
        ("config.yaml", b"a: &a {b: *a}\n"),
        ("run.json", b'{"parent": '),
        ("run.json", b"[1]"),
        (METRICS, b"step,seconds,val/loss\n8,much,none\n"),
    ]
    for number, (name, content) in enumerate(damages):
        folder = shutil.copytree(logs / "tiny/version_0", logs / f"damaged/version_{number}")
        (folder / name).write_bytes(content)
    (logs / "damaged/version_20").mkdir()
    (logs / "damaged/version_21/config.yaml").mkdir(parents=True)
    (logs / "damaged/version_x").write_text("a file")
    (logs / "version_0" / "checkpoints").mkdir(parents=True)  # as Lightning itself makes them
    harmless = [b"", b"\x00\xff" * 50, b"step,sec", b"step,seconds\n1,2,3\n\n4\n"]
    for number, content in enumerate(harmless):
        folder = shutil.copytree(logs / "tiny/version_0", logs / f"harmless/version_{number}")
        (folder / METRICS).write_bytes(content)
    result = run_minigpt("runs")
    assert result.code == 0, result.err
    told = result.err.strip().splitlines()
    assert all(line.startswith("Passed over lightning_logs/damaged/version_") for line in told), told
    assert len(told) == len(damages) + 3
    blocks = dict(block.split(":", 1) for block in result.out.strip().split("\n\n"))
    assert list(blocks) == ["harmless", "older", "tiny"]
    assert len(blocks["harmless"].splitlines()) == 2 + len(harmless)

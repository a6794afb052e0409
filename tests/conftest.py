"""Small texts, and the command line as a function."""

import contextlib
import io
import os
import random
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from tensorboard.summary.writer import event_file_writer

from minigpt.__main__ import main

ROOT = Path(__file__).parent.parent
TINY_SHAKESPEARE = ROOT.parent / "shared" / "tinyshakespeare.txt"

# A run that finds out how many threads are fastest may find another number the next time, and computes other bits then.
os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))

# TensorBoard reads the event files of one second and one process in the alphabetical order of their numbers. Only here
# does one process begin so many files that 10 could come after 9 within a second.
event_file_writer._global_uid = event_file_writer.AtomicCounter(10**6)

# A model so small that a whole `fit` takes a moment, with dropout on.
TINY = """\
name: tiny
data: {corpus: text.txt, block_size: 16, batch_size: 8, val_fraction: 0.1, test_fraction: 0.1}
model: {n_layer: 2, n_head: 2, n_embd: 16, learning_rate: 0.003, warmup_steps: 4}
trainer: {max_steps: 24, val_check_interval: 8, log_every_n_steps: 1, enable_progress_bar: false, accelerator: cpu}
sampler: {every_n_steps: 8, max_new_tokens: 20}
"""


@dataclass
class Result:
    """What a call of the command line left behind."""

    code: int
    out: str
    err: str


Run = Callable[..., Result]


def run_minigpt(*args: object) -> Result:
    """Call the command line in this process, in the current folder."""
    out, err, argv, code = io.StringIO(), io.StringIO(), sys.argv, 0
    sys.argv = ["minigpt", *map(str, args)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv = argv
    return Result(code, out.getvalue(), err.getvalue())


def make_text(length: int, seed: int = 0) -> str:
    """Words and lines with some order to learn, exactly ``length`` characters."""
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "two", "rats", "run", "to", "an", "old", "hat;"]
    draw = random.Random(seed)
    text = "".join(draw.choice(words) + draw.choice(" \n  ") for _ in range(length))
    return text[:length]


def assert_clear_error(result: Result, *parts: str) -> None:
    """The call failed with one paragraph that holds each of ``parts``."""
    assert result.code == 2, (result.code, result.out, result.err)
    assert "Traceback" not in result.err
    paragraph = " ".join(result.err[result.err.index("minigpt: ") :].split())
    for part in parts:
        assert re.search(re.escape(part), paragraph), paragraph


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own with a text and a config, as the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(make_text(6000))
    (tmp_path / "tiny.yaml").write_text(TINY)
    return tmp_path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which one tiny model has been trained. Not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(make_text(6000))
    (folder / "tiny.yaml").write_text(TINY)
    with contextlib.chdir(folder):
        result = run_minigpt("fit", "--config", "tiny.yaml")
    assert result.code == 0, result.err
    (folder / "fit.out").write_text(result.out)
    return folder


@pytest.fixture
def in_trained(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, as the current folder."""
    folder = Path(shutil.copytree(trained, tmp_path / "trained"))
    monkeypatch.chdir(folder)
    return folder

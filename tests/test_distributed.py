"""Several processes and machines: stopped, killed and moved to another number of devices, a run stays the same run."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from conftest import TINY, make_text, run_minigpt
from test_cli import curve
from test_resume import assert_same, last

FIT = ("-m", "minigpt", "fit")
CONFIG = ("--config", "tiny.yaml", "--trainer.max_steps", 12, "--trainer.val_check_interval", 8)
TWO = ("--trainer.devices", 2, "--trainer.strategy", "ddp")
ONE = ("--trainer.devices", 1, "--trainer.strategy", "auto")
# Without these, runs on one and on two devices differ by more than rounding.
EXACT = ("--trainer.precision", "32-true", *(f"--model.{name}_pdrop=0" for name in ("embd", "attn", "resid")))
PARTS = ("global_step", "state_dict", "optimizer_states", "lr_schedulers", "callbacks", "hyper_parameters")
CURVES = ("train/loss", "train/grad_norm", "val/loss", "train/lr-AdamW/decay")

Begun = dict[str, subprocess.CompletedProcess[str]]


class SignalAt(Callback):
    """During a batch, sends a signal to the process of one rank, or to all processes of the run at once.

    The first process then takes ``linger`` seconds to end, as one does whose logger has to upload its last lines.
    """

    def __init__(
        self,
        batch: int,
        rank: int = 0,
        everyone: bool = False,
        number: int = int(signal.SIGTERM),
        linger: float = 0,
    ) -> None:
        self.batch = batch
        self.rank = rank
        self.everyone = everyone
        self.number = number
        self.linger = linger
        self.seen = 0

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        self.seen += 1
        if self.seen == self.batch and trainer.global_rank == self.rank:
            if self.everyone:
                os.killpg(os.getpgrp(), self.number)
            else:
                os.kill(os.getpid(), self.number)

    def on_exception(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_rank == 0:
            time.sleep(self.linger)


def signal_at(batch: int, **settings: object) -> tuple[object, ...]:
    """The flags for a :class:`SignalAt`."""
    flags = (f"--trainer.callbacks.{name}={value}" for name, value in {"batch": batch, **settings}.items())
    return ("--trainer.callbacks", "test_distributed.SignalAt", *flags)


@contextlib.contextmanager
def start(*args: object) -> Iterator[subprocess.Popen[str]]:
    """Python in a process group of its own, none of which is left afterwards."""
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(
        [sys.executable, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()  # torchrun ends its workers, which are in groups of their own
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(40)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def run_together(*commands: tuple[object, ...]) -> list[subprocess.CompletedProcess[str]]:
    """Start all at once. It returns when the last of their processes is gone."""
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(start(*command)) for command in commands]
        printed = [process.communicate(timeout=120) for process in processes]
        return [
            subprocess.CompletedProcess(process.args, process.returncode, out, err)
            for process, (out, err) in zip(processes, printed, strict=True)
        ]


def fit(*args: object) -> subprocess.CompletedProcess[str]:
    """``fit`` on as many processes as ``args`` say."""
    (result,) = run_together((*FIT, *args))
    return result


def run_folder(name: str) -> Path:
    """The folder of the run, which has just this one."""
    (folder,) = Path(f"lightning_logs/{name}").iterdir()
    return folder


def assert_same_run(name: str, other: str) -> None:
    """Two runs ended in the same bits, and their curves are the same."""
    a, b = last(name), last(other)
    for part in PARTS:
        assert_same(a[part], b[part], part)
    for tag in CURVES:
        assert curve(run_folder(name), tag) == curve(run_folder(other), tag), tag


def assert_close_run(name: str, other: str) -> None:
    """Two runs are equal to rounding: weights, schedule and curves."""
    a, b = last(name), last(other)
    assert_same(a["lr_schedulers"], b["lr_schedulers"])
    for key, weight in b["state_dict"].items():
        torch.testing.assert_close(a["state_dict"][key], weight, rtol=1e-3, atol=1e-5, msg=key)
    for tag in CURVES:
        (steps, values), (other_steps, other_values) = (
            zip(*curve(run_folder(run), tag), strict=True) for run in (name, other)
        )
        assert steps == other_steps, tag
        assert values == pytest.approx(other_values, rel=1e-4), tag


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Begun]:
    """The runs on two processes that the tests go on from, made all at once because each takes its time to start.

    ``two`` is not interrupted; nor is ``one``, on one process and without dropout. Their folder is the current one.
    """
    saving = ("--checkpoint.every_n_steps", 3)
    runs: dict[str, tuple[object, ...]] = {
        "two": (),
        "killed": (*saving, *signal_at(8, everyone=True, number=int(signal.SIGKILL))),
        "signalled0": signal_at(5, rank=0, linger=10),  # Lightning looks after its processes every 5 seconds
        "signalled1": signal_at(5, rank=1),
        "fewer": (*EXACT, *signal_at(6)),
    }
    folder = tmp_path_factory.mktemp("distributed")
    (folder / "text.txt").write_text(make_text(6000))
    (folder / "tiny.yaml").write_text(TINY)
    with contextlib.chdir(folder):
        results = run_together(*((*FIT, *CONFIG, *TWO, *flags, "--name", name) for name, flags in runs.items()))
        one = run_minigpt("fit", *CONFIG, *EXACT, "--name", "one")
        assert results[0].returncode == 0, results[0].stderr
        assert one.code == 0, one.err
        yield dict(zip(runs, results, strict=True))


@pytest.mark.soak
def test_two_processes_train_as_one(workplace: Path) -> None:
    """To rounding: they share each batch, and their gradients are averaged."""
    assert run_minigpt("fit", *CONFIG, *EXACT, "--name", "one").code == 0
    two = fit(*CONFIG, *EXACT, *TWO, "--name", "two")
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("Best: ") == 1
    assert_close_run("two", "one")


@pytest.mark.soak
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_either_process_stops_both_after_the_same_step(begun: Begun, rank: int) -> None:
    stopped = begun[f"signalled{rank}"]
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr
    assert stopped.stdout.count("Stopped after step 5; nothing is lost.") == 1
    assert "Traceback" not in stopped.stderr


@pytest.mark.soak
def test_two_processes_killed_or_stopped_resume_to_the_same_bits(begun: Begun) -> None:
    """Killed at once in step 8, with curves ahead of the checkpoint of step 6."""
    assert begun["killed"].returncode == -signal.SIGKILL
    steps = {"killed": 6, "signalled0": 5, "signalled1": 5}
    resumes = ((*FIT, "--ckpt_path", "last", "--name", name, "--trainer.callbacks", "null") for name in steps)
    for (name, step), resumed in zip(steps.items(), run_together(*resumes), strict=True):
        assert resumed.returncode == 0, resumed.stderr
        assert f"last.ckpt after step {step}." in resumed.stdout
        assert_same_run(name, "two")


@pytest.mark.soak
def test_a_run_begun_on_two_processes_goes_on_on_one(begun: Begun) -> None:
    assert begun["fewer"].returncode == 128 + signal.SIGTERM, begun["fewer"].stderr
    resumed = run_minigpt("fit", "--ckpt_path", "last", "--name", "fewer", *ONE, "--trainer.callbacks", "null")
    assert resumed.code == 0, resumed.err
    assert_close_run("fewer", "one")


@pytest.mark.soak
def test_a_run_begun_on_one_process_goes_on_on_two_though_another_is_saved_meanwhile(begun: Begun) -> None:
    """The second process reads its flags some seconds after the first: what is ``last`` then may be another run."""
    stopped = run_minigpt("fit", *CONFIG, *EXACT, *signal_at(6), "--name", "more")
    assert stopped.code == 128 + signal.SIGTERM, stopped.err
    with start(*FIT, "--ckpt_path", "last", *TWO, "--trainer.callbacks", "null") as process:
        assert process.stdout is not None
        assert "more/version_0/checkpoints/last.ckpt after step 6." in process.stdout.readline()
        Path("lightning_logs/one/version_0/checkpoints/last.ckpt").touch()
        _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert_close_run("more", "one")


@pytest.mark.soak
def test_two_machines_train_as_one(begun: Begun) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    torchrun = ("-m", "torch.distributed.run", "--nnodes", 2, "--nproc-per-node", 1, "--master-addr", "127.0.0.1")
    command = (*FIT, *CONFIG, *EXACT, "--name", "machines", "--trainer.num_nodes", 2, *TWO, "--trainer.devices", 1)
    nodes = run_together(*((*torchrun, "--master-port", port, "--node-rank", rank, *command) for rank in range(2)))
    assert [node.returncode for node in nodes] == [0, 0], [node.stderr for node in nodes]
    assert_close_run("machines", "one")
    lines = "".join(node.stdout for node in nodes).splitlines()
    for text in ("A new run on", "Model: ", "--- step 8 ---", "Best: ", "  train it on: "):
        assert sum(line.startswith(text) for line in lines) == 1, (text, lines)

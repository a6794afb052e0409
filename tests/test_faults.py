"""What may go wrong from outside: kills, torn and hostile files, full disks, signals, sick numbers."""

import errno
import io
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

import minigpt.files
from conftest import assert_clear_error, run_minigpt
from minigpt.run import RunFolder, load_gpt, read_checkpoint, sole_owner, write_checkpoint
from minigpt.training.proof import arguments_to_resume, compare, different, read_curves
from test_resume import MATRIX

# In which the callbacks here are found.
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
SHORT = ("--config", "tiny.yaml", "--trainer.max_steps", "12", "--trainer.val_check_interval", "4")
RUN = RunFolder.first("tiny")
LAST = RUN.last


@pytest.mark.soak
def test_runs_killed_at_random_moments_end_in_the_same_bits(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL from outside, 25 times and more over the matrix; for hundreds see docs/robustness.md."""
    if Path("/dev/shm").is_dir():
        monkeypatch.setenv("TMPDIR", "/dev/shm")  # another file system: nothing may be moved from there
    kills = 0
    for seed, (name, settings) in enumerate(MATRIX.items()):
        if name == "early-stopping":  # which ends by itself before most of the kills
            continue
        flags = [*map(str, settings), "--steps", "100", "--kills", "7", "--kill_seed", str(seed)]
        result = run_minigpt("prove-resume", "--config", "tiny.yaml", *flags)
        with capsys.disabled():
            print(f"\n{' '.join(flags)}\n{result.out}")
        assert result.code == 0, result.out + result.err
        assert "Proved" in result.out
        assert not list(Path("lightning_logs").iterdir())
        kills += result.out.count("last.ckpt is whole") + result.out.count("nothing saved yet")
    assert kills >= 25


def test_prove_resume_finds_a_difference(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forge(args: list[str], last: Path, saves: int | None = None, wait: float = 0.0) -> bool:
        shutil.copytree(RUN.path, last.parent.parent)
        if saves is not None:
            checkpoint = read_checkpoint(last)
            weight = checkpoint["state_dict"]["gpt.final_norm.weight"]
            weight[3] = torch.nextafter(weight[3], torch.tensor(9.0))
            write_checkpoint(checkpoint, last)
        return False

    assert run_minigpt("fit", *SHORT, "--model.norm", "pre").code == 0
    monkeypatch.setattr("minigpt.training.proof.fit", forge)
    result = run_minigpt("prove-resume", "--config", "tiny.yaml", "--steps", 12)
    assert result.code == 1
    assert "DIFFERENT: gpt.final_norm.weight" in result.out
    assert result.out.count("DIFFERENT") == 1
    assert "NOT proved" in result.out


class LeavesAMark(Callback):
    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        Path("mark").touch()


def test_a_proof_goes_on_with_the_users_own_callbacks(in_trained: Path) -> None:
    recipe = ["--config", "tiny.yaml", "--trainer.callbacks", "test_faults.LeavesAMark", "--trainer.max_steps", "26"]
    result = run_minigpt("fit", *arguments_to_resume(recipe, RUN))
    assert result.code == 0, result.err
    assert read_checkpoint(LAST)["global_step"] == 26
    assert Path("mark").exists()


def test_comparing_sees_the_smallest_difference() -> None:
    a: dict[str, Any] = {"x": [torch.ones(3), {"n": 1}], "y": "s", "z": None}
    assert different(a, a) == (4, [])
    changed = {"x": [torch.tensor([1, 1, 1 + 2**-23]), {"n": 2}], "y": "s", "z": None}
    assert different(a, changed)[1] == ["x.0", "x.1.n"]
    assert different(a, {"x": [torch.ones(3)], "y": "s", "z": None})[1] == ["x.1.n"]
    assert different(a, {"x": a["x"], "y": "s"})[1] == ["z"]
    assert different({"x": a["x"], "y": "s"}, a)[1] == ["z"]
    assert different(None, [(0, 1.5)])[1] == ["", "0.0", "0.1"]


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["--steps", 1], "--steps"),
        (["--kills", 0], "--kills 0"),
        (["--name", "x"], "--name can't be given"),
        pytest.param(["--config", "tiny.yaml", "--model.n_layer", 0], "fit failed", marks=pytest.mark.soak),
    ],
)
def test_prove_resume_explains_what_it_cannot_do(workplace: Path, args: list[object], part: str) -> None:
    assert_clear_error(run_minigpt("prove-resume", *args), part)


# Files


def killed_while(work: Callable[[], None]) -> int:
    """Run ``work`` in a forked process that kills itself somewhere in it; its exit status."""
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        work()
    finally:
        os._exit(99)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_killed_at_any_byte_of_a_write_the_checkpoint_is_the_old_or_the_new(
    in_trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = read_checkpoint(LAST)
    new = {**old, "mark": "new"}
    whole = io.BytesIO()
    torch.save(new, whole)
    size = len(whole.getvalue())

    def torn(n: int) -> Callable[[Any, Any], None]:
        def save(_: Any, file: Any) -> None:
            file.write(whole.getvalue()[:n])
            file.flush()
            if n < size:
                kill()

        return save

    def write_with(n: int, kill_at: str) -> Callable[[], None]:
        def work() -> None:
            torch.save = torn(n)  # type: ignore[assignment]
            real_replace, real_sync = Path.replace, os.fsync
            if kill_at == "fsync":
                os.fsync = lambda fd: kill()
            if kill_at == "replace":
                Path.replace = lambda *a: kill()  # type: ignore
            if kill_at == "after replace":
                Path.replace = lambda a, b: (real_replace(a, b), kill())  # type: ignore
            assert real_sync is not None
            write_checkpoint(new, LAST)

        return work

    moments = [(n, "") for n in np.linspace(0, size - 1, 40).astype(int)]
    moments += [(size, "fsync"), (size, "replace"), (size, "after replace")]
    for n, kill_at in moments:
        assert killed_while(write_with(int(n), kill_at)) == -signal.SIGKILL
        assert ("mark" in read_checkpoint(LAST)) == (kill_at == "after replace")
    assert killed_while(write_with(size, "")) == 99  # not killed: the same way does write
    # The next run on from here clears the remains away.
    assert list(LAST.parent.glob("*.part"))
    assert run_minigpt("fit", "--ckpt_path", LAST, "--trainer.max_steps", 26).code == 0
    assert not list(LAST.parent.glob("*.part"))


@pytest.mark.soak
def test_a_full_disk_leaves_the_checkpoint_before_whole(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = ("fit", "--config", "tiny.yaml", "--checkpoint.every_n_steps", 1, "--trainer.val_check_interval", 24)
    logs = Path("lightning_logs")
    logs.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=220k", "tmpfs", str(logs)]
    mounted = shutil.which("mount") and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    with capsys.disabled():
        print(
            f"\n[full disk: {'a tmpfs of 220 kB' if mounted else 'a writer that fails, for want of a mount'}]", end=""
        )
    try:
        if not mounted:
            real, count = os.fsync, iter(range(10**6))

            def fail(fd: int) -> None:
                if next(count) > 5:
                    raise OSError(errno.ENOSPC, "No space left on device")
                real(fd)

            monkeypatch.setattr(minigpt.files.os, "fsync", fail)
        result = run_minigpt(*fit)
        assert_clear_error(result, "last.ckpt could not be written: No space left on device")
        step = read_checkpoint(LAST)["global_step"]
        assert 1 <= step < 24
        monkeypatch.undo()
        monkeypatch.chdir(workplace)
        shutil.copytree(logs, workplace / "moved")
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(logs)], check=True)
    if mounted:
        logs.rmdir()
        (workplace / "moved").rename(logs)
    assert run_minigpt("fit", "--ckpt_path", "last").code == 0
    assert run_minigpt(*fit, "--name", "whole").code == 0
    whole, resumed = (read_checkpoint(logs / name / "version_0/checkpoints/last.ckpt") for name in ("whole", "tiny"))
    assert different(whole["state_dict"], resumed["state_dict"])[1] == []


def mutations(data: bytes, count: int) -> Iterator[tuple[str, bytes]]:
    """Damaged copies of a file: cut off, bits flipped, stretches zeroed, doubled or swapped."""
    draw = random.Random(0)
    for i in range(count):
        kind = ("cut", "bit", "bits", "zeros", "doubled", "head", "tail")[i % 7]
        place, length = draw.randrange(len(data)), draw.randrange(1, 4000)
        changed = bytearray(data)
        if kind == "cut":
            changed = changed[:place]
        elif kind in ("bit", "head", "tail"):
            at = {"bit": place, "head": draw.randrange(2000), "tail": len(data) - 1 - draw.randrange(4000)}[kind]
            changed[at] ^= 1 << draw.randrange(8)
        elif kind == "bits":
            for _ in range(20):
                changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        elif kind == "zeros":
            changed[place : place + length] = bytes(len(changed[place : place + length]))
        else:
            changed[place:place] = changed[place : place + length]
        yield f"{kind} {i}", bytes(changed)


@pytest.mark.parametrize("count", [70, pytest.param(420, marks=pytest.mark.soak)])
def test_a_damaged_checkpoint_is_refused_or_gives_an_equal_model(in_trained: Path, count: int) -> None:
    good, _ = load_gpt(LAST)
    damaged = Path("damaged.ckpt")
    refused = equal = 0
    for name, data in mutations(LAST.read_bytes(), count):
        damaged.write_bytes(data)
        message = ""
        try:
            gpt, _ = load_gpt(damaged)
        except ValueError as error:
            message = str(error)
        if message:
            assert "damaged.ckpt" in message, name
            # The best checkpoint is the same file as the last here: either is whole.
            assert "The newest whole checkpoint is lightning_logs/tiny/version_0/checkpoints/" in message, name
            refused += 1
        else:
            assert different(gpt.state_dict(), good.state_dict())[1] == [], name
            equal += 1
    assert refused > 0.7 * count, (refused, equal)
    # The commands say the same.
    damaged.write_bytes(LAST.read_bytes()[:-3000])
    for command in ("generate", "validate", "fit", "chat"):
        assert_clear_error(run_minigpt(command, "--ckpt_path", damaged), "damaged.ckpt", "newest whole checkpoint is")


class Touch:
    """Pickles into a call that leaves a file behind."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __reduce__(self) -> tuple[Any, ...]:
        return {
            "call": (Path.touch, (Path("touched"),)),
            "eval": (eval, ("open('touched', 'w')",)),
            "setstate": (Touch, ("call",), {"x": 1}),
        }[self.kind]


def test_no_checkpoint_ever_runs_code(in_trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    good = read_checkpoint(LAST)
    hostile: list[Path] = []
    for kind in ("call", "eval", "setstate"):
        for place in ("hyper_parameters", "state_dict"):
            path = Path(f"{kind}-{place}.ckpt")
            torch.save({**good, place: {"vocabulary": "ab", "evil": Touch(kind)}}, path)
            hostile.append(path)
        # PyTorch's old format, which is a bare pickle; and a bare pickle.
        torch.save({"hyper_parameters": Touch(kind)}, f"{kind}-old.ckpt", _use_new_zipfile_serialization=False)
        Path(f"{kind}-bare.ckpt").write_bytes(pickle.dumps(Touch(kind)))
        # A good checkpoint whose pickle was exchanged.
        with zipfile.ZipFile(LAST) as source, zipfile.ZipFile(f"{kind}-swapped.ckpt", "w") as target:
            for member in source.namelist():
                evil = pickle.dumps(Touch(kind), protocol=2)
                target.writestr(member, evil if member.endswith("data.pkl") else source.read(member))
        hostile += [Path(f"{kind}-{way}.ckpt") for way in ("old", "bare", "swapped")]
    for path in hostile:
        with pytest.raises(ValueError, match=str(path)):
            load_gpt(path)
        assert not Path("touched").exists(), path
    for command in ("generate", "fit", "validate"):
        assert_clear_error(run_minigpt(command, "--ckpt_path", hostile[-1]), str(hostile[-1]))
        assert not Path("touched").exists()


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"n_layer": 10**9}, "The model of odd.ckpt: A model of 1,000,000,000 layers"),
        ({"block_size": 10**7, "positions": "sinusoidal"}, "GB of memory"),
        ({"n_embd": "wide"}, "n_embd is 'wide'"),
        ({"n_layer": 2.5}, "n_layer is 2.5"),
        ({"n_head": -1}, "n_head is -1"),
        ({"attn_pdrop": "x"}, "attn_pdrop is 'x'"),
        ({"norm": ["pre"]}, "norm is"),
        ({"tokenizer": "words"}, "words"),
        ({"tokenizer": ["char"]}, "describe no model"),
        ({"vocabulary": "aa"}, "names a character twice"),
        ({"vocabulary": 7}, "no vocabulary"),
        ({"n_layer": 3}, "don't fit its hyperparameters"),
    ],
)
def test_hyperparameters_are_checked_before_anything_is_built(
    in_trained: Path, change: dict[str, object], part: str
) -> None:
    checkpoint = read_checkpoint(LAST)
    checkpoint["hyper_parameters"] = {**checkpoint["hyper_parameters"], **change}
    write_checkpoint(checkpoint, Path("odd.ckpt"))
    assert_clear_error(run_minigpt("generate", "--ckpt_path", "odd.ckpt"), part)


def test_a_model_too_large_for_the_machine_is_refused_with_the_estimate(workplace: Path) -> None:
    for flag, value in {"model.n_layer": 10**6, "model.n_embd": 10**6, "data.batch_size": 10**9}.items():
        result = run_minigpt("fit", "--config", "tiny.yaml", f"--{flag}", value)
        assert_clear_error(result, "parameters", "GB of memory", "this machine has")
    assert list(Path("lightning_logs").rglob("version_*")) == []  # a run that could not begin leaves no folder


# Signals


class SignalTwice(Callback):
    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.soak
def test_a_second_signal_ends_at_once_and_corrupts_nothing(workplace: Path) -> None:
    callback = ["--trainer.callbacks", "test_faults.SignalTwice", "--checkpoint.every_n_steps", "1"]
    command = [sys.executable, "-m", "minigpt", "fit", *SHORT, *callback]
    result = subprocess.run(command, capture_output=True, timeout=120, check=False, env=ENVIRONMENT)
    assert result.returncode == -signal.SIGTERM
    assert read_checkpoint(LAST)["global_step"] == 6
    # Not in this process: its event file could be of the same second, and TensorBoard would read it first.
    resumed = [sys.executable, "-m", "minigpt", "fit", "--ckpt_path", str(LAST), "--trainer.callbacks", "null"]
    subprocess.run(resumed, capture_output=True, timeout=120, check=True, env=ENVIRONMENT)
    assert run_minigpt("fit", *SHORT, "--name", "whole").code == 0
    assert [places for _, places in compare(RunFolder.first("whole"), RUN).values() if places] == []


def test_a_run_that_is_being_trained_can_not_be_resumed_beside(in_trained: Path) -> None:
    further = ("fit", "--ckpt_path", LAST, "--trainer.max_steps", 30)
    with sole_owner(RUN.path):
        assert_clear_error(run_minigpt(*further), f"The run {RUN.path} can't be trained right now. Another process is")
    assert run_minigpt(*further).code == 0


def test_a_run_in_a_folder_that_can_not_be_written_is_refused(workplace: Path) -> None:
    Path("lightning_logs").write_text("a file")
    assert_clear_error(run_minigpt("fit", *SHORT), "run's folder lightning_logs/tiny/version_0 can't be made")


# Sick numbers


class Poison(Callback):
    """Makes the loss of one step infinite or not a number."""

    def __init__(self, step: int, value: float) -> None:
        self.step = step
        self.value = value

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        def poison(nats_BT: Tensor) -> Tensor:
            row = torch.zeros_like(nats_BT)
            row[5] = self.value
            return nats_BT + row * nats_BT.clamp(min=1)

        if trainer.global_step == self.step:
            module.training_nats = lambda batch: poison(module.character_nats(batch))


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_loss_that_is_no_number_ends_the_run_with_its_place(workplace: Path, value: str) -> None:
    poison = ("--trainer.callbacks", "test_faults.Poison", "--trainer.callbacks.step", 9)
    saves = ("--checkpoint.every_n_steps", 1, "--trainer.val_check_interval", 4)
    result = run_minigpt("fit", "--config", "tiny.yaml", *saves, *poison, "--trainer.callbacks.value", f".{value}")
    assert_clear_error(result, "gradient of step 10 is", "number 9, has 1 windows with a loss that is not finite")
    place = int(result.err.replace("\n", " ").split("begin at character ")[1].split(" ")[0].replace(",", ""))
    assert 0 <= place < 4800
    assert "The last good checkpoint is lightning_logs/tiny/version_0/checkpoints/step000008" in " ".join(
        result.err.split()
    )
    assert read_checkpoint(LAST)["global_step"] == 9  # nothing of step 10 was saved
    norms = dict(read_curves(RUN)["train/grad_norm"])
    assert not np.isfinite(norms[9])
    assert all(np.isfinite(norm) for step, norm in norms.items() if step < 9)


RARE = dict.fromkeys(("--sampler.every_n_steps", "--trainer.val_check_interval", "--trainer.log_every_n_steps"), 24)
SAVES = (
    ", {class_path: lightning.pytorch.callbacks.ModelCheckpoint, "
    "init_args: {every_n_train_steps: 1, save_top_k: -1, save_weights_only: true}}"
)


@pytest.mark.parametrize(("flag", "own"), [*((flag, "") for flag in RARE), ("", SAVES)])
def test_a_gradient_that_is_no_number_is_named_before_anything_comes_of_it(
    workplace: Path, flag: str, own: str
) -> None:
    """Before the next sample, validation or line of the curves, and before a callback of the user's own saves it."""
    poison = "{class_path: test_faults.Poison, init_args: {step: 9, value: .nan}}"
    Path("own.yaml").write_text(f"trainer: {{callbacks: [{poison}{own}]}}")
    flags = [part for name, value in RARE.items() for part in (name, 12 if name == flag else value)]
    result = run_minigpt("fit", "--config", "tiny.yaml", "--config", "own.yaml", *flags)
    assert_clear_error(result, "gradient of step 10 is nan", "number 9, has 1 windows with a loss that is not finite")
    assert "--- step" not in result.out
    assert all(step < 12 for step, _ in read_curves(RUN).get("train/loss", [])), "it went on for longer"
    kept = [torch.load(path, weights_only=True)["state_dict"] for path in RUN.path.rglob("*.ckpt")]
    assert len(kept) == (9 if own else 0)
    assert all(weight.isfinite().all() for weights in kept for weight in weights.values())


def test_a_learning_rate_out_of_all_bounds_is_told_in_one_paragraph(workplace: Path) -> None:
    result = run_minigpt("fit", "--config", "tiny.yaml", "--model.learning_rate", 1e30)
    assert_clear_error(result, "Training diverged", "smaller --model.learning_rate", "No good checkpoint")
    assert not list(LAST.parent.glob("*.ckpt"))


def test_a_gradient_spike_between_two_lines_shows_in_the_curves(workplace: Path) -> None:
    poison = ("--trainer.callbacks", "test_faults.Poison", "--trainer.callbacks.step", 7)
    flags = ("--trainer.callbacks.value", 1e6, "--trainer.log_every_n_steps", 4)
    assert run_minigpt("fit", "--config", "tiny.yaml", *poison, *flags, "--trainer.max_steps", 16).code == 0
    norms = dict(read_curves(RUN)["train/grad_norm_max"])
    assert list(norms) == [3, 7, 11, 15]
    assert norms[7] > 100 * norms[3]

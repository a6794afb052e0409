"""Proof, on the user's own machine and recipe, that a run killed and resumed ends in the same bits."""

import argparse
import logging
import math
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from minigpt.errors import UserError
from minigpt.run import LOG_DIR, read_checkpoint

CURVES = ("train/loss", "train/grad_norm", "train/grad_norm_max", "val/loss")


def prove_resume(args: list[str]) -> None:
    """Train, train again with kills, compare; exit with status 1 if anything differs."""
    parser = argparse.ArgumentParser(
        prog="minigpt prove-resume",
        description="Trains a few steps of a recipe; trains them again, killed with SIGKILL at moments drawn by chance "
        "and resumed each time; and compares weights, optimizer, schedule, callbacks and curves to the last bit. "
        "It ends with status 0 if all are equal, else 1. All other flags are those of fit.",
        allow_abbrev=False,
    )
    parser.add_argument("--steps", type=int, default=36, help="optimizer steps to train (36)")
    parser.add_argument("--kills", type=int, default=3, help="how often to kill (3)")
    parser.add_argument("--kill_seed", type=int, default=1, help="decides when to kill (1)")
    own, fit = parser.parse_known_args(args)
    if own.steps < 2 or not 1 <= own.kills < own.steps:
        raise UserError(
            f"--steps {own.steps} --kills {own.kills}: kill at least once, and less often than there are steps."
        )
    for flag in ("--ckpt_path", "--name", "--trainer.max_steps"):
        if any(arg == flag or arg.startswith(flag + "=") for arg in fit):
            raise UserError(f"prove-resume trains runs of its own, so {flag} can't be given (--steps can).")
    defaults = {"--trainer.val_check_interval": 12, "--trainer.limit_val_batches": 2, "--sampler.every_n_steps": 12}
    for flag, value in defaults.items():
        if not any(arg == flag or arg.startswith(flag + "=") for arg in fit):
            fit += [flag, str(value)]
    fit += ["--trainer.max_steps", str(own.steps), "--checkpoint.every_n_steps", "1"]
    fit += ["--trainer.log_every_n_steps", "1", "--trainer.enable_progress_bar", "false"]
    names = [f"prove-resume-{os.getpid()}-{kind}" for kind in ("whole", "killed")]

    print(f"Training {own.steps} steps without a stop ...", flush=True)
    whole, killed = (LOG_DIR / name / "version_0" for name in names)
    finish([*fit, "--name", names[0]], whole)
    draw = random.Random(own.kill_seed)
    last = killed / "checkpoints" / "last.ckpt"
    done = 0

    def go_on() -> list[str]:
        if last.exists():
            return ["--ckpt_path", str(last)]
        shutil.rmtree(killed.parent, ignore_errors=True)
        return [*fit, "--name", names[1]]

    # In the first two thirds, for a kill comes a little late, and must find the run alive.
    targets = sorted(draw.sample(range(1, max(own.kills + 1, own.steps * 2 // 3)), own.kills))
    for number, target in enumerate(targets, start=1):
        # One in five comes while the program starts; the others near a step, in a save or between two.
        start_up = draw.uniform(0, 8) if draw.random() < 0.2 else math.inf
        if done == own.steps or not kill_after(go_on(), last, max(1, target - done), draw.uniform(0, 0.05), start_up):
            print(f"  kill {number}: the run was complete before it", flush=True)
            done = own.steps
            break
        done = read_checkpoint(last)["global_step"] if last.exists() else 0
        print(
            f"  kill {number}: {f'last.ckpt is whole and holds step {done}' if done else 'nothing saved yet'}",
            flush=True,
        )
    if done < own.steps:
        finish(go_on(), killed)

    rows = compare(whole, killed)
    for name, count, differences in rows:
        print(f"  {name:<22} {count:>6} {'equal' if not differences else 'DIFFERENT: ' + ', '.join(differences[:3])}")
    if any(differences for _, _, differences in rows):
        print(f"NOT proved: the runs differ. They are kept in {whole} and {killed}.")
        sys.exit(1)
    for run in (whole, killed):
        shutil.rmtree(run.parent)
    print("Proved: the killed run ended in the same bits.")


def start(args: list[str]) -> subprocess.Popen[bytes]:
    """A ``fit`` of its own process, whose output is kept for the case that it fails."""
    return subprocess.Popen(
        [sys.executable, "-m", "minigpt", "fit", *args], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def finish(args: list[str], run: Path) -> None:
    """Train to the end."""
    with start(args) as process:
        _, errors = process.communicate()
    if process.returncode or not (run / "checkpoints" / "last.ckpt").is_file():
        raise UserError(f"fit failed: {errors.decode(errors='replace').strip()[-1000:]}")


def kill_after(args: list[str], last: Path, saves: int, wait: float, start_up: float) -> bool:
    """Kill a run; False if it ended before.

    Args:
        args: of ``fit``.
        last: the checkpoint that it replaces as it trains.
        saves: kill it when it has done so this many times,
        wait: and this many seconds later;
        start_up: or this many seconds after its start, if it has saved nothing by then.

    Raises:
        UserError: it ended in an error of its own.
    """
    seen, before, began = 0, modified(last), time.monotonic()
    with start(args) as process:
        while process.poll() is None:
            if (now := modified(last)) != before:
                seen, before = seen + 1, now
            starting = seen == 0 and time.monotonic() - began > start_up
            if starting or seen >= saves:
                time.sleep(0 if starting else wait)
                process.kill()
                process.wait()
                return process.returncode < 0
            time.sleep(0.002)
        assert process.stderr is not None
        if process.returncode:
            raise UserError(f"fit failed: {process.stderr.read().decode(errors='replace').strip()[-1000:]}")
    return False


def modified(path: Path) -> int:
    """When a file was last replaced; 0 if there is none."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def compare(a: Path, b: Path) -> list[tuple[str, int, list[str]]]:
    """For each part of two runs: its name, how many values were compared, and where they differ."""
    one, two = (read_checkpoint(run / "checkpoints" / "last.ckpt") for run in (a, b))
    rows = []
    for part in ("global_step", "state_dict", "optimizer_states", "lr_schedulers", "callbacks", "hyper_parameters"):
        places, differences = walk(one[part], two[part])
        rows.append((part, places, differences))
    curves = [read_curves(run) for run in (a, b)]
    for tag in CURVES:
        count, differences = walk(curves[0].get(tag), curves[1].get(tag))
        rows.append((f"curve {tag}", count // 2, differences))
    return rows


def walk(a: Any, b: Any, place: str = "") -> tuple[int, list[str]]:
    """How many leaves two nested values have, and where they are not equal to the last bit."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        pairs = [(f"{place}.{key}", a[key], b[key]) for key in a]
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        pairs = [(f"{place}[{i}]", *pair) for i, pair in enumerate(zip(a, b, strict=True))]
    else:
        both = isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
        return 1, [] if (torch.equal(a, b) if both else bool(a == b)) else [place.lstrip(".") or "the value"]
    leaves = [walk(x, y, name) for name, x, y in pairs]
    return sum(count for count, _ in leaves), [where for _, found in leaves for where in found]


def read_curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Every curve of a run, as points (step, value)."""
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # that a curve was taken up again is not news here
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def main(command: str, args: list[str]) -> None:
    """Run the command from its arguments."""
    prove_resume(args)

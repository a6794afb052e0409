"""Proof, on the user's own machine and recipe, that a run killed and resumed ends in the same bits."""

import argparse
import logging
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from minigpt.errors import UserError
from minigpt.run import RunFolder, read_checkpoint, written_at

PARTS = ("global_step", "state_dict", "optimizer_states", "lr_schedulers", "callbacks", "hyper_parameters")
KILLED = -9 if os.name == "posix" else 1  # what a process that was killed ends with
CURVES = ("train/loss", "train/grad_norm", "train/grad_norm_max", "val/loss")


def main(command: str, args: list[str]) -> None:
    """Train, train again with kills, compare; exit with status 1 if anything differs."""
    parser = argparse.ArgumentParser(
        prog=f"minigpt {command}",
        description="Trains a few steps of a recipe; trains them again, killed with SIGKILL at moments drawn by chance "
        "and resumed each time; and compares weights, optimizer, schedule, callbacks and curves to the last bit. "
        "It ends with status 0 if all are equal, else 1. All other flags are those of fit.",
        allow_abbrev=False,
    )
    parser.add_argument("--steps", type=int, default=36, help="optimizer steps to train (36)")
    parser.add_argument("--kills", type=int, default=3, help="how often to kill (3)")
    parser.add_argument("--kill_seed", type=int, default=1, help="decides when to kill (1)")
    own, recipe = parser.parse_known_args(args)
    steps, kills, draw = own.steps, own.kills, random.Random(own.kill_seed)
    if steps < 2 or not 1 <= kills < steps:
        raise UserError(f"--steps {steps} --kills {kills}: kill at least once, and less often than there are steps.")
    given = {arg.split("=")[0] for arg in recipe}
    for flag in given & {"--ckpt_path", "--init_from", "--name", "--trainer.max_steps"}:
        raise UserError(f"prove-resume trains runs of its own, so {flag} can't be given (--steps can).")
    defaults = {"--trainer.val_check_interval": 12, "--trainer.limit_val_batches": 2, "--sampler.every_n_steps": 12}
    fixed = {"--trainer.max_steps": steps, "--trainer.log_every_n_steps": 1, "--trainer.enable_progress_bar": "false"}
    fixed |= {flag: value for flag, value in defaults.items() if flag not in given} | {"--checkpoint.every_n_steps": 1}
    recipe += [str(word) for pair in fixed.items() for word in pair]

    print(f"Training {steps} steps without a stop ...", flush=True)
    whole, killed = (RunFolder.first(f"prove-resume-{os.getpid()}-{kind}") for kind in ("whole", "killed"))
    fit([*recipe, "--name", whole.name], whole.last)
    # The killed run may begin more than once, and must not choose anew.
    recipe += ["--threads", str(read_checkpoint(whole.last)["how"]["threads"] or 1)]
    # In the first two thirds, for a kill comes a little late, and must find the run alive.
    targets = sorted(draw.sample(range(1, max(kills + 1, steps * 2 // 3)), kills))
    done = 0
    for number, target in enumerate(targets, start=1):
        # One kill in five comes while the program starts; the others near a step, in a save or between two.
        near = (max(1, target - done), draw.uniform(0, 0.05))
        saves, wait = (0, draw.uniform(0, 4)) if draw.random() < 0.2 else near
        if done == steps or not fit(arguments_to_resume(recipe, killed), killed.last, saves, wait):
            print(f"  kill {number}: the run was complete before it", flush=True)
            break
        done = read_checkpoint(killed.last)["global_step"] if killed.last.exists() else 0
        state = f"last.ckpt is whole and holds step {done}" if done else "nothing saved yet"
        print(f"  kill {number}: {state}", flush=True)
    else:
        fit(arguments_to_resume(recipe, killed), killed.last)

    differences = compare(whole, killed)
    for part, (count, places) in differences.items():
        print(f"  {part:<22} {count:>6} {'DIFFERENT: ' + ', '.join(places[:3]) if places else 'equal'}")
    if any(places for _, places in differences.values()):
        print(f"NOT proved: the runs differ. They are kept in {whole.path} and {killed.path}.")
        sys.exit(1)
    for run in (whole, killed):
        shutil.rmtree(run.path.parent)
    print("Proved: the killed run ended in the same bits.")


def arguments_to_resume(recipe: list[str], run: RunFolder) -> list[str]:
    """The arguments of ``fit`` that go on with a run, or begin it anew if nothing was saved.

    The recipe is given again, for a resume restores no callback of the user's own.
    """
    if run.last.exists():
        return [*recipe, "--ckpt_path", str(run.last)]
    shutil.rmtree(run.path.parent, ignore_errors=True)
    return [*recipe, "--name", run.name]


def fit(args: list[str], last: Path, saves: int | None = None, wait: float = 0.0) -> bool:
    """Train in a process of its own, and say whether it was killed.

    Args:
        args: of ``fit``.
        last: the checkpoint that it replaces as it trains.
        saves: kill it when it has done so this many times; None lets it train to its end.
        wait: and this many seconds later.

    Raises:
        UserError: it ended in an error of its own.
    """
    seen, before = 0, written_at(last)
    with subprocess.Popen([sys.executable, "-m", "minigpt", "fit", *args], stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and (saves is None or seen < saves):
            time.sleep(0.002)
            now = written_at(last)
            seen, before = seen + (now != before), now
        if process.returncode is None:
            time.sleep(wait)
            process.kill()
            process.wait()
            if process.returncode == KILLED:
                return True
    if process.returncode or not last.exists():
        raise UserError("fit failed; its own message stands above.")
    return False


def compare(a: RunFolder, b: RunFolder) -> dict[str, tuple[int, list[str]]]:
    """For each part of two runs, how many values the first has, and where they are not equal to the last bit."""
    (one, one_curves), (two, two_curves) = ((read_checkpoint(run.last), read_curves(run)) for run in (a, b))
    found = {part: different(one[part], two[part]) for part in PARTS}
    if a.frames() or b.frames():
        films = ({step: read_checkpoint(path) for step, path in run.frames().items()} for run in (a, b))
        found["film"] = different(*films)
    return found | {f"curve {tag}": different(one_curves.get(tag), two_curves.get(tag)) for tag in CURVES}


def different(a: Any, b: Any) -> tuple[int, list[str]]:
    """How many values a nested value holds, and the places where another one is not equal to the last bit."""
    one, two = dict(leaves(a)), dict(leaves(b))
    return len(one), [key for key in one | two if key not in one or key not in two or not same(one[key], two[key])]


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal to the last bit."""
    return torch.equal(a, b) if torch.is_tensor(a) and torch.is_tensor(b) else bool(a == b)


def leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """All that stands in nested dicts and lists, with its place."""
    if isinstance(value, (dict, list, tuple)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, f"{place}.{key}".lstrip("."))
    else:
        yield place, value


def read_curves(run: RunFolder) -> dict[str, list[tuple[int, float]]]:
    """Every curve of a run, as points (step, value)."""
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # that a curve was taken up again is not news here
    events = EventAccumulator(str(run.path), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}

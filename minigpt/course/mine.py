"""A learner trains a recipe with functions of their own in the place of the program's."""

import time
import traceback
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt import optim
from minigpt.course.check import check
from minigpt.course.child import load, one_thread
from minigpt.course.lesson import Step
from minigpt.course.places import PLACES, Own, in_place
from minigpt.course.progress import Folder, command
from minigpt.errors import UserError
from minigpt.fast import apply
from minigpt.model import GPT, GPTConfig
from minigpt.run import find_checkpoint, read_checkpoint


def settings_for(names: list[str], args: list[str]) -> list[str]:
    """The flags that these parts need beside those that are given; a UserError where one of those contradicts."""
    flags = []
    for name in names:
        place = PLACES[name]
        for key, value in place.settings.items():
            for given in given_values(args, f"--{key}"):
                is_zero = value == 0 and not given.strip("0.")  # 0.0, say
                if given != str(value) and not is_zero:
                    raise UserError(f"--{key} {given} doesn't go with your {name}: {place.why}. Leave the flag out.")
            flags += [f"--{key}", str(value)]
    return flags


def given_values(args: list[str], flag: str) -> list[str]:
    """What the arguments give for a flag."""
    apart = [args[i + 1] for i, arg in enumerate(args[:-1]) if arg == flag]
    return apart + [arg.removeprefix(f"{flag}=") for arg in args if arg.startswith(f"{flag}=")]


def slower(functions: dict[str, Own]) -> str:
    """How much longer a training step takes than by the fast layers, as a sentence: measured here and now."""
    settings = {key: value for name in functions for key, value in PLACES[name].settings.items()}
    norm, positions = settings.get("model.norm", "pre"), settings.get("model.positions", "learned")
    shape = {"vocab_size": 70, "block_size": 128, "n_layer": 3, "n_head": 4, "n_embd": 128}  # quickstart's
    config = GPTConfig(**shape, embd_pdrop=0, attn_pdrop=0, resid_pdrop=0, norm=norm, positions=positions)
    usual = GPT(config)
    apply(usual, fast=True)
    with in_place(functions):
        own = GPT(config)
        loss = functions.get("cross_entropy", mean_nats)
        if (seconds := step_seconds(own, loss, 1, 8)) > 1:
            return (
                f"Your parts take {seconds:.1f} seconds for a window of 8 characters: a training takes hours or days. "
                "Write them without loops in Python; the third hint shows how."
            )
        seconds = step_seconds(own, loss, 4, 128)
    before = step_seconds(usual, mean_nats, 4, 128)
    return (
        f"A training step takes {seconds / before:.1f} times as long with your parts as with the fast layers (measured "
        "now, on one core, in 32 bits, with a model of quickstart's shape; fit itself may take 16 bits, and be faster "
        "still)."
    )


@contextmanager
def blaming(folder: Folder) -> Iterator[None]:
    """Let a UserError tell where an error of the learner's own parts arose."""
    try:
        yield
    except Exception as error:
        frames = [it for it in traceback.extract_tb(error.__traceback__) if Path(it.filename).parent == folder.path]
        if not frames:
            raise
        raise UserError(
            f"Your part passes its check, which computes in 64 bits, but not in training, which computes in 32 and in "
            f"other shapes. {frames[-1].filename}, line {frames[-1].lineno}, {frames[-1].line}: {error}. Give each "
            "tensor that you make the type of an input: dtype=x.dtype."
        ) from error


def mean_nats(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())


@one_thread()
def step_seconds(gpt: GPT, loss: Own, batch: int, length: int) -> float:
    """What a step of training takes of one core, the least of some; others may be at work on this machine."""
    optimizer = optim.AdamW(gpt.parameters(), lr=1e-3)
    ids_BT = torch.randint(gpt.config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(0))
    found = []
    for _ in range(3):
        start = time.process_time()
        loss(gpt(ids_BT), ids_BT).backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(time.process_time() - start)
        if found[-1] > 2:
            break
    return min(found)


def train(settings: Namespace) -> None:
    """Train a recipe with the learner's own parts in the place of the program's."""
    folder, flags = Folder(), settings.flags
    names = chosen(folder, settings.mine, flags)
    functions = {name: getattr(load(folder.answer(name)), name) for name in names}
    needed = settings_for(names, flags)
    for name in names:
        print(f"{PLACES[name].name} = my.{name}")
        for key, value in PLACES[name].settings.items():
            print(f"    with --{key} {value}, because {PLACES[name].why}")
    if set(names) - {"learning_rate", "choose"}:
        with blaming(folder):
            print(slower(functions), flush=True)
    if not given_values(flags, "--ckpt_path"):
        recipe = [] if given_values(flags, "--config") else ["--config", "quickstart"]  # first: later flags win
        flags = [*recipe, "--trainer.accelerator", "cpu", "--trainer.precision", "32-true", *flags]
    with in_place(functions):
        settings.call("fit", [*flags, *needed])
    with folder.changed() as progress:
        whole = ["all"] if set(names) == PLACES.keys() else []
        progress.trained = list(dict.fromkeys([*progress.trained, *names, *whole]))
    print("The checkpoint is like any other: validate, generate and explain compute it by the program's own parts.")


def chosen(folder: Folder, named: list[str], flags: list[str]) -> list[str]:
    """The parts to train with: those that are named; of "all", those that are right; by default the checkpoint's.

    Raises:
        UserError: there is none, or one that is named has no place in the program, or isn't right.
    """
    checkpoint, run = given_values(flags, "--ckpt_path"), given_values(flags, "--name")
    if checkpoint and not named:
        named = read_checkpoint(find_checkpoint(checkpoint[-1], run[-1] if run else None)).get("own_parts", [])
    wrong = [name for name in named if name not in PLACES and name != "all"]
    if wrong or not named:
        said = f"{', '.join(wrong)} has no place in the program. " if wrong else ""
        raise UserError(
            f"{said}Name parts of your own: --mine attend --mine block, say. There are places for {', '.join(PLACES)}."
        )
    faults = {name: fault(folder, name) for name in (PLACES if "all" in named else named)}
    for name in named:
        if what := faults.get(name):
            raise UserError(f"Your {name} isn't right yet, so nothing is trained with it. {what}")
    if left := [name for name in faults if faults[name]]:
        print(f"Without your {', '.join(left)}: not right yet. {command('check NAME')} tells why.")
    if len(left) == len(faults):
        raise UserError(f"None of your parts is right yet, so there is nothing to train with. Go on with: {command()}")
    return [name for name in faults if not faults[name]]


def fault(folder: Folder, name: str) -> str:
    """What is wrong with the learner's answer as it stands; nothing if it passes its check, now or before."""
    path, digest = folder.answer(name), folder.digest(name)
    if not digest:
        return f"There is no {path} yet. Begin it with: {command(f'check {name}')}"
    if folder.done(Step("write", name), folder.progress()):
        return ""
    result = check(name, path)
    folder.keep_result(name, digest, result.passed)
    return "" if result.passed else result.message

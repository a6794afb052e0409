"""``learn``: a course. It tells what to do next, checks answers, and trains the real program with the learner's own."""

import argparse
import difflib
import pydoc
import re
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt.errors import UserError

if TYPE_CHECKING:
    from minigpt.course.check import Child
    from minigpt.course.progress import Folder, Step

POLLING = 0.3  # seconds between two looks at the files


def on_terminal() -> bool:
    """Whether somebody is there to save files and to be asked."""
    return bool(sys.stdin and sys.stdin.isatty() and sys.stdout.isatty())


def known(name: str | None, folder: "Folder") -> str:
    """The name of an exercise; by default that of the one that is next."""
    from minigpt.course.exercises import NAMES

    if name is None:
        step = folder.next_step("write")
        return step.name if step else NAMES[-1]
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(NAMES)}."
        raise UserError(f"There is no exercise {name}; {hint}")
    return name


def known_lesson(number: int) -> Any:
    from minigpt.course.progress import lessons

    if not 1 <= number <= 12:
        raise UserError(f"There is no lesson {number}; there are 1 to 12.")
    return lessons()[number - 1]


# What to do next


def overview(settings: Namespace) -> None:
    """Show how far you are, and what is next. While that is an answer to write, look at it each time it is saved."""
    from minigpt.course.progress import Folder

    folder = Folder()
    print(folder.table())
    while step := folder.next_step():
        print(f"\nNext: {invitation(folder, step)}")
        if step.kind != "write":
            return
        if not on_terminal():
            checked(folder, step.name)
            return
        if not watched(folder, [step.name], until_passed=True):
            return
        print(f"\n{folder.table()}")
    print("\nThat was all of it.")


def invitation(folder: "Folder", step: "Step") -> str:
    """What to do in a step, in a sentence."""
    from minigpt.course.exercises import exercise
    from minigpt.course.progress import command

    if step.kind == "read":
        return f"read lesson {step.name}, {known_lesson(int(step.name)).title}: {command('read ' + step.name)}"
    if step.kind == "predict":
        question = known_lesson(int(step.name)).question
        return f"before you see it, predict:\n\n{question}\n\n{command('predict ' + step.name)} YOUR ANSWER"
    if step.kind == "break":
        return f"see what happens: {command('break ' + step.name)}"
    if step.kind == "train":
        return f"train the real program with your own parts: {command('train --mine all')}"
    folder.begin(step.name)
    asked = exercise(step.name)
    return (
        f"write {folder.answer(step.name)} (lesson {asked.lesson}: {asked.title}). "
        f"A hint: {command('hint ' + step.name)}"
    )


# Answers


def checked(folder: "Folder", name: str, child: "Child | None" = None) -> bool:
    """Check an answer, say what came of it, and keep it."""
    from minigpt.course.check import check
    from minigpt.course.mine import PLACES
    from minigpt.course.progress import command

    digest = folder.digest(name)
    result = check(name, folder.answer(name), child=child)
    if result.printed.strip():
        print("It printed:\n  " + "\n  ".join(result.printed.strip().splitlines()[:20]))
    print(f"{name}: {result.message}", flush=True)
    folder.judged(name, digest, result.passed)
    if result.passed and name in PLACES:
        print(f"Train the real program with it: {command(f'train --mine {name}')}", flush=True)
    return result.passed


def check_answer(settings: Namespace) -> None:
    """Check an answer: its values and gradients, on inputs drawn anew; if it is wrong, tell the mistake."""
    from minigpt.course.progress import Folder

    folder = Folder()
    name = known(settings.name, folder)
    if folder.begin(name):
        print(f"New: {folder.answer(name)}")
    if not checked(folder, name):
        sys.exit(1)


def watch(settings: Namespace) -> None:
    """Check an answer whenever it is saved, until Ctrl-C. Without a terminal, check what was changed, and end."""
    from minigpt.course.exercises import NAMES
    from minigpt.course.progress import Folder, Step

    folder = Folder()
    if on_terminal():
        watched(folder, list(NAMES))
        return
    progress = folder.progress()
    for name in NAMES:
        if folder.digest(name) and not folder.done(Step("write", name), progress):
            checked(folder, name)


def watched(folder: "Folder", names: list[str], until_passed: bool = False) -> bool:
    """Check each of some answers when it is saved: by looking at the files, which works on every file system.

    Returns:
        whether one passed, with ``until_passed``; False after Ctrl-C.
    """
    from minigpt.course.check import Child

    def look(path: Path) -> tuple[int, bytes] | None:
        try:
            return path.stat().st_mtime_ns, path.read_bytes()
        except OSError:  # it is being saved at this moment
            return None

    seen = {name: look(folder.answer(name)) for name in names}
    print(f"Each save in {folder.path} is checked. Ctrl-C ends.", flush=True)
    try:
        while True:
            with Child() as child:  # it gets ready while the learner writes
                while not (saved := [name for name in names if look(folder.answer(name)) not in (seen[name], None)]):
                    time.sleep(POLLING)
                time.sleep(POLLING)  # some editors write a file in several pieces
                seen[saved[0]] = look(folder.answer(saved[0]))
                if checked(folder, saved[0], child) and until_passed:
                    return True
    except KeyboardInterrupt:
        print()
        return False


def hint(settings: Namespace) -> None:
    """Show a hint, one more at each call: a question, the shapes, the steps, the line of the real program."""
    from minigpt.course.exercises import exercise
    from minigpt.course.progress import Folder

    folder = Folder()
    name = known(settings.name, folder)
    hints = exercise(name).hints
    with folder.changed() as progress:
        shown = progress.hints[name] = min(progress.hints.get(name, 0) + 1, len(hints))
    print(f"{name}, hint {shown} of {len(hints)}:")
    print("\n".join(f"  {number}. {text}" for number, text in enumerate(hints[:shown], 1)))


def reset(settings: Namespace) -> None:
    """Begin an answer anew; what was there is kept."""
    from minigpt.course.progress import Folder

    folder = Folder()
    name = known(settings.name, folder)
    backup = folder.reset(name)
    print(f"{folder.answer(name)} is as it was in the beginning." + (f" Your answer is in {backup}." if backup else ""))


# Lessons


def read(settings: Namespace) -> None:
    """Show a lesson; by default the next."""
    from minigpt.course.progress import Folder, command

    folder = Folder()
    step = folder.next_step("read")
    lesson = known_lesson(settings.lesson or (int(step.name) if step else 1))
    if not lesson.path:
        raise UserError(f"Lesson {lesson.number} has no text in this version.")
    pictures = lesson.path.parent.as_uri()
    text = re.sub(r"!\[([^\]]*)\]\((?!\w+:)([^)]+)\)", rf"[Picture: \1 - {pictures}/\2]", lesson.text)
    (pydoc.pager if on_terminal() else print)(text)
    with folder.changed() as progress:
        progress.read = sorted({*progress.read, str(lesson.number)}, key=int)
    print(f"Go on with: {command()}")


def predict(settings: Namespace) -> None:
    """Record what you expect, before you see it."""
    from minigpt.course.progress import Folder, command

    folder, number = Folder(), str(settings.lesson)
    lesson, before = known_lesson(settings.lesson), folder.progress().predictions.get(number)
    if not lesson.question:
        raise UserError(f"Lesson {number} asks for no prediction.")
    if before is not None:
        raise UserError(f"You have predicted in lesson {number}: {before!r}. A prediction stays as it was made.")
    answer = " ".join(settings.answer)
    if not answer and on_terminal():
        print(lesson.question)
        answer = input("\nYour prediction: ")
    if not answer.strip():
        raise UserError(f"Say what you expect: {command(f'predict {number}')} YOUR ANSWER")
    with folder.changed() as progress:
        progress.predictions[number] = answer.strip()
    print(f"Recorded. Go on with: {command()}")


def experiment(settings: Namespace) -> None:
    """Break something, and see what happens; what you expect is recorded before. Without a name, list what there is."""
    from minigpt.course.experiments import EXPERIMENTS, run
    from minigpt.course.progress import Folder, command

    folder, name = Folder(), settings.name
    if name is None:
        for each in EXPERIMENTS.values():
            print(f"{each.name:<16} lesson {each.lesson:>2}  {each.question}")
        return
    if name not in EXPERIMENTS:
        raise UserError(f"There is no experiment {name}. There are: {', '.join(EXPERIMENTS)}.")
    asked = EXPERIMENTS[name]
    print(f"{asked.change}\n\n{asked.question}")
    print("\n".join(f"  {number}. {option}" for number, option in enumerate(asked.options, 1)), flush=True)
    said = folder.progress().predictions.get(name)
    if said is None:
        said = str(settings.option or (input("\nYour prediction, by its number: ") if on_terminal() else ""))
        if said not in map(str, range(1, len(asked.options) + 1)):
            raise UserError(f"Predict before you see it: {command(f'break {name}')} 1, or another option's number.")
        with folder.changed() as progress:
            progress.predictions[name] = said
    print(flush=True)
    run(name, say=partial(print, flush=True), prediction=int(said) - 1)
    print(f"\n{asked.explanation}")
    with folder.changed() as progress:
        progress.experiments = list(dict.fromkeys([*progress.experiments, name]))


# The real program


def train(settings: Namespace, flags: list[str]) -> None:
    """Train a recipe with your own parts in the place of the program's.

    All further flags are those of fit: --config tinyshakespeare-cpu, --data.corpus my.txt, --trainer.max_steps 300,
    --ckpt_path last. By default the recipe is quickstart, on the CPU and in float32, as your answers were checked.
    """
    from minigpt.__main__ import call
    from minigpt.course.mine import PLACES, given_values, in_place, settings_for, slower
    from minigpt.course.progress import Folder

    folder, names = Folder(), list(dict.fromkeys(settings.mine))
    checkpoint = given_values(flags, "--ckpt_path")
    if checkpoint and not names:
        from minigpt.run import find_checkpoint, read_checkpoint

        run = given_values(flags, "--name")
        names = read_checkpoint(find_checkpoint(checkpoint[-1], run[-1] if run else None)).get("own_parts", [])
    if names == ["all"]:
        passed = folder.progress().passed
        names = [name for name in PLACES if name in passed]
    if not names or not PLACES.keys() >= set(names):
        wrong = f"{', '.join(set(names) - PLACES.keys())} has no place in the program. " if names else ""
        raise UserError(f"{wrong}Name parts of your own: --mine attend, say. There are places for {', '.join(PLACES)}.")
    functions = {name: own(folder, name) for name in names}
    needed = settings_for(names, flags)
    for name in names:
        print(f"{PLACES[name].name} = my.{name}")
        for key, value in PLACES[name].settings.items():
            print(f"    with --{key} {value}, because {PLACES[name].why}")
    if set(names) - {"learning_rate", "choose"}:
        print(slower(functions), flush=True)
    if not checkpoint:
        flags = ["--trainer.accelerator", "cpu", "--trainer.precision", "32-true", *flags]
        flags += [] if given_values(flags, "--config") else ["--config", "quickstart"]
    with in_place(functions):
        call("fit", [*flags, *needed])
    with folder.changed() as progress:
        progress.trained = list(dict.fromkeys([*progress.trained, "12", *names]))
    print("The checkpoint is like any other: validate, generate and explain compute it by the program's own parts.")


def own(folder: "Folder", name: str) -> Callable[..., Any]:
    """The learner's function of this name, which is right: as it stands it has passed its check, now or before."""
    from minigpt.course.check import check
    from minigpt.course.child import load
    from minigpt.course.progress import Step, command

    path, digest = folder.answer(name), folder.digest(name)
    if not digest:
        raise UserError(f"You have no {path} yet. Begin it with: {command(f'check {name}')}")
    if not folder.done(Step("write", name), folder.progress()):
        result = check(name, path)
        folder.judged(name, digest, result.passed)
        if not result.passed:
            raise UserError(f"Your {name} isn't right yet, so nothing is trained with it. {result.message}")
    function: Callable[..., Any] = getattr(load(path), name)
    return function


# Each part of the command: what it calls, and the arguments that it takes. `train` hands the rest of its flags to fit.
NAME: tuple[str, dict[str, Any]] = ("name", {"nargs": "?", "help": "of an exercise; by default the next one"})
LESSON: dict[str, Any] = {"type": int, "metavar": "N", "help": "the number of a lesson"}
MINE = {"action": "append", "default": [], "metavar": "NAME", "help": "a part of your own, or all; may be given again"}
PARTS: dict[str, tuple[Callable[..., None], list[tuple[str, dict[str, Any]]]]] = {
    "read": (read, [("lesson", {**LESSON, "nargs": "?"})]),
    "predict": (predict, [("lesson", LESSON), ("answer", {"nargs": "*", "help": "what you expect"})]),
    "break": (
        experiment,
        [
            ("name", {"nargs": "?", "help": "of an experiment"}),
            ("option", {"nargs": "?", "type": int, "help": "what you expect, by its number"}),
        ],
    ),
    "check": (check_answer, [NAME]),
    "hint": (hint, [NAME]),
    "watch": (watch, []),
    "reset": (reset, [("name", {"help": "of an exercise"})]),
    "train": (train, [("--mine", MINE)]),
}


def main(command: str, args: list[str]) -> None:
    """Run the command from its arguments."""
    parser = argparse.ArgumentParser(prog=f"minigpt {command}", description=overview.__doc__, allow_abbrev=False)
    parts = parser.add_subparsers(dest="part", metavar="PART")
    parser.set_defaults(function=overview)
    for name, (function, arguments) in PARTS.items():
        doc = function.__doc__ or ""
        part = parts.add_parser(name, help=doc.split("\n")[0], description=doc, allow_abbrev=False)
        part.set_defaults(function=function)
        for flag, options in arguments:
            part.add_argument(flag, **options)
    settings, rest = parser.parse_known_args(args)
    if settings.function is train:
        train(settings, rest)
        return
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    settings.function(settings)

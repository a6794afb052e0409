"""At the learner's desk: what is to be done next, answers that are checked, hints."""

import difflib
import sys
import time
from argparse import Namespace
from pathlib import Path

from minigpt.course.check import Child, check
from minigpt.course.exercises import NAMES, exercise
from minigpt.course.lesson import Step, known_lesson
from minigpt.course.places import PLACES
from minigpt.course.progress import Folder, command
from minigpt.course.reading import on_terminal
from minigpt.errors import UserError

POLLING = 0.3  # seconds between two looks at the files


def known_exercise(name: str | None, folder: Folder) -> str:
    """The name of an exercise, or a UserError; by default that of the one that is next."""
    if name is None:
        step = folder.next_step("write")
        return step.name if step else NAMES[-1]
    if name not in NAMES:
        near = difflib.get_close_matches(name.lower(), NAMES, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(NAMES)}."
        raise UserError(f"There is no exercise {name}; {hint}")
    return name


# What to do next


def overview(settings: Namespace) -> None:
    """Show how far you are, and what is next. While that is an answer to write, check it each time it is saved."""
    folder = Folder()
    print(folder.table())
    while step := folder.next_step():
        if step.kind == "write":
            folder.begin(step.name)
        print(f"\nNext: {invitation(folder, step)}")
        if step.kind != "write":
            return
        if not on_terminal():
            if not checked(folder, step.name):
                return
            continue
        if not watched(folder, [step.name], until_passed=True):
            return
        print(f"\n{folder.table()}")
    print("\nThat was all of it.")


def invitation(folder: Folder, step: Step) -> str:
    """What to do in a step, in a sentence."""
    if step.kind == "predict":
        lesson = known_lesson(int(step.name))
        return f"lesson {step.name}, {lesson.title}, about {lesson.minutes} minutes: {command(f'read {step.name}')}"
    if step.kind == "read":
        return f"the rest of lesson {step.name}: {command(f'read {step.name}')}"
    if step.kind == "break":
        return f"predict, and see what happens: {command(f'break {step.name}')}"
    if step.kind == "train":
        return f"train the real program with what you wrote: {command(f'train --mine {step.name}')}"
    asked = exercise(step.name)
    return (
        f"write {folder.answer(step.name)} (lesson {asked.lesson}: {asked.title}). "
        f"A hint: {command('hint ' + step.name)}"
    )


# Answers


def checked(folder: Folder, name: str, child: Child | None = None) -> bool:
    """Check an answer, say what came of it, and keep it."""
    digest = folder.digest(name)
    result = check(name, folder.answer(name), child=child)
    if result.printed.strip():
        print("It printed:\n  " + "\n  ".join(result.printed.strip().splitlines()[:20]))
    said = result.message if result.message.startswith(name) else f"{name}: {result.message}"
    print(said, flush=True)
    folder.keep_result(name, digest, result.passed)
    if result.passed and name in PLACES:
        print(f"Train the real program with it: {command(f'train --mine {name}')}", flush=True)
    return result.passed


def check_answer(settings: Namespace) -> None:
    """Check an answer: its values and gradients, on inputs drawn anew; if it is wrong, tell the mistake."""
    folder = Folder()
    name = known_exercise(settings.name, folder)
    if folder.begin(name):
        print(f"New: {folder.answer(name)}")
    if not checked(folder, name):
        sys.exit(1)
    print(f"Go on with: {command()}")


def watch(settings: Namespace) -> None:
    """Check an answer whenever it is saved, until Ctrl-C. Without a terminal, check what was changed, and end."""
    folder = Folder()
    if on_terminal():
        watched(folder, list(NAMES))
        return
    progress = folder.progress()
    for name in NAMES:
        if folder.digest(name) and not folder.done(Step("write", name), progress):
            checked(folder, name)


def watched(folder: Folder, names: list[str], until_passed: bool = False) -> bool:
    """Check each of some answers when it is saved: by looking at the files, which works on every file system.

    Returns:
        whether one passed, with ``until_passed``; False after Ctrl-C.
    """

    def look(path: Path) -> tuple[int, bytes] | None:
        try:
            return path.stat().st_mtime_ns, path.read_bytes()
        except OSError:  # it is being saved at this moment
            return None

    seen = {name: look(folder.answer(name)) for name in names}
    files = folder.answer(names[0]) if len(names) == 1 else f"an answer in {folder.path}"
    try:
        print(f"Each save of {files} is checked. Ctrl-C ends.", flush=True)
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
    folder = Folder()
    name = known_exercise(settings.name, folder)
    hints = exercise(name).hints
    with folder.changed() as progress:
        shown = progress.hints[name] = min(progress.hints.get(name, 0) + 1, len(hints))
    print(f"{name}, hint {shown} of {len(hints)}:")
    print("\n".join(f"  {number}. {text}" for number, text in enumerate(hints[:shown], 1)))


def reset(settings: Namespace) -> None:
    """Start an answer again; what was there is kept."""
    folder = Folder()
    name = known_exercise(settings.name, folder)
    backup = folder.reset(name)
    print(f"{folder.answer(name)} is as it was at the start." + (f" Your answer is in {backup}." if backup else ""))

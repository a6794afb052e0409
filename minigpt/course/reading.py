"""Reading a lesson, predicting, and seeing what happens."""

import pydoc
import re
import shutil
import sys
import textwrap
from argparse import Namespace
from functools import partial

from minigpt.course.experiments import EXPERIMENTS, known_experiment, run
from minigpt.course.lesson import Lesson, Question, known_lesson, question_of
from minigpt.course.progress import Folder, command
from minigpt.errors import UserError


def on_terminal() -> bool:
    """Whether somebody is there to save files and to be asked."""
    return bool(sys.stdin and sys.stdin.isatty() and sys.stdout.isatty())


def read(settings: Namespace) -> None:
    """Show a lesson, by default the next: up to its question, and once you have answered that, to its end."""
    folder = Folder()
    number = settings.lesson
    if number is None:
        step = folder.next_step("read")
        number = int(step.name) if step else 1
    lesson = known_lesson(number)
    question, (first, rest) = lesson.question, lesson.halves
    script = folder.script(lesson)
    said = question.said(folder.progress().predictions)
    if said is None:
        # The question comes with its options, and once.
        show(lesson, re.sub(rf"{question.pattern}\Z", "", first).rstrip())
        print(f"\n{question.shown(columns())}\n")
        if not on_terminal():
            print(f"Predict before you see it: {command(f'predict {lesson.number}')} 1, or another option's number.")
            print(f"The lesson's Python is in {script}, to be run and changed. What follows the question answers it.")
            return
        said = predicted(folder, question, None)
        show(lesson, rest)
    else:
        show(lesson, f"{first}\n\n{rest}")
    with folder.changed() as progress:
        progress.read = list(dict.fromkeys([*progress.read, str(lesson.number)]))
    if question.key == str(lesson.number):  # otherwise the experiment will tell
        print(f"\nPrediction: {question.options[said - 1]}\nMeasured:   {question.options[question.answer]}")
    print(f"The lesson's Python is in {script}. Run it by: python {script}. Then change something in it, and see.")
    print(f"Go on with: {command()}")


def show(lesson: Lesson, text: str) -> None:
    """Show Markdown, a page at a time on a terminal and no wider than it, with the places of its pictures."""

    def picture(found: re.Match[str]) -> str:
        return f"[Picture: {found[1]} - {(lesson.path.parent / found[2]).resolve().as_uri()}]"

    text = re.sub(r"!\[([^\]]*)\]\((?!\w+:)([^)]+)\)", picture, text)
    if on_terminal():
        pydoc.pager(filled(text, columns() + 1) + "\n")
    else:
        print(text)


def columns() -> int:
    """How long a line may be that is not to be broken by the terminal; 0 where there is none."""
    return shutil.get_terminal_size().columns - 1 if on_terminal() else 0


def filled(text: str, columns: int) -> str:
    """Markdown with the lines of its running text broken anew, where one is longer than a terminal is wide."""
    wrapper = textwrap.TextWrapper(columns - 1, break_long_words=False, break_on_hyphens=False)

    def paragraph(found: re.Match[str]) -> str:
        lines = found[0].split("\n")
        if lines[0].startswith(("|", ">", "[Picture")) or max(map(len, lines)) < columns:
            return found[0]
        items = re.split(r"\n(?=\d+\. |- )", found[0])  # one, where it is no list
        return "\n".join(wrapper.fill(" ".join(item.split())) for item in items)

    parts = re.split(r"(^```.*?^```$)", text, flags=re.DOTALL | re.MULTILINE)  # code stays as it is
    return "".join(
        part if part.startswith("```") else re.sub(r"[^\n](?:.|\n(?!\n))*", paragraph, part) for part in parts
    )


def predicted(folder: Folder, question: Question, option: int | None) -> int:
    """The option that is predicted, by its number: as it was recorded, or else now; it is asked for on a terminal."""
    said = question.said(folder.progress().predictions)
    if said is not None:
        return said
    numbers = [str(number) for number in range(1, len(question.options) + 1)]
    answer = str(option or "")
    while answer not in numbers:
        if not on_terminal() or option is not None:
            raise UserError(f"Predict before you see it: add the number of an option, {', '.join(numbers)}.")
        if answer:
            print(f"One of {', '.join(numbers)}.")
        try:
            answer = input("Your prediction, by its number: ").strip()
        except EOFError:  # Ctrl-D, or the terminal is gone
            raise UserError("Nothing was predicted. The same command asks again.") from None
    with folder.changed() as progress:
        progress.predictions[question.key] = int(answer)
    return int(answer)


def predict(settings: Namespace) -> None:
    """Record what you expect in a lesson, before you see it."""
    folder, lesson = Folder(), known_lesson(settings.lesson)
    question = lesson.question
    before = question.said(folder.progress().predictions)
    if before is not None:
        raise UserError(
            f'You have predicted in lesson {lesson.number}: "{question.options[before - 1]}". A prediction stays as '
            "it was made."
        )
    print(question.shown(columns()), flush=True)
    said = predicted(folder, question, settings.option)
    print(f"\nRecorded: {said}. Go on with: {command(f'read {lesson.number}')}")


def experiment(settings: Namespace) -> None:
    """Break something, and see what happens; what you expect is recorded before. Without a name, list what there is."""
    folder, name = Folder(), settings.name
    if name is None:
        for each in sorted(EXPERIMENTS.values(), key=lambda it: it.lesson):
            print(f"{each.name:<24} lesson {each.lesson:>2}  {each.question}")
        return
    asked = known_experiment(name)
    question = question_of(asked)
    print(f"{asked.change}\n\n{question.shown(columns())}\n", flush=True)
    said = predicted(folder, question, settings.option)
    if settings.option not in (said, None):
        print(f"You predicted {said} before, and a prediction stays as it was made.")
    print(flush=True)
    run(name, say=partial(print, flush=True), prediction=said - 1)
    print(f"\n{asked.explanation}")
    with folder.changed() as progress:
        progress.experiments = list(dict.fromkeys([*progress.experiments, name]))

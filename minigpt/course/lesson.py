"""A lesson: its question, its text, its steps, and the blocks of Python in it, which run in order in one session."""

import contextlib
import functools
import io
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from minigpt.course.child import one_thread
from minigpt.course.experiments import EXPERIMENTS, Experiment
from minigpt.errors import UserError

FOLDER = Path(__file__).parent / "lessons"  # files NN-name.md
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n*```text\n(.*?)^```$)?", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Step:
    """One thing to do in a lesson."""

    kind: str  # "predict", "read", "break", "write" or "train"
    name: str  # the lesson's number; the experiment's, the exercise's or the own part's name


@dataclass(frozen=True)
class Question:
    """What is to be predicted before it is seen."""

    key: str  # what the prediction is kept under: the lesson's number, or the name of the experiment that asks it too
    text: str
    options: tuple[str, ...]
    answer: int  # which of the options was measured

    def said(self, predictions: dict[str, int]) -> int | None:
        """Which option was predicted, by its number; None where none was."""
        number = predictions.get(self.key)
        return number if number in range(1, len(self.options) + 1) else None

    @property
    def pattern(self) -> str:
        """A regular expression that finds its text in Markdown, wherever the lines are broken there."""
        return r"\s+".join(map(re.escape, self.text.split()))

    def shown(self, columns: int = 0) -> str:
        """The question with its options, each with its number; in lines of so many columns, where that is given."""
        text = textwrap.fill(self.text, columns) if columns else self.text
        return "\n".join([text, "", *(f"  {number}. {option}" for number, option in enumerate(self.options, 1))])


def question_of(experiment: Experiment) -> Question:
    return Question(experiment.name, experiment.question, experiment.options, experiment.answer)


@dataclass(frozen=True)
class Lesson:
    """One lesson, as its file tells it."""

    path: Path
    values: dict[str, str]  # the lines ``key: value`` at its top
    body: str  # Markdown

    @property
    def number(self) -> int:
        return int(self.path.name[:2])

    @property
    def title(self) -> str:
        return self.values["title"]

    @property
    def minutes(self) -> int:
        """That a careful reader takes for it, with its exercises: as estimated by one who walked the course."""
        return int(self.values["minutes"])

    @property
    def exercises(self) -> tuple[str, ...]:
        return tuple(self.values["exercises"].split(", "))

    @property
    def experiment(self) -> str:
        return self.values["experiment"]

    @property
    def rung(self) -> str:
        """What is reached at its end, on the scale that runs through the course."""
        return self.values["rung"].rpartition(", ")[0]

    @property
    def nats(self) -> float:
        """What a character of the held-out text costs there."""
        return float(self.values["rung"].rpartition(", ")[2].removesuffix(" nats"))

    @functools.cached_property
    def question(self) -> Question:
        """The lesson's own, or that of its experiment."""
        if "prediction" in self.values:
            options = tuple(option.strip() for option in self.values["options"].split("|"))
            return Question(str(self.number), self.values["prediction"], options, options.index(self.values["answer"]))
        return question_of(EXPERIMENTS[self.experiment])

    @functools.cached_property
    def halves(self) -> tuple[str, str]:
        """The text up to its question, and what comes after, which tells the answer."""
        found = re.search(self.question.pattern, self.body)
        assert found, f"{self.path.name} doesn't ask its question"
        return self.body[: found.end()], self.body[found.end() :].strip()

    @functools.cached_property
    def steps(self) -> list[Step]:
        """In the order in which they are to be done. The text is read up to the question, then predicted, then read."""
        number = str(self.number)
        experiments = dict.fromkeys(re.findall(r"learn break ([a-z]\w*)", self.body))
        trainings = re.findall(r"learn train --mine (\w+)", self.body)
        return [
            Step("predict", number),
            Step("read", number),
            *(Step("break", name) for name in experiments),
            *(Step("write", name) for name in self.exercises),
            *(Step("train", name) for name in trainings[-1:]),
        ]

    def as_script(self) -> str:
        """Its blocks of Python with the text as comments between: cells (``# %%``) to be run one by one, or all."""
        parts, end = [], 0
        for block in [*BLOCK.finditer(self.body), None]:
            text = self.body[end : block.start() if block else None].strip()
            parts.append("# %% [markdown]\n" + "\n".join(f"# {line}".rstrip() for line in text.splitlines()))
            if block:
                parts.append(f"# %%\n{block[1].strip()}")
                end = block.end()
        return "\n\n".join(parts) + "\n"


@functools.cache  # a command asks for the lessons hundreds of times
def read(path: Path) -> Lesson:
    """A lesson from its file: lines ``key: value``, an empty line, Markdown."""
    top, _, body = path.read_text(encoding="utf-8").partition("\n\n")
    lines = (line.partition(":") for line in top.splitlines())
    return Lesson(path, {key: value.strip() for key, _, value in lines}, body)


def lessons() -> list[Lesson]:
    """All lessons, in order."""
    return [read(path) for path in sorted(FOLDER.glob("*.md"))]


def known_lesson(number: int) -> Lesson:
    """The lesson of that number, or a UserError."""
    if not 1 <= number <= len(lessons()):
        raise UserError(f"There is no lesson {number}; there are 1 to {len(lessons())}.")
    return lessons()[number - 1]


def run(lesson: Lesson) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Run the blocks of a lesson.

    Returns:
        the names that they leave, and of each block what it printed and what the lesson says that it prints.
    """
    session: dict[str, Any] = {}
    outputs: list[tuple[str, str]] = []
    with one_thread(), torch.random.fork_rng(devices=[]):  # more threads may round otherwise
        for block in BLOCK.finditer(lesson.body):
            printed = io.StringIO()
            code = compile(block[1], f"{lesson.path.name}, block {len(outputs) + 1}", "exec")
            with contextlib.redirect_stdout(printed):
                exec(code, session)
            outputs.append((printed.getvalue(), block[2] or ""))
    return session, outputs

"""Where a learner stands: the lessons and their steps, the folder ``my`` with the answers, and what is done."""

import dataclasses
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from minigpt.course.exercises import NAMES, Exercise, exercise
from minigpt.errors import UserError
from minigpt.files import copied_whole, written_whole

LESSONS = Path(__file__).parent / "lessons"  # files NN-name.md
FORMAT = 1  # of progress.json


def command(words: str = "") -> str:
    """How to call a part of the course, as the user called this program."""
    program = "minigpt" if Path(sys.argv[0]).name == "minigpt" else "python -m minigpt"
    return f"{program} learn {words}".rstrip()


@dataclass(frozen=True)
class Step:
    """One thing to do in a lesson."""

    kind: str  # "read", "predict", "break", "write" or "train"
    name: str  # the lesson's number, the experiment or the exercise


@dataclass(frozen=True)
class Lesson:
    """One lesson as a row of steps: its text is Markdown, under lines that :mod:`minigpt.course.lesson` reads.

    A section ``## Predict`` asks for a prediction. Each ``learn break NAME`` in the text is an experiment of it; where
    the text has ``learn train``, it ends with a training.
    """

    number: int
    path: Path | None  # None where there is no text

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8").partition("\n\n")[2] if self.path else ""  # see lesson.py

    @property
    def title(self) -> str:
        heading = re.search(r"^# (?:Lesson )?(?:\d+[.:]? )?(.+)$", self.text, re.MULTILINE)
        return heading[1] if heading else f"Lesson {self.number}"

    @property
    def question(self) -> str:
        """What is to be predicted; empty if nothing is."""
        section = re.search(r"^## Predict[^\n]*\n(.*?)(?=^## |\Z)", self.text, re.MULTILINE | re.DOTALL)
        return section[1].strip() if section else ""

    @property
    def exercises(self) -> list[Exercise]:
        return [asked for name in NAMES if (asked := exercise(name)).lesson == self.number]

    @cached_property
    def steps(self) -> list[Step]:
        """In the order in which they are to be done."""
        number = str(self.number)
        experiments = dict.fromkeys(re.findall(r"learn break ([a-z]\w*)", self.text))
        return [
            *([Step("read", number)] if self.path else []),
            *([Step("predict", number)] if self.question else []),
            *(Step("break", name) for name in experiments),
            *(Step("write", asked.name) for asked in self.exercises),
            *([Step("train", number)] if "learn train" in self.text else []),
        ]


def lessons() -> list[Lesson]:
    """All of the course, in their order."""
    paths = {int(path.name[:2]): path for path in LESSONS.glob("[0-9][0-9]-*.md")}
    return [Lesson(number, paths.get(number)) for number in range(1, 13)]


@dataclass
class Progress:
    """What a learner has done, as ``my/progress.json`` keeps it."""

    minigpt_course: int = FORMAT
    read: list[str] = field(default_factory=list)  # lessons, by number
    # By the number of the lesson; or by the name of the experiment, and then it is the number of an option.
    predictions: dict[str, str] = field(default_factory=dict)
    experiments: list[str] = field(default_factory=list)
    passed: dict[str, str] = field(default_factory=dict)  # for each exercise the digest of the answer that passed
    hints: dict[str, int] = field(default_factory=dict)  # how many were shown
    trained: list[str] = field(default_factory=list)  # lessons, and the parts that were in it


class Folder:
    """The learner's folder."""

    def __init__(self, path: Path = Path("my")) -> None:
        self.path, self.record = path, path / "progress.json"

    def progress(self) -> Progress:
        """What is done so far.

        Raises:
            UserError: the file is damaged, or another program's. It is left as it is.
        """
        try:
            raw = self.record.read_bytes()
        except FileNotFoundError:
            return Progress()
        except OSError as error:
            raise UserError(f"Your progress in {self.record} can't be read: {error.strerror}.") from error
        empty = dataclasses.asdict(Progress())
        try:
            found = json.loads(raw)
            whole = found.keys() == empty.keys() and all(type(found[key]) is type(empty[key]) for key in empty)
        except (ValueError, AttributeError, RecursionError):
            whole = False
        if not whole or found["minigpt_course"] != FORMAT:
            raise UserError(
                f"{self.record} is not a whole file of this version of the course, so it is left as it is. Bring back "
                "a copy of it, or move it away: then the course begins anew, with the answers that are in "
                f"{self.path}; {command('check')} counts each that is right."
            )
        return Progress(**found)

    @contextmanager
    def changed(self) -> Iterator[Progress]:
        """The progress, to be changed: read anew, because another window may have written it, and saved at the end."""
        progress = self.progress()
        yield progress
        self.write(self.record, json.dumps(dataclasses.asdict(progress), indent=1))

    def write(self, path: Path, text: str) -> None:
        try:
            with written_whole(path) as file:
                file.write(text.encode())
        except OSError as error:
            raise UserError(f"{path} can't be written: {error.strerror or error}.") from error

    def answer(self, name: str) -> Path:
        """The file with the answer to an exercise."""
        return self.path / f"{name}.py"

    def begin(self, name: str) -> bool:
        """Make the file for an answer, if there is none; tell whether it was made."""
        if new := not self.answer(name).exists():
            self.write(self.answer(name), exercise(name).stub)
        return new

    def reset(self, name: str) -> Path | None:
        """Begin an answer anew; return the copy of what was there, if there was anything."""
        path, backup = self.answer(name), None
        if path.exists():
            numbers = (self.path / "before" / f"{name}_{number}.py" for number in range(1, 10**6))
            backup = next(path for path in numbers if not path.exists())
            try:
                copied_whole(path, backup)
            except OSError as error:
                raise UserError(f"{path} can't be copied to {backup}: {error.strerror or error}.") from error
        self.write(path, exercise(name).stub)
        with self.changed() as progress:
            progress.passed.pop(name, None)
            progress.hints.pop(name, None)
        return backup

    def digest(self, name: str) -> str:
        """Of the answer as it stands; empty if there is none."""
        try:
            return hashlib.sha256(self.answer(name).read_bytes()).hexdigest()
        except OSError:  # it is away, or is being saved at this moment
            return ""

    def done(self, step: Step, progress: Progress) -> bool:
        match step.kind:
            case "write":
                return step.name in progress.passed and progress.passed[step.name] == self.digest(step.name)
            case "predict":
                return step.name in progress.predictions
            case "read":
                return step.name in progress.read
            case "break":
                return step.name in progress.experiments
            case _:
                return step.name in progress.trained

    def judged(self, name: str, digest: str, passed: bool) -> None:
        """Keep what came of an answer that had this digest."""
        with self.changed() as progress:
            progress.passed.pop(name, None)
            if passed:
                progress.passed[name] = digest

    def next_step(self, kind: str = "") -> Step | None:
        """The first thing that is not done, of one kind or of all."""
        progress = self.progress()
        steps = (step for lesson in lessons() for step in lesson.steps)
        return next((step for step in steps if kind in ("", step.kind) and not self.done(step, progress)), None)

    def table(self) -> str:
        """The lessons, a line for each, with what is done marked by an x."""
        progress, rows, finished = self.progress(), [], 0
        for lesson in lessons():
            marks: dict[str, list[str]] = {kind: [] for kind in ("read", "predict", "break", "write", "train")}
            for step in lesson.steps:
                done = self.done(step, progress)
                named = f"[{'x' if done else ' '}] {step.name if step.kind == 'write' else 'train'}"
                marks[step.kind].append(named if step.kind in ("write", "train") else "x" if done else ".")
            finished += bool(lesson.steps) and all(self.done(step, progress) for step in lesson.steps)
            cells = (" ".join(marks[kind]).center(8) for kind in ("read", "predict", "break"))
            work = "  ".join(marks["write"] + marks["train"])
            rows.append(f"{lesson.number:>3}  {lesson.title[:36]:<36} {''.join(cells)} {work}".rstrip())
        written = sum(self.done(Step("write", name), progress) for name in NAMES)
        heading = f"{'':5}{'':<36} {'read':^8}{'predict':^8}{'break':^8} write"
        return "\n".join(
            [f"{finished} of 12 lessons, {written} of {len(NAMES)} exercises; your files: {self.path}", heading, *rows]
        )

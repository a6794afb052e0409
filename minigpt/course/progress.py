"""Where a learner stands: the folder ``my`` with the answers, and which steps of the lessons are done."""

import dataclasses
import hashlib
import itertools
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from filelock import FileLock

from minigpt.course.exercises import NAMES, exercise
from minigpt.course.lesson import Lesson, Step, known_lesson, lessons
from minigpt.errors import UserError
from minigpt.files import copied_whole, written_whole

FORMAT = 2  # of progress.json; in 1 predictions were texts


def command(words: str = "") -> str:
    """How to call a part of the course, as the user called this program."""
    program = "minigpt" if Path(sys.argv[0]).name == "minigpt" else "python -m minigpt"
    return f"{program} learn {words}".rstrip()


@dataclass
class Progress:
    """What a learner has done, as ``my/progress.json`` keeps it; that file is checked by the types here."""

    minigpt_course: int = FORMAT
    read: list[str] = field(default_factory=list)  # lessons, by number
    # Numbers of options, by the lesson's number or the experiment's name: see Question.key.
    predictions: dict[str, int] = field(default_factory=dict)
    experiments: list[str] = field(default_factory=list)
    passed: dict[str, str] = field(default_factory=dict)  # for each exercise the digest of the answer that passed
    hints: dict[str, int] = field(default_factory=dict)  # how many were shown
    trained: list[str] = field(default_factory=list)  # parts that a model was trained with; "all" where all were in one


def is_of_type(value: Any, wanted: Any) -> bool:
    """Whether something from a JSON file is of a type: a simple one, or a list or dict of a simple one."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return type(value) is (get_origin(wanted) or wanted) and all(type(it) is get_args(wanted)[-1] for it in items)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Let a UserError tell that a file can't be written."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} can't be written: {error.strerror or error}. Start the course in a folder that is yours."
        ) from error


class Folder:
    """The learner's folder.

    Raises:
        UserError: a file has its name.
    """

    def __init__(self, path: Path = Path("my")) -> None:
        if path.is_file():
            raise UserError(f"{path} is a file here, and shall be the folder of your answers. Move the file away.")
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
        types = get_type_hints(Progress)
        try:
            found = json.loads(raw)
            whole = found.keys() == types.keys() and all(is_of_type(found[key], types[key]) for key in types)
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
        """The progress, to be changed: read anew, because another window may have written it, and saved at the end.

        Until then other windows wait, so don't wait for the learner in it.

        Raises:
            UserError: it can't be read or written.
        """
        lock = FileLock(self.path / ".lock")
        with writing(Path(lock.lock_file)):
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        try:
            progress = self.progress()
            yield progress
            self.write(self.record, json.dumps(dataclasses.asdict(progress), indent=1))
        finally:
            lock.release()

    def script(self, lesson: Lesson) -> Path:
        """The file with the lesson's blocks of Python, to be run and changed; it is made if there is none."""
        path = self.path / f"lesson_{lesson.number:02}.py"
        if not path.exists():
            self.write(path, lesson.as_script())
        return path

    def write(self, path: Path, text: str) -> None:
        """Write a file whole.

        Raises:
            UserError: it can't be written.
        """
        with writing(path), written_whole(path) as file:
            file.write(text.encode())

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
        with self.changed() as progress:  # first, so that nothing is touched where it can't be read
            if path.exists():
                numbers = (self.path / "before" / f"{name}_{number}.py" for number in itertools.count(1))
                backup = next(it for it in numbers if not it.exists())
                try:
                    copied_whole(path, backup)
                except OSError as error:
                    raise UserError(f"{path} can't be copied to {backup}: {error.strerror or error}.") from error
            self.write(path, exercise(name).stub)
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
                return known_lesson(int(step.name)).question.said(progress.predictions) is not None
            case "read":
                return step.name in progress.read
            case "break":
                return step.name in progress.experiments
            case _:
                return step.name in progress.trained

    def keep_result(self, name: str, digest: str, passed: bool) -> None:
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
        progress, course = self.progress(), lessons()
        done = {step: self.done(step, progress) for lesson in course for step in lesson.steps}
        finished = sum(all(done[step] for step in lesson.steps) for lesson in course)
        written = sum(it for step, it in done.items() if step.kind == "write")
        rows = [
            f"{finished} of {len(course)} lessons, {written} of {len(NAMES)} exercises; "
            f"your files: {self.path.resolve()}",
            f"{'':41} {'predict':^8}{'read':^8}{'break':^8} write",
        ]
        for lesson in course:
            cells = ""
            for kind in ("predict", "read", "break"):
                cells += " ".join("x" if done[step] else "." for step in lesson.steps if step.kind == kind).center(8)
            named = {"write": "", "train": "train "}
            work = [
                f"[{'x' if done[step] else ' '}] {named[step.kind]}{step.name}"
                for step in lesson.steps
                if step.kind in named
            ]
            rows.append(f"{lesson.number:>3}  {lesson.title:<36} {cells} {'  '.join(work)}".rstrip())
        return "\n".join(rows)

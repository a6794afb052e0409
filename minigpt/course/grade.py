"""Grading a class: the answers and predictions of many learners, from the ``my`` folders that they hand in."""

import csv
import io
import json
import os
import re
import secrets
import stat
import tempfile
import zipfile
import zlib
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePath

from minigpt.course import sandbox
from minigpt.course.check import Child, Result, inputs_of, job_of, judged
from minigpt.course.child import one_thread
from minigpt.course.exercises import NAMES, exercise
from minigpt.course.experiments import EXPERIMENTS
from minigpt.course.lesson import Question, lessons, question_of
from minigpt.errors import UserError
from minigpt.files import user_path, written_whole

LARGEST = 1 << 20  # bytes of a file that is read; an answer has hundreds
MOST = 100  # files that are read of one learner's
PACKED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED  # of other kinds Python unpacks more at once than it is asked for
MISSING = "not handed in"
BROKEN = OSError, EOFError, NotImplementedError, RuntimeError, ValueError  # what reading a damaged zip file raises
BAR = 30  # characters of the longest bar

Files = dict[PurePath, bytes]  # what is handed in, by its path below the student's folder


@dataclass
class Submission:
    """What one learner has handed in."""

    student: str
    path: Path
    answers: dict[str, bytes] = field(default_factory=dict)  # by the exercise's name
    predictions: dict[str, int] = field(default_factory=dict)  # see Progress
    notes: list[str] = field(default_factory=list)  # what couldn't be read


def grade(settings: Namespace) -> None:
    """Check all submissions in a folder, write their marks as CSV, and tell what the class got wrong and predicted."""
    folder, output = user_path(settings.folder), user_path(settings.output)
    names = settings.exercise or list(NAMES)
    if wrong := set(names) - set(NAMES):
        raise UserError(f"There is no exercise {', '.join(sorted(wrong))}; there are {', '.join(NAMES)}.")
    if not output.absolute().parent.is_dir():
        raise UserError(f"There is no folder {output.parent} to write {output.name} into.")
    if output.exists():
        raise UserError(f"{output} is there already, and marks are not written over. Name another file: --output.")
    handed_in = list(submissions(folder))
    place = output.absolute().parent
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise UserError(f"Nothing can be written into {place}: {error.strerror or error}.") from error
    seed = secrets.randbelow(1 << 30) if settings.seed is None else settings.seed
    wrapped = None if settings.trust else sandbox.tried(place, handed_in[0].path.absolute())
    print(f"Submissions: {len(handed_in)}. The inputs are drawn with --seed {seed}.", flush=True)
    results: list[tuple[str, dict[str, Result]]] = []  # not by the name: two may have the same
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        with one_thread():
            answers = [(name, submission.answers.get(name)) for submission in handed_in for name in names]
            checks = pool.map(partial(checked, seed=seed, wrapped=wrapped), answers)
            for submission in handed_in:
                found = {name: next(checks) for name in names}
                results.append((submission.student, found))
                said = f"{submission.student}: {right(found)} of {len(names)}"
                print(said, *map(printable, submission.notes), sep="\n  ", flush=True)
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C no other answer begins
    marks = table(results, names)
    try:
        with written_whole(output) as file:
            file.write(marks.encode("utf-8-sig"))  # spreadsheets take other files as Latin-1
    except OSError as error:
        print(marks)  # rather than lose them
        raise UserError(f"{output} can't be written: {error.strerror or error}.") from error
    print(f"\n{output}: the marks, with each mistake\n")
    print("\n".join([*mistakes([found for _, found in results], names), "", *tally(handed_in)]))


# What was handed in


def submissions(folder: Path) -> Iterator[Submission]:
    """What is in a folder, a folder or zip file for each learner, by name.

    Raises:
        UserError: there is no such folder, or nothing of the kind in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder. Name one with a folder or a zip file for each learner.")
    try:
        there = [path for path in sorted(folder.iterdir()) if not path.name.startswith((".", "__"))]
        entries = [path for path in there if is_folder(path) or (path.suffix.lower() == ".zip" and is_file(path))]
    except OSError as error:
        raise UserError(f"{folder} can't be read: {error.strerror or error}.") from error
    if not entries:
        raise UserError(
            f"In {folder} there is neither a folder nor a zip file of a learner's. If this is one learner's, give the "
            "folder above it."
        )
    if others := [printable(path.name) for path in there if path not in entries]:
        print(f"Neither a folder nor a zip file, and not graded: {', '.join(others)}")
    shared = Counter(student_of(entry) for entry in entries)  # by anna and anna.zip, say
    for entry in entries:
        student = student_of(entry)
        submission = Submission(student if shared[student] == 1 else printable(entry.name), entry)
        files = files_in(entry, submission.notes)
        for name in NAMES:
            if path := nearest(files, f"{name}.py"):
                submission.answers[name] = files[path]
        if path := nearest(files, "progress.json"):
            submission.predictions = predictions_in(files[path], submission.notes)
        yield submission


def student_of(entry: Path) -> str:
    return printable(entry.name if is_folder(entry) else entry.stem)


def files_in(entry: Path, notes: list[str]) -> Files:
    """The files of a folder or zip file that the course knows; neither links nor anything large is followed."""
    files = Files()
    if is_file(entry):
        unzip(entry, PurePath(), files, notes)
        return files

    def unread(error: OSError) -> None:
        path = Path(os.fsdecode(error.filename or entry))
        notes.append(f"{str(path.relative_to(entry))[-80:]} can't be read: {error.strerror or error}.")

    for folder, _, names in os.walk(entry, onerror=unread):
        for name in sorted(names):
            path = Path(folder, name)
            place = path.relative_to(entry)
            packed = path.suffix.lower() == ".zip"
            if not (packed or known(place)):
                continue
            if len(files) + len(notes) >= MOST:
                notes.append("There are more files, which aren't read.")
                return files
            try:
                if not is_file(path):
                    notes.append(f"{place} is a link or no plain file, and isn't read.")
                elif packed:
                    unzip(path, place.with_suffix(""), files, notes)
                elif path.stat().st_size > LARGEST:
                    notes.append(f"{place} has {path.stat().st_size:,} bytes, and isn't read.")
                else:
                    files[place] = path.read_bytes()
            except OSError as error:  # a path may also be too long
                unread(error)
    return files


def unzip(path: Path, place: PurePath, files: Files, notes: list[str]) -> None:
    """Add the files of a zip file that the course knows, as if they lay in a folder."""
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                inner = place / member.filename
                if member.filename.endswith("/") or not known(inner):
                    continue
                if len(files) + len(notes) >= MOST:
                    notes.append(f"There are more files in {path.name}, which aren't read.")
                    return
                if member.file_size > LARGEST:
                    notes.append(f"{member.filename} in {path.name} is large, and isn't read.")
                elif member.compress_type not in PACKED:
                    notes.append(f"{member.filename} in {path.name} is packed in a way that isn't read.")
                else:
                    files[inner] = archive.read(member)
    except (*BROKEN, zipfile.BadZipFile, zlib.error) as error:
        notes.append(f"{path.name} can't be read as a zip file: {error}.")


def known(path: PurePath) -> bool:
    """Whether the course reads a file of this name: not what ``learn reset`` or macOS has put aside."""
    wanted = (path.suffix == ".py" and path.stem in NAMES) or path.name == "progress.json"
    return wanted and not {"before", "__MACOSX"}.intersection(path.parts[:-1])


def is_file(path: Path) -> bool:
    """Whether it is a file, and neither a link nor a pipe, which would be waited for."""
    return stat.S_ISREG(path.lstat().st_mode)


def is_folder(path: Path) -> bool:
    return stat.S_ISDIR(path.lstat().st_mode)


def printable(text: str) -> str:
    """Text that can do nothing to a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


def nearest(files: Files, name: str) -> PurePath | None:
    """The file of this name that lies least deep."""
    found = [path for path in files if path.name == name]
    return min(found, key=lambda path: (len(path.parts), path), default=None)


def predictions_in(raw: bytes, notes: list[str]) -> dict[str, int]:
    """The predictions of a ``progress.json``, as far as they are any."""
    try:
        found = json.loads(raw)["predictions"]
        return {str(key): value for key, value in found.items() if type(value) is int}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        notes.append("progress.json can't be read, so the predictions are not counted.")
        return {}


# Marks


def checked(answer: tuple[str, bytes | None], seed: int, wrapped: list[str] | None) -> Result:
    """What comes of an answer, in a process of its own: isolated, where a command for that is given."""
    name, source = answer
    if source is None:
        return Result(False, MISSING)
    rows = inputs_of(exercise(name), seed)
    job = job_of(name, source, f"{name}.py", rows, processes=wrapped is None)
    return judged(name, job, seed, Child(wrapped) if wrapped else Child())


def right(results: dict[str, Result]) -> int:
    return sum(result.passed for result in results.values())


def table(results: list[tuple[str, dict[str, Result]]], names: list[str]) -> str:
    """The marks as CSV: a row for each learner, with what was said of each answer."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["student", "marks", "of", *names])
    for student, found in results:
        said = ["right" if found[name].passed else " ".join(found[name].message.split())[:300] for name in names]
        writer.writerow([cell(student), right(found), len(names), *map(cell, said)])
    return text.getvalue()


def cell(text: str) -> str:
    """Text that a spreadsheet does not take for a formula: learners decide what their errors say.

    After a semicolon too, which divides the cells where the comma is in the numbers.
    """
    return re.sub(r"(^|;\s*)(?=[=+@-])", r"\1'", printable(text))


def mistakes(found: list[dict[str, Result]], names: list[str]) -> Iterator[str]:
    """Which exercises how many got right, and the named mistakes of the others, the most frequent first."""
    yield "What the class got right, and its mistakes:"
    for name in names:
        given = [result[name] for result in found if result[name].message != MISSING]
        passed = sum(result.passed for result in given)
        yield f"  {name}: {f'{passed} right of {len(given)}' if given else 'not'} handed in"
        named = Counter(kind_of(result) for result in given if not result.passed)
        yield from (f"    {count:>3} x {mistake}" for mistake, count in named.most_common())


def kind_of(result: Result) -> str:
    """The mistake in an answer that isn't right, as it is counted."""
    if result.mistake:
        return result.mistake
    said = ("It raises an error", "Not begun", "The file has no function")
    return next((start for start in said if result.message.startswith(start)), "another mistake")


def tally(handed_in: list[Submission]) -> Iterator[str]:
    """How often each option was predicted; the one that was measured is marked."""
    asked = {lesson.question.key: lesson.question for lesson in lessons()}
    asked |= {it.name: question_of(it) for it in EXPERIMENTS.values()}
    given = {key: counts for key, it in asked.items() if any(counts := counted(handed_in, it))}
    yield "What the class predicted (* was measured):" if given else "No predictions were handed in."
    for key, counts in given.items():
        question = asked[key]
        yield f"\n  {question.text}"
        for i, (option, count) in enumerate(zip(question.options, counts, strict=True)):
            bar = "#" * round(BAR * count / max(counts))
            yield f"   {'*' if i == question.answer else ' '} {count:>3} {bar:<{BAR}} {option}"


def counted(handed_in: list[Submission], question: Question) -> list[int]:
    """How often each option of a question was predicted."""
    counts = Counter(question.said(submission.predictions) for submission in handed_in)
    return [counts[number] for number in range(1, len(question.options) + 1)]

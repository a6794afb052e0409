"""Grading a class: the answers and predictions of many learners, from the ``my`` folders that they hand in."""

import csv
import io
import json
import lzma
import os
import secrets
import stat
import zipfile
import zlib
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePath

from minigpt.course import sandbox
from minigpt.course.check import Child, Result, inputs_of, job_of, judged
from minigpt.course.child import one_thread
from minigpt.course.exercises import NAMES, exercise
from minigpt.course.experiments import EXPERIMENTS
from minigpt.course.lesson import Question, lessons
from minigpt.errors import UserError
from minigpt.files import user_path, written_whole

LARGEST = 1 << 20  # bytes of a file that is read; an answer has hundreds
MISSING = "not handed in"
BROKEN = OSError, EOFError, NotImplementedError, RuntimeError, ValueError  # what reading a damaged zip file raises
BAR = 30  # characters of the longest bar

Files = dict[PurePath, bytes]  # what is handed in, by its path below the student's folder


@dataclass
class Submission:
    """What one learner has handed in."""

    student: str
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
    seed = secrets.randbelow(1 << 30) if settings.seed is None else settings.seed
    wrapped = None if settings.trust else sandbox.tried(output.absolute().parent)
    print(f"Submissions: {len(handed_in)}. The inputs are drawn with --seed {seed}.", flush=True)
    results: dict[str, dict[str, Result]] = {}
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        with one_thread():
            checks = pool.map(partial(checked, names=names, seed=seed, wrapped=wrapped), handed_in)
            for submission, found in zip(handed_in, checks, strict=True):
                results[submission.student] = found
                said = f"{submission.student}: {right(found)} of {len(names)}"
                print(said, *submission.notes, sep="\n  ", flush=True)
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C no other answer begins
    try:
        with written_whole(output) as file:
            file.write(table(results, names).encode("utf-8-sig"))  # spreadsheets take other files as Latin-1
    except OSError as error:
        raise UserError(f"{output} can't be written: {error.strerror or error}.") from error
    print(f"\n{output}: the marks, with each mistake\n")
    print("\n".join([*mistakes(results.values(), names), "", *tally(handed_in)]))


# What was handed in


def submissions(folder: Path) -> Iterator[Submission]:
    """What is in a folder, a folder or zip file for each learner, by name.

    Raises:
        UserError: there is no such folder, or nothing of the kind in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder. In it there shall be a folder or a zip file for each learner.")
    entries = [path for path in sorted(folder.iterdir()) if not path.name.startswith((".", "__"))]
    entries = [path for path in entries if is_folder(path) or (path.suffix.lower() == ".zip" and is_file(path))]
    if not entries:
        raise UserError(f"In {folder} there is neither a folder nor a zip file of a learner's: a copy of my, say.")
    for entry in entries:
        submission = Submission(printable(entry.name if is_folder(entry) else entry.stem))
        files = files_in(entry, submission.notes)
        for name in NAMES:
            if path := nearest(files, f"{name}.py"):
                submission.answers[name] = files[path]
        if path := nearest(files, "progress.json"):
            submission.predictions = predictions_in(files[path], submission.notes)
        yield submission


def files_in(entry: Path, notes: list[str]) -> Files:
    """The files of a folder or zip file that the course knows; neither links nor anything large is followed."""
    wanted, files = {*(f"{name}.py" for name in NAMES), "progress.json"}, Files()
    if is_file(entry):
        return zipped(entry, PurePath(), wanted, notes)
    for folder, _, names in os.walk(entry):
        for name in sorted(names):
            path = Path(folder, name)
            place = path.relative_to(entry)
            if name not in wanted and path.suffix.lower() != ".zip":
                continue
            if not is_file(path):
                notes.append(f"{place} is a link or no plain file, and isn't read.")
            elif name not in wanted:
                files |= zipped(path, place.parent, wanted, notes)
            elif path.stat().st_size > LARGEST:
                notes.append(f"{place} has {path.stat().st_size:,} bytes, and isn't read.")
            else:
                files[place] = path.read_bytes()
    return files


def zipped(path: Path, place: PurePath, wanted: set[str], notes: list[str]) -> Files:
    """The files of a zip file that the course knows."""
    files = Files()
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                inner = PurePath(member.filename)
                if inner.name not in wanted or "__MACOSX" in inner.parts:
                    continue
                with archive.open(member) as file:
                    data = file.read(LARGEST + 1)
                if len(data) > LARGEST:
                    notes.append(f"{printable(str(inner))} in {path.name} is large, and isn't read.")
                    continue
                files[place / path.stem / inner] = data
    except (*BROKEN, lzma.LZMAError, zipfile.BadZipFile, zlib.error) as error:
        notes.append(f"{path.name} can't be read as a zip file: {error}.")
    return files


def is_file(path: Path) -> bool:
    """Whether it is a file, and neither a link nor a pipe, which would be waited for."""
    return stat.S_ISREG(path.lstat().st_mode)


def is_folder(path: Path) -> bool:
    return stat.S_ISDIR(path.lstat().st_mode)


def printable(text: str) -> str:
    """Text that can do nothing to a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


def nearest(files: Files, name: str) -> PurePath | None:
    """The file of this name that lies least deep; what ``learn reset`` has put aside doesn't count."""
    found = [path for path in files if path.name == name and "before" not in path.parts[:-1]]
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


def checked(submission: Submission, names: list[str], seed: int, wrapped: list[str] | None) -> dict[str, Result]:
    """What comes of each answer, each in a process of its own: isolated, where a command for that is given."""
    results = {}
    for name in names:
        if (source := submission.answers.get(name)) is None:
            results[name] = Result(False, MISSING)
            continue
        rows = inputs_of(exercise(name), seed)
        job = job_of(name, source, f"{name}.py", rows, processes=wrapped is None)
        results[name] = judged(name, job, seed, Child(wrapped) if wrapped else Child())
    return results


def right(results: dict[str, Result]) -> int:
    return sum(result.passed for result in results.values())


def table(results: dict[str, dict[str, Result]], names: list[str]) -> str:
    """The marks as CSV: a row for each learner, with what was said of each answer."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["student", "marks", "of", *names])
    for student, found in results.items():
        said = ["right" if found[name].passed else " ".join(found[name].message.split())[:300] for name in names]
        writer.writerow([cell(student), right(found), len(names), *map(cell, said)])
    return text.getvalue()


def cell(text: str) -> str:
    """Text that a spreadsheet does not take for a formula: learners decide what their errors say."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def mistakes(results: Iterable[dict[str, Result]], names: list[str]) -> Iterator[str]:
    """Which exercises how many got right, and the named mistakes of the others, the most frequent first."""
    found = list(results)
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
    asked |= {it.name: Question(it.name, it.question, it.options, it.answer) for it in EXPERIMENTS.values()}
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

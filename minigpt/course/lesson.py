"""A lesson: what stands at its top, its text, and the blocks of Python in it, which run in order in one session."""

import contextlib
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent / "lessons"
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n*```text\n(.*?)^```$)?", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Lesson:
    """One lesson; see :func:`read`."""

    path: Path
    number: int
    title: str
    exercises: tuple[str, ...]
    experiment: str
    rung: str  # what is reached at its end, on the scale that runs through the course
    nats: float  # what a character costs there
    prediction: str  # a question, to be answered before the run
    options: tuple[str, ...]
    body: str  # Markdown


def read(path: Path) -> Lesson:
    """A lesson from its file: lines ``key: value``, an empty line, Markdown."""
    top, _, body = path.read_text(encoding="utf-8").partition("\n\n")
    lines = (line.partition(":") for line in top.splitlines())
    values = {key: value.strip() for key, _, value in lines}
    rung, _, nats = values["rung"].rpartition(", ")
    return Lesson(
        path,
        int(path.name[:2]),
        values["title"],
        tuple(name.strip() for name in values["exercises"].split(",") if name),  # the last lesson has none
        values["experiment"],
        rung,
        float(nats.removesuffix(" nats")),
        values["prediction"],
        tuple(option.strip() for option in values["options"].split("|")),
        body,
    )


def lessons() -> list[Lesson]:
    """All lessons, in order."""
    return [read(path) for path in sorted(FOLDER.glob("*.md"))]


def run(lesson: Lesson) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Run the blocks of a lesson.

    Returns:
        the names that they leave, and of each block what it printed and what the lesson says that it prints.
    """
    session: dict[str, Any] = {}
    outputs: list[tuple[str, str]] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more are slower for models so small, and may round otherwise
    try:
        with torch.random.fork_rng(devices=[]):
            for block in BLOCK.finditer(lesson.body):
                printed = io.StringIO()
                code = compile(block[1], f"{lesson.path.name}, block {len(outputs) + 1}", "exec")
                with contextlib.redirect_stdout(printed):
                    exec(code, session)
                outputs.append((printed.getvalue(), block[2] or ""))
    finally:
        torch.set_num_threads(threads)
    return session, outputs

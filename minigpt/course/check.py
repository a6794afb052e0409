"""Is an answer right? By its values and its gradients, in float64; and if not, which mistake is it?"""

import inspect
import json
import pickle
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from minigpt.course.child import drawn, one_thread
from minigpt.course.exercises import Exercise, exercise
from minigpt.errors import UserError

SECONDS = 10.0  # that the answer may take for all inputs
MEMORY = 2 << 30  # bytes that it may take
STARTING = 120.0  # seconds within which the child must have ended, with its imports


@dataclass(frozen=True)
class Result:
    """What came of an answer."""

    passed: bool
    message: str  # in sentences
    mistake: str | None = None  # that of the known mistakes which it equals
    printed: str = ""  # the beginning of what the answer printed


class Child:
    """A process for one answer. Begun ahead, it has PyTorch in its memory when the answer comes.

    Args:
        python: the command that runs Python; by default this interpreter.
    """

    def __init__(self, python: list[str] | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._output, self._said = Path(self._folder.name) / "report.pt", Path(self._folder.name) / "said.txt"
        command = [*(python or [sys.executable]), "-m", "minigpt.course.child"]
        # Into a file: a pipe would stay open as long as any process that the answer begins.
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._folder.cleanup()

    def run(self, job: dict[str, Any], seconds: float) -> tuple[dict[str, Any] | None, str]:
        """The child's report, or None if it ended without one; and what it said.

        Raises:
            TimeoutExpired: it doesn't end.
        """
        self._process.communicate(json.dumps(job | {"output": str(self._output)}).encode(), STARTING + seconds)
        with self._said.open("rb") as file:
            said = file.read(20_000).decode(errors="replace")
        try:
            return torch.load(self._output, weights_only=True), said
        except (FileNotFoundError, RuntimeError, pickle.UnpicklingError):  # none, or one that isn't the child's own
            return None, said


def check(name: str, path: Path, seed: int = 1, seconds: float = SECONDS, child: Child | None = None) -> Result:
    """Run the answer to an exercise in a child process, and compare.

    Args:
        name: of the exercise.
        path: the file that holds the function of this name.
        seed: of the inputs.
        seconds: that the function may take.
        child: the process to run it in; by default a new one.

    Raises:
        UserError: there is no such file.
    """
    if not path.is_file():
        raise UserError(f"{path} is not there. Begin it with: python -m minigpt learn check {name}")
    asked = exercise(name)
    seeds = [seed + i for i in range(asked.draws)]
    job = {"name": name, "path": str(path.resolve()), "seeds": seeds, "seconds": seconds, "memory": MEMORY}
    with child or Child() as running:
        try:
            report, said = running.run(job, seconds)
        except subprocess.TimeoutExpired:
            return Result(False, f"{name} didn't end. Is there a loop that never stops?")
    return (
        replace(judge(asked, report, seeds), printed=said)
        if report
        else Result(False, ended(name, path, said, seconds))
    )


def ended(name: str, path: Path, said: str, seconds: float) -> str:
    """Why a child ended without a report."""
    if "Timeout (0:" in said:
        frames = [line for line in said.splitlines() if path.name in line]
        where = f", and was at {re.findall(r'line [0-9]+', frames[0])[-1]}" if frames else ""
        return f"{name} took more than {seconds:g} seconds{where}. Is there a loop that never stops?"
    last = "\n".join(said.strip().splitlines()[-3:])
    return f"{name} ended the whole process." + (f" It said last:\n{last}" if last else "")


@one_thread()
def judge(asked: Exercise, report: dict[str, Any], seeds: list[int]) -> Result:
    """Compare what a child reports with the solution, and with each known mistake."""
    state = report["state"]
    if state == "missing":
        return Result(False, f"The file has no function {asked.name}. Its name and arguments stay as they were.")
    if state == "unwritten":
        return Result(False, "Not begun: replace `raise NotImplementedError` by your answer.")
    if state == "raised":
        return Result(False, f"It raises an error:\n{report['error']}")
    wanted = [drawn(asked.name, asked.solution, seed) for seed in seeds]
    if all(same(found, right) for found, right in zip(report["draws"], wanted, strict=True)):
        return Result(True, "Right: values and gradients equal the real program's.")
    for sentence, wrong in asked.wrong:
        known = (drawn(asked.name, wrong, seed) for seed in seeds)
        if all(same(found, it) for found, it in zip(report["draws"], known, strict=True)):
            return Result(False, sentence, sentence)
    found, right = next((f, r) for f, r in zip(report["draws"], wanted, strict=True) if not same(f, r))
    return Result(False, difference(asked, found, right))


def same(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether values and gradients are equal, to 1e-9 of their size."""
    return equal(found["values"], wanted["values"]) and equal(
        {"kind": "list", "items": found["gradients"]}, {"kind": "list", "items": wanted["gradients"]}
    )


def equal(found: Any, wanted: Any) -> bool:
    """The same values in the same form; a number may stand in a tensor without dimensions, a tuple be a list."""
    if isinstance(wanted, float | int) and isinstance(found, Tensor) and found.dim() == 0:
        found = found.item()
    if isinstance(found, dict) and isinstance(wanted, dict):
        a, b = found["items"], wanted["items"]
        alike = found["kind"] == wanted["kind"] or {found["kind"], wanted["kind"]} == {"list", "tuple"}
        return alike and len(a) == len(b) and all(map(equal, a, b))
    if isinstance(found, Tensor) and isinstance(wanted, Tensor):
        if found.shape != wanted.shape or found.is_floating_point() != wanted.is_floating_point():
            return False
        # A gradient that is not a number stands for an overflow, in both or in one.
        return torch.allclose(found.double(), wanted.double(), rtol=1e-9, atol=1e-12, equal_nan=True)
    if isinstance(found, float | int) and isinstance(wanted, float | int):
        return abs(found - wanted) <= 1e-9 * max(1.0, abs(wanted))
    return type(found) is type(wanted) and found == wanted


def difference(asked: Exercise, found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Where an answer that equals no known mistake first differs."""
    if equal(found["values"], wanted["values"]):
        arguments = zip(inspect.signature(asked.solution).parameters, asked.inputs(torch.Generator()), strict=True)
        names = [name for name, value in arguments if isinstance(value, Tensor) and value.requires_grad]
        pairs = zip(names, found["gradients"], wanted["gradients"], strict=True)
        name = next(n for n, f, w in pairs if not equal(f, w))
        return (
            f"The values are right, but the gradient with respect to {name} isn't. Is something detached, converted "
            "to a number, or changed in place?"
        )
    return unlike(found["values"], wanted["values"], asked.name)


def unlike(found: Any, wanted: Any, what: str) -> str:
    """How two values differ, in a sentence."""
    if isinstance(wanted, dict):
        if not isinstance(found, dict) or len(found["items"]) != len(wanted["items"]):
            return f"{what} returns {kind(found)}; wanted is {kind(wanted)}."
        pairs = enumerate(zip(found["items"], wanted["items"], strict=True))
        i, (a, b) = next((i, pair) for i, pair in pairs if not equal(*pair))
        return unlike(a, b, f"Part {i + 1} of what {what} returns")
    if kind(found) != kind(wanted):
        return f"{what} is {kind(found)}; wanted is {kind(wanted)}."
    if isinstance(wanted, Tensor) and wanted.dim():
        if torch.allclose(found.double(), wanted.double(), rtol=1e-5, atol=1e-6):
            return (
                f"{what} is right to 7 digits, but not to 15: something in it is float32. Make tensors in the inputs' "
                "dtype, or in float64."
            )
        off = ~torch.isclose(found.double(), wanted.double(), rtol=1e-9, atol=1e-12)
        place = tuple(off.nonzero()[0].tolist())
        share = f"{int(off.sum())} of {off.numel()} values differ"
        return (
            f"{what}: {share}, first at {list(place)}: {found[place].item():.6g}; wanted is {wanted[place].item():.6g}."
        )
    return f"{what} is {short(found)}; wanted is {short(wanted)}."


def kind(value: Any) -> str:
    """What a value is, with its shape."""
    if isinstance(value, Tensor):
        numbers = "floating-point numbers" if value.is_floating_point() else "whole numbers"
        return f"a tensor of {numbers} of shape {tuple(value.shape)}"
    if isinstance(value, dict):
        return f"a {value['kind']} of {len(value['items'])}" if value["items"] else f"a {value['kind']}"
    return "None" if value is None else f"a {type(value).__name__}"


def short(value: Any) -> str:
    text = f"{value.item():.6g}" if isinstance(value, Tensor) else repr(value)
    return text if len(text) < 80 else text[:80] + " …"

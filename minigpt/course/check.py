"""Is an answer right? By its values and its gradients, in float64; and if not, which mistake is it?"""

import base64
import contextlib
import hashlib
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from minigpt.course.child import WRITTEN, drawn, one_thread, packed, plain, unpacked
from minigpt.course.exercises import Exercise, exercise
from minigpt.errors import UserError

SECONDS = 10.0  # that the answer may take for all inputs
MEMORY = 2 << 30  # bytes that it may take
STARTING = 120.0  # seconds within which the child must have begun, with its imports
ENDING = 10.0  # seconds beyond those of the answer after which it is ended from outside: it may call off its watchdog


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
        command: what runs ``child.py``; by default this interpreter, with all that it can import.
    """

    def __init__(self, command: Sequence[str] = (sys.executable, "-m", "minigpt.course.child")) -> None:
        # Into files: a pipe would stay open as long as any process that the answer begins, and is to be emptied.
        self._report, self._said = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 - see __exit__
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=self._report, stderr=self._said)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._report.close()
        self._said.close()

    def run(self, job: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
        """The child's report, or None if it ended without one of the right form; and what it said.

        Raises:
            TimeoutExpired: it doesn't end.
            UserError: it doesn't begin, for which the answer can do nothing.
        """
        deadline = time.monotonic() + STARTING
        while not (begun := os.fstat(self._report.fileno()).st_size > 0) and self._process.poll() is None:
            if time.monotonic() > deadline:
                raise UserError(f"A process for an answer didn't begin within {STARTING:g} seconds.")
            time.sleep(0.01)
        if begun:
            with contextlib.suppress(BrokenPipeError):  # it ended before it was told what to do, and said why
                self._process.communicate(json.dumps(job).encode(), job["seconds"] + ENDING)
        self._said.seek(0)
        self._report.seek(0)
        said = self._said.read(20_000).decode(errors="replace")
        if not begun:
            why = "".join(said.splitlines()[-1:]) or "it said nothing. Is the disk or the memory full?"
            raise UserError(f"A process for an answer ended before it began: {why}")
        return report_of(self._report.read(2 * WRITTEN), len(job["inputs"])), said


def report_of(raw: bytes, draws: int) -> dict[str, Any] | None:
    """A child's report from its bytes; None if they are anything else: whatever ran there may have written them."""
    try:
        report = json.loads(raw)
        match report:
            case {"state": "missing" | "unwritten", **rest} if not rest:
                return {"state": report["state"]}
            case {"state": "raised", "error": str(error), **rest} if not rest:
                return {"state": "raised", "error": error[:20_000]}
            case {"state": "ran", "draws": list(found), **rest} if not rest and len(found) == draws:
                unpacked_draws = [{key: unpacked(draw[key]) for key in ("values", "gradients")} for draw in found]
                whole = all(isinstance(draw["gradients"], dict) for draw in unpacked_draws)
                return {"state": "ran", "draws": unpacked_draws} if whole else None
    except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError):
        return None
    return None


def job_of(
    name: str, source: bytes, file: str, rows: list[tuple[Any, ...]], seconds: float = SECONDS, processes: bool = True
) -> dict[str, Any]:
    """What a child is sent to run an answer.

    Args:
        name: of the function.
        source: the text that it is in.
        file: the name of the file that the text is said to be of.
        rows: the arguments of each call.
        seconds: that all calls may take.
        processes: whether it may begin processes.
    """
    return {
        "name": name,
        "file": file,
        "source": base64.b64encode(source).decode(),
        "inputs": [[packed(plain(value)) for value in arguments] for arguments in rows],
        "seconds": seconds,
        "memory": MEMORY,
        "processes": processes,
    }


def inputs_of(asked: Exercise, seed: int) -> list[tuple[Any, ...]]:
    """What an answer is tried on, drawn anew."""
    return [asked.inputs(torch.Generator().manual_seed(seed + i)) for i in range(asked.draws)]


def check(
    name: str, path: Path, seed: int | None = None, seconds: float = SECONDS, child: Child | None = None
) -> Result:
    """Run the answer to an exercise in a child process, and compare.

    Args:
        name: of the exercise.
        path: the file that holds the function of this name.
        seed: of the inputs; by default another one for each text of the answer, so that each save is tried on new
            inputs, and one that is checked again on those which it was tried on.
        seconds: that the function may take.
        child: the process to run it in; by default a new one.

    Raises:
        UserError: there is no such file.
    """
    try:
        source = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} is not there. Begin it with: python -m minigpt learn check {name}") from None
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}.") from error
    if seed is None:
        seed = int.from_bytes(hashlib.sha256(source).digest()[:4])
    rows = inputs_of(exercise(name), seed)
    return judged(name, job_of(name, source, str(path), rows, seconds), seed, child or Child())


def judged(name: str, job: dict[str, Any], seed: int, child: Child) -> Result:
    """What comes of an answer, in a child that is closed after it.

    Args:
        name: of the exercise.
        job: with the inputs that are drawn from the seed.
        seed: the same.
        child: to run it in.
    """
    with child:
        try:
            report, said = child.run(job)
        except subprocess.TimeoutExpired:
            return Result(False, f"{name} didn't end. Is there a loop that never stops?")
    if not report:
        return Result(False, ended(name, job, said))
    return replace(judge(exercise(name), report, seed), printed=said)


def ended(name: str, job: dict[str, Any], said: str) -> str:
    """Why a child ended without a report."""
    if "Timeout (0:" in said:
        frames = re.findall(rf'{re.escape(Path(job["file"]).name)}", (line [0-9]+)', said)
        where = f", and was at {frames[0]}" if frames else ""
        return f"{name} took more than {job['seconds']:g} seconds{where}. Is there a loop that never stops?"
    last = "\n".join(said.strip().splitlines()[-3:])
    return f"{name} ended the whole process." + (f" It said last:\n{last}" if last else "")


@one_thread()
def judge(asked: Exercise, report: dict[str, Any], seed: int) -> Result:
    """Compare what a child reports with the solution, and with each known mistake, on the same inputs."""
    state = report["state"]
    if state == "missing":
        return Result(False, f"The file has no function {asked.name}. Its name and arguments stay as they were.")
    if state == "unwritten":
        return Result(False, "Not begun: replace `raise NotImplementedError` by your answer.")
    if state == "raised":
        return Result(False, f"It raises an error:\n{report['error']}\n{advice(asked, report['error'], seed)}".rstrip())
    draws, wanted = report["draws"], list(results_of(asked, asked.solution, seed))
    if all(map(same, draws, wanted)):
        compared = "values and gradients" if any(draw["gradients"]["items"] for draw in wanted) else "the values"
        return Result(True, f"Right: {compared} equal the real program's.")
    for sentence, wrong in asked.wrong:
        if all(map(same, draws, results_of(asked, wrong, seed))):
            return Result(False, sentence, sentence)
    number, found, right = next((i, f, r) for i, (f, r) in enumerate(zip(draws, wanted, strict=True)) if not same(f, r))
    return Result(False, f"{numbers_of(asked, seed, number)}{difference(asked, found, right)}")


# What some errors of PyTorch's mean here, by what is in them.
ADVICE = (
    (
        "name '[A-Z]' is not defined",
        "Sizes are not given: take them from the shapes of the inputs, as in B, T, C = x_BTC.shape.",
    ),
    (
        "expected scalar type|to have the same dtype|must have the same dtype",
        "A tensor that you make has another type than the inputs: make it with dtype=x.dtype, x being an input.",
    ),
    (
        "leaf Variable that requires grad",
        "You change an input in place, by += or an assignment to a part of it: compute a new tensor.",
    ),
    (
        "modified by an inplace operation",
        "A tensor that the gradient still needs is changed in place: compute a new one.",
    ),
    (
        r"numpy\(\) on Tensor that requires grad",
        "NumPy knows no gradients: compute with PyTorch alone. (detach() would run, and lose the gradient.)",
    ),
    (
        "must match the size of tensor|size mismatch|Expected size for first two dimensions|cannot be multiplied|"
        "invalid for input of size|not broadcastable",
        "Two shapes don't fit. Write down the shape of each tensor, beginning with those at the top of the file. The "
        "check's sizes differ, so that hardly any fits by chance.",
    ),
)


def advice(asked: Exercise, error: str, seed: int) -> str:
    """What an error means to somebody who meets it for the first time; nothing if that isn't known."""
    for sentence, wrong in asked.raising:
        try:
            for arguments in inputs_of(asked, seed):
                wrong(*arguments)
        except Exception as same_error:  # on the same inputs, whose sizes differ: hardly another mistake has it
            if error.endswith(f"{type(same_error).__name__}: {same_error}"):
                return f"This error often means: {sentence}"
    return next((meaning for pattern, meaning in ADVICE if re.search(pattern, error)), "")


def numbers_of(asked: Exercise, seed: int, number: int) -> str:
    """The numbers among the inputs of one draw, as the beginning of a sentence."""
    names = inspect.signature(asked.solution).parameters
    arguments = zip(names, inputs_of(asked, seed)[number], strict=True)
    said = [f"{name} = {short(value)}" for name, value in arguments if isinstance(value, float | int | None)]
    return f"With {', '.join(said)}: " if said else ""


def results_of(asked: Exercise, function: Callable[..., Any], seed: int) -> Iterable[dict[str, Any]]:
    """What a function gives for the inputs that are drawn from a seed, each as soon as it is asked for."""
    return (drawn(function, arguments) for arguments in inputs_of(asked, seed))


def same(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether values and gradients are equal, to 1e-9 of the largest."""
    return all(equal(found[part], wanted[part]) for part in ("values", "gradients"))


def equal(found: Any, wanted: Any) -> bool:
    """The same values in the same form; a number may stand in a tensor without dimensions, a tuple be a list."""
    if isinstance(wanted, float | int) and isinstance(found, Tensor) and found.dim() == 0:
        found = found.item()
    if isinstance(found, dict) and isinstance(wanted, dict):
        return alike(found, wanted) and all(map(equal, found["items"], wanted["items"]))
    if isinstance(found, Tensor) and isinstance(wanted, Tensor):
        if found.shape != wanted.shape or found.is_floating_point() != wanted.is_floating_point():
            return False
        return bool(close(found, wanted).all())
    if isinstance(found, float | int) and isinstance(wanted, float | int):
        return abs(found - wanted) <= 1e-9 * max(1.0, abs(wanted))
    return type(found) is type(wanted) and found == wanted


def close(found: Tensor, wanted: Tensor) -> Tensor:
    """Where two tensors of one shape are equal; nan to nan, for a gradient may overflow in the right answer too.

    Sums of large numbers round all that comes of them, so what is small is compared by the size of the largest.
    """
    largest = wanted.double().abs().nan_to_num(0.0, 0.0, 0.0).max().item() if wanted.numel() else 0.0
    return torch.isclose(found.double(), wanted.double(), 1e-9, max(1e-12, 1e-9 * largest), equal_nan=True)


def alike(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether two lists, say, are of one kind and as long."""
    kinds = {found["kind"], wanted["kind"]}
    return (len(kinds) == 1 or kinds == {"list", "tuple"}) and len(found["items"]) == len(wanted["items"])


def difference(asked: Exercise, found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Where an answer that equals no known mistake first differs."""
    if equal(found["values"], wanted["values"]):
        arguments = zip(inspect.signature(asked.solution).parameters, asked.inputs(torch.Generator()), strict=True)
        names = [name for name, value in arguments if isinstance(value, Tensor) and value.requires_grad]
        pairs = zip(names, found["gradients"]["items"], wanted["gradients"]["items"], strict=False)
        name = next((n for n, f, w in pairs if not equal(f, w)), None)
        if name is None:
            return (
                "The values are right, but the gradients are not of the inputs: it changes the program that sends them."
            )
        return (
            f"The values are right, but the gradient with respect to {name} isn't. Is something detached, converted "
            "to a number, or changed in place?"
        )
    return unlike(found["values"], wanted["values"], asked.name)


def unlike(found: Any, wanted: Any, what: str) -> str:
    """How two values differ, in a sentence."""
    if isinstance(wanted, dict):
        if not isinstance(found, dict) or not alike(found, wanted):
            return f"{what} returns {kind(found)}; wanted is {kind(wanted)}."
        pairs = enumerate(zip(found["items"], wanted["items"], strict=True))
        i, (a, b) = next((i, pair) for i, pair in pairs if not equal(*pair))
        return unlike(a, b, f"Part {i + 1} of what {what} returns")
    if isinstance(wanted, float | int) and isinstance(found, Tensor) and found.dim() == 0:
        found = found.item()
    if kind(found) != kind(wanted):
        return f"{what} is {kind(found)}; wanted is {kind(wanted)}."
    if isinstance(wanted, Tensor) and wanted.dim():
        if torch.allclose(found.double(), wanted.double(), rtol=1e-5, atol=1e-6):
            return (
                f"{what} is right to 7 digits, but not to 15: something in it is float32. Make tensors in the inputs' "
                "dtype, or in float64."
            )
        off = ~close(found, wanted)
        place = tuple(off.nonzero()[0].tolist())
        share = f"{int(off.sum())} of {off.numel()} values differ"
        unknown = " (nan is 0/0, or the softmax of a row that is hidden as a whole.)" if found[place].isnan() else ""
        return (
            f"{what}: {share}, first at {list(place)}: {found[place].item():.6g}; wanted is {wanted[place].item():.6g}."
            f"{unknown}"
        )
    return f"{what} is {short(found)}; wanted is {short(wanted)}."


def kind(value: Any) -> str:
    """What a value is, with its shape."""
    if isinstance(value, Tensor):
        numbers = "floating-point numbers" if value.is_floating_point() else "whole numbers"
        return f"a tensor of {numbers} of shape {tuple(value.shape)}"
    if isinstance(value, dict):
        return f"a {value['kind']} of {len(value['items'])}" if value["items"] else f"a {value['kind']}"
    if value is None:
        return "None (is `return` missing?)"
    name = type(value).__name__
    return f"an {name}" if name == "int" else f"a {name}"


def short(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float | Tensor) else repr(value)
    return text if len(text) < 80 else text[:80] + " …"

"""Runs a learner's function, in a process of its own: ``python -m minigpt.course.child`` reads what to do from stdin.

It writes what the function gives, and the gradients, for the parent to compare. What the function prints goes to
stderr, as far as it is short.
"""

import contextlib
import faulthandler
import io
import json
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

import torch

from minigpt.course.exercises import exercise

PRINTED = 4000  # characters that are kept of what a function prints
WRITTEN = 16 << 20  # bytes of the largest file that it may write


def main() -> None:
    job = json.loads(sys.stdin.read())
    with one_thread(), contextlib.redirect_stdout(Beginning(sys.stderr)):
        report = run(job["name"], Path(job["path"]), job["seeds"], job["seconds"], job["memory"])
    torch.save(report, job["output"])


class Beginning(io.TextIOBase):
    """Hands on the beginning of what is printed; an endless loop may print without end."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.left = stream, PRINTED

    def write(self, text: str) -> int:
        self.stream.write(text[: self.left])
        self.left -= min(self.left, len(text))
        return len(text)


def run(name: str, path: Path, seeds: list[int], seconds: float, memory: int | None) -> dict[str, Any]:
    """What the function ``name`` in a file gives for the inputs of an exercise, drawn with each seed."""
    limit(memory)
    faulthandler.dump_traceback_later(seconds, exit=True)  # on every platform, and it tells where it was
    try:
        function = getattr(load(path), name, None)
        if not callable(function):
            return {"state": "missing"}
        return {"state": "ran", "draws": [drawn(name, function, seed) for seed in seeds]}
    except NotImplementedError:
        return {"state": "unwritten"}
    except BaseException as error:  # whatever it raises is the learner's to see
        return {"state": "raised", "error": told(error, path)}
    finally:
        faulthandler.cancel_dump_traceback_later()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute in one thread: for small tensors more take many times as long, where other programs are at work too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def limit(memory: int | None) -> None:
    """Let this process take so many bytes more than it has now, and write no large file; known on Linux alone."""
    if memory is None or sys.platform != "linux":
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + memory
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_FSIZE, (WRITTEN, WRITTEN))


def load(path: Path) -> ModuleType:
    """A file as a module, from its source: compiled code that Python keeps may be older than the last save."""
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    exec(compile(path.read_bytes(), path, "exec"), module.__dict__)
    return module


def drawn(name: str, function: Any, seed: int) -> dict[str, Any]:
    """The values of a function, and the gradients of their weighted sum, for the inputs of one seed."""
    arguments = exercise(name).inputs(torch.Generator().manual_seed(seed))
    values = plain(function(*arguments))
    total = weighted_sum(values)
    leaves = [x for x in arguments if isinstance(x, torch.Tensor) and x.requires_grad]
    gradients: list[Any] = []
    if leaves and total is not None:
        found = torch.autograd.grad(total, leaves, allow_unused=True) if total.requires_grad else [None] * len(leaves)
        gradients = list(found)
    return {"values": detached(values), "gradients": gradients}


def plain(value: Any) -> Any:
    """A value as what can be sent: tensors, numbers and texts as they are, of others their type."""
    if isinstance(value, tuple | list):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {"kind": kind, "items": [plain(item) for item in value]}
    if value is None or isinstance(value, torch.Tensor):
        return value
    for simple in (bool, int, float, str):  # a number of NumPy is of a kind of its own, which can't be sent
        if isinstance(value, simple):
            return simple(value)
    return {"kind": type(value).__name__, "items": []}


def weighted_sum(values: Any) -> torch.Tensor | None:
    """The sum of all floating-point values, each times a number of its own, so that no two gradients look alike."""
    if isinstance(values, dict):
        parts = [part for item in values["items"] if (part := weighted_sum(item)) is not None]
        return torch.stack(parts).sum() if parts else None
    if not isinstance(values, torch.Tensor) or not values.is_floating_point():
        return None
    weights = torch.arange(1, values.numel() + 1, dtype=torch.float64).view(values.shape)
    return (values * weights.sin()).sum()


def detached(values: Any) -> Any:
    if isinstance(values, dict):
        return {**values, "items": [detached(item) for item in values["items"]]}
    return values.detach().clone() if isinstance(values, torch.Tensor) else values


def told(error: BaseException, path: Path) -> str:
    """An error as the learner sees it: the lines of the own file, and what happened."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    where = [f"  line {frame.lineno}: {frame.line}" for frame in frames]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        where = [f"  line {error.lineno}: {(error.text or '').strip()}"]
    return "\n".join([*where, f"{type(error).__name__}: {error}"])


if __name__ == "__main__":
    main()

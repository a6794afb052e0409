"""Runs a learner's function in a process of its own: ``python -m minigpt.course.child`` reads what to do from stdin.

It is sent the answer's text and the inputs, and sends back what the function gives, and the gradients; the process
that asked compares them. All of it is JSON, because what a foreign process sends must be safe to read. This file needs
PyTorch alone, so it also runs where the rest of the program, with its solutions, is out of reach.
"""

import base64
import contextlib
import faulthandler
import io
import json
import linecache
import math
import mmap
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

import torch
from torch import Tensor

PRINTED = 4000  # characters that are kept of what a function prints
WRITTEN = 16 << 20  # bytes of the largest file that it may write, its report included
NUMBERS = 1_000_000  # that a tensor may have to be sent; the exercises' have hundreds
DIMENSIONS = 8  # that it may have
OPEN = 64  # files that it may have open; files in memory count as memory only by their number
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float64, torch.float32, torch.float16)}
DTYPES |= {str(dtype).removeprefix("torch."): dtype for dtype in (torch.bfloat16, torch.int64, torch.int32, torch.bool)}


def main() -> None:
    with os.fdopen(os.dup(1), "wb") as output:
        os.dup2(2, 1)  # so that nothing that the answer writes gets into the report
        output.write(b" ")  # has begun, says this; JSON may have spaces before it
        output.flush()
        job = json.loads(sys.stdin.buffer.read())
        with one_thread(), contextlib.redirect_stdout(Beginning(sys.stderr)):
            report = run(job)
        output.write(json.dumps(report).encode())


class Beginning(io.TextIOBase):
    """Hands on the beginning of what is printed; an endless loop may print without end."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.left = stream, PRINTED

    def write(self, text: str) -> int:
        self.stream.write(text[: self.left])
        self.left -= min(self.left, len(text))
        return len(text)


def run(job: dict[str, Any]) -> dict[str, Any]:
    """What the function ``job["name"]`` in a text gives for each row of ``job["inputs"]``."""
    watchdog = job["seconds"]
    faulthandler.dump_traceback_later(watchdog, exit=True)  # on every platform, and it tells where it was
    limit(watchdog, job["memory"], job["processes"])
    try:
        function = getattr(module_of(base64.b64decode(job["source"]), job["file"]), job["name"], None)
        if not callable(function):
            return {"state": "missing"}
        draws = []
        for row in job["inputs"]:
            draws.append(drawn(function, tuple(given(unpacked(value)) for value in row)))
            if isinstance(sys.stdout, Beginning):
                sys.stdout.left = 0  # what it prints for the first inputs is enough
        return {"state": "ran", "draws": [{key: packed(value) for key, value in draw.items()} for draw in draws]}
    except NotImplementedError:
        return {"state": "unwritten"}
    except BaseException as error:  # whatever it raises is the learner's to see
        return {"state": "raised", "error": told(error, job["file"])}
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


def limit(seconds: float, memory: int | None, processes: bool) -> None:
    """What this process may take: known on Linux alone.

    Args:
        seconds: of a core; some more than the watchdog gives, which an answer may call off.
        memory: bytes beside what it has now; None for no limit, as where it is no process of its own.
        processes: whether it may begin others.
    """
    if memory is None or sys.platform != "linux":
        return
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    limits = {
        resource.RLIMIT_AS: mapped() + memory,  # that of RLIMIT_DATA leaves out what mmap shares
        resource.RLIMIT_CPU: math.ceil(used.ru_utime + used.ru_stime + seconds) + 5,
        resource.RLIMIT_FSIZE: WRITTEN,
        resource.RLIMIT_NOFILE: OPEN,
        resource.RLIMIT_CORE: 0,  # a crash leaves nothing behind
    }
    if not processes:
        limits[resource.RLIMIT_NPROC] = 0
    for which, most in limits.items():
        hard = resource.getrlimit(which)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(which, (most, most))


def mapped() -> int:
    """Bytes of address space that this process has. Where no /proc tells, they are the least limit that lets it map."""
    import resource

    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    low, high = 0, hard if hard != resource.RLIM_INFINITY else 1 << 47
    while high - low > 1 << 20:
        middle = (low + high) // 2
        resource.setrlimit(resource.RLIMIT_AS, (middle, hard))
        try:
            mmap.mmap(-1, mmap.PAGESIZE).close()
            high = middle
        except (OSError, MemoryError):
            low = middle
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    return high


def load(path: Path) -> ModuleType:
    """A file as a module, from its source: compiled code that Python keeps may be older than the last save."""
    return module_of(path.read_bytes(), str(path))


def module_of(source: bytes, file: str) -> ModuleType:
    """A text as a module; tracebacks show its lines, whether there is such a file or not."""
    module = ModuleType(Path(file).stem)
    module.__file__ = file
    code = compile(source, file, "exec")
    lines = source.decode("utf-8-sig", errors="replace").splitlines(keepends=True)
    linecache.cache[file] = len(source), None, lines, file
    exec(code, module.__dict__)
    return module


def drawn(function: Callable[..., Any], arguments: tuple[Any, ...]) -> dict[str, Any]:
    """The values of a function, and the gradients of their weighted sum."""
    values = plain(function(*arguments))
    total = weighted_sum(values)
    leaves = [x for x in arguments if isinstance(x, Tensor) and x.requires_grad]
    gradients: list[Any] = []
    if leaves and total is not None:
        zeros = [torch.zeros_like(leaf) for leaf in leaves]  # of what it didn't use, or has detached
        gradients = list(torch.autograd.grad(total, leaves, materialize_grads=True)) if total.requires_grad else zeros
    return {"values": detached(values), "gradients": {"kind": "list", "items": gradients}}


def weighted_sum(values: Any) -> Tensor | None:
    """The sum of all floating-point values, each times a number of its own, so that no two gradients look alike."""
    if isinstance(values, dict):
        parts = [part for item in values["items"] if (part := weighted_sum(item)) is not None]
        return torch.stack(parts).sum() if parts else None
    if not isinstance(values, Tensor) or not values.is_floating_point():
        return None
    weights = torch.arange(1, values.numel() + 1, dtype=torch.float64).view(values.shape)
    return (values * weights.sin()).sum()


def detached(values: Any) -> Any:
    if isinstance(values, dict):
        return {**values, "items": [detached(item) for item in values["items"]]}
    return values.detach().clone() if isinstance(values, Tensor) else values


def told(error: BaseException, file: str) -> str:
    """An error as the learner sees it: the lines of the own file, and what happened."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    where = [f"  line {frame.lineno}: {frame.line}" for frame in frames]
    if isinstance(error, SyntaxError) and error.filename == file:
        where = [f"  line {error.lineno}: {(error.text or '').strip()}"]
    if isinstance(error, SystemExit):
        return "\n".join([*where[-1:], "It ends the program by exit: return a value instead."])
    where = list(dict.fromkeys(where))[-6:]  # a function that calls itself has a thousand
    return "\n".join([*where, f"{type(error).__name__}: {str(error)[:PRINTED]}"])


# What is sent


def plain(value: Any) -> Any:
    """A value as what can be sent: tensors, numbers and texts as they are, lists by their items, of others the kind."""
    if isinstance(value, tuple | list):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {"kind": kind, "items": [plain(item) for item in value]}
    if value is None or isinstance(value, Tensor | Function):
        return value
    for simple in (bool, int, float, str):  # a number of NumPy is of a kind of its own, which can't be sent
        if isinstance(value, simple):
            return simple(value)
    return {"kind": type(value).__name__, "items": []}


def packed(value: Any) -> Any:
    """What :func:`plain` gives as what JSON knows."""
    if isinstance(value, dict):
        return {"kind": value["kind"], "items": [packed(item) for item in value["items"]]}
    if isinstance(value, Function):
        return {"function": value.name, "numbers": packed(value.numbers)}
    if not isinstance(value, Tensor):
        return value
    name = str(value.dtype).removeprefix("torch.")
    if name not in DTYPES or value.layout != torch.strided or value.numel() > NUMBERS or value.dim() > DIMENSIONS:
        return {"kind": f"tensor ({name}) of shape {tuple(value.shape)}", "items": []}
    raw = value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""
    data = base64.b64encode(raw).decode()
    return {"dtype": name, "shape": list(value.shape), "data": data, "requires_grad": value.requires_grad}


def unpacked(value: Any) -> Any:
    """The opposite of :func:`packed`.

    Raises:
        ValueError, TypeError or another: it is none of its results.
    """
    if not isinstance(value, dict):
        if not (value is None or isinstance(value, bool | int | float | str)) or abs(_number(value)) > 1 << 62:
            raise ValueError(f"a {type(value).__name__} that can't be sent")
        return value
    if "items" in value:
        return {"kind": str(value["kind"])[:100], "items": [unpacked(item) for item in value["items"]]}
    if "function" in value:
        return Function(value["function"], unpacked(value["numbers"]))
    shape, dtype = list(value["shape"]), DTYPES[value["dtype"]]
    data = bytearray(base64.b64decode(value["data"]))
    if len(shape) > DIMENSIONS or not all(type(size) is int and 0 <= size <= NUMBERS for size in shape):
        raise ValueError("a shape that isn't sent")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"{len(data)} bytes for a tensor of shape {shape}")
    tensor = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
    return tensor.view(shape).requires_grad_(bool(value["requires_grad"]) and dtype.is_floating_point)


def given(value: Any) -> Any:
    """An argument as a function takes it, from what :func:`plain` made of it."""
    return [given(item) for item in value["items"]] if isinstance(value, dict) else value


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0


# Functions of (B, T, C) that some exercises are given; each with the numbers that it computes with.


def _mixing(x_BTC: Tensor, weight_NCC: Tensor) -> Tensor:
    return torch.tanh(x_BTC.cumsum(1) @ weight_NCC[0])


def _alone(x_BTC: Tensor, weight_NCC: Tensor) -> Tensor:
    return torch.relu(x_BTC @ weight_NCC[0]) @ weight_NCC[1]


def _norm(x: Tensor, numbers_NC: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * numbers_NC[0] + numbers_NC[1]


FUNCTIONS = {"mixing": _mixing, "alone": _alone, "norm": _norm}


@dataclass(frozen=True, eq=False)
class Function:
    """A function that can be sent: its name among FUNCTIONS, and its numbers."""

    name: str
    numbers: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return FUNCTIONS[self.name](x, self.numbers)


if __name__ == "__main__":
    main()

"""What a user is told when something can't be. Only a :class:`UserError` becomes a paragraph."""

import argparse
import difflib
import errno
import re
import site
import sysconfig
import textwrap
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NO_MEMORY = "There is not enough memory for this. A smaller model, window (block_size) or batch_size needs less."
# What the machine refuses, by the words of PyTorch, whose errors of these kinds are told from others by words only.
MACHINE = {
    "can't allocate memory|out of memory|Storage size": NO_MEMORY,
    "InvalidCxxCompiler|CppCompileError|TritonMissing": (
        "model.compile needs a compiler, which doesn't work here: for C++ on a CPU, Triton on a GPU. Train without it."
    ),
    "Connection (reset|closed) by peer": (
        "Another process of this run has ended; its own message says why. Go on with fit --ckpt_path last."
    ),
}


class UserError(ValueError):
    """Something that the user can set right. The message says what was wrong, where, and what to do."""


def as_user_error(error: BaseException) -> UserError | None:
    """The error as one that the user can set right, if it is: a :class:`UserError`, or a limit of the machine."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(
            f"The disk is full ({error.filename or error}). Make room; what was saved before is untouched."
        )
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return UserError(NO_MEMORY)
    if isinstance(error, (RuntimeError, ConnectionError)):
        for words, advice in MACHINE.items():
            if re.search(words, str(error)):
                return UserError(f"{advice} ({str(error).splitlines()[0]})")
    return None


@contextmanager
def building_from(what: str) -> Iterator[None]:
    """While things are built from what a user gave, whatever a library refuses is a mistake in that.

    An exception that is raised in code of the user's own, a callback say, stays what it is.

    Args:
        what: names it, at the beginning of a sentence.

    Raises:
        UserError: instead of an exception of the libraries that build; it says what they said.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not all(is_of_a_library(frame.f_code.co_filename) for frame, _ in traceback.walk_tb(error.__traceback__)):
            raise
        said = essence(str(error)) if isinstance(error, (ValueError, OSError, argparse.ArgumentError)) else ""
        said = said or f"{what} can't be used: {str(error).split(chr(10))[0]} ({type(error).__name__})"
        hint = " (See --help for what can be given.)" if isinstance(error, argparse.ArgumentError) else ""
        raise UserError(said + hint) from error


def is_of_a_library(file: str) -> bool:
    """Whether code is of this package, of Python's library or of an installed one, and not a user's own."""
    folders = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders += [str(Path(__file__).parent), site.getusersitepackages(), *site.getsitepackages()]
    return file.startswith("<") or any(Path(file).is_relative_to(folder) for folder in folders)


def some_of(names: Sequence[str], limit: int = 3) -> str:
    """Names in a sentence, at most ``limit`` of them."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit:,} more" if len(names) > limit else "")


def essence(said: str) -> str:
    """What jsonargparse says of a class that can't be had, without every other kind of value that it tried."""
    found = re.search(r"class_path '(.+?)':\s+(.+?)(?=\n\s*- |\n\s*Given|\Z)", said, re.DOTALL)
    return f"{found[1]} can't be used: {found[2].strip()}" if found and "Union" not in found[2] else said


def explain(error: Exception) -> str:
    """The message of a user's mistake, as one paragraph."""
    text = " ".join(str(error).split()) or type(error).__name__
    return "\n".join(textwrap.wrap(f"minigpt: {text}", width=100, break_long_words=False, break_on_hyphens=False))


def parse_arguments(parser: argparse.ArgumentParser, args: list[str]) -> Any:
    """The settings that ``args`` give, by a parser of jsonargparse, which has no mercy with misspelt flags.

    Raises:
        UserError: there is no such flag; the message names the one that is nearest.
    """
    try:
        return parser.parse_args(args)
    except argparse.ArgumentError as error:
        words = re.findall(r"--([\w.]+)|'([\w.]+)'", str(error))  # a flag, or a group and a key of a file
        known = [flag.lstrip("-") for action in parser._actions for flag in action.option_strings]
        near = difflib.get_close_matches(".".join(flag or key for flag, key in words), known, n=1)
        hint = f" Did you mean --{near[0]}?" if near else " See --help for what can be given."
        raise UserError(essence(str(error)).rstrip(".") + "." + hint) from error

"""What a user is told when something can't be."""

import argparse
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def building_from(what: str) -> Iterator[None]:
    """While things are built from what a user gave, whatever goes wrong is that this can't be.

    Args:
        what: names it, at the beginning of a sentence.

    Raises:
        ValueError: instead of any exception of the libraries that build; it says what they said.
    """
    try:
        yield
    except (ValueError, OSError, MemoryError, argparse.ArgumentError):
        raise
    except Exception as error:
        said = str(error).splitlines()[0] if str(error) else ""
        raise ValueError(
            f"{what} can't be used: {said} ({type(error).__name__}; with MINIGPT_TRACEBACK=1 in the "
            "environment it is shown where.)"
        ) from error


def explain(error: Exception) -> str:
    """The message of a user's mistake, as one paragraph."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, argparse.ArgumentError):
        text += " (See --help for what can be given.)"
    return "\n".join(textwrap.wrap(f"minigpt: {text}", width=100, break_long_words=False, break_on_hyphens=False))

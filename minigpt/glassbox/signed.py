"""Pages that this program writes and signs: it replaces none that somebody has changed."""

import hashlib
import os
from pathlib import Path

from minigpt.errors import UserError
from minigpt.files import written_whole


def signed(body: bytes, kind: str) -> bytes:
    """A page of that body, with a comment at its end by which it is known again."""
    body += mark_of(kind)
    return body + signature(body)


def mark_of(kind: str) -> bytes:
    return f"<!-- minigpt {kind}; SHA-256 of all before: ".encode()


def signature(body: bytes) -> bytes:
    return f"{hashlib.sha256(body).hexdigest()} -->\n".encode()


def was_written_here(path: Path, kind: str) -> bool:
    """Whether a file is such a page, as it was written: whoever has changed it since has made it theirs."""
    try:
        body, mark, digest = path.read_bytes().rpartition(mark_of(kind)) if path.is_file() else (b"", b"", b"")
    except OSError:  # what can't be read can't be told to be ours
        return False
    return bool(mark) and digest == signature(body + mark)


def check_free(path: Path, kind: str) -> None:
    """Raise a UserError where a file is that isn't ours to replace."""
    if os.path.lexists(path) and not was_written_here(path, kind):
        raise UserError(
            f"{path} is there already, and is no {kind} as this program wrote it. Move it away, or name "
            "another file with --output."
        )


def write(page: bytes, path: Path, kind: str) -> None:
    """Write a signed page, whole or not at all.

    Raises:
        UserError: another file is there, or none can be written.
    """
    check_free(path, kind)
    try:
        with written_whole(path) as file:
            file.write(page)
    except OSError as error:
        raise UserError(f"--output {path} can't be written: {error.strerror or error}.") from error

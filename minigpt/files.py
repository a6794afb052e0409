"""Paths as users write them, and files that are either whole or absent."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def user_path(name: str) -> Path:
    """A path in which a leading ``~`` is somebody's home, where there is such a user."""
    return Path(os.path.expanduser(name))  # noqa: PTH111 - Path's own raises where there is no such user


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of ``path`` when the block ends.

    It is written under a temporary name in the same folder, synced to disk and renamed. If the block raises,
    the process is killed or the disk is full, whatever stood at ``path`` is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # elsewhere no folder can be synced; here it lets the new name survive a power cut
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def copied_whole(file: Path, path: Path) -> None:
    """Let ``path`` be a copy of ``file``."""
    with file.open("rb") as old, written_whole(path) as new:
        shutil.copyfileobj(old, new)


def remove_torn(folder: Path) -> None:
    """Remove what killed processes were writing in ``folder``; none may be writing there now."""
    for torn in folder.glob("*.[0-9]*.part"):
        torn.unlink()

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
    temporary = _temporary(path)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def linked_whole(file: Path, path: Path) -> None:
    """Let ``path`` be a second name of ``file``, in the same folder; a copy where the system has no hard links."""
    temporary = _temporary(path)
    temporary.unlink(missing_ok=True)
    try:
        os.link(file, temporary)
    except OSError:
        shutil.copyfile(file, temporary)
    temporary.replace(path)
    _sync_folder(path.parent)


def remove_torn(folder: Path) -> None:
    """Remove what killed processes were writing in ``folder``; none may be writing there now."""
    for torn in folder.glob("*.[0-9]*.part"):
        torn.unlink()


def _temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}.part")


def _sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` survive a power cut, where the system can sync a folder."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

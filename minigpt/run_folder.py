"""The folder of a run: a new one for each, and one process at a time in it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from lightning.pytorch.utilities import rank_zero_only


def new_run_folder(parent: Path) -> Path:
    """Make ``parent/version_N`` for the first free N; no other run can get the same one."""
    versions = [int(p.name[8:]) for p in parent.glob("version_*") if p.name[8:].isdigit()]
    version = max(versions, default=-1) + 1
    while True:
        folder = parent / f"version_{version}"
        # Of several processes the first one writes, and tells the others where.
        if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
            return folder
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            version += 1


@contextmanager
def sole_owner(folder: Path) -> Iterator[None]:
    """Keep other processes from going on with the same run at the same time; the system lets go when this one dies.

    A folder in which nothing was written, because the run could not begin, is removed in the end.
    """
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        yield
        return
    try:
        with FileLock(lock := folder / ".lock", timeout=0):
            for torn in (folder / "checkpoints").glob("*.part"):  # what a killed process was writing
                torn.unlink()
            try:
                yield
            finally:
                if list(folder.glob("*")) == [lock]:
                    lock.unlink()
                    folder.rmdir()
    except Timeout as error:
        raise ValueError(f"Another process is training the run {folder} right now. Wait for it, or stop it.") from error

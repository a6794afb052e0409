"""The folder of a run, and its checkpoint files: found by name, read without running what they hold, and written whole.

A checkpoint is complete: weights, hyperparameters and vocabulary, all of them plain data.
"""

import dataclasses
import os
import pickle
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from minigpt.cost import check_memory
from minigpt.errors import UserError
from minigpt.files import written_whole
from minigpt.model import GPT, GPTConfig
from minigpt.text.tokenizer import TOKENIZERS, CharTokenizer

LOG_DIR = Path("lightning_logs")
NAMES = ("last", "best")


def find_checkpoint(ckpt_path: str, run: str | None = None) -> Path:
    """The file that ``ckpt_path`` means.

    Args:
        ckpt_path: a file, or "last" or "best" for that checkpoint of the newest run that has any.
        run: look only at runs of this name, ``lightning_logs/<run>``.

    Raises:
        UserError: there is no such checkpoint; the message says where it was looked for.
    """
    if "://" in ckpt_path:
        raise UserError(f"{ckpt_path} is a URL; checkpoints are read from local files only. Download it first.")
    if ckpt_path not in NAMES:
        path = Path(os.path.expanduser(ckpt_path))  # noqa: PTH111 - Path's own raises where there is no such user
        if path.is_dir():
            raise UserError(f"{path} is a folder. Name a checkpoint file, such as {path / 'last.ckpt'}.")
        if not path.is_file():
            raise UserError(f"There is no checkpoint {path}: no such file in {path.parent.absolute()}.")
        return path
    folders = LOG_DIR / (run or "*") / "version_*" / "checkpoints"
    found = sorted(LOG_DIR.glob(str((folders / "last.ckpt").relative_to(LOG_DIR))), key=written_at)
    if not found:
        raise UserError(f"There is no {ckpt_path} checkpoint: no {folders}/last.ckpt in {Path.cwd()}.")
    if ckpt_path == "last":
        return found[-1]
    scored = sorted(found[-1].parent.glob("step*-val*.ckpt"), key=lambda p: p.stem.split("-val")[-1])
    if not scored:
        raise UserError(f"There is no best checkpoint in {found[-1].parent}: the run was never validated.")
    return scored[0]


def written_at(path: Path) -> int:
    """When a file was last changed, in nanoseconds."""
    return path.stat().st_mtime_ns


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint of this program; nothing in it is ever executed.

    Raises:
        UserError: the file is damaged, holds more than plain data, or is not a checkpoint of minigpt; the message
            names the newest whole one, if there is any beside it or in ``lightning_logs``.
    """
    try:
        return _read(path)
    except ValueError as error:
        others = {*path.parent.glob("*.ckpt"), *LOG_DIR.glob("*/version_*/checkpoints/*.ckpt")}
        for other in sorted(others, key=written_at, reverse=True):
            if other.absolute() != path.absolute() and is_whole(other):
                raise UserError(f"{error} The newest whole checkpoint is {other}.") from error
        raise


def is_whole(path: Path) -> bool:
    """Whether the file is a checkpoint that can be read."""
    try:
        _read(path)
    except ValueError:
        return False
    return True


def _read(path: Path) -> dict[str, Any]:
    """As :func:`read_checkpoint`, without looking for another one."""
    check_bits(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} was not loaded: it is damaged, or it holds more than plain data and could run a program. "
            "It is not a checkpoint that minigpt wrote, or no longer one."
        ) from error
    except (RuntimeError, EOFError, KeyError, ValueError, TypeError, AttributeError, OSError) as error:
        raise UserError(f"{path} is not a whole checkpoint: it is cut off or is something else.") from error
    hyperparameters = checkpoint.get("hyper_parameters") if isinstance(checkpoint, dict) else None
    if not isinstance(hyperparameters, dict) or not isinstance(hyperparameters.get("vocabulary"), str):
        raise UserError(f"{path} is a checkpoint of another program: it holds no vocabulary and no GPT.")
    return checkpoint


def check_bits(path: Path) -> None:
    """Raise a UserError unless every byte of a checkpoint's contents is as it was written.

    A checkpoint is a zip archive with a CRC-32 of each member, which PyTorch doesn't look at when it maps the file.
    """
    damaged = f"{path} is not a whole checkpoint: it is damaged, cut off or something else."
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            # PyTorch compresses nothing; an archive that does might unpack to more than any memory.
            stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
            if not stored or archive.testzip() is not None:
                raise UserError(damaged)
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, OSError, ValueError) as error:
        raise UserError(damaged) from error


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Save a checkpoint so that ``path`` holds, at any moment, the old one whole or the new one whole.

    Raises:
        UserError: it could not be written, for want of space or permission.
    """
    try:
        with written_whole(path) as file:
            torch.save(checkpoint, file)
    except OSError as error:
        raise UserError(
            f"The checkpoint {path} could not be written: {error.strerror or error}. "
            "Earlier checkpoints are untouched: make room, and go on from the last one."
        ) from error


def load_gpt(path: Path, fused: bool = True) -> tuple[GPT, CharTokenizer]:
    """The model and the tokenizer of a checkpoint, in evaluation mode on the CPU.

    Args:
        path: the checkpoint file.
        fused: see :class:`~minigpt.model.GPTConfig`; hooks on the attention pattern need it off.

    Raises:
        UserError: as :func:`read_checkpoint`, or the weights don't fit the hyperparameters, or these describe no
            model, or one too large for this machine.
    """
    checkpoint = read_checkpoint(path)
    hyperparameters = checkpoint["hyper_parameters"]
    shape = {f.name: hyperparameters[f.name] for f in dataclasses.fields(GPTConfig) if f.name in hyperparameters}
    try:
        tokenizer = TOKENIZERS[hyperparameters["tokenizer"]](hyperparameters["vocabulary"])
        config = GPTConfig(**{**shape, "vocab_size": len(tokenizer.vocabulary), "fused": fused})
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"The hyperparameters in {path} describe no model: {error}") from error
    check_memory(config)
    gpt = GPT(config)
    try:
        gpt.load_state_dict({name.removeprefix("gpt."): weight for name, weight in checkpoint["state_dict"].items()})
    except (RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"The weights in {path} don't fit its hyperparameters.") from error
    return gpt.eval(), tokenizer


def new_run_folder(parent: Path, rank: int = 0) -> Path:
    """Make ``parent/version_N`` for the first free N; no other run can get the same one."""
    versions = [int(p.name[8:]) for p in parent.glob("version_*") if p.name[8:].isdigit()]
    version = max(versions, default=-1) + 1
    while True:
        folder = parent / f"version_{version}"
        # Of several processes the first one writes, and tells the others where.
        if rank != 0:
            return folder
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            version += 1


@contextmanager
def sole_owner(folder: Path, rank: int = 0) -> Iterator[None]:
    """Keep other processes from going on with the same run at the same time; the system lets go when this one dies.

    A folder in which nothing was written, because the run could not begin, is removed in the end.
    """
    if rank != 0:
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
        raise UserError(f"Another process is training the run {folder} right now. Wait for it, or stop it.") from error

"""The folder of a run, and its checkpoint files: found by name, read without running what they hold, written whole."""

import dataclasses
import glob
import json
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from minigpt.cost import make_config
from minigpt.errors import UserError
from minigpt.files import copied_whole, remove_torn, user_path, written_whole
from minigpt.model import GPT, GPTConfig
from minigpt.records import LOG_DIR, METRICS, SCORED
from minigpt.text.tokenizer import SHOWN, TOKENIZERS, UNKNOWN, CharTokenizer

FRAME = re.compile(r"step(\d+)\.ckpt")  # the name of a frame
FORMAT = 3  # of checkpoints, which hold it as "minigpt_format"; those of format 1 hold none


class RunFolder:
    """What a run keeps in ``lightning_logs/NAME/version_N``, and how each thing is called there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = Path(os.path.abspath(path)).parent.name  # noqa: PTH100 - Path's own would follow links
        self.config = path / "config.yaml"
        self.parent = path / "run.json"  # the checkpoint that the run began with, if it began with one
        self.checkpoints = path / "checkpoints"
        self.last = self.checkpoints / "last.ckpt"
        self.film = path / "film"  # weights at some of its steps

    @classmethod
    def first(cls, name: str) -> "RunFolder":
        """The first folder of the runs of this name, whether it is there or not."""
        return cls(LOG_DIR / name / "version_0")

    @classmethod
    def of(cls, checkpoint: Path) -> "RunFolder | None":
        """The folder of the run that keeps this checkpoint; None for a file that lies elsewhere."""
        folder = Path(os.path.abspath(checkpoint)).parent  # noqa: PTH100 - Path's own would follow links
        if folder.name != "checkpoints" or not folder.parent.name.startswith("version_"):
            return None
        return cls(folder.parent if checkpoint.is_absolute() else Path(os.path.relpath(folder.parent)))

    def scored(self, step: int, loss: float) -> Path:
        """The checkpoint of a step that has this validation loss."""
        return self.checkpoints / f"step{step:06d}-val{loss:.4f}.ckpt"

    def frame(self, step: int) -> Path:
        """The frame of its film that shows the weights after a step."""
        return self.film / f"step{step:06d}.ckpt"

    def frames(self) -> dict[int, Path]:
        """The frames of its film by their steps, in order."""
        names = ((FRAME.fullmatch(path.name), path) for path in self.film.glob("*.ckpt"))
        return dict(sorted((int(name[1]), path) for name, path in names if name))

    def holds_scored(self, name: object) -> bool:
        """Whether a checkpoint with a validation loss in its name is here under ``name``, which may be anything."""
        return isinstance(name, str) and SCORED.fullmatch(name) is not None and (self.checkpoints / name).is_file()

    def newest_step(self) -> int:
        """The highest step of which a checkpoint is kept; -1 if none is."""
        steps = [int(name[1]) for path in self.checkpoints.glob("*.ckpt") if (name := SCORED.fullmatch(path.name))]
        with suppress(UserError):
            steps.append(_read(self.last)["global_step"])
        return max(steps, default=-1)

    def begin_with(self, path: Path, checkpoint: dict[str, Any]) -> None:
        """Let a new run begin with a checkpoint: as its last one, with the best one that this knew, film and curves.

        The curves go on until the last step of the run that the checkpoint is from; what comes after the checkpoint's
        own step is for the loggers to leave out.
        """
        copied_whole(path, self.last)
        if home := RunFolder.of(path):
            best = checkpoint["callbacks"].get("RunCheckpoint", {}).get("best_name")
            if home.holds_scored(best):
                copied_whole(home.checkpoints / best, self.checkpoints / best)
            for step, frame in home.frames().items():
                if step <= checkpoint["global_step"]:
                    copied_whole(frame, self.frame(step))
            for curves in (*home.path.glob("events.out.tfevents.*"), *home.path.glob(METRICS)):
                shutil.copy2(curves, self.path)
        self.note_parent(path, checkpoint["global_step"])

    def note_parent(self, path: Path, step: int, **more: str) -> None:
        """Keep which checkpoint the run began with, in :attr:`parent`."""
        with written_whole(self.parent) as file:
            file.write(json.dumps({"parent": str(path), "parent_step": step, **more}).encode())

    def best(self) -> Path | None:
        """The checkpoint with the lowest validation loss; of equal ones the latest."""
        names = (SCORED.fullmatch(path.name) for path in self.checkpoints.glob("*.ckpt"))
        best = min(filter(None, names), key=lambda name: (float(name[2]), -int(name[1])), default=None)
        return self.checkpoints / best[0] if best else None


def written_at(path: Path) -> int:
    """When a file was last changed, in nanoseconds; 0 if there is none."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def find_checkpoint(ckpt_path: str, run: str | None = None) -> Path:
    """The file that ``ckpt_path`` means.

    Args:
        ckpt_path: a file, or "last" or "best" for that checkpoint of the newest run that has any.
        run: look only at runs of this name, ``lightning_logs/<run>``.

    Raises:
        UserError: there is no such checkpoint; the message says where it was looked for.
    """
    if ckpt_path not in ("last", "best"):
        path = user_path(ckpt_path)
        if os.path.isfile(path):  # noqa: PTH113 - Path's own raises where the name is too long, or the folder closed
            return path
        folder = os.path.isdir(path)  # noqa: PTH112
        what = "is a URL" if "://" in ckpt_path else "is a folder" if folder else "is not there"
        raise UserError(
            f"{ckpt_path} {what}, seen from {Path.cwd()}. Name the file of a checkpoint, last or best."
            + " A model of another program is imported first: python -m minigpt import FOLDER --output C.ckpt" * folder
        )
    pattern = RunFolder(Path(glob.escape(run) if run else "*") / "version_*").last
    if not (lasts := sorted(LOG_DIR.glob(str(pattern)), key=written_at)):
        raise UserError(f"There is no {ckpt_path} checkpoint: no {LOG_DIR / pattern} in {Path.cwd()}.")
    found = lasts[-1] if ckpt_path == "last" else RunFolder(lasts[-1].parents[1]).best()
    if not found:
        raise UserError(f"There is no best checkpoint in {lasts[-1].parent}: the run was never validated.")
    return found


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint of this program holds: weights, hyperparameters and vocabulary, all of them plain data.

    Raises:
        UserError: the file is damaged, holds more than plain data, or is not a checkpoint that this version reads.
            The message names the newest one that can be read, if there is any beside it or in ``lightning_logs``.
    """
    try:
        return _read(path)
    except UserError as error:
        message = str(error)
        others = {*path.parent.glob("*.ckpt"), *LOG_DIR.glob("*/version_*/checkpoints/*.ckpt")}
        for other in sorted(others, key=written_at, reverse=True):
            with suppress(UserError):
                _read(other)
                message += f" The newest whole checkpoint is {other}."
                break
        raise UserError(message) from error


def _read(path: Path) -> dict[str, Any]:
    """As :func:`read_checkpoint`, without looking for another one."""
    try:
        with zipfile.ZipFile(path) as archive:
            # PyTorch doesn't look at the members' checksums. It compresses nothing, and an archive that is compressed
            # might unpack to more than any memory.
            if any(member.compress_type for member in archive.infolist()) or archive.testzip():
                raise zipfile.BadZipFile("it was changed")
        # Windows lets no file be replaced that is mapped, as that of the last step is while its run goes on.
        mmap = os.name == "posix"
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} was not loaded: it holds more than plain data and could run a program.") from error
    except Exception as error:  # damaged bytes can raise anything
        why = str(error).split("\n")[0]
        raise UserError(f"{path} is not a whole checkpoint: damaged, cut off or something else ({why}).") from error
    hyperparameters = checkpoint.get("hyper_parameters") if isinstance(checkpoint, dict) else None
    if not isinstance(hyperparameters, dict) or not isinstance(hyperparameters.get("vocabulary"), str):
        raise UserError(f"{path} is a checkpoint of another program: it holds no vocabulary and no GPT.")
    if (number := checkpoint.get("minigpt_format", 1)) not in range(1, FORMAT + 1):
        raise UserError(
            f"{path} has format {number}; this version of minigpt reads 1 to {FORMAT}. Install a newer one."
        )
    data = checkpoint.get("datamodule_hyper_parameters")
    if number < 3 and isinstance(data, dict):
        data |= {"eval_batch_size": data.pop("scoring_batch_size")} if "scoring_batch_size" in data else {}
        if data.get("min_count", 1) != 1:  # the unknown symbol was a character that a text may hold too
            hyperparameters["vocabulary"] = hyperparameters["vocabulary"].replace(SHOWN, UNKNOWN)
    return checkpoint


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


def load_gpt(path: Path) -> tuple[GPT, CharTokenizer]:
    """The model and the tokenizer of a checkpoint: model.py's formulas, in evaluation mode, on the CPU.

    Raises:
        UserError: there is no such model in it, or one too large for this machine.
    """
    checkpoint = read_checkpoint(path)
    hyperparameters = checkpoint["hyper_parameters"]  # among them those of training, and of older versions
    shape = {f.name: hyperparameters[f.name] for f in dataclasses.fields(GPTConfig) if f.name in hyperparameters}
    try:
        tokenizer = TOKENIZERS[hyperparameters["tokenizer"]](hyperparameters["vocabulary"])
        config = make_config(**{**shape, "vocab_size": len(tokenizer.vocabulary)})
    except UserError as error:
        raise UserError(f"The model of {path}: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"The hyperparameters in {path} describe no model: {error}") from error
    gpt = GPT(config)
    try:
        gpt.load_state_dict({name.removeprefix("gpt."): weight for name, weight in checkpoint["state_dict"].items()})
    except (RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"The weights in {path} don't fit its hyperparameters.") from error
    return gpt.eval(), tokenizer


def new_run_folder(parent: Path, rank: int = 0) -> Path:
    """Make ``parent/version_N`` for the first free N; no other run can get the same one.

    Of several processes the one of rank 0 makes the folder, and tells the others where it is.
    """
    versions = [int(p.name[8:]) for p in parent.glob("version_*") if p.name[8:].isdigit()]
    folder = parent / f"version_{max(versions, default=-1) + 1}"
    try:
        if rank == 0:
            folder.mkdir(parents=True)
    except FileExistsError:  # another run was faster
        return new_run_folder(parent)
    except OSError as error:
        raise UserError(f"The run's folder {folder} can't be made: {error.strerror}.") from error
    return folder


@contextmanager
def sole_owner(folder: Path, rank: int = 0, new: bool = False) -> Iterator[None]:
    """Keep other processes from going on with the same run at the same time; the system lets go when this one dies.

    A ``new`` folder that still has no config in the end, because its run never began, is removed.
    """
    if rank != 0:
        yield
        return
    lock, run = FileLock(folder / ".lock"), RunFolder(folder)
    try:
        lock.acquire(timeout=0)
    except OSError as error:
        why = "Another process is training it" if isinstance(error, Timeout) else f"Its folder: {error.strerror}"
        raise UserError(f"The run {folder} can't be trained right now. {why}.") from error
    try:
        for place in (folder, run.checkpoints, run.film):
            remove_torn(place)
        yield
    finally:
        lock.release()
        if new and not run.config.exists():
            shutil.rmtree(folder)

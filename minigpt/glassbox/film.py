"""The film of a run, as models: what was trained, at any age."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from minigpt.errors import UserError
from minigpt.files import user_path
from minigpt.model import GPT
from minigpt.run import RunFolder, find_checkpoint, load_gpt, read_checkpoint
from minigpt.text.tokenizer import CharTokenizer


@dataclass(frozen=True)
class Frame:
    """The model as it was after a step. Its weights, rounded to float16, are read when they are first asked for."""

    step: int  # optimizer steps done
    path: Path  # a checkpoint, which minigpt.load takes too
    ids: torch.Tensor  # the probe: the first window of the validation split, (T + 1,), int64
    losses: torch.Tensor  # the loss of each of its tokens but the first, in nats, (T,), float32

    @cached_property
    def _loaded(self) -> tuple[GPT, CharTokenizer]:
        return load_gpt(self.path)

    @property
    def gpt(self) -> GPT:
        """model.py's formulas with the weights of this frame in float32, in evaluation mode, on the CPU."""
        return self._loaded[0]

    @property
    def tokenizer(self) -> CharTokenizer:
        return self._loaded[1]

    @property
    def text(self) -> str:
        """The probe as text."""
        return self.tokenizer.decode(self.ids.numpy())


def film(run: str | Path) -> Iterator[Frame]:
    """The frames of a run in the order of its steps; each is a model, as what ``minigpt.load`` returns is.

    Only the frames that the caller holds are in memory.

    Args:
        run: the run's folder, or one of its checkpoints; or "last" or "best", of the newest run.

    Raises:
        UserError: there is no such run, it was not filmed, or a frame is damaged.
    """
    folder = run_folder(run)
    if not (frames := folder.frames()):
        raise UserError(f"The run {folder.path} was not filmed. Train with --film.per_doubling 3 to have its film.")
    return (read_frame(step, path) for step, path in frames.items())


def run_folder(run: str | Path) -> RunFolder:
    """The folder that ``run`` means, see :func:`film`."""
    if (path := user_path(str(run))).is_dir():
        return RunFolder(path)
    checkpoint = find_checkpoint(str(run))
    if (folder := RunFolder.of(checkpoint)) is None:
        raise UserError(f"{checkpoint} lies in no run's folder. Name a run's folder, or a checkpoint that lies in one.")
    return folder


def read_frame(step: int, path: Path) -> Frame:
    """One frame; see :func:`film`."""
    checkpoint = read_checkpoint(path)
    if "film" not in checkpoint:
        raise UserError(f"{path} is a checkpoint, but no frame of a film. Move it out of this folder.")
    probe = checkpoint["film"]
    return Frame(step, path, probe["ids"], probe["losses"])

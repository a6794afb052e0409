"""The film of a run: its weights at some steps, so that the model can be looked into at any age."""

import math
from collections.abc import Set
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from minigpt.errors import UserError
from minigpt.run import RunFolder, write_checkpoint
from minigpt.training.callbacks import evaluating, print_above_progress, training_curves
from minigpt.training.checkpoints import RunCheckpoint, training_is_done
from minigpt.training.module import GPTLightningModule, step_is_done


class Film(Callback):
    """Keeps the weights at steps spaced by logarithm: checkpoints in float16, without the optimizer's state.

    A frame also has the losses of a probe, which is the first window of the validation split. Where frames lie depends
    on no end that may move, so a run that was stopped and resumed has the same film as one that was not. The weights,
    the training mode and every random generator are left as they were.

    Args:
        per_doubling: frames each time that the number of steps doubles; 3 are 30 frames in 1,200 steps. 0 for none.
        limit_mb: the most that the film may take on the disk, in 10^6 bytes. Where it would be more, every second
            frame is left out, or more of them.
    """

    def __init__(self, per_doubling: int = 0, limit_mb: float = 100.0) -> None:
        for name, value in (("per_doubling", per_doubling), ("limit_mb", limit_mb)):
            if not 0 <= value < math.inf:
                raise UserError(f"film.{name} is {value}; it must be at least 0.")
        self.per_doubling = per_doubling
        self.limit_mb = limit_mb
        self._run = RunFolder(Path())
        self._steps: Set[int] = set()
        self._newest = -1  # the step of the newest frame

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if stage == "fit" and self.per_doubling and isinstance(trainer.strategy, FSDPStrategy):
            raise UserError("Under FSDP no device has the whole model to keep: --film.per_doubling 0.")

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        keepers = [c for c in trainer.callbacks if isinstance(c, RunCheckpoint)]  # type: ignore[attr-defined]
        self._run = keepers[0].run if keepers else RunFolder(Path(trainer.default_root_dir))
        kept = self._run.frames()
        for step in [step for step in kept if step > trainer.global_step]:  # of steps that are done once more now
            kept.pop(step).unlink()
        end = int(trainer.estimated_stepping_batches)
        self._steps, wanted = self.steps(pl_module, end, kept.keys()), film_steps(end, self.per_doubling)
        if len(self._steps) < len(wanted):
            print_above_progress(
                f"Warning: the film has {len(self._steps)} frames instead of {len(wanted)}: one takes "
                f"{frame_bytes(pl_module) / 1e6:,.1f} MB, and --film.limit_mb is {self.limit_mb:g}."
            )
        self._newest = max(kept, default=-1)
        if trainer.global_step in self._steps - kept.keys():
            self._keep(trainer, pl_module)

    def steps(self, module: GPTLightningModule, end: int, kept: Set[int] = frozenset()) -> Set[int]:
        """The steps that get a frame in a run that has ``kept`` some before and will do ``end`` steps in all."""
        return film_steps(end, self.per_doubling, int(self.limit_mb * 1e6 / frame_bytes(module)), kept)

    @rank_zero_only
    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        if not self._steps or not step_is_done(trainer):
            return
        if trainer.global_step in self._steps or training_is_done(trainer):
            self._keep(trainer, pl_module)

    @rank_zero_only
    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        if self._steps and self._newest != trainer.global_step:  # it ended early
            self._keep(trainer, pl_module)

    def _keep(self, trainer: Trainer, module: GPTLightningModule) -> None:
        frame = trainer._checkpoint_connector.dump_checkpoint(weights_only=True)
        del frame["loops"]  # no run goes on from a frame
        frame["state_dict"] = {name: weight.half().cpu() for name, weight in frame["state_dict"].items()}
        data = trainer.datamodule  # type: ignore[attr-defined]
        ids = data.texts["val"].ids(data.splits()["val"])[: data.block_size + 1]
        probe = torch.from_numpy(ids.astype(np.int64))
        frame["film"] = {"ids": probe, "losses": losses(module, probe)}
        self._newest = trainer.global_step
        write_checkpoint(frame, self._run.frame(self._newest))
        for curves in training_curves(trainer):
            curves.skip_time()


def losses(module: GPTLightningModule, ids: Tensor) -> Tensor:
    """The loss of each of ``ids``, (T + 1,), but the first: nats in float32, (T,), on the CPU."""
    batch = ids[None].to(module.device)
    with torch.no_grad(), evaluating(module.gpt):
        return module.character_nats((batch[:, :-1], batch[:, 1:]))[0].cpu()


def frame_bytes(module: nn.Module) -> int:
    """The size of a frame's file, a little more than less."""
    weights = list(module.parameters())
    return sum(2 * weight.numel() + 400 for weight in weights) + 10_000


def film_steps(end: int, per_doubling: float, most: float = math.inf, kept: Set[int] = frozenset()) -> Set[int]:
    """Steps spaced by logarithm: 0, the powers of 2 with ``per_doubling`` - 1 steps between two of them, and ``end``.

    Where these and the steps ``kept`` before would be more than ``most``, every second one is left out until they are
    not; there are none where not even the first and the last would be few enough.
    """
    density = per_doubling
    while density:
        powers = (round(2 ** (k / density)) for k in range(int(density * math.log2(max(end, 1))) + 1))
        steps = {0, end, *(power for power in powers if power <= end)}
        if len(steps | kept) <= most:
            return steps
        density = density / 2 if len(steps) > 3 else 0
    return set()

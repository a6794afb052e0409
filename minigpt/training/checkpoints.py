"""How a run is kept: the best and the last checkpoint, a stop that loses nothing, an end before harm is saved."""

import math
import os
import shutil
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from minigpt.errors import UserError
from minigpt.files import sync_folder
from minigpt.run import read_checkpoint, write_checkpoint
from minigpt.training.data import CharDataModule
from minigpt.training.module import GPTLightningModule


class WholeCheckpointIO(CheckpointIO):
    """Reads and writes checkpoint files as :mod:`minigpt.run` does.

    Lightning's own writer goes through a temporary folder that may lie on another file system, where a kill or a
    full disk leaves a torn file behind.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        write_checkpoint(checkpoint, Path(path))

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


class RunCheckpoint(Checkpoint):
    """Keeps ``last.ckpt`` and the best checkpoint, named by step and validation loss, in the run's folder.

    Both are written after each validation, when the scores and the counters of early stopping are up to date.
    ``last.ckpt`` is a real file, the same one as the best where the last is the best.

    Args:
        every_n_steps: write ``last.ckpt`` between validations too, every so many optimizer steps; 0 for not.
    """

    def __init__(self, every_n_steps: int = 0) -> None:
        if every_n_steps < 0:
            raise UserError(f"checkpoint.every_n_steps is {every_n_steps}; it must be at least 0 (for not).")
        self.every_n_steps = every_n_steps
        self.best_score = float("inf")
        self.best_path: Path | None = None
        self.folder = Path()
        self._saved_step = -1

    @property
    def last_path(self) -> Path:
        return self.folder / "last.ckpt"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self.folder = Path(trainer.strategy.broadcast(trainer.log_dir or trainer.default_root_dir)) / "checkpoints"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_step = trainer.global_step

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        score = float(trainer.callback_metrics["val/loss"])
        # A loss that is not a number is never the best.
        if trainer.fast_dev_run or not score < self.best_score:  # type: ignore[attr-defined]
            self.save_last(trainer)
            return
        path = self.folder / f"step{trainer.global_step:06d}-val{score:.4f}.ckpt"
        self.best_score, self.best_path = score, path
        self._save(trainer, path)
        if trainer.is_global_zero:
            self._link_last(path)
            for other in self.folder.glob("step*-val*.ckpt"):
                if other != path:
                    other.unlink()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        step = trainer.global_step
        if training_is_done(trainer):
            trainer.should_stop = True  # which makes Lightning validate now: the last weights are always scored
        if self.every_n_steps and step % self.every_n_steps == 0 and step != self._saved_step:
            if validation_is_due(trainer):
                return  # saved after it
            self.save_last(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # That the last epoch is over is known only now; a run limited by epochs would else seem to lack something.
        if trainer.global_step != self._saved_step or trainer.max_steps < 0:
            self.save_last(trainer)

    def last_good(self, step: int) -> Path | None:
        """The newest checkpoint, for a run that went astray in ``step``: one that did a whole step since, or the best.

        Weights may be beyond repair before a gradient shows it; those from which at least one more step came are sound.
        """
        if 0 <= self._saved_step < step - 1 and self.last_path.exists():
            return self.last_path
        return self.best_path

    def save_last(self, trainer: Trainer) -> None:
        """Write ``last.ckpt``. Every process has to call this."""
        self._save(trainer, self.last_path)

    def _save(self, trainer: Trainer, path: Path) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        for logger in trainer.loggers:
            logger.save()  # the curves up to here, so that a run resumed from this checkpoint leaves no gap in them
        trainer.save_checkpoint(path, weights_only=False)
        self._saved_step = trainer.global_step

    def _link_last(self, path: Path) -> None:
        """Give the file a second name, ``last.ckpt``: nothing is written twice, and neither can be half there."""
        temporary = path.with_name(f"last.ckpt.{os.getpid()}.part")
        temporary.unlink(missing_ok=True)
        try:
            os.link(path, temporary)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, temporary)
        temporary.replace(self.last_path)
        sync_folder(self.folder)

    def state_dict(self) -> dict[str, Any]:
        # The path is kept relative: a run's folder may be moved.
        return {"best_score": self.best_score, "best_name": self.best_path.name if self.best_path else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best_score = state["best_score"]
        best = self.folder / state["best_name"] if state["best_name"] else None
        self.best_path = best if best and best.exists() else None  # a checkpoint may be copied away from its run


def training_is_done(trainer: Trainer) -> bool:
    """Whether the batch that has just been trained on was the last that the trainer's limits allow."""
    if 0 <= trainer.max_steps <= trainer.global_step:
        return True
    last_epoch = trainer.max_epochs is not None and 0 <= trainer.max_epochs <= trainer.current_epoch + 1
    return last_epoch and trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def validation_is_due(trainer: Trainer) -> bool:
    """Whether Lightning will validate at the end of the batch that has just been trained on."""
    fit_loop = trainer.fit_loop
    return fit_loop.epoch_loop._should_check_val_fx(fit_loop._data_fetcher)  # type: ignore[arg-type]


class FiniteCheck(Callback):
    """Ends a run whose loss or gradient is infinite or not a number, before anything of it is saved.

    Every step is looked at, which waits for the device to finish it; on every process, for all share the gradient.

    Args:
        checkpoint: knows what was saved before.
    """

    def __init__(self, checkpoint: RunCheckpoint) -> None:
        self.checkpoint = checkpoint
        self._step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.global_step == self._step or trainer.precision == "16-mixed":  # which skips such steps by itself
            return
        self._step = trainer.global_step
        assert isinstance(pl_module, GPTLightningModule)
        if bool(torch.isfinite(pl_module.grad_norm)):
            return
        batch = trainer.fit_loop.epoch_loop.total_batch_idx
        what = f"the gradient of step {self._step} is {float(pl_module.grad_norm)}."
        data = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, CharDataModule):
            places = data.window_places(batch)
            sick = (~pl_module.batch_nats_BT.isfinite().all(dim=1)).nonzero().flatten().tolist()
            windows = [places[row] for row in sick] or places
            begin = f"{', '.join(f'{place:,}' for place in windows[:5])}{', ...' * (len(windows) > 5)}"
            found = f"{len(sick)} windows with a loss that is not finite" if sick else "losses that are finite here"
            what += f" Its batch, number {batch}, has {found}; windows begin at character {begin} of "
            what += f"{data.texts['train'].name}."
        self._end(what, self._step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            loss = float(trainer.callback_metrics["val/loss"])
            if not math.isfinite(loss):
                self._end(f"the validation loss after step {trainer.global_step} is {loss}.", trainer.global_step)

    def _end(self, what: str, step: int) -> None:
        good = self.checkpoint.last_good(step)
        raise UserError(
            f"Training went astray: {what} "
            + (f"The last good checkpoint is {good}. " if good else "No good checkpoint was written before. ")
            + "Most often the learning rate is too high: begin anew with a smaller --model.learning_rate "
            "(with --model.optimizer muon, a smaller --model.muon_learning_rate)."
        )


class GracefulStop(Checkpoint):
    """On Ctrl-C or SIGTERM: finish the step, save ``last.ckpt``, say how to go on, exit with 128 + signal.

    A second signal ends the program at once, as if this were not here.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, checkpoint: RunCheckpoint) -> None:
        self.checkpoint = checkpoint
        self.received = 0
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for number in self.SIGNALS:
            self._handlers[number] = signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        for each in self.SIGNALS:
            signal.signal(each, signal.SIG_DFL)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.fit_loop.epoch_loop._should_accumulate() or validation_is_due(trainer):
            return  # in the middle of a step, or soon asked again
        if self._should_stop(trainer):
            self._stop(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A run that is complete needs no stopping: what is left to do takes no time.
        if trainer.state.fn == "fit" and not training_is_done(trainer) and self._should_stop(trainer):
            self._stop(trainer)

    def _should_stop(self, trainer: Trainer) -> bool:
        if trainer.world_size > 1:  # the signal may have reached one process only, and all must stop together
            received = torch.tensor(self.received, device=trainer.strategy.root_device)
            self.received = int(trainer.strategy.reduce(received, reduce_op="max"))
        return self.received != 0

    def _stop(self, trainer: Trainer) -> None:
        self.checkpoint.save_last(trainer)
        # Lightning kills the process that it was called in when one that it started ends with another status than 0.
        code = 0 if trainer.local_rank else 128 + self.received
        raise Stopped(code, trainer.global_step, self.checkpoint.last_path)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()


class Stopped(SystemExit):
    """A run that was asked to stop and has saved its state."""

    def __init__(self, code: int, step: int, path: Path) -> None:
        super().__init__(code)
        self.step = step
        self.path = path

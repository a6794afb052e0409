"""How a run is kept: the best and the last checkpoint, a stop that loses nothing, an end before harm is saved."""

import errno
import io
import math
import os
import signal
import sys
import threading
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
import yaml
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from minigpt.errors import UserError
from minigpt.files import copied_whole, written_whole
from minigpt.run import RunFolder, read_checkpoint, write_checkpoint
from minigpt.training.callbacks import TextSampler
from minigpt.training.data import CharDataModule
from minigpt.training.module import GPTLightningModule, looks_at_step, step_is_done

# The groups of settings that are neither the model's nor the data's; a checkpoint keeps them for a resume.
GROUPS = ("trainer", "sampler", "film", "checkpoint", "early_stopping")


class WholeCheckpointIO(TorchCheckpointIO):
    """Reads and writes checkpoint files as :mod:`minigpt.run` does.

    Lightning's own writer goes through a temporary folder that may lie on another file system, where a kill or a
    full disk leaves a torn file behind.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        write_checkpoint(checkpoint, Path(path))

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return read_checkpoint(Path(path))


class RunCheckpoint(Checkpoint):
    """Keeps ``last.ckpt`` and the best checkpoint, named by step and validation loss, in the run's folder.

    Both are written after each validation, when the scores and the counters of early stopping are up to date.
    Lightning's own callback keeps absolute paths, and saves before the validation of a step.

    Args:
        every_n_steps: write ``last.ckpt`` between validations too, every so many optimizer steps; 0 for not.
    """

    def __init__(self, every_n_steps: int = 0) -> None:
        if every_n_steps < 0:
            raise UserError(f"checkpoint.every_n_steps is {every_n_steps}; it must be at least 0 (for not).")
        self.every_n_steps = every_n_steps
        self.best_score = math.inf
        self.best_path: Path | None = None
        # Set by the command line: the run's folder (by default the logger's), and a config that starts it afresh, which
        # is kept there, its settings in each checkpoint.
        self.folder: Path | None = None
        self.config = ""
        self.run = RunFolder(Path())
        self._saved_step = -1

    @property
    def best_model_path(self) -> str:
        """The best checkpoint, by the name that Lightning has for it."""
        return str(self.best_path or "")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            # Asked of all processes: the first one has made the folder.
            folder = trainer.strategy.broadcast(self.folder or trainer.log_dir or trainer.default_root_dir)
            self.run = RunFolder(Path(folder))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_step = trainer.global_step
        if self.config and trainer.is_global_zero:  # only now, for until here the run may be refused
            with written_whole(self.run.config) as file:
                file.write(self.config.encode())

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.config:
            checkpoint["settings"] = self._settings

    @cached_property
    def _settings(self) -> dict[str, Any]:
        """What a checkpoint keeps of the config, which takes as long to read as many a step."""
        settings = yaml.safe_load(self.config)
        return {name: settings[name] for name in ("name", "fast", *GROUPS)} | {
            "model": {"compile": settings["model"]["compile"]}
        }

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if training_is_done(trainer):
            trainer.should_stop = True  # which makes Lightning validate now: the last weights are always scored
        due = self.every_n_steps and trainer.global_step % self.every_n_steps == 0
        if due and trainer.global_step != self._saved_step and not validation_is_due(trainer):
            self.save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        score, step = float(trainer.callback_metrics["val/loss"]), trainer.global_step
        if not math.isfinite(score):
            raise self.diverged(f"the validation loss after step {step} is {score}.", step)
        if score >= self.best_score or trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.save(trainer)
            return
        before, self.best_score = self.best_path, score
        self.best_path = self.run.scored(step, score)
        self.save(trainer, self.best_path)
        if trainer.is_global_zero:
            copied_whole(self.best_path, self.run.last)
            if before and before != self.best_path:
                before.unlink(missing_ok=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # That the last epoch is over is known only now; a run limited by epochs would else seem to lack something.
        if trainer.global_step != self._saved_step or trainer.max_steps < 0:
            self.save(trainer)

    def save(self, trainer: Trainer, path: Path | None = None) -> None:
        """Write ``last.ckpt``, or another file. Every process has to call this."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        for logger in trainer.loggers:
            logger.save()  # the curves up to here, so that a run resumed from this checkpoint leaves no gap in them
        trainer.save_checkpoint(path or self.run.last, weights_only=False)
        self._saved_step = trainer.global_step

    def diverged(self, what: str, step: int) -> UserError:
        """What to say of a run whose numbers are no longer finite in ``step``, and where to find it sound.

        Weights may be beyond repair before a gradient shows it; those from which at least one more step came are sound.
        """
        last = self.run.last
        good = last if 0 <= self._saved_step < step - 1 and last.exists() else self.best_path
        return UserError(
            f"Training diverged: {what} "
            + (f"The last good checkpoint is {good}. " if good else "No good checkpoint was written before. ")
            + "Most often the learning rate is too high: begin anew with a smaller --model.learning_rate "
            "(with --model.optimizer muon, a smaller --model.muon_learning_rate)."
        )

    def state_dict(self) -> dict[str, Any]:
        # A name, not a path: a run's folder may be moved.
        return {"best_score": self.best_score, "best_name": self.best_path.name if self.best_path else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        # A checkpoint may be copied away from its run, and may come from anybody: what it names is deleted one day.
        if self.run.holds_scored(state["best_name"]):
            self.best_score, self.best_path = state["best_score"], self.run.checkpoints / state["best_name"]


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
    """Ends a run whose gradient is infinite or not a number, before anything of it is saved.

    Every step is looked at, on every process, for all share the gradient. To look waits for the device. So it is done
    for several steps at once: where one of them is logged, and before a sample, a validation and whatever saves.

    Args:
        checkpoint: knows what was saved before.
    """

    def __init__(self, checkpoint: RunCheckpoint) -> None:
        self.checkpoint = checkpoint
        # Of each step not looked at: its number, that of its batch, the gradient's norm and the batch's nats.
        self.unseen: list[tuple[int, int, Tensor, Tensor]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        assert isinstance(pl_module, GPTLightningModule)
        # In 16-mixed steps with such a gradient are skipped by themselves.
        if not step_is_done(trainer) or trainer.precision == "16-mixed":
            return
        step, batch = trainer.global_step, trainer.fit_loop.epoch_loop.total_batch_idx
        self.unseen.append((step, batch, pl_module.grad_norm, pl_module.batch_nats_BT))
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        if looks_at_step(trainer, step) or any(isinstance(c, TextSampler) and c.is_due(trainer) for c in callbacks):
            self.look(trainer)

    def look(self, trainer: Trainer, *args: Any) -> None:
        """Raise a UserError that describes the first step whose gradient is not finite, if there is one."""
        norms = torch.stack([norm for _, _, norm, _ in self.unseen]).tolist() if self.unseen else []
        for (step, batch, _, nats_BT), norm in zip(self.unseen, norms, strict=True):
            if not math.isfinite(norm):
                raise self.checkpoint.diverged(self._what(trainer, step, batch, norm, nats_BT), step)
        self.unseen.clear()

    before_saving = look
    on_validation_start = on_train_end = look  # type: ignore[assignment]

    def _what(self, trainer: Trainer, step: int, batch: int, norm: float, nats_BT: Tensor) -> str:
        what = f"the gradient of step {step} is {norm}."
        if isinstance(data := trainer.datamodule, CharDataModule):  # type: ignore[attr-defined]
            sick = (~nats_BT.isfinite().all(dim=1)).tolist()
            found = f"{sum(sick)} windows with a loss that is not finite" if any(sick) else "losses that are finite"
            places = [place for place, bad in zip(data.window_places(batch), sick, strict=True) if bad or not any(sick)]
            begin = ", ".join(f"{place:,}" for place in places[:5]) + ", ..." * (len(places) > 5)
            what += f" Its batch, number {batch}, has {found}; windows begin at character {begin} of the training text."
        return what


class Outlet(io.FileIO):
    """The standard output or error. What can't be written to it is lost, and no reason to end a training.

    Where its reader has left, as ``head`` does, the run is to stop as by a signal, which ``left`` is the number of.
    """

    left: ClassVar[int] = 0

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.EINVAL):  # the latter on Windows
                Outlet.left = 13  # SIGPIPE, which not every system has
            return len(data)

    @classmethod
    def put_in(cls) -> None:
        """Let this process print through it."""
        for name, stream in (("stdout", sys.stdout), ("stderr", sys.stderr)):
            buffer = getattr(stream, "buffer", None)  # none in a notebook; and python -u has no raw stream below it
            if type(getattr(buffer, "raw", buffer)) is io.FileIO:
                outlet = io.BufferedWriter(cls(stream.fileno(), "w", closefd=False))
                setattr(sys, name, io.TextIOWrapper(outlet, stream.encoding, stream.errors, line_buffering=True))


class GracefulStop(Checkpoint):
    """On Ctrl-C, SIGTERM, a hang-up or a closed pipe: finish the step, save ``last.ckpt``, say how to go on, exit with
    128 + signal.

    A second signal ends the program at once, as if this were not here. Outside the main thread of a program, a notebook
    or a server say, signals are not its to receive.
    """

    SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

    def __init__(self, checkpoint: RunCheckpoint) -> None:
        self.checkpoint = checkpoint
        self.received = 0
        self._when = "after this step"
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size > 1:
            self._when = "all processes soon"  # where they wait for each other anyway
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._receive) for number in self.SIGNALS}

    def _receive(self, number: int, frame: Any) -> None:
        self.received = number
        with suppress(OSError):  # not by print, which may be what was interrupted
            os.write(2, f"\nStopping {self._when}. Once more ends it at once, and loses what is not saved.\n".encode())
        for each in self.SIGNALS:
            signal.signal(each, signal.SIG_DFL)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        # Not in the middle of a step; and after a validation that is due, this is asked again. To ask all processes
        # stops each until its device is done.
        asked = trainer.world_size == 1 or looks_at_step(trainer, trainer.global_step)
        if asked and step_is_done(trainer) and not validation_is_due(trainer):
            self._stop_if_asked(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A run that is complete needs no stopping: what is left to do takes no time.
        if trainer.state.fn == "fit" and not training_is_done(trainer):
            self._stop_if_asked(trainer)

    def _stop_if_asked(self, trainer: Trainer) -> None:
        self.received = self.received or Outlet.left
        if trainer.world_size > 1:  # the signal may have reached one process only, and all must stop together
            received = torch.tensor(self.received, device=trainer.strategy.root_device)
            self.received = int(trainer.strategy.reduce(received, reduce_op="max"))
        if self.received:
            self.checkpoint.save(trainer)
            # Lightning kills the process that it was called in when one that it started ends otherwise than with 0.
            raise Stopped(0 if trainer.local_rank else 128 + self.received, trainer.global_step, self.checkpoint.run)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()


class Stopped(SystemExit):
    """A run that was asked to stop and has saved its state."""

    def __init__(self, code: int, step: int, run: RunFolder) -> None:
        super().__init__(code)
        self.step = step
        self.run = run

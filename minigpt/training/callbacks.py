"""What a run shows while it trains: samples, curves, a progress bar; and what ``predict`` writes."""

import csv
import io
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, callbacks
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from minigpt.cost import flops_per_token
from minigpt.errors import UserError
from minigpt.files import user_path, written_whole
from minigpt.generation import Writer
from minigpt.model import GPT
from minigpt.sampling import Sampling
from minigpt.text.tokenizer import BPETokenizer
from minigpt.training.machine import compute_dtype, matrix_peak
from minigpt.training.module import GPTLightningModule, logs_step, step_is_done


def tensorboard(trainer: Trainer) -> SummaryWriter | None:
    """The writer of the run's TensorBoard logger, if it has one and this is the process that logs."""
    loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    return loggers[0].experiment if loggers and trainer.is_global_zero else None


class EarlyStopping(callbacks.EarlyStopping):
    """Lightning's, but going by the patience of this call, whatever the checkpoint was made with."""

    @property
    def state_key(self) -> str:
        return "minigpt." + super().state_key  # a user may give another that monitors the same

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        states = checkpoint["callbacks"]
        if self.state_key not in states and super().state_key in states:  # of an earlier version
            states[self.state_key] = states.pop(super().state_key)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict({**state, "patience": self.patience})
        self.stopping_reason, self.stopping_reason_message = EarlyStoppingReason.NOT_STOPPED, None


class TextSampler(Callback):
    """Lets the model write as it learns, to the terminal and to TensorBoard's text tab.

    It leaves the weights, the training mode and every random generator but its own as it found them.

    Args:
        every_n_steps: optimizer steps between samples; 0 for none.
        prompt: what the model continues; empty for a new line.
        max_new_tokens: how many characters to write.
        seed: the same one for each sample, so that samples differ by what the model learned.
        sampling: see :class:`~minigpt.sampling.Sampling`.
    """

    def __init__(
        self, every_n_steps: int = 500, prompt: str = "", max_new_tokens: int = 200, seed: int = 1, **sampling: Any
    ) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("max_new_tokens", max_new_tokens), ("seed", seed)):
            if not 0 <= value < 2**63:
                raise UserError(f"sampler.{name} is {value}; it must be at least 0 and less than 2^63.")
        Sampling(**sampling)  # raises where a setting is out of range
        self.every_n_steps = every_n_steps
        self.prompt = prompt
        self.settings = {"max_new_tokens": max_new_tokens, "seed": seed, **sampling}

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if stage == "fit" and self.every_n_steps:
            if isinstance(trainer.strategy, FSDPStrategy):  # the first device alone would wait for the others for ever
                raise UserError("Under FSDP no device has the whole model to write with: --sampler.every_n_steps 0.")
            pl_module.tokenizer.encode(self.prompt)  # raises now, not after the first thousand steps

    def is_due(self, trainer: Trainer) -> bool:
        """Whether the step that has just been done is one after which the model writes."""
        return bool(self.every_n_steps) and trainer.global_step % self.every_n_steps == 0 and step_is_done(trainer)

    @rank_zero_only
    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        if not self.is_due(trainer):
            return
        step = trainer.global_step
        text = self.prompt + self.write(pl_module)
        for curves in training_curves(trainer):
            curves.skip_time()
        print_above_progress(f"--- step {step} ---\n{text}\n")
        if writer := tensorboard(trainer):
            indented = "\n".join("    " + line for line in text.splitlines())  # Markdown for: as it stands
            writer.add_text("sample", indented, step - 1)  # like Lightning, which numbers steps from 0

    def write(self, module: GPTLightningModule) -> str:
        """A sample of the model as it is now, without the prompt."""
        with evaluating(module.gpt):
            return Writer(module.gpt, module.tokenizer, module.fast).generate(self.prompt, **self.settings)


@contextmanager
def evaluating(gpt: GPT) -> Iterator[None]:
    """Let a model drop nothing out for a while; then each of its parts is in the mode that it was in."""
    modes = [(part, part.training) for part in gpt.modules()]
    gpt.eval()
    try:
        yield
    finally:
        for part, was_training in modes:
            part.training = was_training


class TrainingCurves(Callback):
    """Logs the loss, the gradient norm, and the speed: characters trained on per second, over all devices, and the
    model FLOPs utilisation (MFU): the model's FLOP/s (Chowdhery et al. 2022, "PaLM", appendix B) over those that this
    machine reaches in the product of two large matrices. (PaLM divides by the peak that the hardware's maker states.)

    It writes to the logger at once, where ``self.log`` would wait for the end of the step. So a checkpoint made in
    this step finds it in the curves, and a resumed run leaves no gap.
    """

    def __init__(self) -> None:
        self.loss = math.nan  # of the last step that was logged
        self.rates: list[float] = []  # characters per second, of each step that was logged
        self.peak = math.inf  # FLOP/s of bare matrix products on all devices
        self._tokens, self._seconds = 0, 0.0  # since the last step that was logged
        self._highest = torch.tensor(0.0)  # gradient norm since then; on the device, so that no step waits for it
        self._mark: float | None = None  # when the time that is to be counted next began

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        pl_module.has_curves = True
        device, dtype = trainer.strategy.root_device, compute_dtype(str(trainer.precision))
        self.peak = matrix_peak(device, dtype) * trainer.world_size

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        pl_module.has_curves = False

    def utilisation(self, module: GPTLightningModule, rate: float) -> float:
        """The MFU at ``rate`` characters a second."""
        return rate * flops_per_token(module.gpt.config) / self.peak

    def skip_time(self, *args: Any) -> None:
        """Don't count the time since the last batch, nor what passes until the next: it went into something else."""
        self._mark = None

    on_validation_start = skip_time  # type: ignore[assignment]

    def on_train_batch_start(self, *args: Any) -> None:
        self._mark = self._mark or time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, *args: Any) -> None:
        assert self._mark is not None
        self._tokens += batch[0].numel() * trainer.world_size
        step, logging = trainer.global_step, False
        if step_is_done(trainer):
            self._highest = torch.fmax(self._highest.to(pl_module.grad_norm), pl_module.grad_norm)
            logging = logs_step(trainer, step)
        if logging:  # the mean over all devices and accumulated batches; it waits for the device to finish
            self.loss = float(pl_module.train_nats.compute())
            pl_module.train_nats.reset()
        now = time.perf_counter()
        self._seconds += now - self._mark
        self._mark = now
        if not logging:
            return
        self.rates.append(self._tokens / self._seconds)
        values = {
            "train/loss": self.loss,
            "train/bits_per_char": self.loss / math.log(2),
            "train/grad_norm": float(pl_module.grad_norm),
            "train/grad_norm_max": float(self._highest),  # a spike between two logged steps shows here
            "train/tokens_per_second": self.rates[-1],
            "train/mfu": self.utilisation(pl_module, self.rates[-1]),
        }
        self._tokens, self._seconds, self._highest = 0, 0.0, torch.tensor(0.0)
        for logger in trainer.loggers:
            logger.log_metrics(values, step=step - 1)  # like Lightning, which numbers steps from 0

    def state_dict(self) -> dict[str, float]:
        return {"highest": float(self._highest)}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self._highest = torch.tensor(state["highest"])


def training_curves(trainer: Trainer) -> list[TrainingCurves]:
    """The callback that logs the curves of this run, if there is one."""
    return [c for c in trainer.callbacks if isinstance(c, TrainingCurves)]  # type: ignore[attr-defined]


class ProgressBar(callbacks.TQDMProgressBar):
    """One bar for the whole of ``fit``, in optimizer steps. What matters most comes first: a terminal may be narrow."""

    BAR_FORMAT = "{n_fmt}/{total_fmt} |{bar}| {elapsed}<{remaining}{postfix}"

    def init_train_tqdm(self) -> tqdm:
        interval = 0.1 if sys.stderr.isatty() else 10.0  # a terminal sees it move; a log file gets a line now and then
        look: dict[str, Any] = {"mininterval": interval, "dynamic_ncols": True, "bar_format": self.BAR_FORMAT}
        total, done = int(self.trainer.estimated_stepping_batches), self.trainer.global_step
        return tqdm(total=total, initial=done, disable=self.is_disabled, **look)

    def init_validation_tqdm(self) -> tqdm:
        return tqdm(disable=True)

    init_test_tqdm = init_predict_tqdm = init_validation_tqdm

    def on_train_epoch_start(self, *args: Any) -> None:
        """The bar goes on from epoch to epoch."""

    on_train_epoch_end = on_train_epoch_start  # type: ignore[assignment]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if step_is_done(trainer):
            if logs_step(trainer, trainer.global_step):
                self.train_progress_bar.set_postfix(self.get_metrics(trainer, pl_module), refresh=False)
            self.train_progress_bar.update()

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        shown: dict[str, Any] = {}
        known = [curves for curves in training_curves(trainer) if curves.rates]  # from the first step that is logged
        for curves in known:
            shown |= {"loss": f"{curves.loss:.3f}", "char/s": f"{curves.rates[-1]:,.0f}"}
        if "val/loss" in trainer.callback_metrics:
            shown["val"] = f"{trainer.callback_metrics['val/loss']:.4f}"
        return shown | {"bits/char": f"{curves.loss / math.log(2):.3f}" for curves in known}  # noqa: B035

    def on_exception(self, *args: Any) -> None:
        if self._train_progress_bar is not None:
            self._train_progress_bar.close()


def print_above_progress(text: str) -> None:
    """Print without tearing a progress bar apart. A character that the stream can't show is replaced."""
    encoding = sys.stdout.encoding or "utf-8"
    tqdm.write(text.encode(encoding, "replace").decode(encoding), file=sys.stdout)
    sys.stdout.flush()


class NatsWriter(Callback):
    """Writes what ``predict`` finds: one line per character, with its place and its surprisal in nats.

    Args:
        output: the CSV file; by default the text's name with ``.nats.csv``, in the current folder.

    Raises:
        UserError: the file can't be written, or is there already; or several devices would share the text.
    """

    def __init__(self, output: str | None = None) -> None:
        self.output = output
        self._open = ExitStack()
        self._place, self._total = 0, 0.0

    def on_predict_start(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.world_size > 1:
            raise UserError("predict writes one file in the order of the text: run it with --trainer.devices 1.")
        text = user_path(trainer.datamodule.predict_corpus)  # type: ignore[attr-defined]
        self.path = Path(self.output or f"{text.stem}.nats.csv")
        if os.path.lexists(self.path):
            raise UserError(f"{self.path} is there already. Move it away, or name another file with --output.")
        try:
            file = self._open.enter_context(written_whole(self.path))
        except OSError as error:
            raise UserError(f"--output {self.path} can't be written: {error.strerror or error}.") from error
        self._file = io.TextIOWrapper(file, encoding="utf-8", newline="")
        self._csv = csv.writer(self._file)
        self._tokenizer = pl_module.tokenizer
        self._unit = "token" if isinstance(self._tokenizer, BPETokenizer) else "character"
        self._csv.writerow(("place", self._unit, "nats"))

    def on_predict_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, *args: Any) -> None:
        targets = batch[1][batch[1] >= 0].tolist()
        for place, (target, nats) in enumerate(zip(targets, outputs.tolist(), strict=True), self._place):
            self._csv.writerow((place, self._tokenizer.label(target), f"{nats:.6f}"))
            self._total += nats
        self._place += len(targets)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._open.__exit__(type(exception), exception, None)  # leaves no torn file behind

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._file.flush()
        self._file.detach()
        self._open.close()
        print(f"{self.path}: {self._place} {self._unit}s, {self._total / self._place:.4f} nats per {self._unit}")

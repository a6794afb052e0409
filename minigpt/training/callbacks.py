"""What happens around training: samples, progress, TensorBoard."""

import csv
import io
import math
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from tqdm import tqdm

from minigpt.cost import flops_per_token
from minigpt.errors import UserError
from minigpt.files import written_whole
from minigpt.generation import Sampling, Writer
from minigpt.text.tokenizer import TOKENIZERS, CharTokenizer
from minigpt.training.machine import compute_dtype, matrix_peak
from minigpt.training.module import GPTLightningModule, logs_step


def tensorboard(trainer: Trainer) -> SummaryWriter | None:
    """The writer of the run's TensorBoard logger, if it has one and this is the process that logs."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
            return logger.experiment
    return None


def make_tokenizer(module: LightningModule) -> CharTokenizer:
    """The tokenizer of a model."""
    return TOKENIZERS[module.hparams["tokenizer"]](module.hparams["vocabulary"])


class TextSampler(Callback):
    """Lets the model write as it learns, to the terminal and to TensorBoard's text tab.

    It leaves the weights, the training mode and every random generator but its own as it found them.

    Args:
        every_n_steps: optimizer steps between samples; 0 for none.
        prompt: what the model continues; empty for a new line.
        max_new_tokens: characters to write.
        temperature: see ``generate``.
        top_k: see ``generate``.
        seed: the same one for each sample, so that samples differ by what the model learned.
    """

    def __init__(
        self,
        every_n_steps: int = 500,
        prompt: str = "",
        max_new_tokens: int = 200,
        temperature: float = 0.8,
        top_k: int | None = None,
        seed: int = 1,
    ) -> None:
        Sampling(temperature, top_k)  # raises where a setting can't be
        if max_new_tokens < 0:
            raise UserError(f"sampler.max_new_tokens is {max_new_tokens}; it must be at least 0.")
        if every_n_steps < 0:
            raise UserError(f"sampler.every_n_steps is {every_n_steps}; it must be at least 0 (for no samples).")
        if not 0 <= seed < 2**63:
            raise UserError(f"sampler.seed is {seed}; it must be at least 0 and less than 2^63.")
        self.every_n_steps = every_n_steps
        self.prompt = prompt
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.top_k = top_k
        self.seed = seed
        self._last_step = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and self.every_n_steps:
            # A prompt that can't be written must fail now, not after the first thousand steps.
            make_tokenizer(pl_module).encode(self.prompt)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_step = trainer.global_step

    @rank_zero_only
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        step = trainer.global_step
        if not self.every_n_steps or step % self.every_n_steps or step == self._last_step:
            return
        self._last_step = step
        assert isinstance(pl_module, GPTLightningModule)
        text = self.prompt + self.write(pl_module)
        for curves in training_curves(trainer):
            curves.skip_time()
        print_above_progress(trainer, f"--- step {step} ---\n{text}\n")
        if writer := tensorboard(trainer):
            indented = "\n".join("    " + line for line in text.splitlines())  # Markdown for: as it stands
            writer.add_text("sample", indented, step - 1)  # like Lightning, which numbers steps from 0

    def write(self, module: GPTLightningModule) -> str:
        """A sample of the model as it is now."""
        modes = [(part, part.training) for part in module.gpt.modules()]
        module.gpt.eval()
        try:
            return Writer(module.gpt, make_tokenizer(module)).generate(
                self.prompt,
                max_new_tokens=self.max_new_tokens,
                temperature=self.temperature,
                top_k=self.top_k,
                seed=self.seed,
            )
        finally:
            for part, was_training in modes:
                part.training = was_training


class TrainingCurves(Callback):
    """Logs the loss, the gradient norm, and the speed: characters trained on per second, over all devices, and the
    model FLOPs utilisation (MFU): the model's FLOP/s (PaLM, appendix B) over those that this machine reaches in the
    product of two large matrices. (PaLM divides by the peak that the maker of the hardware states.)

    It writes to the logger at once, where ``self.log`` would wait for the end of the step: what a checkpoint made
    in this step stands for is in the curves by then, and a resumed run leaves no gap.
    """

    def __init__(self) -> None:
        self.loss = math.nan
        self.rate = 0.0
        self.rates: list[float] = []
        self.peak = math.inf  # FLOP/s of bare matrix products on all devices
        self._tokens = 0
        self._seconds = 0.0
        self._mark: float | None = None  # when the time of the next batch began to count
        self._step = -1
        self._highest = 0.0  # gradient norm since the last line

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step
        device, dtype = trainer.strategy.root_device, compute_dtype(str(trainer.precision))
        self.peak = matrix_peak(device, dtype) * trainer.world_size

    def utilisation(self, module: LightningModule, rate: float) -> float:
        """The MFU at ``rate`` characters a second."""
        assert isinstance(module, GPTLightningModule)
        return rate * flops_per_token(module.gpt.config) / self.peak

    def on_train_batch_start(self, *args: Any) -> None:
        if self._mark is None:
            self._mark = time.perf_counter()

    def on_validation_start(self, *args: Any) -> None:
        self.skip_time()

    def skip_time(self) -> None:
        """Don't count the time since the last batch, nor what passes until the next: it went into something else."""
        self._mark = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._tokens += batch[0].numel() * trainer.world_size
        step, new_step = trainer.global_step, trainer.global_step != self._step
        self._step = step
        logging = new_step and logs_step(trainer, step)
        assert isinstance(pl_module, GPTLightningModule)
        if new_step:
            self._highest = max(self._highest, float(pl_module.grad_norm))
        if logging:
            # The mean over all devices and accumulated batches of this step. It waits for the device to finish.
            self.loss = float(pl_module.train_nats.compute())
            pl_module.train_nats.reset()
        now = time.perf_counter()
        self._seconds += now - (self._mark or now)
        self._mark = now
        if logging:
            self.rate = self._tokens / self._seconds
            self.rates.append(self.rate)
            self._tokens, self._seconds = 0, 0.0
            values = {
                "train/loss": self.loss,
                "train/bits_per_char": self.loss / math.log(2),
                "train/grad_norm": float(pl_module.grad_norm),
                "train/grad_norm_max": self._highest,  # a spike between two lines shows here
                "train/tokens_per_second": self.rate,
                "train/mfu": self.utilisation(pl_module, self.rate),
            }
            self._highest = 0.0
            for logger in trainer.loggers:
                logger.log_metrics(values, step=step - 1)  # like Lightning, which numbers steps from 0

    def state_dict(self) -> dict[str, float]:
        return {"highest": self._highest}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self._highest = state["highest"]


def training_curves(trainer: Trainer) -> list[TrainingCurves]:
    """The callback that logs the curves of this run, if there is one."""
    return [c for c in trainer.callbacks if isinstance(c, TrainingCurves)]  # type: ignore[attr-defined]


class ProgressBar(LightningProgressBar):
    """One bar for the whole of ``fit``, in optimizer steps: loss, bits per character, characters per second."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: tqdm | None = None

    def disable(self) -> None:
        self._is_disabled = True

    def enable(self) -> None:
        self._is_disabled = False

    _is_disabled = False

    @property
    def is_disabled(self) -> bool:
        return self._is_disabled

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.is_disabled:
            # A terminal sees it move; a log file gets a line now and then.
            interval = 0.1 if sys.stderr.isatty() else 10.0
            total = int(trainer.estimated_stepping_batches)
            self._bar = tqdm(total=total, initial=trainer.global_step, unit="step", mininterval=interval)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if self._bar is not None and trainer.global_step != self._bar.n:
            if logs_step(trainer, trainer.global_step):
                self._describe(trainer)
            self._bar.update(trainer.global_step - self._bar.n)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._describe(trainer)

    def _describe(self, trainer: Trainer) -> None:
        if self._bar is None:
            return
        parts = []
        for curves in training_curves(trainer):
            bits = curves.loss / math.log(2)
            parts += [f"loss {curves.loss:.3f}", f"{bits:.3f} bits/char", f"{curves.rate:,.0f} char/s"]
        if "val/loss" in trainer.callback_metrics:
            parts.append(f"val {trainer.callback_metrics['val/loss']:.4f}")
        self._bar.set_postfix_str(", ".join(parts), refresh=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(self, *args: Any) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def print(self, *args: Any, **kwargs: Any) -> None:
        if self._bar is None:
            print(*args)
        else:
            tqdm.write(" ".join(map(str, args)), file=sys.stdout)


def print_above_progress(trainer: Trainer, text: str) -> None:
    """Print without tearing the progress bar apart."""
    bar = trainer.progress_bar_callback
    if bar is None:
        print(text)
    else:
        bar.print(text)


class TensorBoardExtras(Callback):
    """Hyperparameters beside the validation loss, and the character embeddings for the projector."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (writer := tensorboard(trainer)) and not trainer.ckpt_path:
            data = trainer.datamodule.hparams if trainer.datamodule else {}  # type: ignore[attr-defined]
            settings = {**data, **pl_module.hparams}
            settings = {k: v for k, v in settings.items() if k != "vocabulary" and isinstance(v, (int, float, str))}
            # The logger's own way to do this would write a loss of 0 into the curve first.
            for summary in hparams(settings, {"val/loss": 0}):
                writer._get_file_writer().add_summary(summary)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if writer := tensorboard(trainer):
            assert isinstance(pl_module, GPTLightningModule)
            tokenizer = make_tokenizer(pl_module)
            names = [tokenizer.label(token) for token in range(len(tokenizer.vocabulary))]
            labels = [repr(name)[1:-1] if name != " " else "space" for name in names]
            embeddings = pl_module.gpt.token_embedding.weight.detach().float().cpu()
            if embeddings.dim() != 2:  # this process holds a part of them (FSDP; not run)
                return
            writer.add_embedding(embeddings, labels, tag="characters", global_step=trainer.global_step)


class NatsWriter(BasePredictionWriter):
    """Writes what ``predict`` finds: one line per character, with its place and its surprisal in nats.

    Args:
        output: the CSV file; by default the text's name with ``.nats.csv``, in the current folder.
    """

    def __init__(self, output: str | None = None) -> None:
        super().__init__("batch")
        self.output = output
        self._open = ExitStack()
        self._place = 0
        self._total = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "predict" and trainer.world_size > 1:
            raise UserError("predict writes one file in the order of the text: run it with --trainer.devices 1.")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        self.path = Path(self.output or f"{Path(data.predict_corpus).stem}.nats.csv")
        text = Path(data.predict_corpus)  # or a glob, or the name of a corpus, which are no file
        if self.path.exists() and text.exists() and self.path.samefile(text):
            raise UserError(f"--output {self.path} is the text itself; it would be overwritten. Name another file.")
        file = self._open.enter_context(written_whole(self.path))
        self._text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        self._csv = csv.writer(self._text)
        self._csv.writerow(("place", "character", "nats"))
        self._tokenizer = make_tokenizer(pl_module)

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        targets = batch[1]
        for character, nats in zip(targets[targets >= 0].tolist(), prediction.tolist(), strict=True):
            self._csv.writerow((self._place, self._tokenizer.label(character), f"{nats:.6f}"))
            self._place += 1
            self._total += nats

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._open.__exit__(type(exception), exception, None)  # leaves no torn file behind

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._text.flush()
        self._text.detach()
        self._open.close()
        print(f"{self.path}: {self._place} characters, {self._total / self._place:.4f} nats per character")

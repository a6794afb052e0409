"""What a recipe will cost, before one commits to it: memory, FLOPs, and the time on this machine."""

import math
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn

from minigpt.cost import flops_per_token
from minigpt.errors import UserError
from minigpt.training.callbacks import ProgressBar, TextSampler, step_is_done
from minigpt.training.cli import MiniGPTCLI, say, train
from minigpt.training.film import Film, frame_bytes

CALIBRATION = 10.0  # seconds of training; a tenth of it for validation


class PlanCLI(MiniGPTCLI, Callback):
    """A ``fit`` that watches itself, ends when it has seen enough, and says what all of it would cost."""

    makes_run = False

    def before_fit(self) -> None:
        if isinstance(self.trainer.strategy, FSDPStrategy):
            raise UserError("plan can't tell what fsdp costs; leave out the strategy to plan for one device.")
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        (self.sampler,) = (c for c in callbacks if isinstance(c, TextSampler))
        left_out = (Checkpoint, EarlyStopping, Film, ProgressBar, TextSampler)
        callbacks[:] = [*(c for c in callbacks if not isinstance(c, left_out)), self]

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.start_up = time.process_time()  # imports included; until here the process keeps one core busy
        first, end = trainer.global_step, int(trainer.estimated_stepping_batches)
        self.left, every = end - first, self.config_init.sampler.every_n_steps
        self.samples = end // every - first // every if every else 0
        assert trainer.val_check_batch is not None
        self.validations = math.ceil(self.left * trainer.accumulate_grad_batches / trainer.val_check_batch)
        self.validations //= trainer.check_val_every_n_epoch or 1
        self.validations *= trainer.enable_validation
        trainer.log_every_n_steps = 1  # type: ignore[attr-defined]  # so the curves hold the rate of every step
        # When enough steps were seen, training is to end with a validation, wherever it is.
        trainer.check_val_every_n_epoch = None
        trainer.fit_loop.min_epochs = trainer.fit_loop.epoch_loop.min_steps = 0

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if step_is_done(trainer):
            now, steps = time.perf_counter(), len(self.curves.rates)
            if steps == 1:
                self.begin = now  # the first step warms up, or compiles
            enough = now - self.begin >= CALIBRATION or steps == self.left
            trainer.should_stop = trainer.strategy.reduce_boolean_decision(enough, all=False)

    def on_validation_start(self, *args: Any) -> None:
        self.validating, self.scored = time.perf_counter(), 0

    def on_validation_batch_end(self, *args: Any) -> None:
        if torch.accelerator.is_available():  # not run
            torch.accelerator.synchronize()
        self.scored += 1
        seconds = time.perf_counter() - self.validating
        self.score = seconds / self.scored
        if seconds >= CALIBRATION / 10:
            raise StopIteration  # ends this validation

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        config, rates = pl_module.gpt.config, self.curves.rates
        characters = trainer.accumulate_grad_batches * self.datamodule.batch_size * config.block_size  # of a step
        rate, flops = statistics.median(rates[1:] or rates), flops_per_token(config)
        times = {"start-up": self.start_up} | ({"compiling": characters / rates[0]} if pl_module.compiled else {})
        times[f"{self.left:,} steps"] = self.left * characters / rate
        if self.validations:
            times[f"{self.validations:,} validations"] = self.validations * sum(trainer.num_val_batches) * self.score
        if self.samples:
            settings, length = self.sampler.settings, self.sampler.settings["max_new_tokens"]
            settings["max_new_tokens"] = short = max(1, min(100, length))
            start = time.perf_counter()
            self.sampler.write(pl_module)
            times[f"{self.samples:,} samples"] = self.samples * length / short * (time.perf_counter() - start)
        lines = [
            "Memory of one device, in MB:",
            *self._show_memory(),
            *self._show_film(int(trainer.estimated_stepping_batches)),
            "Arithmetic:",
            f"  {characters:,} characters a step, {flops / 1e6:,.2f} MFLOP each; "
            f"{self.left * characters * flops / 1e12:,.1f} TFLOP in all",
            f"  {rate:,.0f} characters a second, {self.curves.utilisation(pl_module, rate):.0%} of the "
            f"{self.curves.peak / 1e9:,.0f} GFLOP/s of bare matrix products",
            f"Time, from some {CALIBRATION:g} seconds of training on this machine:",
            *(f"  {name:<24}{show_time(seconds):>12}" for name, seconds in times.items()),
            f"  {'together':<24}{show_time(sum(times.values())):>12}   (early stopping may end it sooner)",
        ]
        say("\n".join(lines))

    def _show_memory(self) -> list[str]:
        module, trainer = self.model, self.trainer
        batch = trainer.strategy.batch_to_device(next(iter(self.datamodule.train_dataloader())))
        with trainer.precision_plugin.forward_context():
            kept = count_kept(lambda: module.character_nats(batch).mean(), module)
        weights = sum(p.nbytes for p in module.parameters())
        gradients = sum(p.nbytes for p in module.parameters() if p.requires_grad)
        states = [t for s in trainer.optimizers[0].state.values() for t in s.values() if isinstance(t, Tensor)]
        sizes = {"weights": weights, "gradients": gradients, "optimizer": sum(t.nbytes for t in states)}
        sizes |= {"activations": kept, "together": sum(sizes.values()) + kept}
        lines = [f"  {name:<24}{size / 1e6:>12,.1f}" for name, size in sizes.items()]
        if sys.platform == "linux" and module.device.type == "cpu":
            import resource  # not on every system

            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            lines.append(f"  {'the whole process':<24}{peak / 1e6:>12,.1f}   (its peak while this was found)")
        return lines

    def _show_film(self, end: int) -> list[str]:
        frames, size = len(self.config_init.film.steps(self.model, end)), frame_bytes(self.model) / 1e6
        return [f"On the disk: a film of {frames} frames, {frames * size:,.1f} MB"] if frames else []

    def after_fit(self) -> None:
        """All is said."""


def count_kept(forward: Callable[[], Tensor], module: nn.Module) -> int:
    """Bytes that a forward pass keeps for the backward pass, without the parameters themselves."""
    kept: dict[int, torch.UntypedStorage] = {}  # held until all are counted, so that no address comes twice

    def keep(tensor: Tensor) -> None:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()

    # What the hook returns is what is saved: nothing, because no backward pass follows. A tensor that is saved for the
    # function that made it would be a circle, whose memory comes back late.
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda nothing: nothing):
        forward()
    parameters = {p.untyped_storage().data_ptr() for p in module.parameters()}
    return sum(storage.nbytes() for address, storage in kept.items() if address not in parameters)


def show_time(seconds: float) -> str:
    """A length of time as people say it."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 100 * 60 else f"{seconds / 3600:,.1f} h"


def main(command: str, args: list[str]) -> None:
    """Print what ``fit`` with the same arguments will cost; what was trained is thrown away."""
    train("fit", args, PlanCLI)

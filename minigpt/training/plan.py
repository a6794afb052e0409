"""What a recipe will cost, before one commits to it: memory, FLOPs, and the time on this machine."""

import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn

from minigpt.__main__ import STARTED
from minigpt.cost import flops_per_token
from minigpt.errors import UserError
from minigpt.generation import Writer
from minigpt.training.callbacks import make_tokenizer
from minigpt.training.cli import MiniGPTCLI, say, train
from minigpt.training.machine import compute_dtype, matrix_peak
from minigpt.training.module import NO_END, GPTLightningModule

CALIBRATION = 10.0  # seconds


def plan(args: list[str], started: float) -> None:
    """Print what ``fit`` with the same arguments will cost; no run is made, and what was trained is thrown away.

    Args:
        args: the arguments of ``fit``.
        started: when this process began, as :func:`time.perf_counter` tells it: ``fit`` will take as long to begin.
    """
    train("fit", args, partial(PlanCLI, started=started))


class PlanCLI(MiniGPTCLI):
    """Everything as for ``fit``, but for what is done with it."""

    makes_run = False

    def __init__(self, args: list[str], until_done: ExitStack, started: float) -> None:
        self.started = started
        super().__init__(args, until_done)

    def _run_subcommand(self, subcommand: str) -> None:
        assert isinstance(self.model, GPTLightningModule)
        if isinstance(self.trainer.strategy, FSDPStrategy):
            raise UserError("plan can't tell what fsdp costs; leave out the strategy to plan for one device.")
        start_up = time.perf_counter() - self.started
        self.datamodule.trainer = self.trainer
        self.datamodule.setup("fit")
        self.trainer.precision_plugin.convert_module(self.model)
        self.model.to(self.trainer.strategy.root_device)
        if self.trainer.strategy.root_device.type == "cpu":  # where the processes share the cores
            torch.set_num_threads(max(1, torch.get_num_threads() // self.trainer.num_devices))
        steps = self._steps_left()
        memory, compiling, step_seconds = self._measure_training()
        times = {"start-up": start_up, **compiling, f"{steps:,} steps": steps * step_seconds}
        self.model.eval()
        times |= self._measure_validations(steps)
        times |= self._measure_samples(steps, self.config[subcommand].sampler)
        say("\n".join([*self._show_memory(memory), *self._show_arithmetic(steps, step_seconds), *self._show(times)]))

    def _steps_left(self) -> int:
        """Optimizer steps until the end of the run, early stopping aside."""
        per_epoch = -(-self._batches_of_an_epoch() // self.trainer.accumulate_grad_batches)
        ends = [end for end in (self.trainer.max_steps, per_epoch * (self.trainer.max_epochs or -1)) if end >= 0]
        if not ends:
            raise UserError(NO_END)
        return int(min(ends) - self.checkpoint.get("global_step", 0))

    def _batches_of_an_epoch(self) -> int:
        return limited(len(self.datamodule.train_dataloader()), self.trainer.limit_train_batches)

    def _nats(self, batch: tuple[Tensor, ...], compute: Callable[[Any], Tensor] | None = None) -> Tensor:
        """The nats of each character of a batch, in the precision of training."""
        device = self.trainer.strategy.root_device
        with self.trainer.precision_plugin.forward_context():
            return (compute or self.model.character_nats)((batch[0].to(device), batch[1].to(device)))

    def _measure_training(self) -> tuple[dict[str, int], dict[str, float], float]:
        """Memory by what it holds, in bytes; the seconds of compiling, if there is any, and of an optimizer step."""
        optimizer = self.model.make_optimizer(str(self.trainer.precision))
        batch = next(iter(self.datamodule.train_dataloader()))

        def step() -> None:
            for _ in range(self.trainer.accumulate_grad_batches):
                self._nats(batch, self.model.training_nats).mean().backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        weights = sum(p.nbytes for p in self.model.parameters())
        kept = count_kept(lambda: self._nats(batch).mean(), self.model)
        compiling = {}
        if self.model.hparams["compile"]:
            start = time.perf_counter()
            step()
            compiling["compiling"] = time.perf_counter() - start
        seconds = repeat(step, CALIBRATION)
        states = sum(t.nbytes for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor))
        memory = {"weights": weights, "gradients": weights, "optimizer": states, "activations": kept}
        return memory, compiling, seconds

    def _measure_validations(self, steps: int) -> dict[str, float]:
        interval = self.trainer.val_check_interval
        every = interval if isinstance(interval, int) else max(1, int(self._batches_of_an_epoch() * interval))
        number = -(-steps * self.trainer.accumulate_grad_batches // every)
        number //= self.trainer.check_val_every_n_epoch or 1
        loader = self.datamodule.val_dataloader()
        batch = next(iter(loader))
        with torch.no_grad():
            seconds = repeat(lambda: self._nats(batch).sum(), 1.0)
        return {f"{number:,} validations": number * limited(len(loader), self.trainer.limit_val_batches) * seconds}

    def _measure_samples(self, steps: int, sampler: Any) -> dict[str, float]:
        if not (number := steps // sampler.every_n_steps if sampler.every_n_steps else 0):
            return {}
        writer = Writer(self.model.gpt, make_tokenizer(self.model))
        length = min(100, sampler.max_new_tokens)
        seconds = repeat(lambda: writer.generate("", max_new_tokens=length), 1.0) / max(1, length)
        return {f"{number:,} samples": number * sampler.max_new_tokens * seconds}

    def _show_memory(self, memory: dict[str, int]) -> list[str]:
        lines = ["Memory of one device, in MB:"]
        lines += [f"  {name:<24}{size / 1e6:>12,.1f}" for name, size in memory.items()]
        lines.append(f"  {'together':<24}{sum(memory.values()) / 1e6:>12,.1f}")
        if sys.platform == "linux" and self.trainer.strategy.root_device.type == "cpu":
            import resource  # not on every system

            whole = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            lines.append(f"  {'the whole process':<24}{whole / 1e6:>12,.1f}   (its peak while this was found)")
        return lines

    def _show_arithmetic(self, steps: int, step_seconds: float) -> list[str]:
        config, data = self.model.gpt.config, self.datamodule
        characters = self.trainer.accumulate_grad_batches * data.batch_size * config.block_size
        flops = flops_per_token(config)
        peak = matrix_peak(self.trainer.strategy.root_device, compute_dtype(str(self.trainer.precision)))
        rate = characters / step_seconds
        return [
            "Arithmetic:",
            f"  {characters:,} characters a step, {flops / 1e6:,.2f} MFLOP each; "
            f"{steps * characters * flops / 1e12:,.1f} TFLOP in all",
            f"  {rate:,.0f} characters a second, {flops * rate / self.trainer.world_size / peak:.0%} of the "
            f"{peak / 1e9:,.0f} GFLOP/s of bare matrix products",
        ]

    def _show(self, times: dict[str, float]) -> list[str]:
        devices = self.trainer.world_size
        ideal = f", if {devices} devices lose nothing to waiting for each other" if devices > 1 else ""
        return [
            f"Time, from some {CALIBRATION:g} seconds of training on this machine{ideal}:",
            *(f"  {name:<24}{show_time(seconds):>12}" for name, seconds in times.items()),
            f"  {'together':<24}{show_time(sum(times.values())):>12}   (early stopping may end it sooner)",
        ]


def repeat(action: Callable[[], object], seconds: float) -> float:
    """The median of how long ``action`` takes, in seconds, over about ``seconds``; the first time is not counted."""
    times: list[float] = []
    while sum(times[1:]) < seconds and len(times) < 1000:
        start = time.perf_counter()
        action()
        if torch.accelerator.is_available():  # not run
            torch.accelerator.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def limited(batches: int, limit: float | int) -> int:
    """How many of an epoch's batches are read, under Lightning's limits: a number of them, or a share."""
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def count_kept(forward: Callable[[], Tensor], module: nn.Module) -> int:
    """Bytes that a forward pass keeps for the backward pass, without the parameters themselves."""
    parameters = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # held until all are counted, so that no address comes twice

    def keep(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage

    # What the hook returns is what is saved: nothing, because no backward pass follows. A tensor that is saved for the
    # function that made it would be a circle, whose memory comes back late.
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda nothing: nothing):
        forward()
    return sum(storage.nbytes() for storage in kept.values())


def show_time(seconds: float) -> str:
    """A length of time as people say it."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 100 * 60 else f"{seconds / 3600:,.1f} h"


def main(command: str, args: list[str]) -> None:
    """Run the command from its arguments."""
    plan(args, STARTED)

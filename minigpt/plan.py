"""What a recipe will cost, before one commits to it: memory, FLOPs, and the time on this machine."""

import math
import resource
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor

from minigpt.callbacks import make_tokenizer
from minigpt.cli import MiniGPTCLI, say, train
from minigpt.generation import Writer
from minigpt.lightning_module import GPTLightningModule
from minigpt.speed import compute_dtype, flops_per_token, matrix_peak

CALIBRATION = 10.0  # seconds


def plan(args: list[str], started: float) -> None:
    """Print what ``fit`` with the same arguments will cost; nothing is written, and what was trained is thrown away.

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
        start_up = time.perf_counter() - self.started
        settings, module, data = self.config[subcommand], self.model, self.datamodule
        config, device = module.gpt.config, self.trainer.strategy.root_device
        data.trainer = self.trainer
        data.setup("fit")
        module.to(device)

        accumulated = self.trainer.accumulate_grad_batches
        loader, val_loader = data.train_dataloader(), data.val_dataloader()
        batches = -(-len(loader) // accumulated) * accumulated
        steps = self.trainer.max_steps
        if steps < 0:
            steps = batches // accumulated * (self.trainer.max_epochs or 1)
        steps -= self.checkpoint.get("global_step", 0)
        optimizer = module.make_optimizer(str(self.trainer.precision))
        place = getattr(self.trainer.strategy.precision_plugin, "forward_context")  # noqa: B009
        batch = next(iter(loader))
        inputs = (batch[0].to(device), batch[1].to(device))

        def step() -> float:
            for _ in range(accumulated):
                with place():
                    loss = module.character_nats(inputs).mean()
                loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            return float(loss.detach())

        def score() -> float:
            with torch.no_grad(), place():
                return float(module.character_nats(scored).sum())

        kept = count_kept(lambda: module.character_nats(inputs).mean(), place, module)
        step_seconds = repeat(step, CALIBRATION)
        states = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
        module.eval()
        first = next(iter(val_loader))
        scored = (first[0].to(device), first[1].to(device))
        val_seconds = repeat(score, 1.0)
        tokenizer, sampler = make_tokenizer(module), settings.sampler
        writer = Writer(module.gpt, tokenizer)
        length = min(100, sampler.max_new_tokens)
        write_seconds = repeat(lambda: len(writer.generate("", max_new_tokens=length)), 1.0) / max(1, length)

        interval = self.trainer.val_check_interval
        every = interval if isinstance(interval, int) else max(1, int(len(loader) * interval))
        validations = -(-steps * accumulated // every)
        samples = steps // sampler.every_n_steps if sampler.every_n_steps else 0
        times = {
            "start-up": start_up,
            f"{steps:,} steps": steps * step_seconds,
            f"{validations:,} validations": validations * len(val_loader) * val_seconds,
            f"{samples:,} samples": samples * sampler.max_new_tokens * write_seconds,
        }

        tokens = accumulated * data.batch_size * config.block_size
        flops = flops_per_token(config) * tokens
        devices = self.trainer.world_size
        peak = matrix_peak(device, compute_dtype(str(self.trainer.precision)))
        weights = nbytes(list(module.parameters()))
        memory = {
            "weights": weights,
            "gradients": weights,
            "optimizer": nbytes(states),
            "activations": kept,
        }
        lines = ["Memory of one device, in MB:"]
        lines += [f"  {name:<24}{size / 1e6:>12,.1f}" for name, size in memory.items()]
        lines.append(f"  {'together':<24}{sum(memory.values()) / 1e6:>12,.1f}")
        if sys.platform == "linux" and device.type == "cpu":
            whole = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            lines.append(f"  {'the whole process':<24}{whole / 1e6:>12,.1f}   (its peak while this was found)")
        lines += [
            "Arithmetic:",
            f"  {tokens:,} characters a step, {flops_per_token(config) / 1e6:,.2f} MFLOP each; "
            f"{steps * flops / 1e12:,.1f} TFLOP in all",
            f"  {tokens / step_seconds:,.0f} characters a second, {flops / devices / step_seconds / peak:.0%} of the "
            f"{peak / 1e9:,.0f} GFLOP/s of bare matrix products",
            f"Time, from {CALIBRATION:g} seconds of training on this machine"
            + (f", if {devices} devices lose nothing to waiting for each other:" if devices > 1 else ":"),
        ]
        lines += [f"  {name:<24}{show_time(seconds):>12}" for name, seconds in times.items()]
        lines.append(f"  {'together':<24}{show_time(sum(times.values())):>12}   (early stopping may end it sooner)")
        say("\n".join(lines))


def repeat(action: Callable[[], float], seconds: float) -> float:
    """The median of how long ``action`` takes, in seconds, over about ``seconds``; the first time is not counted."""
    action()
    times: list[float] = []
    while sum(times) < seconds and len(times) < 1000:
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def nbytes(tensors: list[Any]) -> int:
    """Bytes of all elements."""
    return sum(t.numel() * t.element_size() for t in tensors)


def count_kept(forward: Callable[[], Tensor], place: Callable[[], Any], module: GPTLightningModule) -> int:
    """Bytes that a forward pass keeps for the backward pass, without the parameters themselves."""
    parameters = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), place():
        forward()
    return sum(kept.values())


def show_time(seconds: float) -> str:
    """A length of time as people say it."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:,.1f} h" if math.isfinite(seconds) else "for ever"

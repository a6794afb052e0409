"""How the speed and the memory of training grow with width, depth, window and batch.

    python benchmarks/growth.py

Each row is a training step of one shape on random characters: its rate beside what the number of operations alone
would predict from the first row, and the bytes that it keeps for the gradient, beside those of the first row.
"""

import statistics
import time
from typing import Any

import torch

from minigpt.cost import flops_per_token
from minigpt.training.machine import choose_precision, compute_dtype, keep_freed_memory, matrix_peak
from minigpt.training.module import GPTLightningModule
from minigpt.training.plan import count_kept

BASE = {"n_layer": 4, "n_embd": 256, "block_size": 128, "batch_size": 16}
GROWTH = {
    "n_embd": (128, 384, 512, 768),
    "n_layer": (2, 8, 12),
    "block_size": (64, 256, 512),
    "batch_size": (4, 8, 32, 64),
}


def measure(shape: dict[str, int], precision: str) -> tuple[float, int, int]:
    """Characters a second, FLOP per character, and bytes kept for the backward pass."""
    batch_size, sizes = shape["batch_size"], {name: size for name, size in shape.items() if name != "batch_size"}
    settings: dict[str, Any] = {**sizes, "n_head": sizes["n_embd"] // 64, "norm": "pre"}
    settings |= {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
    module = GPTLightningModule("".join(map(chr, range(65))), **settings)
    optimizer = module.make_optimizer(precision)
    ids = torch.randint(65, (batch_size, sizes["block_size"] + 1))
    batch = (ids[:, :-1], ids[:, 1:])

    def autocast() -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed")

    with autocast():
        kept = count_kept(lambda: module.character_nats(batch).mean(), module)
    times: list[float] = []
    while sum(times) < 6 or len(times) < 6:
        start = time.perf_counter()
        with autocast():
            loss = module.character_nats(batch).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
    return batch[0].numel() / statistics.median(times[2:]), flops_per_token(module.gpt.config), kept


def main() -> None:
    keep_freed_memory()
    precision = choose_precision("cpu")[0]
    peak = matrix_peak(torch.device("cpu"), compute_dtype(precision))
    base_rate, base_flops, base_kept = measure(BASE, precision)
    print(f"{precision}; bare matrix products: {peak / 1e9:,.0f} GFLOP/s\n")
    print("| what | characters/s | by FLOPs alone | MFU | kept for the gradient, MB | beside the first row |")
    print("|---|---|---|---|---|---|")
    named = ", ".join(f"{name} {size}" for name, size in BASE.items())
    rows = [(named, BASE)]
    rows += [(f"{name} {size}", BASE | {name: size}) for name, sizes in GROWTH.items() for size in sizes]
    for name, shape in rows:
        rate, flops, kept = measure(shape, precision)
        by_flops = base_rate * base_flops / flops
        print(f"| {name} | {rate:,.0f} | {by_flops:,.0f} | {rate * flops / peak:.0%} ", end="")
        print(f"| {kept / 1e6:,.0f} | {kept / base_kept:.2f} |", flush=True)


if __name__ == "__main__":
    main()

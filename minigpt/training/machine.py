"""What the machine can do: its precision, its peak, its memory between two steps."""

import ctypes
import os
import statistics
import sys
import time
from dataclasses import replace

import torch

from minigpt.cost import flops_per_token
from minigpt.fast import apply
from minigpt.model import GPT, GPTConfig


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second in the product of two large matrices: the median of several."""
    n = 1024 if device.type == "cpu" else 8192
    draw = torch.Generator(device)  # its own: training's must not feel it; of constants, a GPU would make less work
    a, b = (torch.rand(n, n, device=device, generator=draw).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(12):
        start = time.perf_counter()
        (a @ b)[0, 0].item()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / statistics.median(seconds[2:])


def choose_precision(accelerator: str) -> tuple[str, str]:
    """bfloat16 where the hardware computes in it, else float32; and why."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16-mixed", "this GPU computes bfloat16 in hardware"
        return "32-true", "this GPU has no bfloat16 in hardware"
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return "32-true", "that is the safe choice on Apple's GPUs"
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return "bf16-mixed", "this processor computes bfloat16 in hardware"
    return "32-true", "this processor shows no bfloat16 in hardware (AVX-512 or AMX)"


def compute_dtype(precision: str) -> torch.dtype:
    """The type that matrices are multiplied in, under a precision as Lightning names it."""
    types = {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}
    return types.get(precision.split("-")[0], torch.float32)


def choose_threads(config: GPTConfig, batch_size: int, precision: str) -> int:
    """How many threads of this processor train a model of that shape fastest right now, found in a second or less.

    All of them, unless half or one gain a quarter: threads that share an operation wait for each other, and where
    another program keeps a core busy, all wait for the slowest. A number that the user has set (OMP_NUM_THREADS) stays.
    """
    most = torch.get_num_threads()
    candidates = {most, max(1, most // 2), 1}
    if len(candidates) == 1 or "OMP_NUM_THREADS" in os.environ:
        return most
    config = replace(config, n_layer=1)
    characters = max(
        32, min(2048, int(4e9 / flops_per_token(config)))
    )  # so that a step takes some hundredths of a second
    length = min(config.block_size, characters)
    windows = max(1, min(batch_size, characters // length))
    seconds: dict[int, list[float]] = {threads: [] for threads in candidates}
    with torch.random.fork_rng(devices=[]):
        gpt = GPT(config)
        apply(gpt, None)
        ids_BT = torch.zeros(windows, length, dtype=torch.int64)
        for threads in (*candidates, *candidates):  # in turn, for the machine may be busy only now and then
            torch.set_num_threads(threads)
            times: list[float] = []
            end = time.perf_counter() + 0.3 / len(candidates)
            while time.perf_counter() < end or len(times) < 2:
                start = time.perf_counter()
                with torch.autocast("cpu", torch.bfloat16, enabled=compute_dtype(precision) == torch.bfloat16):
                    loss = gpt(ids_BT).float().logsumexp(-1).mean()
                loss.backward()
                times.append(time.perf_counter() - start)
            seconds[threads] += times[1:]  # the first has to wake the threads
    torch.set_num_threads(most)
    mean = {threads: statistics.mean(times) for threads, times in seconds.items()}
    fastest = min(mean, key=mean.__getitem__)
    return fastest if mean[fastest] < mean[most] / 1.25 else most


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees for its next use.

    A step allocates the same large tensors again and again. The GNU C library hands each back to the system, which
    then clears every page of the next one: up to a fifth of the time of a step. Other systems are left as they are.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)

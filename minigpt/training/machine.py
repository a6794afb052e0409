"""What the machine can do: its precision, its peak, its memory between two steps."""

import ctypes
import statistics
import sys
import time

import torch


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


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees for its next use.

    A step allocates the same large tensors again and again. The GNU C library hands each back to the system, which
    then clears every page of the next one: up to a fifth of the time of a step. Other systems are left as they are.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)

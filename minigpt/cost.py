"""What a model costs, found before it is built: parameters, memory, arithmetic."""

import os
from pathlib import Path
from typing import Any

from minigpt.errors import UserError
from minigpt.model import GPTConfig

FLOAT = 4  # bytes
LAYER = 40_000  # bytes of Python objects, however narrow the layer is (44,000 measured)
TRAINING = {"adamw": 4, "muon": 3}  # floats per parameter: the weight, its gradient, two running means or one
CGROUP = Path("/sys/fs/cgroup/memory.max")
CHOICES = {"norm": ("post", "pre"), "positions": ("learned", "sinusoidal")}


def make_config(**shape: Any) -> GPTConfig:
    """The shape of a model from a user's settings, or from a checkpoint's.

    Raises:
        UserError: a value can't be, or the model is too large for this machine even to write.
    """
    for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
        if name in shape and (not isinstance(size := shape[name], int) or isinstance(size, bool) or size < 1):
            raise UserError(f"{name} is {size!r}; it must be a whole number, at least 1.")
    for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop"):
        if name in shape and (not isinstance(rate := shape[name], (int, float)) or not 0 <= rate < 1):
            raise UserError(f"{name} is {rate!r}; a dropout rate is at least 0 and less than 1.")
    for name, known in CHOICES.items():
        if name in shape and shape[name] not in known:
            raise UserError(f"{name} is {shape[name]!r}; it must be {' or '.join(known)}.")
    config = GPTConfig(**shape)
    if config.n_embd % config.n_head != 0:
        near = next(n for n in range(min(config.n_head, config.n_embd, 10**6), 0, -1) if config.n_embd % n == 0)
        raise UserError(f"n_head = {config.n_head} does not divide n_embd = {config.n_embd}; {near} would do.")
    if config.positions == "sinusoidal" and config.n_embd % 2 != 0:
        raise UserError(f"n_embd = {config.n_embd} is odd; sinusoidal positions pair sines with cosines.")
    check_memory(config)
    return config


def parameter_count(config: GPTConfig) -> int:
    """How many parameters a GPT of this shape has, by the formulas of model.py; one that is built counts its own."""
    C = config.n_embd
    attention, feed_forward, norms = 4 * C * C + 4 * C, 8 * C * C + 5 * C, 4 * C
    positions = config.block_size * C if config.positions == "learned" else 0
    final_norm = 2 * C if config.norm == "pre" else 0
    return config.vocab_size * C + positions + config.n_layer * (attention + feed_forward + norms) + final_norm


def memory_of_machine() -> int | None:
    """Bytes of memory that this machine or container has; None where the system doesn't tell."""
    try:
        sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (AttributeError, ValueError, OSError):  # not every system has these
        return None
    if CGROUP.is_file() and (limit := CGROUP.read_text().strip()).isdigit():
        sizes.append(int(limit))
    return min(sizes)


def check_memory(
    config: GPTConfig, floats_per_parameter: float = 1, sequences: int = 1, parameters: int | None = None
) -> None:
    """Raise a UserError if a model would take more memory than the machine has.

    Counted is what it takes at the very least: the parameters; for each sequence its keys and values, or what of its
    residual stream is kept for the gradient, and its logits; and one attention pattern. ``parameters`` is the number of
    a model that is built already, which may not be the one of the formulas.
    """
    T, C = config.block_size, config.n_embd
    parameters = parameter_count(config) if parameters is None else parameters
    sequence = (2 * config.n_layer + 1) * T * C + T * config.vocab_size
    needed = FLOAT * (floats_per_parameter * parameters + sequences * sequence + T * T) + LAYER * config.n_layer
    there = memory_of_machine()
    if there is not None and needed > there:
        raise UserError(
            f"A model of {config.n_layer:,} layers x {C:,} with a window of {T:,} has {parameters:,} parameters; with "
            f"{sequences:,} sequences at once it would take at least {needed / 1e9:,.1f} GB of memory, and this "
            f"machine has {there / 1e9:,.1f} GB."
        )


def flops_per_token(config: GPTConfig) -> int:
    """Floating-point operations to train on one token, forward and backward.

    Six for each weight of a matrix that the token passes, the output among them, and for attention 12 per layer,
    channel and position of the window (Chowdhery et al. 2022, "PaLM", appendix B). Future positions count too.
    """
    L, C, T = config.n_layer, config.n_embd, config.block_size
    return 6 * (12 * L * C * C + config.vocab_size * C) + 12 * L * C * T

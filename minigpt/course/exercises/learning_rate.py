"""Warm-up, then half a cosine."""

import math
from collections.abc import Callable
from typing import Any

import torch

Answer = Callable[..., Any]
LESSON = 9
TITLE = "The learning rate: up in a line, down along a cosine"
STUB = '''
import math


def learning_rate(step, peak, warmup_steps, max_steps):
    """The learning rate of one optimizer step (Radford et al. 2018, section 4.1).

    It rises in a straight line from 0 at step 0 to the peak at step ``warmup_steps``. Then it falls along half a
    cosine to 0 at ``max_steps``.

    Args:
        step: counted from 0.
        peak: the highest learning rate.
        warmup_steps: fewer than max_steps.
        max_steps: steps of the whole training.

    Returns:
        a number
    """
    raise NotImplementedError
'''
HINTS = [
    "What is the rate at step 0, at warmup_steps, and half-way between warmup_steps and max_steps?",
    "All are numbers. The progress after the warm-up goes from 0 to 1; cos(0) = 1 and cos(pi) = -1.",
    "before warmup_steps: peak * step / warmup_steps; after: peak * (1 + cos(pi * progress)) / 2",
    "minigpt/optim.py, learning_rate_factor: its last three lines",
]


def inputs(generator: torch.Generator) -> tuple[int, float, int, int]:
    warmup, rest = (int(torch.randint(5, 30, (), generator=generator)) for _ in range(2))
    step = int(torch.randint(1, warmup + rest, (), generator=generator))
    return step, 0.1 + float(torch.rand((), generator=generator)), warmup, warmup + rest


def specification(step: int, peak: float, warmup_steps: int, max_steps: int) -> float:
    if step < warmup_steps:
        return peak * step / warmup_steps
    progress = (step - warmup_steps) / (max_steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


solution = specification


def _with(
    from_one: bool = False, whole: bool = False, line: bool = False, floor: float = 0.0, warm: bool = True
) -> Answer:
    def wrong(step: int, peak: float, warmup_steps: int, max_steps: int) -> float:
        if step < warmup_steps:
            return peak * (step + from_one) / warmup_steps if warm else peak
        start = 0 if whole else warmup_steps
        progress = (step - start) / (max_steps - start)
        falling = 1 - progress if line else 0.5 * (1 + math.cos(math.pi * progress))
        return peak * (floor + (1 - floor) * falling)

    return wrong


def _quarter_cosine(step: int, peak: float, warmup_steps: int, max_steps: int) -> float:
    if step < warmup_steps:
        return peak * step / warmup_steps
    return peak * math.cos(math.pi / 2 * (step - warmup_steps) / (max_steps - warmup_steps))


def _without_pi(step: int, peak: float, warmup_steps: int, max_steps: int) -> float:
    if step < warmup_steps:
        return peak * step / warmup_steps
    return peak * 0.5 * (1 + math.cos((step - warmup_steps) / (max_steps - warmup_steps)))


WRONG = [
    ("Your warm-up begins one step late or early: at step 0 the rate is 0.", _with(from_one=True)),
    ("Your cosine begins at step 0: it begins where the warm-up ends, or the rate jumps there.", _with(whole=True)),
    ("You fall in a straight line: wanted is half a cosine.", _with(line=True)),
    ("You have no warm-up.", _with(warm=False)),
    ("You end at a tenth of the peak: GPT-1's schedule ends at 0.", _with(floor=0.1)),
    ("Yours is a quarter of a cosine: (1 + cos) / 2 of an angle that goes from 0 to pi.", _quarter_cosine),
    ("Pi is missing: the cosine's angle goes from 0 to pi.", _without_pi),
    ("You forget the peak: yours goes from 0 to 1.", lambda step, peak, w, m: specification(step, 1.0, w, m)),
    (
        "Your cosine is divided by all steps: the progress is (step - warm-up) / (max_steps - warm-up).",
        lambda step, peak, w, m: specification(step, peak, w, m + w),
    ),
]

"""The exercises, in the order of the course; a module for each, all of one form.

``LESSON`` and ``TITLE``; ``STUB``, the file that the learner gets; ``inputs``, arguments drawn anew, in float64;
``specification``, in plain loops; ``solution``, as a good learner writes it; ``WRONG``, answers that are known to be
wrong, each with what is to be said to whoever gives it; ``HINTS``, from a question to the line of the real program;
``RAISES``, where there are any, answers that PyTorch refuses by an error of their own, with the same;
``DRAWS``, how many inputs an answer is tried on, where the usual number would let a wrong one pass.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

NAMES = (
    *("vocabulary", "surprisal", "windows", "cross_entropy", "average_past", "attend", "split_heads"),
    *("position_table", "layer_norm", "block", "learning_rate", "adamw_step", "choose", "lens", "gpt"),
)


@dataclass(frozen=True)
class Exercise:
    """One exercise; see the top of this file."""

    name: str  # of the function that is to be written, and of its file
    lesson: int
    title: str
    stub: str
    inputs: Callable[[torch.Generator], tuple[Any, ...]]
    specification: Callable[..., Any]
    solution: Callable[..., Any]
    wrong: list[tuple[str, Callable[..., Any]]]
    raising: list[tuple[str, Callable[..., Any]]]
    hints: list[str]
    draws: int  # inputs that an answer is tried on, each drawn anew


def sizes(generator: torch.Generator, count: int, least: int = 2) -> list[int]:
    """Sizes of so many dimensions: drawn anew, so that no answer is right for one size alone, and no two the same."""
    return (least + torch.randperm(count + 1, generator=generator)[:count]).tolist()


def exercise(name: str) -> Exercise:
    """The exercise of that name."""
    module = importlib.import_module(f"{__name__}.{name}")
    return Exercise(
        name,
        module.LESSON,
        module.TITLE,
        module.STUB.lstrip(),
        module.inputs,
        module.specification,
        module.solution,
        module.WRONG,
        getattr(module, "RAISES", []),
        module.HINTS,
        getattr(module, "DRAWS", 16),
    )

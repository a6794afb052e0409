"""Comparing two things on a machine that is now faster and now slower: both in turn, ratios pair by pair."""

import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


def in_turn(measures: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each measures, once in each round. Every other round goes backwards, so that none always comes first."""
    values: dict[str, list[float]] = {name: [] for name in measures}
    for turn in range(rounds):
        for name, measure in list(measures.items())[:: -1 if turn % 2 else 1]:
            values[name].append(measure())
    return values


@dataclass(frozen=True)
class Ratio:
    """The median of ratios, and the interval that holds it with 95 %: by the bootstrap, over 2,000 resamples."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, ratios: Sequence[float]) -> "Ratio":
        draw = random.Random(0)
        medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(2000))
        return cls(statistics.median(ratios), medians[50], medians[-51])

    @classmethod
    def of_pairs(cls, ours: Sequence[float], others: Sequence[float]) -> "Ratio":
        return cls.of([a / b for a, b in zip(ours, others, strict=True)])

    @property
    def uncertainty(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class Done:
    """A process that has ended: what it printed, its seconds, and its peak resident memory in 10^6 bytes."""

    out: str
    seconds: float
    megabytes: float


def run(command: Sequence[str | Path], folder: Path) -> Done:
    """Run a command in a folder; if it fails, say so and exit."""
    with (folder / "out.txt").open("w+") as out, (folder / "err.txt").open("w+") as err:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        for file in (out, err):
            file.seek(0)
        if status:
            sys.exit(f"failed: {' '.join(map(str, command))}\n{out.read()}{err.read()}")
        return Done(out.read(), seconds, usage.ru_maxrss * 1024 / 1e6)

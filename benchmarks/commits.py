"""How fast two checkouts of this project train and write, beside each other.

    python benchmarks/commits.py OLD NEW --text FILE [--minutes 60] [--only WORD ...]

For each row both work in processes of their own that take turns of a second or more: old, new, new, old. A round is a
pair of such processes with some turns of each, and compares their median rates. A row ends when the 95 % interval of
the median ratio over the rounds reaches no further than 2 % to either side, or when its share of the time is over. The
last row compares ``fit`` with a bare loop, both of NEW.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

from compare import Ratio

ROWS = {
    "train 4 x 128": ("train", "small"),
    "train 6 x 384": ("train", "large"),
    "write 1 text, 4 x 128": ("write", "small", "1"),
    "write 16 texts, 4 x 128": ("write", "small", "16"),
    "write 1 text, 6 x 384": ("write", "large", "1"),
    "write 16 texts, 6 x 384": ("write", "large", "16"),
    "fit beside a bare loop, 4 x 128": ("fit", "small"),
}
QUADS = 3  # of turns in a round
ROUNDS = 5  # at least
PRECISE = 0.02


class Side:
    """A process of ``worker.py`` that waits for its turns."""

    def __init__(self, checkout: Path, task: tuple[str, ...], text: Path, folder: Path) -> None:
        what, shape, *number = task
        worker = Path(__file__).with_name("worker.py")
        self.errors = (folder / "errors.txt").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, str(worker), what, shape, str(text), *number],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(checkout)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def __enter__(self) -> "Side":
        self.note = self._wait_for("ready").strip()  # how it computes
        return self

    def turn(self) -> float:
        """Characters a second, in one turn."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self._wait_for("rate"))

    def _wait_for(self, word: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(word):
                return line.removeprefix(word)
        self.errors.seek(0)
        sys.exit(f"A worker ended early:\n{self.errors.read()}")

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()


def one_round(sides: list[tuple[Path, tuple[str, ...]]], text: Path, swap: bool) -> tuple[float, float]:
    """The median rate of each of the two sides, in turns."""
    rates: tuple[list[float], list[float]] = ([], [])
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        first, second = (Side(*side, text, Path(folder)) for side, folder in zip(sides, (one, other), strict=True))
        with first, second:
            both = (first, second)
            print(f"{' '.join(sides[1][1])}: {second.note}", file=sys.stderr)
            order = (1, 0, 0, 1) if swap else (0, 1, 1, 0)
            for side in both:
                side.turn()  # warms up
            for which in order * QUADS:
                rates[which].append(both[which].turn())
    return statistics.median(rates[0]), statistics.median(rates[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--text", type=Path, required=True, help="any text, of 100,000 characters at least")
    parser.add_argument("--minutes", type=float, default=60, help="for all rows together")
    parser.add_argument("--only", nargs="*", default=[""], help="rows with one of these words in their names")
    args = parser.parse_args()
    old, new, text = (path.absolute() for path in (args.old, args.new, args.text))
    rows = {name: task for name, task in ROWS.items() if any(word in name for word in args.only)}
    end = time.monotonic() + 60 * args.minutes
    print("| what | characters/s: old, or bare | new | ratio (95 %) | rounds |\n|---|---|---|---|---|")
    for done, (name, task) in enumerate(rows.items()):
        sides = [(new, ("train", *task[1:])), (new, task)] if task[0] == "fit" else [(old, task), (new, task)]
        share = time.monotonic() + (end - time.monotonic()) / (len(rows) - done)
        rates: list[tuple[float, float]] = []
        while True:
            start = time.monotonic()
            rates.append(one_round(sides, text, swap=len(rates) % 2 == 1))
            ratio = Ratio.of([b / a for a, b in rates])
            length = time.monotonic() - start
            if (len(rates) >= ROUNDS and ratio.uncertainty <= PRECISE) or time.monotonic() + length > share:
                break
        before, after = (statistics.median(values) for values in zip(*rates, strict=True))
        print(f"| {name} | {before:,.0f} | {after:,.0f} | {ratio} | {len(rates)} |", flush=True)


if __name__ == "__main__":
    main()

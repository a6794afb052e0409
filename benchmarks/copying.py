"""How long it takes to tell whether a text is copied, and how much memory, beside sets of n-grams and ``in``.

    python benchmarks/copying.py PATH_TO_AN_ENGLISH_TEXT

The training text is made of pieces of that text, shuffled, with one character in 50 replaced. Each measurement runs in
a process of its own.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from minigpt.glassbox.copying import SIZES, copying
from minigpt.text.corpus import DataSettings


def noisy(text: bytes, path: Path, megabytes: int) -> None:
    """Write a text of that size, and the last tenth of ``text`` beside it, from which no piece was taken."""
    ids, random = np.frombuffer(text, np.uint8), np.random.default_rng(0)
    pieces = ids[: len(ids) * 9 // 10]
    with path.open("wb") as file:
        for _ in range(megabytes):
            lengths = random.integers(20, 2000, 2000)
            starts = random.integers(0, len(pieces) - 2000, 2000)
            block = np.concatenate([pieces[s : s + n] for s, n in zip(starts, lengths, strict=True)])[: 10**6]
            places = random.random(len(block)) < 0.02
            block[places] = random.choice(ids, int(places.sum()))
            file.write(block.tobytes())
    path.with_name("held_out.txt").write_bytes(ids[len(pieces) :].tobytes())


def naively(texts: list[str], training: str) -> None:
    """The same figures by what one would write first."""
    for n in SIZES:
        known = {training[i : i + n] for i in range(len(training) - n + 1)}
        print(n, [sum(text[i : i + n] not in known for i in range(len(text) - n + 1)) for text in texts])
    for text in texts:
        longest = 0
        for i in range(len(text)):
            while i + longest < len(text) and text[i : i + longest + 1] in training:
                longest += 1
        print(longest)


def measure(how: str, path: Path, size: int) -> None:
    data = DataSettings(str(path), val_corpus=str(path.with_name("held_out.txt")), data_dir=str(path.parent))
    with path.open("rb") as file:
        copied = file.read(size // 2).decode()
    held_out = path.with_name("held_out.txt").read_text()
    sample = copied + held_out[-(size - size // 2) :]
    start = time.perf_counter()
    if how == "naive":
        starts = np.linspace(0, len(held_out) - size, 8).astype(int)
        naively([sample, *(held_out[i : i + size] for i in starts)], path.read_text())
    else:
        (found,) = copying(sample, data)
        print(found.shared.longest, found.shared.new, [len(null.longest) for null in found.null if null.longest])
    seconds, memory = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"| {path.stat().st_size / 1e6:,.0f} MB | {size:,} | {how} | {seconds:.2f} | {memory:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.measure[0], args.text, int(args.measure[1]))
        return
    ours = [("ours", 1000), ("ours", 10_000)]
    with tempfile.TemporaryDirectory() as temporary:
        for megabytes, ways in ((10, [*ours, ("naive", 1000)]), (1000, ours)):
            path = Path(temporary) / f"{megabytes}.txt"
            noisy(args.text.read_bytes(), path, megabytes)
            DataSettings(str(path), data_dir=temporary).open(str(path))  # encoded once, as training does it
            for way, size in ways:
                command = [sys.executable, __file__, path, "--measure", way, str(size)]
                subprocess.run(list(map(str, command)), check=True)


if __name__ == "__main__":
    main()

"""How fast text becomes ids, beside nanoGPT's ``prepare.py``, and how fast ids become batches.

    python benchmarks/corpus.py --nanogpt PATH_TO_A_NANOGPT_CHECKOUT

Both programs encode the same English text, in turn, each in a process of its own; medians are printed.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from minigpt.text.corpus import CorpusReader
from minigpt.text.sources import find_sources

ENCODE = (
    "import sys; from pathlib import Path; from minigpt.text.corpus import CorpusReader;"
    "CorpusReader(Path(sys.argv[2])).open(sys.argv[1])"
)


def run(command: list[str]) -> tuple[float, float]:
    """Seconds and peak resident megabytes of a process."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"failed: {' '.join(command)}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024 / 1e6


def english(path: Path, megabytes: int) -> Path:
    """The complete plays, over and over."""
    (source,) = find_sources("shakespeare", path.parent)
    text = source.path.read_bytes()
    with path.open("wb") as file:
        for start in range(0, megabytes * 10**6, len(text)):
            file.write(text[: megabytes * 10**6 - start])
    return path


def ours(text: Path, folder: Path, name: str) -> tuple[float, float]:
    return run([sys.executable, "-c", ENCODE, str(text), str(folder / name)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--nanogpt", type=Path, help="a nanoGPT checkout; without it only minigpt is measured")
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        small, large = english(folder / "input.txt", 100), english(folder / "large.txt", 1000)
        pairs = []
        for i in range(args.runs):
            own = ours(small, folder, f"small{i}")
            other = None
            if args.nanogpt:
                # prepare.py reads the input.txt that lies beside it.
                script = folder / "prepare.py"
                if not script.is_symlink():
                    script.symlink_to((args.nanogpt / "data" / "shakespeare_char" / "prepare.py").absolute())
                other = run([sys.executable, str(script)])
            pairs.append((own, other))
        rate = statistics.median(100 / own[0] for own, _ in pairs)
        print("| text | program | MB/s, whole process | peak memory, MB |")
        print("|---|---|---|---|")
        print(f"| 100 MB | minigpt | {rate:.0f} | {max(own[1] for own, _ in pairs):.0f} |")
        others = [other for _, other in pairs if other]
        if others:
            print(f"| 100 MB | nanoGPT | {statistics.median(100 / o[0] for o in others):.1f} | {others[0][1]:.0f} |")
            ratios = [other[0] / own[0] for own, other in pairs if other]
            print(f"\nminigpt / nanoGPT, pair by pair: median {statistics.median(ratios):.1f}\n")
        big = [ours(large, folder, f"large{i}") for i in range(args.runs)]
        print(f"| 1 GB | minigpt | {statistics.median(1000 / b[0] for b in big):.0f} | {max(b[1] for b in big):.0f} |")

        start = time.perf_counter()
        corpus = CorpusReader(folder / "large0").open(str(large))
        print(f"\nopening it again: {1000 * (time.perf_counter() - start):.1f} ms")
        from minigpt.text.windows import TrainingBatches

        batches = TrainingBatches(corpus.ids(), block_size=256, batch_size=64, seed=0)
        times = []
        for k in range(2000):
            start = time.perf_counter()
            batches[k]
            times.append(time.perf_counter() - start)
        print(f"a batch of 64 x 256: median {1e6 * statistics.median(times[100:]):.0f} us")


if __name__ == "__main__":
    main()

"""How fast text becomes ids, beside nanoGPT's ``prepare.py``, and how fast ids become batches.

    python benchmarks/corpus.py --nanogpt PATH_TO_A_NANOGPT_CHECKOUT

Both programs encode the same English text, in turn, each in a process of its own; medians are printed.
"""

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from compare import Done, Ratio, in_turn, run

from minigpt.text.corpus import DataSettings
from minigpt.text.sources import NAMED
from minigpt.text.windows import TrainingBatches


def english(path: Path, megabytes: int) -> Path:
    """The complete plays, over and over."""
    text = NAMED["shakespeare"].get(path.parent).read_bytes()
    with path.open("wb") as file:
        for start in range(0, megabytes * 10**6, len(text)):
            file.write(text[: megabytes * 10**6 - start])
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nanogpt", type=Path, help="a nanoGPT checkout; without it only minigpt is measured")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, nargs=2, default=(100, 1000), help="of the small and the large text")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, number = Path(temporary), itertools.count()
        small, large = (
            english(folder / name, n) for name, n in zip(("input.txt", "large.txt"), args.megabytes, strict=True)
        )
        memory: dict[str, float] = {}

        def rate(name: str, text: Path, program: Callable[[Path], Done]) -> Callable[[], float]:
            """Measures MB a second, and notes the peak memory."""

            def measure() -> float:
                done = program(text)
                memory[name] = max(done.megabytes, memory.get(name, 0.0))
                return text.stat().st_size / 1e6 / done.seconds

            return measure

        def ours(text: Path) -> Done:
            script = Path(__file__).with_name("encode.py").absolute()
            return run([sys.executable, script, text, folder / f"ids{next(number)}"], folder)

        def nanogpt(text: Path) -> Done:
            script = folder / "prepare.py"  # it reads the input.txt that lies beside it
            if not script.is_symlink():
                script.symlink_to((args.nanogpt / "data" / "shakespeare_char" / "prepare.py").absolute())
            return run([sys.executable, script], folder)

        measures = {"minigpt": rate("minigpt", small, ours)}
        if args.nanogpt:
            measures["nanoGPT"] = rate("nanoGPT", small, nanogpt)
        values = in_turn(measures, args.rounds) | in_turn(
            {"minigpt, large": rate("minigpt, large", large, ours)}, args.rounds
        )
        print("| program | MB/s, whole process | peak memory, MB |\n|---|---|---|")
        for name, rates in values.items():
            print(f"| {name} | {statistics.median(rates):.1f} | {memory[name]:.0f} |")
        if args.nanogpt:
            print(f"\nminigpt / nanoGPT, pair by pair: {Ratio.of_pairs(values['minigpt'], values['nanoGPT'])}")

        start = time.perf_counter()
        corpus = DataSettings(data_dir=str(folder / f"ids{next(number) - 1}")).open(str(large))
        print(f"\nopening it again: {1000 * (time.perf_counter() - start):.1f} ms")
        batches = TrainingBatches(corpus.ids(), block_size=256, batch_size=64, seed=0)
        times = []
        for k in range(2000):
            start = time.perf_counter()
            batches[k]
            times.append(time.perf_counter() - start)
        print(f"a batch of 64 x 256: median {1e6 * statistics.median(times[100:]):.0f} us")


if __name__ == "__main__":
    main()

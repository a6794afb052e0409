"""How long commands take to begin, beside what importing torch and Lightning alone takes.

    python benchmarks/startup.py

Whole processes, run in turn. ``fit`` is that of configs/quickstart.yaml on a small text that has been read before, to
its first step; it ends there, without a validation or a checkpoint.
"""

import argparse
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path

from compare import in_turn, run

HERE = Path(__file__).parent.absolute()
TEXT = ["--data.corpus", "text.txt"]
COMMANDS = {
    "python -c 'import torch'": ["-c", "import torch"],
    "python -c 'import lightning.pytorch'": ["-c", "import lightning.pytorch"],
    "minigpt --help": ["-m", "minigpt", "--help"],
    **{f"minigpt {name} --help": ["-m", "minigpt", name, "--help"] for name in ("corpus", "generate", "plan", "fit")},
    "minigpt corpus --data.corpus text.txt": ["-m", "minigpt", "corpus", *TEXT],
    "minigpt fit, to its first step": [
        str(HERE / "first_step.py"), "--config", str(HERE.parent / "configs/quickstart.yaml"), *TEXT
    ],
}  # fmt: skip


def seconds(arguments: list[str], folder: Path) -> float:
    return run([sys.executable, *arguments], folder).seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "text.txt").write_text("A text that is short, but not too short for a window.\n" * 1000)
        measures = {name: partial(seconds, arguments, Path(folder)) for name, arguments in COMMANDS.items()}
        in_turn(measures, 1)  # fills the caches
        print("| command | seconds, median | least | most |\n|---|---|---|---|")
        for name, times in in_turn(measures, rounds).items():
            print(f"| `{name}` | {statistics.median(times):.2f} | {min(times):.2f} | {max(times):.2f} |")


if __name__ == "__main__":
    main()

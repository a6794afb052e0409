"""How long commands take to begin, beside what importing torch and Lightning alone takes.

    python benchmarks/startup.py

Whole processes, run in turn. ``fit`` is that of configs/quickstart.yaml on a small text that has been read before, to
its first step; it ends there, without a validation or a checkpoint.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent.absolute()
# Ends the process as soon as the first step is done, by the hook that Lightning calls then.
FIRST_STEP = """
import os
from minigpt.training.module import GPTLightningModule
GPTLightningModule.on_train_batch_end = lambda *_: os._exit(0)
from minigpt.training.cli import train
train("fit", ["--config", "{config}", "--data.corpus", "text.txt"])
"""
COMMANDS = {
    "python -c 'import torch'": ["-c", "import torch"],
    "python -c 'import lightning.pytorch'": ["-c", "import lightning.pytorch"],
    "minigpt --help": ["-m", "minigpt", "--help"],
    **{f"minigpt {name} --help": ["-m", "minigpt", name, "--help"] for name in ("corpus", "generate", "plan", "fit")},
    "minigpt corpus --data.corpus text.txt": ["-m", "minigpt", "corpus", "--data.corpus", "text.txt"],
    "minigpt fit, to its first step": ["-c", FIRST_STEP.format(config=ROOT / "configs/quickstart.yaml")],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "text.txt").write_text("A text that is short, but not too short for a window.\n" * 1000)
        for turn in range(rounds + 1):
            for name, arguments in COMMANDS.items():
                start = time.perf_counter()
                subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, check=True)
                if turn > 0:  # the first one fills the caches
                    seconds[name].append(time.perf_counter() - start)
    print("| command | seconds, median | least | most |\n|---|---|---|---|")
    for name, times in seconds.items():
        print(f"| `{name}` | {statistics.median(times):.2f} | {min(times):.2f} | {max(times):.2f} |")


if __name__ == "__main__":
    main()

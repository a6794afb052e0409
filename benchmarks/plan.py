"""How well ``plan`` foretells what ``fit`` takes.

    python benchmarks/plan.py --text tinyshakespeare.txt

For each recipe ``plan`` and ``fit`` run in turn, each in a process of its own: time and peak memory, foretold and real.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent.absolute()
RECIPES = {
    "tinyshakespeare-race": (),
    "tinyshakespeare-cpu": (),
    "quickstart": ("--trainer.max_steps=600", "--trainer.val_check_interval=200", "--sampler.every_n_steps=200"),
    "tinyshakespeare-gpu": ("--trainer.max_steps=8", "--trainer.limit_val_batches=8", "--sampler.every_n_steps=0"),
}
SECONDS = {"s": 1, "min": 60, "h": 3600}


def run(command: str, name: str, flags: tuple[str, ...], text: Path, folder: Path) -> tuple[str, float, float]:
    """What one command prints, its seconds and its peak resident megabytes."""
    args = [sys.executable, "-m", "minigpt", command, f"--config={ROOT}/configs/{name}.yaml", f"--data.corpus={text}"]
    start = time.perf_counter()
    with (folder / "out").open("w+") as out:
        process = subprocess.Popen([*args, *flags], stdout=out, stderr=subprocess.DEVNULL, cwd=folder)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit(f"failed: {' '.join(args)}")
        out.seek(0)
        return out.read(), time.perf_counter() - start, usage.ru_maxrss * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--text", type=Path, required=True, help="the file of Tiny Shakespeare")
    text = parser.parse_args().text.absolute()
    print("| recipe | foretold, s | real, s | ratio | foretold, MB | real, MB | ratio |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        for name, flags in RECIPES.items():
            told, _, _ = run("plan", name, flags, text, Path(temporary))
            *_, whole = re.findall(r"together +([\d.,]+) (s|min|h)", told)
            seconds = float(whole[0].replace(",", "")) * SECONDS[whole[1]]
            memory = float(re.findall(r"the whole process +([\d.,]+)", told)[0].replace(",", ""))
            _, real, peak = run("fit", name, flags, text, Path(temporary))
            print(f"| {name} | {seconds:.1f} | {real:.1f} | {seconds / real:.2f} ", end="")
            print(f"| {memory:,.0f} | {peak:,.0f} | {memory / peak:.2f} |", flush=True)


if __name__ == "__main__":
    main()

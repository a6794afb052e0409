"""How well ``plan`` predicts what ``fit`` takes.

    python benchmarks/plan.py --text tinyshakespeare.txt

For each recipe ``plan`` and ``fit`` run one after the other: time and peak memory, predicted and real.
"""

import argparse
import re
import sys
import tempfile
from pathlib import Path

from compare import run

ROOT = Path(__file__).parent.parent.absolute()
RECIPES = {
    "tinyshakespeare-race": (),
    "tinyshakespeare-cpu": (),
    "quickstart": ("--trainer.max_steps=600", "--trainer.val_check_interval=200", "--sampler.every_n_steps=200"),
    "tinyshakespeare-gpu": ("--trainer.max_steps=8", "--trainer.limit_val_batches=8", "--sampler.every_n_steps=0"),
}
SECONDS = {"s": 1, "min": 60, "h": 3600}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--text", type=Path, required=True, help="the file of Tiny Shakespeare")
    parser.add_argument("--recipes", nargs="*", default=list(RECIPES), choices=RECIPES)
    args = parser.parse_args()
    print(
        "| recipe | predicted, s | real, s | ratio | predicted, MB | real, MB | ratio |\n|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as temporary:
        for name in args.recipes:
            flags = [f"--config={ROOT}/configs/{name}.yaml", f"--data.corpus={args.text.absolute()}", *RECIPES[name]]
            planned, real = (
                run([sys.executable, "-m", "minigpt", command, *flags], Path(temporary)) for command in ("plan", "fit")
            )
            *_, (time, unit) = re.findall(r"together +([\d.,]+) (s|min|h)", planned.out)
            seconds = float(time.replace(",", "")) * SECONDS[unit]
            memory = float(re.findall(r"the whole process +([\d.,]+)", planned.out)[0].replace(",", ""))
            print(f"| {name} | {seconds:.1f} | {real.seconds:.1f} | {seconds / real.seconds:.2f} ", end="")
            print(f"| {memory:,.0f} | {real.megabytes:,.0f} | {memory / real.megabytes:.2f} |", flush=True)


if __name__ == "__main__":
    main()

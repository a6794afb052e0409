"""How fast minigpt trains, beside nanoGPT's ``train.py``.

    python benchmarks/training.py --nanogpt PATH --text tinyshakespeare.txt [small large race ddp compile]

small   4 x 128, window 64, batch 12: characters a second of both programs, without validation
large   6 x 384, window 256, batch 64, dropout 0.2: the same
race    seconds of whole processes to nanoGPT's 1.88: its README's command for a CPU, and tinyshakespeare-race
ddp     two processes that share each batch beside one with all cores (the model of ``large``, batch 16)
compile the model of ``small``, compiled beside not compiled, when the compiling is over

Both programs run in turn, each in a process of its own; medians and ratios pair by pair are printed. ``fit`` beside a
bare loop is measured by ``commits.py``.
"""

import argparse
import re
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from compare import Ratio, in_turn, run
from worker import SHAPES, fit_flags

ROOT = Path(__file__).parent.parent.absolute()
STEPS = {"small": 150, "large": 5}
TWO = ("--trainer.strategy=ddp", "--trainer.devices=2")
SMALLER = ("--data.batch_size=16", "--trainer.max_steps=15")  # so that ddp fits into memory twice


class Peer:
    """A copy of a nanoGPT checkout with the text prepared."""

    def __init__(self, checkout: Path, text: Path, folder: Path) -> None:
        self.folder = folder / "nanogpt"
        shutil.copytree(checkout, self.folder, ignore=shutil.ignore_patterns(".git"))
        data = self.folder / "data" / "shakespeare_char"
        shutil.copy(text, data / "input.txt")
        run([sys.executable, data / "prepare.py"], self.folder)

    def train(self, *flags: str) -> tuple[str, float]:
        """What it prints, and its seconds."""
        common = ["config/train_shakespeare_char.py", "--device=cpu", "--compile=False", "--log_interval=1"]
        done = run([sys.executable, "train.py", *common, *flags], self.folder)
        return done.out, done.seconds

    def rate(self, shape: str) -> float:
        """Characters a second, by the times that it prints for each iteration."""
        layers, heads, width, window, batch, dropout = SHAPES[shape]
        out, _ = self.train(
            *(f"--n_layer={layers}", f"--n_head={heads}", f"--n_embd={width}", f"--block_size={window}"),
            *(f"--batch_size={batch}", f"--dropout={dropout}", f"--max_iters={STEPS[shape]}"),
            *("--eval_iters=1", "--eval_interval=100000"),
        )
        times = [float(ms) for ms in re.findall(r"time ([\d.]+)ms", out)][1:]  # the first one holds a validation
        return batch * window / statistics.median(times) * 1000

    def race(self) -> float:
        """Seconds of its README's command for a CPU."""
        out, seconds = self.train(
            *("--eval_iters=20", "--block_size=64", "--batch_size=12", "--n_layer=4", "--n_head=4"),
            *("--n_embd=128", "--max_iters=2000", "--lr_decay_iters=2000", "--dropout=0.0"),
        )
        loss = min(float(loss) for loss in re.findall(r"val loss ([\d.]+)", out))
        print(f"nanoGPT: validation loss {loss} after {seconds:.1f} s", file=sys.stderr)
        return seconds


def rate(folder: Path, text: Path, shape: str, *flags: str) -> float:
    """Characters a second, as ``fit`` tells them."""
    every = max(1, STEPS[shape] // 10)
    steps = (f"--trainer.max_steps={STEPS[shape]}", f"--trainer.log_every_n_steps={every}")
    out = run([sys.executable, "-m", "minigpt", "fit", *fit_flags(shape, text), *steps, *flags], folder).out
    (found,) = re.findall(r"Speed: ([\d,]+) char", out)
    return float(found.replace(",", ""))


def race(folder: Path, text: Path) -> float:
    """Seconds of the recipe for it."""
    recipe = (f"--config={ROOT / 'configs/tinyshakespeare-race.yaml'}", f"--data.corpus={text}")
    done = run([sys.executable, "-m", "minigpt", "fit", *recipe], folder)
    (loss,) = re.findall(r"Best: ([\d.]+) nats", done.out)
    print(f"minigpt: validation loss {loss} after {done.seconds:.1f} s", file=sys.stderr)
    return done.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    known = ["small", "large", "race", "ddp", "compile"]
    parser.add_argument("what", nargs="*", metavar="what", default=known, help=f"of {', '.join(known)}; all by default")
    parser.add_argument("--nanogpt", type=Path, required=True, help="a nanoGPT checkout")
    parser.add_argument("--text", type=Path, required=True, help="the file of Tiny Shakespeare")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if unknown := set(args.what) - set(known):
        parser.error(f"unknown: {', '.join(unknown)}")
    text = args.text.absolute()
    print("| what | minigpt | the other | unit | ratio, pair by pair (95 %) |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        peer, own = Peer(args.nanogpt, text, folder), partial(rate, folder, text)
        pairs: dict[str, tuple[str, Callable[[], float], Callable[[], float]]] = {
            "small": ("small: beside nanoGPT", partial(own, "small"), partial(peer.rate, "small")),
            "large": ("large: beside nanoGPT", partial(own, "large"), partial(peer.rate, "large")),
            "race": ("race: to 1.88, beside nanoGPT", partial(race, folder, text), peer.race),
            "ddp": (
                "ddp: two processes, beside one",
                partial(own, "large", *SMALLER, *TWO),
                partial(own, "large", *SMALLER),
            ),
            "compile": (
                "compile: compiled, beside not",
                partial(own, "small", "--model.compile=true"),
                partial(own, "small"),
            ),
        }
        for what in args.what:
            name, ours, other = pairs[what]
            values = in_turn({"ours": ours, "other": other}, args.rounds)
            mine, theirs = (statistics.median(found) for found in values.values())
            unit = "seconds" if what == "race" else "characters/s"
            print(f"| {name} | {mine:,.1f} | {theirs:,.1f} | {unit} | {Ratio.of_pairs(*values.values())} |", flush=True)


if __name__ == "__main__":
    main()

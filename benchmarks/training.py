"""How fast minigpt trains, beside nanoGPT's ``train.py`` and beside a bare loop of its own model.

    python benchmarks/training.py --nanogpt PATH --text tinyshakespeare.txt [small large race bare ddp compile]

small   4 x 128, window 64, batch 12: characters a second of both programs, without validation
large   6 x 384, window 256, batch 64, dropout 0.2: the same
race    whole processes to nanoGPT's 1.88 on the last 10 %: its README's command for a CPU, and tinyshakespeare-race
bare    the step of ``fit`` beside a bare loop of the same model, data and optimizer (4 x 128)
ddp     two processes that share each batch beside one with all cores (the model of ``large``, batch 16)
compile the model of ``small``, compiled beside not compiled, when the compiling is over

Both programs run in turn, each in a process of its own; medians and ratios pair by pair are printed.
"""

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent.absolute()
SHAPES = {
    "small": (4, 4, 128, 64, 12, 0.0, 150),
    "large": (6, 6, 384, 256, 64, 0.2, 5),
    "ddp": (6, 6, 384, 256, 16, 0.2, 15),
}
TWO = ("--trainer.accelerator=cpu", "--trainer.strategy=ddp", "--trainer.devices=2")
# A loop with nothing around it, on the batches, the model and the optimizer of fit.
BARE = """
import statistics, sys, time, torch
from minigpt.training.data import CharDataModule
from minigpt.training.module import GPTLightningModule
from minigpt.training.machine import choose_precision, keep_freed_memory
keep_freed_memory()
data = CharDataModule(sys.argv[1], block_size=64, batch_size=12, val_fraction=0.1, test_fraction=0)
data.setup("fit")
module = GPTLightningModule(data.vocabulary, n_layer=4, n_head=4, n_embd=128, block_size=64, embd_pdrop=0,
                            attn_pdrop=0, resid_pdrop=0, norm="pre")
precision = choose_precision("cpu")[0]
optimizer, times = module.make_optimizer(precision), []
schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
start = time.perf_counter()
for batch in data.train_dataloader():
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        loss = module.character_nats(batch).mean()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    times.append(time.perf_counter() - start)
    start = time.perf_counter()
    if len(times) == 400:
        break
print("rate", 12 * 64 / statistics.median(times[50:]))
"""


def output(command: list[str], folder: Path) -> tuple[str, float]:
    """What a command prints, and its seconds."""
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"failed: {' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout, time.perf_counter() - start


class Peer:
    """A copy of a nanoGPT checkout with the text prepared."""

    def __init__(self, checkout: Path, text: Path, folder: Path) -> None:
        self.folder = folder / "nanogpt"
        shutil.copytree(checkout, self.folder, ignore=shutil.ignore_patterns(".git"))
        data = self.folder / "data" / "shakespeare_char"
        shutil.copy(text, data / "input.txt")
        output([sys.executable, str(data / "prepare.py")], self.folder)

    def train(self, *flags: str) -> tuple[str, float]:
        common = ["config/train_shakespeare_char.py", "--device=cpu", "--compile=False", "--log_interval=1"]
        return output([sys.executable, "train.py", *common, *flags], self.folder)

    def rate(self, shape: str) -> float:
        """Characters a second, by the times that it prints for each iteration."""
        layers, heads, width, window, batch, dropout, steps = SHAPES[shape]
        out, _ = self.train(
            *(f"--n_layer={layers}", f"--n_head={heads}", f"--n_embd={width}", f"--block_size={window}"),
            *(f"--batch_size={batch}", f"--dropout={dropout}", f"--max_iters={steps}"),
            *("--eval_iters=1", "--eval_interval=100000"),
        )
        times = [float(ms) for ms in re.findall(r"time ([\d.]+)ms", out)][1:]  # the first one holds a validation
        return batch * window / statistics.median(times) * 1000

    def race(self) -> tuple[float, float]:
        """Its README's command for a CPU: the best validation loss that it prints, and seconds."""
        out, seconds = self.train(
            *("--eval_iters=20", "--block_size=64", "--batch_size=12", "--n_layer=4", "--n_head=4"),
            *("--n_embd=128", "--max_iters=2000", "--lr_decay_iters=2000", "--dropout=0.0"),
        )
        return min(float(loss) for loss in re.findall(r"val loss ([\d.]+)", out)), seconds


def fit(folder: Path, *flags: str) -> tuple[str, float]:
    return output([sys.executable, "-m", "minigpt", "fit", *flags], folder)


def speed(out: str) -> float:
    found = re.search(r"Speed: ([\d,]+) char", out)
    assert found, out
    return float(found[1].replace(",", ""))


def own_rate(folder: Path, text: Path, shape: str, *flags: str) -> float:
    """Characters a second, the median of those that ``fit`` logs."""
    layers, heads, width, window, batch, dropout, steps = SHAPES[shape]
    rates = [f"--model.{name}={dropout}" for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop")]
    every = max(1, steps // 10)
    out, _ = fit(
        folder,
        *(f"--model.n_layer={layers}", f"--model.n_head={heads}", f"--model.n_embd={width}", "--model.norm=pre"),
        *(f"--data.corpus={text}", f"--data.block_size={window}", f"--data.batch_size={batch}", *rates),
        *(f"--trainer.max_steps={steps}", f"--trainer.log_every_n_steps={every}", "--trainer.limit_val_batches=1"),
        *(f"--trainer.val_check_interval={steps}", "--sampler.every_n_steps=0", *flags),
    )
    return speed(out)


def own_race(folder: Path, text: Path) -> tuple[float, float]:
    out, seconds = fit(folder, f"--config={ROOT / 'configs/tinyshakespeare-race.yaml'}", f"--data.corpus={text}")
    found = re.search(r"Best: ([\d.]+) nats", out)
    assert found, out
    return float(found[1]), seconds


def own_bare(folder: Path, text: Path) -> float:
    out, _ = output([sys.executable, "-c", BARE, str(text)], folder)
    return float(out.split()[-1])


def shown(name: str, loss: float, seconds: float) -> float:
    print(f"{name}: validation loss {loss} after {seconds:.1f} s", file=sys.stderr)
    return seconds


def compare(name: str, unit: str, rounds: int, ours: Callable[[], float], other: Callable[[], float]) -> None:
    """Print both medians and that of the ratios."""
    pairs = [(ours(), other()) for _ in range(rounds)]
    mine, peer = (statistics.median(values) for values in zip(*pairs, strict=True))
    ratios = sorted(a / b for a, b in pairs)
    middle = statistics.median(ratios)
    print(f"| {name} | {mine:,.1f} | {peer:,.1f} | {unit} | {middle:.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}) |")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    known = ["small", "large", "race", "bare", "ddp", "compile"]
    parser.add_argument("what", nargs="*", metavar="what", default=known, help=f"of {', '.join(known)}; all by default")
    parser.add_argument("--nanogpt", type=Path, required=True, help="a nanoGPT checkout")
    parser.add_argument("--text", type=Path, required=True, help="the file of Tiny Shakespeare")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if unknown := set(args.what) - set(known):
        parser.error(f"unknown: {', '.join(unknown)}")
    text = args.text.absolute()
    print("| what | minigpt | the other | unit | ratio, pair by pair |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        peer = Peer(args.nanogpt, text, folder)
        for what in args.what:
            if what in ("small", "large"):
                compare(
                    f"{what}: training rate, beside nanoGPT",
                    "characters/s",
                    args.rounds,
                    lambda what=what: own_rate(folder, text, what),  # type: ignore[misc]
                    lambda what=what: peer.rate(what),  # type: ignore[misc]
                )
            elif what == "race":
                compare(
                    "race: to 1.88, beside nanoGPT",
                    "seconds",
                    args.rounds,
                    lambda: shown("minigpt", *own_race(folder, text)),
                    lambda: shown("nanoGPT", *peer.race()),
                )
            elif what == "ddp":
                compare(
                    "ddp: two processes, beside one",
                    "characters/s",
                    args.rounds,
                    lambda: own_rate(folder, text, "ddp", *TWO),
                    lambda: own_rate(folder, text, "ddp"),
                )
            elif what == "compile":
                compare(
                    "compile: compiled, beside not",
                    "characters/s",
                    args.rounds,
                    lambda: own_rate(folder, text, "small", "--model.compile=true"),
                    lambda: own_rate(folder, text, "small"),
                )
            else:
                compare(
                    "bare: fit, beside a bare loop",
                    "characters/s",
                    args.rounds,
                    lambda: own_rate(folder, text, "small"),
                    lambda: own_bare(folder, text),
                )


if __name__ == "__main__":
    main()

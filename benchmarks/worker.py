"""One side of a comparison: it works in turns, one for each line on its standard input, and prints the rate of each.

    PYTHONPATH=CHECKOUT python benchmarks/worker.py (train | fit | write) (small | large) TEXT [NUMBER]

train   a loop with nothing around the model, its optimizer and its precision
fit     the same model, as the command of this name trains it
write   NUMBER texts at once, in a window of 256

Rates are characters a second. It works with checkouts of this project before and after it was divided into rooms.
"""

import itertools
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning.pytorch import Callback

import minigpt

# Asked of the folder: an import that fails here would find the module of a checkout that is installed as editable.
ROOMS = (Path(minigpt.__file__).parent / "training").is_dir()
if ROOMS:
    from minigpt.text.tokenizer import CharTokenizer
    from minigpt.training.machine import choose_precision, keep_freed_memory
    from minigpt.training.module import GPTLightningModule
else:
    from minigpt.lightning_module import GPTLightningModule  # type: ignore[no-redef]
    from minigpt.speed import choose_precision, keep_freed_memory  # type: ignore[no-redef]
    from minigpt.tokenizer import CharTokenizer  # type: ignore[no-redef]

SECONDS = 1.0  # of a turn, at least
# layers, heads, width, window, batch, dropout
SHAPES = {"small": (4, 4, 128, 64, 12, 0.0), "large": (6, 6, 384, 256, 64, 0.2)}
DROPOUT = ("embd_pdrop", "attn_pdrop", "resid_pdrop")


class Turns(Callback):
    """Waits for a line before each turn; a turn ends with a piece of work, and with the rate since it began."""

    def __init__(self, note: str = "") -> None:
        self.note = note
        self.start: float | None = None
        self.characters = 0

    def count(self, characters: int) -> None:
        """A piece of work is done."""
        self.characters += characters
        seconds = time.perf_counter() - self.start if self.start else 0.0
        if self.start and seconds < SECONDS:
            return
        print(f"rate {self.characters / seconds}" if self.start else f"ready {self.note}", flush=True)
        if not sys.stdin.readline():
            raise SystemExit
        self.characters, self.start = 0, time.perf_counter()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.count(batch[0].numel())


def train(shape: str, text: Path) -> NoReturn:
    keep_freed_memory()
    n_layer, n_head, n_embd, window, batch_size, dropout = SHAPES[shape]
    characters = text.read_text(encoding="utf-8")
    vocabulary = "".join(sorted(set(characters)))
    ids = torch.as_tensor(CharTokenizer(vocabulary).encode(characters[: 10**6])).long()
    settings: dict[str, Any] = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "block_size": window}
    settings |= dict.fromkeys(DROPOUT, dropout) | {"norm": "pre"}
    module = GPTLightningModule(vocabulary, **settings)
    precision = choose_precision("cpu")[0]
    optimizer = module.make_optimizer(precision)
    turns = Turns(f"{precision}, {module.computes_by}" if ROOMS else precision)
    while True:
        starts = torch.randint(len(ids) - window, (batch_size, 1))
        windows = ids[starts + torch.arange(window + 1)]
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            loss = module.character_nats((windows[:, :-1], windows[:, 1:])).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        turns.count(batch_size * window)


def fit_flags(shape: str, text: Path) -> list[str]:
    """The flags of ``fit`` for a shape, without validation and samples."""
    n_layer, n_head, n_embd, window, batch_size, dropout = SHAPES[shape]
    return [
        *(f"--model.n_layer={n_layer}", f"--model.n_head={n_head}", f"--model.n_embd={n_embd}", "--model.norm=pre"),
        *(f"--model.{name}={dropout}" for name in DROPOUT),
        *(f"--data.corpus={text}", f"--data.block_size={window}", f"--data.batch_size={batch_size}"),
        *("--trainer.val_check_interval=1000000", "--trainer.limit_val_batches=1", "--sampler.every_n_steps=0"),
        *("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"),
    ]


def fit(shape: str, text: Path) -> None:
    """In the current folder."""
    from minigpt.training.cli import main

    main("fit", [*fit_flags(shape, text), "--trainer.max_steps=1000000", "--trainer.callbacks=worker.Turns"])


def write(shape: str, text: Path, number: int) -> NoReturn:
    from minigpt.generation import Writer
    from minigpt.model import GPT, GPTConfig

    n_layer, n_head, n_embd, *_ = SHAPES[shape]
    vocabulary = "".join(sorted(set(text.read_text(encoding="utf-8"))))
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(len(vocabulary), 256, n_layer, n_head, n_embd, norm="pre")).eval()
    if ROOMS:
        from minigpt.fast import apply

        turns = Turns(apply(gpt))
    else:
        from minigpt.generation import quicken  # type: ignore[attr-defined]

        quicken(gpt)
        turns = Turns()
    writer = Writer(gpt, CharTokenizer(vocabulary))
    for seed in itertools.count():
        for _ in writer.write([vocabulary[0]] * number, max_new_tokens=400, temperature=0.8, top_k=40, seed=seed):
            pass
        turns.count(400 * number)
    raise AssertionError("without end")


if __name__ == "__main__":
    task, shape, text, *number = sys.argv[1:]
    if task == "train":
        train(shape, Path(text))
    elif task == "write":
        write(shape, Path(text), int(number[0]))
    else:
        fit(shape, Path(text))

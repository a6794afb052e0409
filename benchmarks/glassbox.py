"""How long looking into a model of the quickstart's shape takes: the milliseconds that one waits.

    python benchmarks/glassbox.py

A text that fills the window of 128 characters; each call in turn with the others, the model's own reading first.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from compare import in_turn

from minigpt.fast import put_in
from minigpt.glassbox.lens import attribute, lens
from minigpt.glassbox.trace import Intervention, Model, make_shell
from minigpt.model import GPT, GPTConfig
from minigpt.text.tokenizer import CharTokenizer


def milliseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    rounds = parser.parse_args().rounds
    characters = "".join(map(chr, range(32, 132)))
    config = GPTConfig(len(characters), block_size=128, n_layer=3, n_head=4, n_embd=128, norm="pre")
    model = Model(GPT(config).eval(), CharTokenizer(characters))
    put_in(model.gpt)
    text = ("To be, or not to be, that is the question: " * 4)[:128]
    ids_BT = torch.from_numpy(model.tokenizer.encode(text).astype("int64")).unsqueeze(0)
    seen = model.trace(text)
    calls: dict[str, Callable[[], object]] = {
        "`model.gpt(ids)`, fast layers": torch.no_grad()(partial(model.gpt, ids_BT)),
        "the same by model.py's formulas": torch.no_grad()(partial(make_shell(model.gpt), ids_BT)),
        "`make_shell(model.gpt)`": partial(make_shell, model.gpt),
        "`model.trace(text)`": partial(model.trace, text),
        "`model.trace(text, [a head off])`": partial(model.trace, text, [Intervention("head", 1, 2)]),
        "`model.trace(text, [a block patched])`": partial(
            model.trace, text, [Intervention("block", 1, patch_from=text[::-1])]
        ),
        "`lens(trace)`": partial(lens, seen),
        "`attribute(trace)`": partial(attribute, seen),
    }
    measures = {name: partial(milliseconds, call) for name, call in calls.items()}
    in_turn(measures, 5)
    print(f"{torch.get_num_threads()} threads\n\n| call | ms, median | least | 95 of 100 within |\n|---|---|---|---|")
    for name, times in in_turn(measures, rounds).items():
        ordered = sorted(times)
        print(f"| {name} | {statistics.median(times):.1f} | {ordered[0]:.1f} | {ordered[int(0.95 * rounds)]:.1f} |")


if __name__ == "__main__":
    main()

"""Writing 500 characters, beside nanoGPT's ``generate`` and Hugging Face's GPT-2 with its cache.

All three hold the same random weights, in float32, and are asked in turn, several rounds long, so that a machine
that is now faster and now slower treats them alike::

    python benchmarks/generation.py --nanogpt PATH
"""

import argparse
import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from compare import Ratio, in_turn

from minigpt.fast import apply
from minigpt.generation import Writer
from minigpt.model import GPT, GPTConfig
from minigpt.run import write_checkpoint
from minigpt.text.tokenizer import CharTokenizer

CHARACTERS, BLOCK_SIZE = "".join(map(chr, range(32, 32 + 65))), 256


def make_minigpt(n_layer: int, n_head: int, n_embd: int) -> GPT:
    """GPT-2's architecture, which is that of both peers, with random weights."""
    torch.manual_seed(0)
    config = GPTConfig(len(CHARACTERS), BLOCK_SIZE, n_layer, n_head, n_embd, norm="pre")
    return GPT(config).eval()


def make_peers(gpt: GPT, nanogpt: Path) -> tuple[Any, Any]:
    """nanoGPT's and Hugging Face's models with the weights of ``gpt``."""
    from transformers import GPT2Config, GPT2LMHeadModel

    spec = importlib.util.spec_from_file_location("nanogpt_model", nanogpt / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt_model"] = module
    spec.loader.exec_module(module)
    c = gpt.config
    shape: dict[str, Any] = {"vocab_size": c.vocab_size, "n_layer": c.n_layer, "n_head": c.n_head, "n_embd": c.n_embd}
    nano = module.GPT(module.GPTConfig(block_size=c.block_size, dropout=0.0, bias=True, **shape)).eval()
    hugging = GPT2LMHeadModel(GPT2Config(n_positions=c.block_size, **shape, bos_token_id=0, eos_token_id=None)).eval()
    names = {
        "token_embedding": "wte",
        "position_embedding": "wpe",
        "blocks": "h",
        "norm_1": "ln_1",
        "norm_2": "ln_2",
        "attention": "attn",
        "qkv": "c_attn",
        "projection": "c_proj",
        "feed_forward": "mlp",
        "expand": "c_fc",
        "contract": "c_proj",
        "final_norm": "ln_f",
    }
    weights = {".".join(names.get(part, part) for part in name.split(".")): w for name, w in gpt.state_dict().items()}
    nano.transformer.load_state_dict(weights)
    conv1d = {name: w.t() if ".c_" in name and w.ndim == 2 else w for name, w in weights.items()}
    hugging.transformer.load_state_dict(conv1d)
    prompt = torch.randint(len(CHARACTERS), (1, 100), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for logits in (nano(prompt)[0][:, -1], hugging(prompt).logits[:, -1]):
            torch.testing.assert_close(logits, gpt(prompt)[:, -1], atol=2e-3, rtol=1e-3)
    return nano, hugging


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def timed(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """The seconds of each, taken in turn after one time that is not counted."""
    measures = {name: partial(seconds, work) for name, work in works.items()}
    in_turn(measures, 1)
    return in_turn(measures, rounds)


def bench_shape(nanogpt: Path, shape: tuple[int, int, int], length: int, rounds: int) -> None:
    n_layer, _, n_embd = shape
    gpt = make_minigpt(*shape)
    nano, hugging = make_peers(gpt, nanogpt)
    print(f"\n{n_layer} layers x {n_embd}, window {BLOCK_SIZE}, {torch.get_num_threads()} threads, {apply(gpt)}:")
    writer = Writer(gpt, CharTokenizer(CHARACTERS))
    start = torch.zeros((1, 1), dtype=torch.long)
    within = BLOCK_SIZE - 1  # Hugging Face's model writes no further than its window

    def write(number: int) -> None:
        for _ in writer.write([CHARACTERS[0]] * number, max_new_tokens=length, temperature=0.8, top_k=40):
            pass

    @torch.no_grad()
    def write_nano() -> None:
        nano.generate(start, length, temperature=0.8, top_k=40)

    @torch.no_grad()
    def write_hugging() -> None:
        settings = {"do_sample": True, "temperature": 0.8, "top_k": 40, "use_cache": True}
        hugging.generate(start, max_new_tokens=within, min_new_tokens=within, pad_token_id=0, **settings)

    works: dict[str, tuple[int, Callable[[], object]]] = {
        "minigpt": (length, lambda: write(1)),
        "nanoGPT": (length, write_nano),
        "Hugging Face, its cache": (within, write_hugging),
        "minigpt, batch of 16": (16 * length, lambda: write(16)),
    }
    times = timed({name: work for name, (_, work) in works.items()}, rounds)
    rates = {name: [characters / t for t in times[name]] for name, (characters, _) in works.items()}
    for name, found in rates.items():
        ratio = Ratio.of_pairs(rates["minigpt"], found)
        print(f"  {name:<28} {statistics.median(found):>9,.0f} characters/s   minigpt writes {ratio} times as fast")

    # What a step must read is every weight but the embeddings' unused rows, and the cache; reading sets the limit.
    read_floats = sum(p.numel() for name, p in gpt.named_parameters() if name != "position_embedding.weight")
    read_floats += 2 * n_layer * n_embd * BLOCK_SIZE * 3 // 4  # half the window to all of it, mostly
    block = torch.randn(read_floats)
    read = statistics.median(seconds(lambda: torch.sum(block)) for _ in range(50))
    step = statistics.median(times["minigpt"]) / length
    print(f"  a step must read {4 * read_floats / 1e6:.1f} MB, which takes {read * 1e3:.2f} ms here;", end=" ")
    print(f"it takes {step * 1e3:.2f} ms: {read / step:.0%} of the limit")


def bench_matrix() -> None:
    """Why :class:`minigpt.fast.FastLinear` exists: one vector, matrices as in 6 layers x 384."""
    print("\nOne vector times 18 matrices of 1536 x 384:")
    weights = [torch.randn(1536, 384) for _ in range(18)]
    halves = [w.view(2, 768, 384) for w in weights]
    x, bias = torch.randn(1, 384), torch.randn(1536)
    works: dict[str, Callable[[], object]] = {
        "F.linear": lambda: [torch.nn.functional.linear(x, w, bias) for w in weights],
        "batched": lambda: [torch.bmm(w, x.t().expand(2, 384, 1)).view(1, -1) + bias for w in halves],
        "just read": lambda: [w.sum() for w in weights],
    }
    with torch.inference_mode():
        for name, taken in timed(works, 50).items():
            print(f"  {name:<10} {statistics.median(taken) * 1e3:.2f} ms")


def bench_start(rounds: int) -> None:
    """From the start of the process to the first character."""
    gpt = make_minigpt(6, 6, 384)
    hyperparameters = {"tokenizer": "char", "vocabulary": CHARACTERS, "norm": "pre"}
    hyperparameters |= {n: getattr(gpt.config, n) for n in ("block_size", "n_layer", "n_head", "n_embd")}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.ckpt"
        state = {f"gpt.{name}": weight for name, weight in gpt.state_dict().items()}
        write_checkpoint({"hyper_parameters": hyperparameters, "state_dict": state}, path)
        command = [sys.executable, "-m", "minigpt", "generate", "--ckpt_path", str(path), "--prompt", "A"]
        taken = []
        for _ in range(rounds):
            start = time.perf_counter()
            with subprocess.Popen([*command, "--max_new_tokens", "100000"], stdout=subprocess.PIPE) as process:
                assert process.stdout is not None
                assert len(process.stdout.read(2)) == 2
                taken.append(time.perf_counter() - start)
                process.kill()
    print(f"\nFirst character of a cold process, 6 layers x 384: {statistics.median(taken):.2f} s (median of {rounds})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout of nanoGPT")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--length", type=int, default=500)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for shape in ((6, 6, 384), (4, 4, 128)):
        bench_shape(args.nanogpt, shape, args.length, args.rounds)
    bench_matrix()
    bench_start(args.rounds)


if __name__ == "__main__":
    main()

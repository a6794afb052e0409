"""The subcommands that don't train, as plain typed functions. None of them imports Lightning."""

import dataclasses
import io
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from minigpt.corpus import CorpusReader, check_fractions, split_places
from minigpt.entropy import ladder, show
from minigpt.tokenizer import TOKENIZERS

if TYPE_CHECKING:
    from minigpt.generation import Sample


def generate(
    ckpt_path: str,
    prompt: str = "",
    prompt_file: str | None = None,
    max_new_tokens: int = 500,
    num_samples: int = 1,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    stop: list[str] = [],  # noqa: B006 - never changed
    seed: int = 1,
    stride: int | None = None,
    json: bool = False,
    device: str = "cpu",
) -> None:
    """Let a trained model write, character by character.

    The settings that choose a character act in this order: repetition_penalty, temperature, top_k, top_p, min_p.

    Args:
        ckpt_path: a checkpoint file, or "last" or "best" for that of the newest run.
        prompt: the beginning that the model continues; by default a new line.
        prompt_file: a UTF-8 file to take the prompt from, as it stands, or - for the standard input.
        max_new_tokens: how many characters to write at most (bytes, if the model was trained on bytes).
        num_samples: how many texts to write, in one batch.
        temperature: below 1 more certain, above 1 more varied; 0 always takes the likeliest character.
        top_k: choose among the k likeliest characters only.
        top_p: choose among the fewest likeliest characters that hold this much of the probability.
        min_p: choose among the characters at least this many times as probable as the likeliest.
        repetition_penalty: above 1, characters in the window become less likely.
        stop: where this string would appear, the text ends before it; may be given several times.
        seed: the same seed gives the same text; the second of several texts is that of the next seed, and so on.
        stride: how many characters a full window moves on: 1 is exact and slow; by default half the window.
        json: print the texts as JSON, with the log-probability of every character, why each ended, seeds and speed.
        device: where to compute, as PyTorch names it: cpu, cuda, mps.
    """
    if not 1 <= num_samples <= 10_000:
        raise ValueError(f"num_samples is {num_samples}; it must be at least 1 and at most 10,000.")
    if prompt_file is not None:
        if prompt:
            raise ValueError("Both prompt and prompt_file were given; give one.")
        prompt = read_prompt(prompt_file)
    # Only the commands that write need torch, which takes longer to import than all the rest.
    from minigpt import load

    model = load(ckpt_path, device)
    steps = model.write(
        [prompt] * num_samples,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop=stop,
        seed=seed,
        stride=stride,
    )
    for note in model.notes(prompt):
        print(f"minigpt: {note}", file=sys.stderr)
    if json:
        print_json(steps)
    else:
        print_texts(steps, prompt, num_samples)


def chat(ckpt_path: str, device: str = "cpu") -> None:
    """Write together with a trained model: type the beginning of a text, watch it go on.

    Args:
        ckpt_path: a checkpoint file, or "last" or "best" for that of the newest run.
        device: where to compute, as PyTorch names it: cpu, cuda, mps.
    """
    if sys.stdin is None:
        raise ValueError("chat reads what you type from the standard input, which is closed.")
    from minigpt import load
    from minigpt.chat import Chat

    Chat(load(ckpt_path, device)).run()


def read_prompt(prompt_file: str) -> str:
    """The text of a UTF-8 file, or of the standard input for "-", with newlines as line ends."""
    try:
        if prompt_file == "-" and sys.stdin is None:
            raise ValueError("The prompt can't be read from the standard input: it is closed.")
        raw = sys.stdin.buffer.read() if prompt_file == "-" else Path(prompt_file).read_bytes()
    except OSError as error:
        raise ValueError(f"The prompt can't be read from {prompt_file}: {error.strerror}.") from error
    try:
        return io.TextIOWrapper(io.BytesIO(raw), "utf-8-sig").read()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"The prompt in {prompt_file} is not UTF-8: byte {error.start} is {raw[error.start]:#x}."
        ) from error


def print_texts(steps: Iterable["list[Sample]"], prompt: str, num_samples: int) -> None:
    """Print the first text as it is made; then the others, which were made beside it."""
    heading = "--- seed {} ---\n" if num_samples > 1 else ""
    shown = None
    for samples in steps:
        first = samples[0]
        if shown is None:
            sys.stdout.write(heading.format(first.seed) + prompt)
        sys.stdout.write(first.text[shown:])
        sys.stdout.flush()
        shown = len(first.text)
    print()
    for sample in samples[1:]:
        print(heading.format(sample.seed) + prompt + sample.text)


def print_json(steps: Iterable["list[Sample]"]) -> None:
    """Print the finished texts as one JSON object."""
    start = time.perf_counter()
    *_, samples = steps
    seconds = time.perf_counter() - start
    characters = sum(len(sample.text) for sample in samples)
    summary = {
        "samples": [dataclasses.asdict(sample) for sample in samples],
        "seconds": round(seconds, 3),
        "characters_per_second": round(characters / seconds, 1),
    }
    print(dumps(summary, ensure_ascii=False, indent=1))


@dataclass(frozen=True)
class Data:
    """What to look at; the flags are those of ``fit``.

    Args:
        corpus: a text file, a folder of them, a glob, a list of these, or a named corpus.
        val_fraction: part of the corpus that is the validation split.
        test_fraction: part of the corpus, at its end, that is the test split.
        block_size: characters in a window.
        tokenizer: "char" or "byte".
        encoding: of the text files, as Python names it.
        data_dir: folder for named corpora and encoded text.
        mirror: where to fetch a named corpus from instead of its public home.
        max_unpacked_gb: the most that one compressed file may unpack to, in 10^9 bytes.
    """

    corpus: str | list[str] = "shakespeare"
    val_fraction: float = 0.05
    test_fraction: float = 0.05
    block_size: int = 64
    tokenizer: Literal["char", "byte"] = "char"
    encoding: str = "utf-8"
    data_dir: str = "data"
    mirror: str | None = None
    max_unpacked_gb: float = 100.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) is None and "None" not in str(field.type):
                raise ValueError(f"data.{field.name} is null; it needs a value.")
        check_fractions(self.val_fraction, self.test_fraction)
        if self.block_size < 1:
            raise ValueError(f"data.block_size is {self.block_size}; it must be at least 1.")


def corpus(data: Data) -> None:
    """Look at a text before training on it: its size, vocabulary, splits, a few windows, and how predictable it is.

    Args:
        data: the text.
    """
    reader = CorpusReader(Path(data.data_dir), data.tokenizer, data.encoding, data.mirror, data.max_unpacked_gb)
    text = reader.open(data.corpus)
    if len(text) <= data.block_size:
        raise ValueError(f"{text.name} has {len(text)} characters, no more than data.block_size = {data.block_size}.")
    tokenizer, ids = TOKENIZERS[data.tokenizer](text.vocabulary), text.ids()
    counts = text.counts(range(len(text)))
    bytes_of, characters_of = np.array(tokenizer.byte_counts()), np.array(tokenizer.character_counts())
    newline = text.vocabulary.find("\n")
    for note in text.notes:
        print(note)
    print(f"{text.name}: {counts @ characters_of:,} characters, {counts @ bytes_of:,} bytes of UTF-8, ", end="")
    print(f"{counts[newline] if newline >= 0 else 0:,} line ends, {np.count_nonzero(counts):,} different ids")

    print("\nVocabulary, most frequent first:")
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    shown = order if len(order) <= 100 else np.concatenate((order[:80], order[-20:]))
    entries = [f"{tokenizer.label(int(i))!r} {counts[i]:,}" for i in shown]
    if len(order) > len(shown):
        entries.insert(80, f"... {len(order) - len(shown):,} more ...")
    print_wrapped(entries)

    print("\nSplits:")
    for name, places in split_places(len(text), data.val_fraction, data.test_fraction).items():
        print(f"  {name:<8}{places.start:>14,} to {places.stop:>14,}   {len(places):>14,} ids")

    print(f"\nWindows of {data.block_size}:")
    for start in np.linspace(0, max(0, len(text) - data.block_size), 3).astype(int):
        print(f"  {start:>14,}: {tokenizer.decode(ids[start : start + data.block_size])!r}")

    print("\nHow predictable it is, without learning:")
    for line in show(ladder(ids, characters_of)):
        print(line)


def print_wrapped(entries: list[str], width: int = 100) -> None:
    """Print entries side by side, as many as fit in a line."""
    line = " "
    for entry in entries:
        if len(line) + len(entry) + 3 > width:
            print(line)
            line = " "
        line += f" {entry}  "
    print(line)


COMMANDS: dict[str, Callable[..., None]] = {"chat": chat, "corpus": corpus, "generate": generate}

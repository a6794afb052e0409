"""``generate``: let a checkpoint write."""

import dataclasses
import io
import sys
import time
from collections.abc import Iterable
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minigpt.generation import Sample

from minigpt.commands import call
from minigpt.errors import UserError


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
        raise UserError(f"num_samples is {num_samples}; it must be at least 1 and at most 10,000.")
    if prompt_file is not None:
        if prompt:
            raise UserError("Both prompt and prompt_file were given; give one.")
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


def read_prompt(prompt_file: str) -> str:
    """The text of a UTF-8 file, or of the standard input for "-", with newlines as line ends."""
    try:
        if prompt_file == "-" and sys.stdin is None:
            raise UserError("The prompt can't be read from the standard input: it is closed.")
        raw = sys.stdin.buffer.read() if prompt_file == "-" else Path(prompt_file).read_bytes()
    except OSError as error:
        raise UserError(f"The prompt can't be read from {prompt_file}: {error.strerror}.") from error
    try:
        return io.TextIOWrapper(io.BytesIO(raw), "utf-8-sig").read()
    except UnicodeDecodeError as error:
        raise UserError(
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


def main(command: str, args: list[str]) -> None:
    """Run the command from its arguments."""
    call(generate, args, f"minigpt {command}")

"""``generate``: let a checkpoint write."""

import dataclasses
import io
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from minigpt import Precision, load
from minigpt.commands import call, print_as_json
from minigpt.errors import UserError
from minigpt.files import user_path
from minigpt.sampling import Sampling

if TYPE_CHECKING:
    from minigpt.generation import Sample


def generate(
    ckpt_path: str,
    prompt: str = "",
    prompt_file: str | None = None,
    max_new_tokens: int = 500,
    num_samples: int = 1,
    stop: list[str] = [],  # noqa: B006 - never changed
    seed: int = 1,
    stride: int | None = None,
    fold: bool = False,
    json: bool = False,
    device: str = "cpu",
    precision: Precision = "float32",
    fast: bool | None = None,
    **sampling: Any,
) -> None:
    """Let a trained model write, character by character.

    Args:
        ckpt_path: a checkpoint file, or "last" or "best" for that of the newest run.
        prompt: the beginning that the model continues; by default a new line.
        prompt_file: a UTF-8 file to take the prompt from, as it stands, or - for the standard input.
        max_new_tokens: how many characters to write at most (bytes, if the model was trained on bytes).
        num_samples: how many texts to write, in one batch.
        stop: where this string would appear, the text ends before it; may be given several times.
        seed: the same seed gives the same text; the second of several texts is that of the next seed, and so on.
        stride: how many characters a full window moves on: 1 is exact and slow; by default half the window.
        fold: replace quotes, dashes, spaces and accented letters that the model doesn't know by those that it knows.
        json: print the texts as JSON, with the log-probability of every character, why each ended, seeds and speed.
        device: where to compute, as PyTorch names it: cpu, cuda, mps.
        precision: bfloat16 computes under torch.autocast.
        fast: compute by fast layers with a key-value cache; by default where they give what model.py gives.
        sampling: how the next character is chosen.
    """
    Sampling(**sampling)
    if not 1 <= num_samples <= 10_000:
        raise UserError(f"num_samples is {num_samples}; it must be at least 1 and at most 10,000.")
    if prompt_file is not None:
        if prompt:
            raise UserError("Both prompt and prompt_file were given; give one.")
        prompt = read_prompt(prompt_file)
    model = load(ckpt_path, device, fast, precision)
    if fold and (folded := model.fold(prompt)) != prompt:
        print("minigpt: in the prompt, characters were replaced by those that the model knows.", file=sys.stderr)
        prompt = folded
    stop = [model.fold(text) if fold else text for text in stop]
    prompts = [prompt] * num_samples
    steps = model.write(prompts, max_new_tokens=max_new_tokens, stop=stop, seed=seed, stride=stride, **sampling)
    for note in (model.description, *model.notes(prompt)):
        print(f"minigpt: {note}", file=sys.stderr)
    (print_json if json else print_texts)(steps)


def read_prompt(prompt_file: str) -> str:
    """The text of a UTF-8 file, or of the standard input for "-", with newlines as line ends."""
    try:
        if prompt_file == "-" and sys.stdin is None:
            raise UserError("The prompt can't be read from the standard input: it is closed.")
        raw = sys.stdin.buffer.read() if prompt_file == "-" else user_path(prompt_file).read_bytes()
        return io.TextIOWrapper(io.BytesIO(raw), "utf-8-sig").read()
    except OSError as error:
        raise UserError(f"The prompt can't be read from {prompt_file}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise UserError(f"The prompt in {prompt_file} is not UTF-8: byte {error.start} is {byte:#x}.") from error


def print_texts(steps: Iterable["list[Sample]"]) -> None:
    """Print the first text as it is made; then the others, which were made beside it."""
    shown = None
    for samples in steps:
        first, *others = samples
        heading = "--- seed {} ---\n" if others else ""
        if shown is None:
            sys.stdout.write(heading.format(first.seed) + first.prompt)
        sys.stdout.write(first.text[shown:])
        sys.stdout.flush()
        shown = len(first.text)
    print()
    for sample in others:
        print(heading.format(sample.seed) + sample.prompt + sample.text)


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
    print_as_json(summary)


def main(command: str, args: list[str]) -> None:
    """Run the command from its arguments."""
    call(generate, args, f"minigpt {command}")

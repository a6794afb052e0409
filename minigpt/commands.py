"""The subcommands that don't train, as plain typed functions. None of them imports Lightning."""

import sys
from collections.abc import Callable

from minigpt.checkpoint import find_checkpoint, load_gpt
from minigpt.generation import generate_text


def generate(
    ckpt_path: str,
    prompt: str = "",
    max_new_tokens: int = 500,
    temperature: float = 0.8,
    top_k: int | None = None,
    seed: int = 1,
) -> None:
    """Let a trained model write, character by character.

    Args:
        ckpt_path: a checkpoint file, or "last" or "best" for that of the newest run.
        prompt: the beginning that the model continues; by default a new line.
        max_new_tokens: how many characters to write.
        temperature: below 1 more certain, above 1 more varied; 0 always takes the likeliest character.
        top_k: choose among the k likeliest characters only.
        seed: the same seed gives the same text.
    """
    gpt, tokenizer = load_gpt(find_checkpoint(ckpt_path))
    text = generate_text(gpt, tokenizer, prompt, max_new_tokens, temperature, top_k, seed)
    sys.stdout.write(prompt)
    for character in text:
        sys.stdout.write(character)
        sys.stdout.flush()
    sys.stdout.write("\n")


COMMANDS: dict[str, Callable[..., None]] = {"generate": generate}

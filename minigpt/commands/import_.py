"""``import``: a model from elsewhere as a checkpoint."""

import os

from minigpt.commands import call
from minigpt.errors import UserError
from minigpt.files import user_path


def import_(folder: str, output: str) -> None:
    """Make a checkpoint of a folder: as export writes it, another GPT-1 or GPT-2, or OpenAI's own.

    Args:
        folder: that holds the model's files; may be given without its flag, as the first word.
        output: the checkpoint to write, which must not be there yet.
    """
    from minigpt.formats.import_ import checkpoint_of
    from minigpt.run import load_gpt, write_checkpoint

    path = user_path(output)
    if os.path.lexists(path):
        raise UserError(f"{path} is there already. Move it away, or name another file with --output.")
    write_checkpoint(checkpoint_of(user_path(folder)), path)
    gpt, tokenizer = load_gpt(path)
    config, count = gpt.config, sum(parameter.numel() for parameter in gpt.parameters())
    print(
        f"{path}: {config.n_layer} layers x {config.n_embd} wide, {config.n_head} heads, {config.norm}-norm, "
        f"{config.positions} positions, window {config.block_size}; {len(tokenizer.vocabulary):,} tokens; "
        f"{count:,} parameters."
    )


def main(command: str, args: list[str]) -> None:
    """Run the command from its arguments; the first one may be the folder."""
    if args and not args[0].startswith("-"):
        args = ["--folder", *args]
    call(import_, args, f"minigpt {command}")

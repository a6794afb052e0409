"""``export``: a checkpoint for others to use."""

from typing import Literal

from minigpt.commands import call
from minigpt.errors import UserError
from minigpt.files import user_path


def export(
    ckpt_path: str,
    output_dir: str | None = None,
    output: str | None = None,
    format: Literal["huggingface", "checkpoint"] = "huggingface",
) -> None:
    """Write a checkpoint for others: a folder for Hugging Face's transformers, or a small checkpoint for minigpt.

    Neither holds a path of your disk, or the text that was trained on.

    Args:
        ckpt_path: a checkpoint file, or "last" or "best" for that of the newest run.
        output_dir: the folder of Hugging Face's to write, which must be empty or not there.
        output: the small checkpoint to write.
        format: huggingface; or checkpoint, without the optimizer's state, for a friend who has minigpt.
    """
    name, target, other = "output_dir", output_dir, output
    if format == "checkpoint":
        name, target, other = "output", output, output_dir
    if not target or other:
        raise UserError(
            f"--format {format} writes a {'file' if name == 'output' else 'folder'}: name it with --{name}."
        )
    from minigpt.formats.export import write_folder, write_small
    from minigpt.run import find_checkpoint

    write = write_small if format == "checkpoint" else write_folder
    path = user_path(target)
    write(find_checkpoint(ckpt_path), path)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    for file in files:
        print(f"{file}: {file.stat().st_size:,} bytes")


def main(command: str, args: list[str]) -> None:
    """Run the command from its arguments."""
    call(export, args, f"minigpt {command}")

"""``explain``: a page that is alive, to look inside a model in any browser."""

from typing import Literal

from minigpt import __version__, load
from minigpt.commands import call, say_stage
from minigpt.files import user_path


def explain(
    ckpt_path: str,
    output: str = "page.html",
    precision: Literal["float16", "float32"] = "float16",
    corpus: str | None = None,
    without_text: bool = False,
) -> None:
    """Write a page that computes with the model in any browser: one file, which needs no network and no server.

    Args:
        ckpt_path: a checkpoint file, or "last" or "best" for that of the newest run.
        output: the file to write. One that is there is replaced only if it is such a page, and as it was written.
        precision: of the weights in the file; float32 keeps them as they are and takes twice the space.
        corpus: where the text of the run is now, if it has moved.
        without_text: leave out all excerpts of the corpus, for a page on a text that is private. The vocabulary stays,
            and what the model has learned by heart it can still write.
    """
    from minigpt.glassbox.explain import KIND, make
    from minigpt.glassbox.signed import check_free, write
    from minigpt.run import find_checkpoint

    path = user_path(output)
    check_free(path, KIND)  # before a minute is spent
    checkpoint = find_checkpoint(ckpt_path)

    page, contents = make(load(checkpoint), checkpoint, __version__, say_stage, corpus, precision, without_text)
    write(page, path, KIND)
    print("The file holds:", *contents["embeds"], sep="\n- ")
    count = len(contents["models"])
    print(f"{path}: {len(page) / 1e6:.1f} MB, {count} model{'s' * (count > 1)}, for any browser")


def main(command: str, args: list[str]) -> None:
    """Run the command from its arguments."""
    call(explain, args, f"minigpt {command}")

"""``report``: a page on a finished run, to look at and to hand in."""

from minigpt import UserError, __version__, load
from minigpt.commands import call, print_as_json, say_stage
from minigpt.files import user_path


def report(
    ckpt_path: str,
    output: str = "report.html",
    corpus: str | None = None,
    max_new_tokens: int = 400,
    temperature: float = 0.8,
    json: bool = False,
) -> None:
    """Write a page on a finished run, an HTML file that needs no network and no server.

    Args:
        ckpt_path: a checkpoint file, or "last" or "best" for that of the newest run.
        output: the file to write. One that is there is replaced only if it is such a page, and as it was written.
        corpus: where the text of the run is now, if it has moved.
        max_new_tokens: how many characters each of the three samples has (bytes, if the model was trained on bytes).
        temperature: that the samples are drawn with.
        json: print the figures of the page as JSON too.
    """
    from minigpt.glassbox.report import KIND, make
    from minigpt.glassbox.signed import check_free, write
    from minigpt.run import find_checkpoint

    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens is {max_new_tokens}; a sample has at least 1 character.")
    path = user_path(output)
    check_free(path, KIND)  # before a minute is spent
    checkpoint = find_checkpoint(ckpt_path)

    page, figures = make(load(checkpoint), checkpoint, __version__, say_stage, corpus, max_new_tokens, temperature)
    write(page, path, KIND)
    if json:
        print_as_json(figures)
    else:
        print(f"{path}: {len(page) / 1e6:.1f} MB, for any browser")


def main(command: str, args: list[str]) -> None:
    """Run the command from its arguments."""
    call(report, args, f"minigpt {command}")

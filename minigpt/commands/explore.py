"""``explore``: the page that is alive, served to a browser on this machine."""

from minigpt import UserError, __version__
from minigpt.commands import call


def explore(
    ckpt_path: str | None = None,
    run: str | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    no_browser: bool = False,
    corpus: str | None = None,
) -> None:
    """Look inside a model in the browser, of any size, and while it trains.

    Args:
        ckpt_path: a checkpoint file, or "last" or "best" for that of the newest run; or
        run: the folder of a run, which may still train: lightning_logs/NAME/version_0.
        host: the address to listen at. Beyond 127.0.0.1 everybody who reaches it may look in, and let this machine
            compute.
        port: where to listen; by default 8765, or a free one where that is taken. 0 takes a free one.
        no_browser: open no browser.
        corpus: where the text of the run is now, if it has moved.
    """
    if (ckpt_path is None) == (run is None):
        raise UserError("Name either a checkpoint with --ckpt_path, or the folder of a run with --run.")
    try:
        from minigpt.glassbox.explore import Shown, serve
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn"):
            raise
        raise UserError(f'To serve the page takes {error.name}: pip install "minigpt[explore]"') from error
    from minigpt.glassbox.film import run_folder
    from minigpt.run import RunFolder, find_checkpoint

    if ckpt_path is not None:
        checkpoint = find_checkpoint(ckpt_path)
        shown = Shown(__version__, checkpoint, RunFolder.of(checkpoint), corpus)
    else:
        shown = Shown(__version__, None, run_folder(str(run)), corpus)
    serve(shown, host, port, not no_browser)


def main(command: str, args: list[str]) -> None:
    """Run the command from its arguments."""
    call(explore, args, f"minigpt {command}")

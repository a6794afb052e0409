"""The command line: ``python -m minigpt COMMAND``, or ``minigpt COMMAND``."""

import argparse
import difflib
import importlib
import io
import os
import sys
from pathlib import Path

from minigpt.errors import as_user_error, explain

# Each command: where its function is, and what it does. A module is imported only when its command is called.
COMMANDS = {
    "fit": ("training.cli", "train a model on a text, or go on with a run"),
    "validate": ("training.cli", "the loss of a checkpoint on its validation split"),
    "test": ("training.cli", "the loss of a checkpoint on its test split"),
    "predict": ("training.cli", "the surprisal of every character of a text, as a CSV"),
    "plan": ("training.plan", "what fit would cost: memory, FLOPs, and the time on this machine"),
    "generate": ("commands.generate", "let a checkpoint write"),
    "chat": ("commands.chat", "write together with a checkpoint, in the terminal"),
    "runs": ("commands.runs", "compare the runs of this folder: settings, losses, spread over seeds"),
    "report": ("commands.report", "a page on a finished run: how good it is, what it sees, what it writes"),
    "explain": ("commands.explain", "a page that is alive: look inside a model in any browser, offline"),
    "explore": ("commands.explore", "look inside a model in the browser, of any size, and while it trains"),
    "prove-resume": ("training.proof", "see it proved that a run killed and resumed ends in the same bits"),
    "corpus": ("commands.corpus", "look at a text before training on it"),
}


def main() -> None:
    """Run one subcommand; a mistake of the user's ends in one paragraph and exit status 2."""
    try:  # from the very first, for Ctrl-C may come at any moment
        run_command()
        sys.stdout.flush()  # here, where a closed pipe is met below
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        mistake = as_user_error(error)
        if mistake is None or os.environ.get("MINIGPT_TRACEBACK"):
            raise
        print(explain(mistake), file=sys.stderr)
        sys.exit(2)


def run_command() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(
        prog="minigpt",
        description="GPT-1 from scratch, on any text. Begin with: minigpt fit --config configs/quickstart.yaml",
        epilog="Each command explains itself: minigpt COMMAND --help",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (_, summary) in COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it is closed
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - to the end
        if isinstance(stream := getattr(sys, name), io.TextIOWrapper):  # a notebook's is of another kind
            stream.reconfigure(errors="replace")  # a character that it can't show ends no program
    if sys.argv[1:2] and sys.argv[1] not in COMMANDS and (near := difflib.get_close_matches(sys.argv[1], COMMANDS, 1)):
        parser.error(f"there is no command {sys.argv[1]}; did you mean {near[0]}?")
    command = parser.parse_known_args(sys.argv[1:2])[0].command
    module = importlib.import_module(f"minigpt.{COMMANDS[command][0]}")
    module.main(command, with_recipes(sys.argv[2:]))


def with_recipes(args: list[str]) -> list[str]:
    """Arguments in which the name of a recipe that comes with the program, ``--config quickstart``, is its file."""
    package = Path(__file__).parent
    installed = package / "configs"
    folder = installed if installed.is_dir() else package.parent / "configs"  # of a checkout
    recipes = {path.stem: str(path) for path in folder.rglob("*.yaml")}
    for i, arg in enumerate(args):
        flag, name = ("--config=", arg[9:]) if arg.startswith("--config=") else ("", arg)
        if name in recipes and not Path(name).exists() and (flag or args[i - 1 : i] == ["--config"]):
            args[i] = flag + recipes[name]
    return args


if __name__ == "__main__":
    main()

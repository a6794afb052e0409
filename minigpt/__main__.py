"""The command line: ``python -m minigpt COMMAND``, or ``minigpt COMMAND``."""

import argparse
import os
import sys
import textwrap

TRAINING = {
    "fit": "train a model on a text, or go on with a run",
    "validate": "the loss of a checkpoint on its validation split",
    "test": "the loss of a checkpoint on its test split",
    "predict": "the surprisal of every character of a text, as a CSV",
}
OTHERS = {
    "corpus": "look at a text before training on it",
    "generate": "let a checkpoint write",
}


def main() -> None:
    """Run one subcommand; a mistake of the user's ends in one paragraph and exit status 2."""
    parser = argparse.ArgumentParser(
        prog="minigpt",
        description="GPT-1 from scratch, on any text. Begin with: minigpt fit --config configs/quickstart.yaml",
        epilog="Each command explains itself: minigpt COMMAND --help",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in (TRAINING | OTHERS).items():
        commands.add_parser(name, help=summary, add_help=False)
    command = parser.parse_known_args(sys.argv[1:2])[0].command
    try:
        run(command, sys.argv[2:])
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (ValueError, OSError, argparse.ArgumentError) as error:
        if os.environ.get("MINIGPT_TRACEBACK"):
            raise
        print(explain(error), file=sys.stderr)
        sys.exit(2)


def run(command: str, args: list[str]) -> None:
    """Run a subcommand. Only those that train pay for the import of Lightning."""
    if command in TRAINING:
        from minigpt.cli import train

        train(command, args)
    else:
        from jsonargparse import auto_cli

        from minigpt.commands import COMMANDS

        auto_cli(COMMANDS[command], args=args, prog=f"minigpt {command}", as_positional=False, exit_on_error=False)


def explain(error: Exception) -> str:
    """The message of a user's mistake, as one paragraph."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, argparse.ArgumentError):
        text += " (See --help for what can be given.)"
    return "\n".join(textwrap.wrap(f"minigpt: {text}", width=100, break_long_words=False, break_on_hyphens=False))


if __name__ == "__main__":
    main()

"""The command line: ``python -m minigpt COMMAND``, or ``minigpt COMMAND``."""

import argparse
import os
import re
import sys
import time
from collections.abc import Callable

from minigpt.errors import building_from, explain

STARTED = time.perf_counter()
TRAINING = {
    "fit": "train a model on a text, or go on with a run",
    "validate": "the loss of a checkpoint on its validation split",
    "test": "the loss of a checkpoint on its test split",
    "predict": "the surprisal of every character of a text, as a CSV",
}
OTHERS = {
    "plan": "what fit would cost: memory, FLOPs, and the time on this machine",
    "generate": "let a checkpoint write",
    "chat": "write together with a checkpoint, in the terminal",
    "prove-resume": "see it proved that a run killed and resumed ends in the same bits",
    "corpus": "look at a text before training on it",
}

KNOWN = {
    "^$|allocate|out of memory|Storage size": (
        "There is not enough memory for this. A smaller model, window (block_size) or batch_size needs less."
    ),
    "InvalidCxxCompiler|CppCompileError|TritonMissing": (
        "model.compile needs a compiler, which doesn't work here: for C++ on a CPU, Triton on a GPU. Train without it."
    ),
    "Connection (reset|closed) by peer": (
        "Another process of this run has ended; its own message says why. Go on with fit --ckpt_path last."
    ),
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
    except (MemoryError, RuntimeError) as error:
        # PyTorch's own errors of these kinds are told from others by their words only.
        text = str(error)
        known = [advice for words, advice in KNOWN.items() if re.search(words, text)]
        if os.environ.get("MINIGPT_TRACEBACK") or not known:
            raise
        said = f" ({text.splitlines()[0]})" if text else ""
        print(explain(RuntimeError(known[0] + said)), file=sys.stderr)
        sys.exit(2)


def run(command: str, args: list[str]) -> None:
    """Run a subcommand. Only those that train pay for the import of Lightning."""
    if command in TRAINING:
        from minigpt.cli import train

        train(command, args)
    elif command == "plan":
        from minigpt.plan import plan

        plan(args, STARTED)
    elif command == "prove-resume":
        from minigpt.prove import prove_resume

        prove_resume(args)
    else:
        from minigpt.commands import COMMANDS

        call(COMMANDS[command], args, prog=f"minigpt {command}")


def call(function: Callable[..., None], args: list[str], prog: str) -> None:
    """Call a function with its parameters taken from the command line, and its help from its docstring."""
    from docstring_parser import parse
    from jsonargparse import ArgumentParser

    doc = parse(function.__doc__ or "")
    parser = ArgumentParser(prog=prog, description=doc.short_description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="a file with these settings")
    # A switch that is given or not, and a flag that may be given several times, are plain argparse's.
    plain = {bool: "store_true", list[str]: "append"}
    actions = {name: plain[kind] for name, kind in function.__annotations__.items() if kind in plain}
    parser.add_function_arguments(function, as_positional=False, skip=set(actions))
    for name, action in actions.items():
        text = next(p.description for p in doc.params if p.arg_name == name)
        parser.add_argument(f"--{name}", action=action, default=[] if action == "append" else False, help=text)
    with building_from("One of the settings"):
        settings = parser.instantiate(parser.parse_args(args))
    settings.pop("config")
    function(**settings)


if __name__ == "__main__":
    main()

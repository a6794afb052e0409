"""The commands that don't train, a file for each; none of them imports Lightning."""

import json
import sys
from collections.abc import Callable
from typing import Any

from minigpt.errors import building_from, parse_arguments


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
        settings = parser.instantiate(parse_arguments(parser, args))
    settings.pop("config")
    function(**settings)


def say_stage(stage: str) -> None:
    """Tell what a command that takes long does now, beside its output."""
    print(f"{stage} ...", file=sys.stderr)


def print_as_json(value: Any) -> None:
    """Print a value as JSON, with escapes where the stream would replace a character that it can't show."""
    text = json.dumps(value, ensure_ascii=False, indent=1, default=str)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, indent=1, default=str)
    print(text)

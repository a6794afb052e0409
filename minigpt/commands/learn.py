"""``learn``: a course. It tells what to do next, checks answers, and trains the real program with the learner's own."""

import argparse
import pkgutil
from typing import Any

Argument = tuple[str, dict[str, Any]]

NAME: Argument = ("name", {"nargs": "?", "help": "of an exercise; by default the next one"})
LESSON: Argument = ("lesson", {"type": int, "metavar": "N", "help": "the number of a lesson"})
OPTION: Argument = (
    "option",
    {"nargs": "?", "type": int, "metavar": "NUMBER", "help": "what you expect, by its number"},
)
MINE = {"action": "append", "default": [], "metavar": "NAME", "help": "a part of your own, or all; may be given again"}

NEXT = "Show how far you are, and what is next. While that is an answer to write, check it each time it is saved."

# Each part of the command: the function of minigpt.course that it calls, what it does, and the arguments that it takes.
PARTS: dict[str, tuple[str, str, list[Argument]]] = {
    "read": (
        "reading.read",
        "Show a lesson, by default the next: up to its question, and once you have answered that, to its end.",
        [("lesson", {**LESSON[1], "nargs": "?"})],
    ),
    "predict": ("reading.predict", "Record what you expect in a lesson, before you see it.", [LESSON, OPTION]),
    "break": (
        "reading.experiment",
        "Break something, and see what happens; what you expect is recorded before. Without a name, list what there "
        "is.",
        [("name", {"nargs": "?", "help": "of an experiment"}), OPTION],
    ),
    "check": (
        "desk.check_answer",
        "Check an answer: its values and gradients, on inputs drawn anew; if it is wrong, tell the mistake.",
        [NAME],
    ),
    "hint": (
        "desk.hint",
        "Show a hint, one more at each call: a question, the shapes, the steps, the line of the real program.",
        [NAME],
    ),
    "watch": (
        "desk.watch",
        "Check an answer whenever it is saved, until Ctrl-C. Without a terminal, check what was changed, and end.",
        [],
    ),
    "reset": (
        "desk.reset",
        "Start an answer again; what was there is kept.",
        [("name", {"help": "of an exercise"})],
    ),
    "train": (
        "mine.train",
        "Train a recipe with your own parts in place of the program's. All further flags are those of fit: "
        "--config tinyshakespeare-cpu, --data.corpus my.txt, --trainer.max_steps 300, --ckpt_path last. By default "
        "the recipe is quickstart, on the CPU and in float32, as your answers were checked.",
        [("--mine", MINE)],
    ),
    "grade": (
        "grade.grade",
        "Check what a class has handed in, a folder or zip file for each learner: write the marks with each named "
        "mistake as CSV, and tell what the class predicted. Each answer runs isolated, without a network.",
        [
            ("folder", {"metavar": "DIR", "help": "with a folder or zip file for each learner, a copy of my"}),
            ("--exercise", {"action": "append", "metavar": "NAME", "help": "that counts; may be given again (all)"}),
            ("--output", {"default": "grades.csv", "metavar": "FILE", "help": "the marks (grades.csv)"}),
            ("--seed", {"type": int, "metavar": "N", "help": "of the inputs; by default drawn anew each time"}),
            ("--trust", {"action": "store_true", "help": "run all without isolation: only what you have read"}),
        ],
    ),
    "export": (
        "export.export",
        "Write the lessons as slides, with notes for whoever teaches: for a browser, and as Markdown for pandoc.",
        [
            ("--output_dir", {"default": "slides", "help": "the folder to write into; slides by default"}),
            (
                "--lesson",
                {**LESSON[1], "action": "append", "default": [], "help": "may be given again; all by default"},
            ),
            ("--ckpt_path", {"help": 'a checkpoint, "last" or "best": its live page is written beside the slides'}),
        ],
    ),
}


def main(command: str, args: list[str]) -> None:
    """Run the command from its arguments."""
    from minigpt.__main__ import call

    parser = argparse.ArgumentParser(prog=f"minigpt {command}", description=NEXT, allow_abbrev=False)
    parts = parser.add_subparsers(dest="part", metavar="PART")
    parser.set_defaults(function="desk.overview")
    for name, (function, does, arguments) in PARTS.items():
        part = parts.add_parser(name, help=does.partition(". ")[0], description=does, allow_abbrev=False)
        part.set_defaults(function=function)
        for flag, options in arguments:
            part.add_argument(flag, **options)
    settings, flags = parser.parse_known_args(args)
    settings.flags, settings.call = flags, call  # train and export call other commands, which a wing may not import
    if flags and settings.part != "train":
        parser.error(f"unrecognized arguments: {' '.join(flags)}")
    pkgutil.resolve_name(f"minigpt.course.{settings.function}")(settings)

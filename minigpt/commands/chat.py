"""``chat``: a person and a model write a text together, in the terminal."""

import contextlib
import dataclasses
import io
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from minigpt import Precision, load
from minigpt.commands import call
from minigpt.errors import UserError
from minigpt.files import user_path, written_whole
from minigpt.sampling import Sampling

if TYPE_CHECKING:
    from minigpt.generation import Writer

try:
    import readline  # line editing and history for input(); not on every platform
except ImportError:  # pragma: no cover
    readline = None  # type: ignore[assignment]

HELP = """\
Type the beginning of a text, and the model goes on with it. Your next line continues the same text.

  an empty line       let the model write on
  /retry              write the last answer anew
  /new                begin a new text
  /save FILE          save the text so far
  /temperature 0.8    below 1 more certain, above 1 more varied, 0 always the likeliest
  /top_k 40           choose among the 40 likeliest characters; /top_k alone chooses among all
  /top_p 0.95         choose among the likeliest that hold 95 % of the probability; /top_p alone: all
  /length 300         how many characters to write at most
  /seed 1             the seed of the next answer; each answer raises it by one
  /settings           how these stand, and min_p and repetition_penalty, which are set likewise
  /help               this text
  /quit               leave, as does Ctrl-D. Ctrl-C stops an answer."""


DEFAULTS: dict[str, Any] = {**dataclasses.asdict(Sampling()), "length": 300, "seed": 1}


class Chat:
    """A text that grows, and how the model goes on with it."""

    def __init__(self, model: "Writer", fold: bool = False) -> None:
        self.model, self.fold = model, fold
        self.text = ""  # all that was written so far, by both
        self.before = ""  # the same before the last answer
        self.settings = DEFAULTS

    def take(self, line: str) -> None:
        """Do what a line asks for: a slash begins a command or the name of a setting; else it continues the text.

        Raises:
            UserError: it can't be done; all is as it was.
            EOFError: the person leaves.
        """
        if not line.startswith("/"):
            line = self.model.fold(line) if self.fold else line
            if line and self.text:
                line = self.text.removesuffix("\n") + "\n" + line
            self.answer(line or self.text)
            return
        name, _, value = line[1:].strip().partition(" ")
        match name:
            case "retry":
                if not self.text:
                    raise UserError("There is no answer yet.")
                self.answer(self.before)
            case "new":
                self.text = self.before = ""
            case "save":
                self.save(value.strip())
            case "settings":
                for key, setting in self.settings.items():
                    print(f"  {key:<20}{'all' if setting is None else setting}")
            case "" | "?" | "help":
                print(HELP)
            case "quit":
                raise EOFError
            case _:
                self.change(name, value.strip())

    def answer(self, before: str) -> None:
        """Continue ``before``, showing only its last line again."""
        pieces = self.stream(before, **self.settings)
        self.before = self.text = before
        sys.stdout.write(before[before.rfind("\n") + 1 :])
        with contextlib.suppress(KeyboardInterrupt):  # the person has read enough
            for piece in pieces:
                self.text += piece
                sys.stdout.write(piece)
                sys.stdout.flush()
        print()
        self.settings = {**self.settings, "seed": self.settings["seed"] + 1}

    def stream(self, before: str, length: int, **settings: Any) -> Iterator[str]:
        """What the model adds to a text; a setting that can't be is told before any of it."""
        return self.model.stream(before, max_new_tokens=length, **settings)

    def change(self, name: str, value: str) -> None:
        """Change a setting; without a value, back to its default."""
        if name not in DEFAULTS:
            raise UserError(f"There is no command /{name}; /help lists those there are.")
        kind = int if name in ("top_k", "length", "seed") else float
        try:
            changed = {**self.settings, name: kind(value) if value else DEFAULTS[name]}
        except ValueError:
            raise UserError(f"{value!r} is not a {'whole ' * (kind is int)}number.") from None
        self.stream("", **changed)
        self.settings = changed

    def save(self, name: str) -> None:
        """Write the text into a new file."""
        if not name:
            raise UserError("Name a file: /save story.txt")
        path = user_path(name)
        if os.path.lexists(path):  # Path's own raises where it may not look
            raise UserError(f"{path} is there already; name another file.")
        try:
            with written_whole(path) as file:
                file.write(self.text.encode("utf-8", "surrogatepass"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} can't be written: {error}.") from error
        print(f"Saved {len(self.text):,} characters in {path}.")


@contextlib.contextmanager
def history() -> Iterator[None]:
    """Recall what was typed the last time, and keep it for the next, where it can be kept."""
    path = user_path("~/.minigpt_history")
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    try:
        yield
    finally:
        readline.set_history_length(1000)
        with contextlib.suppress(OSError):
            readline.write_history_file(path)


def chat(
    ckpt_path: str,
    fold: bool = False,
    device: str = "cpu",
    fast: bool | None = None,
    precision: Precision = "float32",
) -> None:
    """Write together with a trained model: type the beginning of a text, watch it go on.

    Args:
        ckpt_path: a checkpoint file, or "last" or "best" for that of the newest run.
        fold: replace quotes, dashes, spaces and accented letters that the model doesn't know by those that it knows.
        device: where to compute, as PyTorch names it: cpu, cuda, mps.
        fast: compute by fast layers with a key-value cache; by default where they give what model.py gives.
        precision: bfloat16 computes under torch.autocast.
    """
    if sys.stdin is None:
        raise UserError("chat reads what you type from the standard input, which is closed.")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # bytes that are no text must not end the chat
    model = load(ckpt_path, device, fast, precision)
    print(f"minigpt: {model.description}", file=sys.stderr)
    print("Type the beginning of a text. /help lists the commands.")
    terminal = Chat(model, fold)
    with history() if readline and sys.stdin.isatty() else contextlib.nullcontext():
        while True:
            try:
                terminal.take(input("> "))
            except UserError as error:
                print(error)
            except KeyboardInterrupt:  # at the prompt: drop the line
                print()
            except EOFError:  # Ctrl-D
                return print()


def main(command: str, args: list[str]) -> None:
    """Run the command from its arguments."""
    call(chat, args, f"minigpt {command}")

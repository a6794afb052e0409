"""An interactive terminal: a person and a model write a text together."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from minigpt.commands import call
from minigpt.errors import UserError
from minigpt.files import written_whole
from minigpt.generation import Sampling, Writer

try:
    import readline  # line editing and history for input(); not on every platform
except ImportError:  # pragma: no cover
    readline = None  # type: ignore[assignment]

HISTORY = Path("~/.minigpt_history")
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
  /settings           how these stand
  /help               this text
  /quit               leave, as does Ctrl-D. Ctrl-C stops an answer."""


class Chat:
    """A line that begins with a slash is a command, the method ``do_`` of that name; any other continues the text.

    Args:
        model: what answers.
    """

    def __init__(self, model: Writer) -> None:
        self.model = model
        self.text = ""  # all that was written so far, by both
        self.before = ""  # the same before the last answer
        self.temperature = 0.8
        self.top_k: int | None = None
        self.top_p: float | None = None
        self.length = 300
        self.seed = 1

    def run(self) -> None:
        """Take lines until the person leaves."""
        with self.history():
            print("Type the beginning of a text. /help lists the commands.")
            done = False
            while not done:
                try:
                    done = self.take(input("> "))
                except KeyboardInterrupt:  # at the prompt: drop the line
                    print()
                except EOFError:
                    print()
                    done = True

    @contextlib.contextmanager
    def history(self) -> Iterator[None]:
        """Keep what was typed for the next time, where a person types it."""
        if readline is None or not sys.stdin.isatty():
            yield
            return
        path = HISTORY.expanduser()
        with contextlib.suppress(OSError):  # there is none yet, or it can't be read: begin without
            readline.read_history_file(path)
        try:
            yield
        finally:
            readline.set_history_length(1000)
            try:
                readline.write_history_file(path)
            except OSError as error:
                print(f"The history was not saved: {error}.")

    def take(self, line: str) -> bool:
        """Do what one line asks for, and say whether to leave. A mistake is told, and nothing is lost."""
        try:
            if not line.startswith("/"):
                self.write(line)
                return False
            name, _, argument = line[1:].partition(" ")
            if (do := getattr(self, f"do_{name}", None)) is None:
                raise UserError(f"There is no command /{name}; /help lists those there are.")
            return bool(do(argument.strip()))
        except (ValueError, OSError) as error:
            print(error)
            return False

    def write(self, line: str) -> None:
        """Add a line of the person's to the text, and let the model go on."""
        if line and self.text:
            line = self.text.removesuffix("\n") + "\n" + line
        self.answer(line or self.text)

    def answer(self, before: str) -> None:
        """Continue ``before``, showing only its last line again."""
        settings: dict[str, Any] = {name: getattr(self, name) for name in ("temperature", "top_k", "top_p", "seed")}
        pieces = self.model.stream(before, max_new_tokens=self.length, **settings)
        text = before
        sys.stdout.write(before[before.rfind("\n") + 1 :])
        try:
            for piece in pieces:
                text += piece
                sys.stdout.write(piece)
                sys.stdout.flush()
        except KeyboardInterrupt:  # the person has read enough
            pass
        print()
        self.before, self.text = before, text
        self.seed += 1

    def do_retry(self, _: str) -> None:
        if not self.text:
            raise UserError("There is no answer yet.")
        self.answer(self.before)

    def do_new(self, _: str) -> None:
        self.text = self.before = ""

    def do_save(self, argument: str) -> None:
        if not argument:
            raise UserError("Name a file: /save story.txt")
        path = Path(argument).expanduser()
        if path.exists():
            raise UserError(f"{path} is there already; name another file.")
        with written_whole(path) as file:
            file.write(self.text.encode("utf-8", "surrogatepass"))
        print(f"Saved {len(self.text):,} characters in {path}.")

    def do_temperature(self, argument: str) -> None:
        self.temperature = Sampling(temperature=number(argument, float)).temperature

    def do_top_k(self, argument: str) -> None:
        self.top_k = Sampling(top_k=number(argument, int) if argument else None).top_k

    def do_top_p(self, argument: str) -> None:
        self.top_p = Sampling(top_p=number(argument, float) if argument else None).top_p

    def do_length(self, argument: str) -> None:
        if (length := number(argument, int)) < 1:
            raise UserError(f"length is {length}; it must be at least 1.")
        self.length = length

    def do_seed(self, argument: str) -> None:
        if not 0 <= (seed := number(argument, int)) < 2**63:
            raise UserError(f"seed is {seed}; it must be a whole number from 0 to 2^63.")
        self.seed = seed

    def do_settings(self, _: str) -> None:
        for name in ("temperature", "top_k", "top_p", "length", "seed"):
            print(f"  {name:<12} {'all' if (value := getattr(self, name)) is None else value}")

    def do_help(self, _: str) -> None:
        print(HELP)

    def do_quit(self, _: str) -> bool:
        return True


Number = TypeVar("Number", int, float)


def number(text: str, kind: type[Number]) -> Number:
    """The number that was typed."""
    try:
        return kind(text)
    except ValueError:
        raise UserError(f"{text!r} is not a {'whole ' * (kind is int)}number.") from None


def chat(ckpt_path: str, device: str = "cpu") -> None:
    """Write together with a trained model: type the beginning of a text, watch it go on.

    Args:
        ckpt_path: a checkpoint file, or "last" or "best" for that of the newest run.
        device: where to compute, as PyTorch names it: cpu, cuda, mps.
    """
    if sys.stdin is None:
        raise UserError("chat reads what you type from the standard input, which is closed.")
    from minigpt import load

    Chat(load(ckpt_path, device)).run()


def main(command: str, args: list[str]) -> None:
    """Run the command from its arguments."""
    call(chat, args, f"minigpt {command}")

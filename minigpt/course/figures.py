"""The pictures of the lessons, drawn from what the lessons' own code computes: ``python -m minigpt.course.figures``.

A picture is a function of a lesson's session: the names that its blocks of Python leave. So picture and text can't
disagree.
"""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minigpt.course.drawing import BLUE, ORANGE, WIDTH, box, heat, path, shown, svg, words
from minigpt.course.lesson import lessons, run

FOLDER = Path(__file__).parent / "figures"
Session = dict[str, Any]


def surprise(session: Session) -> str:
    """What each character of a line costs, and what it would cost by guessing."""
    line, nats, uniform = session["line"], session["nats_T"].tolist(), session["uniform"]
    cell, bottom, unit = WIDTH / len(line), 190.0, 22.0
    parts = []
    for i, (character, cost) in enumerate(zip(line, nats, strict=True)):
        parts.append(box(i * cell + 1, bottom - cost * unit, cell - 2, cost * unit, BLUE, 0.75))
        parts.append(words((i + 0.5) * cell, bottom - cost * unit - 4, f"{cost:.1f}", "middle", "small"))
        parts.append(words((i + 0.5) * cell, bottom + 18, shown(character), "middle", "mono"))
    parts.append(path([(0, bottom - uniform * unit), (WIDTH, bottom - uniform * unit)]))
    parts.append(words(9 * cell, bottom - uniform * unit - 6, f"guessing: {uniform:.2f} nats"))
    return svg("What each character costs, by how frequent it is", 215, parts)


def windows(session: Session) -> str:
    """One window as examples: what was read, and what is to be predicted."""
    line, T = [session["vocabulary"][i] for i in session["window"]], len(session["window"]) - 1
    cell, left, top = 30.0, 200.0, 24.0
    parts = [words(left, 14, "read so far, and the next character", kind="small")]
    for t in range(T):
        y = top + t * cell
        parts.append(words(left - 14, y + 20, f"position {t}", "end"))
        parts += [box(left + i * cell, y, cell - 2, cell - 2, BLUE, 0.3) for i in range(t + 1)]
        parts.append(box(left + (t + 1) * cell, y, cell - 2, cell - 2, ORANGE, 0.6))
        parts += [words(left + (i + 0.5) * cell - 1, y + 19, shown(line[i]), "middle", "mono") for i in range(t + 2)]
    return svg(f"A window of {T + 1} characters holds {T} examples", top + T * cell + 4, parts)


def tables(session: Session) -> str:
    """What follows what: counted, learned, and learned with tied ends."""
    letters = [i for i, character in enumerate(session["vocabulary"]) if character == " " or character.islower()]
    names = [session["vocabulary"][i] for i in letters]
    three = {
        "counted": session["counted_VV"],
        "learned": session["W_VV"].softmax(-1),
        "tied": session["tied_VV"].softmax(-1),
    }
    cell, parts = 8.2, []
    for i, (name, p_VV) in enumerate(three.items()):
        x = 14 + i * 232
        parts.append(words(x, 14, name))
        parts += heat(x, 40, cell, p_VV[letters][:, letters].tolist(), names, names)
    height = 40 + cell * len(letters)
    parts.append(
        words(14, height + 22, "row: the character that was read; column: the one that is expected", kind="small")
    )
    return svg("What follows what", height + 30, parts)


def averaging(session: Session) -> str:
    """The weights of a mean of the past."""
    shown_positions, cell, left, top = 8, 34.0, 230.0, 40.0
    weights = session["weight_TS"][:shown_positions, :shown_positions].tolist()
    numbers = [str(i) for i in range(shown_positions)]
    parts = [
        words(left, 14, "looked at: position s", kind="small"),
        words(left - 30, top + 20, "position t = 0", "end"),
    ]
    parts += heat(left, top, cell, weights, numbers, numbers)
    for t, row in enumerate(weights):
        y = top + t * cell + cell / 2 + 4
        parts += [words(left + (s + 0.5) * cell, y, f"{w:.2f}", "middle", "small") for s, w in enumerate(row) if w]
        parts.append(words(left + shown_positions * cell + 12, y, f"1 / {t + 1} each", kind="small"))
    return svg("The weights of a mean of the past, for the first 8 positions", top + shown_positions * cell + 8, parts)


def attention(session: Session) -> str:
    """Where one head looks, on a line of text."""
    cell, left, top = 15.0, 110.0, 40.0
    line = session["line"]
    parts = [words(left, 14, "looked at", kind="small"), words(left - 24, top + 10, "position", "end", "small")]
    parts += heat(left, top, cell, session["pattern_TS"].tolist(), line, line)
    return svg("The pattern of one head, trained for 300 steps", top + cell * len(line) + 8, parts)


def heads(session: Session) -> str:
    """The same numbers in memory, read as heads in the right and in the wrong order."""
    x_TC = session["x_TC"]
    T, C = x_TC.shape
    H = 2
    D, cell = C // H, 40.0
    colour_of = {x_TC[t, c].item(): (BLUE, ORANGE)[c // D] for t in range(T) for c in range(C)}

    def row(numbers: list[int], x: float, y: float) -> list[str]:
        parts = [box(x + i * cell, y, cell - 3, 28, colour_of[number], 0.4) for i, number in enumerate(numbers)]
        return parts + [
            words(x + (i + 0.5) * cell - 1.5, y + 19, str(number), "middle", "mono") for i, number in enumerate(numbers)
        ]

    parts = [words(20, 16, "in memory: three positions of four channels; blue belongs to head 0, orange to head 1")]
    parts += row(x_TC.flatten().tolist(), 20, 26)
    ways = {
        "view(T, H, D), then transpose": x_TC.view(T, H, D).transpose(0, 1),
        "view(H, T, D): mixed": x_TC.view(H, T, D),
    }
    for i, (name, x_HTD) in enumerate(ways.items()):
        left = 90 + i * 340
        parts.append(words(left, 94, name))
        for h in range(H):
            parts.append(words(left - 10, 126 + h * 106, f"head {h}", "end"))
            for t in range(T):
                parts += row(x_HTD[h, t].tolist(), left, 106 + h * 106 + t * 31)
    return svg("Channels shared out to two heads, in the right and in the wrong order", 318, parts)


FIGURES: dict[str, Callable[[Session], str]] = {  # by the file's name, which begins with the lesson's number
    "01-surprise.svg": surprise,
    "02-windows.svg": windows,
    "03-gradients.svg": tables,
    "04-averaging.svg": averaging,
    "05-attention.svg": attention,
    "06-heads.svg": heads,
}
if importlib.util.find_spec("minigpt.course.figures_later"):
    FIGURES |= importlib.import_module("minigpt.course.figures_later").FIGURES


def of_lesson(number: int, session: Session) -> dict[str, str]:
    """The pictures of a lesson, by the names of their files."""
    return {name: draw(session) for name, draw in FIGURES.items() if int(name[:2]) == number}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for lesson in lessons():
        for name, image in of_lesson(lesson.number, run(lesson)[0]).items():
            (FOLDER / name).write_text(image, encoding="utf-8", newline="\n")
            print(FOLDER / name)


if __name__ == "__main__":
    main()

"""The pictures of the lessons, drawn from what the lessons' own code computes: ``python -m minigpt.course.figures``.

A picture is a function of a lesson's session: the names that its blocks of Python leave. So picture and text can't
disagree.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    names = list(" acehilnoqrstuwz")  # with all that there are no letter could be read
    letters = [session["vocabulary"].index(name) for name in names]
    three = {
        "counted": session["counted_VV"],
        "learned": session["W_VV"].softmax(-1),
        "tied": session["tied_VV"].softmax(-1),
    }
    cell, parts = 13.2, []
    for i, (name, p_VV) in enumerate(three.items()):
        x = 18 + i * 233
        parts.append(words(x, 14, name))
        parts += heat(x, 40, cell, p_VV[letters][:, letters].tolist(), names, names)
    height = 40 + cell * len(letters)
    parts.append(
        words(
            14,
            height + 22,
            "row: the character that was read; column: the one that is expected (16 of them)",
            kind="small",
        )
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


def curve(
    x: float, y: float, width: float, height: float, values: Sequence[float], low: float, high: float
) -> list[tuple[float, float]]:
    """Where a line over evenly spaced positions goes, in a field whose top left corner is (x, y)."""
    step = width / (len(values) - 1)
    return [(x + i * step, y + height * (high - value) / (high - low)) for i, value in enumerate(values)]


def sines(session: Session) -> str:
    """Some channels of the table of sines over the positions, and how alike the positions are."""
    table_TC = session["table_TC"]
    parts = [words(0, 16, "some channels, over positions 0 to 63")]
    for row, i in enumerate((0, 2, 4, 6, 8)):
        y = 30 + 46 * row
        parts += [words(0, y + 22, f"2i = {2 * i}", kind="small")]
        for channel, colour in ((2 * i, BLUE), (2 * i + 1, ORANGE)):  # sine and cosine
            parts += [path(curve(60, y, 270, 36, table_TC[:, channel].tolist(), -1, 1), colour, 1.5)]
    parts += [
        words(60, 274, "sine", more=f'style="fill:{BLUE}"'),
        words(100, 274, "cosine", more=f'style="fill:{ORANGE}"'),
    ]
    parts += [words(390, 16, "how alike 10, 30 and 50 are to each position")]
    alike_TT = (table_TC @ table_TC.T).tolist()
    parts += [path(curve(390, 40, 300, 200, alike_TT[t], 0, 16), BLUE, 1.5) for t in (10, 30, 50)]
    parts += [path([(390, 240), (690, 240)])]
    parts += [words(390 + 300 * t / 63, 256, str(t), "middle", "small") for t in (0, 10, 30, 50, 63)]
    return svg(
        "Sines of several speeds, and the likeness of positions, which depends on their distance alone", 284, parts
    )


def alike(session: Session) -> str:
    """How alike the positions of a new model are after each block, with residuals and without."""
    parts = [words(0, 16, "how alike two positions are: the cosine of their streams, 1 is the same")]
    for value in (0, 0.5, 1):
        parts += [words(40, 214 - 160 * value, f"{value:g}", "end", "small")]
        parts += [path([(50, 210 - 160 * value), (590, 210 - 160 * value)], width=0.3)]
    named = ((False, ORANGE, "replaced", -8), (True, BLUE, "added", 4))
    for added, colour, name, shift in named:
        points = curve(50, 50, 540, 160, session["alike"][added], 0, 1)
        parts += [path(points, colour, 2), words(600, points[-1][1] + shift, name, more=f'style="fill:{colour}"')]
    parts += [words(50 + 45 * depth, 228, str(depth), "middle", "small") for depth in range(13)]
    parts += [words(590, 246, "blocks", "end")]
    return svg("Without residuals all positions of a new model are alike after two blocks", 254, parts)


def training(session: Session) -> str:
    """The loss of each step, ten steps in a point, with AdamW and with Muon."""
    parts = [words(0, 16, "loss in training, in nats per character, the mean of ten steps each")]
    for value in (1, 2, 3, 4):
        parts += [words(40, 254 - 50 * value, f"{value}", "end", "small")]
        parts += [path([(50, 250 - 50 * value), (600, 250 - 50 * value)], width=0.3)]
    for (name, losses), colour in zip(session["curves"].items(), (ORANGE, BLUE), strict=True):
        means = [sum(losses[i : i + 10]) / 10 for i in range(0, len(losses), 10)]
        points = curve(50, 50, 550, 200, means, 0, 4)
        parts += [path(points, colour, 2), words(608, points[-1][1] + 4, name, more=f'style="fill:{colour}"')]
    parts += [words(50 + 550 * step / 200, 268, f"{step}", "middle", "small") for step in (0, 50, 100, 150, 200)]
    parts += [words(600, 286, "steps", "end")]
    return svg("The loss falls faster with Muon than with AdamW", 294, parts)


def temperature(session: Session) -> str:
    """What is drawn from after some words, at three temperatures."""
    by_temperature, vocabulary = session["by_temperature"], session["vocabulary"]
    order = by_temperature[1.0].argsort(descending=True)[:16].tolist()
    parts = []
    for column, value in enumerate((0.5, 1.0, 2.0)):
        left = 240 * column
        parts += [words(left, 16, f"temperature {value:g}")]
        for i, id_ in enumerate(order):
            height = 500 * float(by_temperature[value][id_])
            parts += [box(left + 13 * i, 170 - height, 11, height, BLUE, 0.75)]
            parts += [words(left + 13 * i + 5.5, 184, shown(vocabulary[id_]), "middle", "mono small")]
    return svg("The same answer at three temperatures, the likeliest characters first", 192, parts)


def halfway(session: Session) -> str:
    """The probability of the right character after each half of each block."""
    parts = [words(0, 16, "after 'the old queen sees the quiet q': how probable is u, if it ended here?")]
    for i, (name, value) in enumerate(zip(session["names"], session["probability_of_u"], strict=True)):
        y = 30 + 30 * i
        parts += [words(120, y + 16, name, "end"), box(130, y, max(1.0, 480 * value), 22, BLUE, 0.75)]
        parts += [words(138 + 480 * value, y + 16, f"{value:.2f}")]
    return svg("The logit lens: where the answer comes in", 186, parts)


def ladder(session: Session) -> str:
    """What each lesson reaches, on one scale."""
    course = lessons()
    parts = []
    for i, lesson in enumerate(course):
        y = 26 * i
        parts += [words(300, y + 17, f"{lesson.number}  {lesson.rung}", "end")]
        parts += [box(310, y + 2, 110 * lesson.nats, 20, ORANGE if lesson is course[-1] else BLUE, 0.75)]
        parts += [words(318 + 110 * lesson.nats, y + 17, f"{lesson.nats:.2f}")]
    return svg("What a character costs at the end of each lesson, in nats", 26 * len(course) + 6, parts)


# By the file's name, which begins with the lesson's number.
FIGURES: dict[str, Callable[[Session], str]] = {
    "01-surprise.svg": surprise,
    "02-windows.svg": windows,
    "03-gradients.svg": tables,
    "04-averaging.svg": averaging,
    "05-attention.svg": attention,
    "06-heads.svg": heads,
    "07-sines.svg": sines,
    "08-alike.svg": alike,
    "09-training.svg": training,
    "10-temperature.svg": temperature,
    "11-lens.svg": halfway,
    "12-ladder.svg": ladder,
}


@dataclass(frozen=True)
class View:
    """Where the live page of a trained model, ``explain``, shows what a picture is about, or what comes nearest."""

    says: str  # what is to be seen there
    link: str  # the state as glassbox/page/state.js reads it; a step that the page lacks it leaves out


VIEWS: dict[str, View] = {
    "01-surprise.svg": View(
        "The same in the live page: a text coloured by what each character costs", "depth=projector&panel=guide&card=2"
    ),
    "02-windows.svg": View(
        "In the live page: what is expected after the place where you put the cursor",
        "depth=projector&panel=expects&text=the+old+king&at=6",
    ),
    "03-gradients.svg": View(
        "In the live page: a row of such a table, what a trained GPT expects after q",
        "depth=projector&panel=expects&text=q",
    ),
    "04-averaging.svg": View(
        "In the live page: a head before training, which still takes nearly the mean (if the run was filmed)",
        "depth=projector&panel=heads&head=0.0&step=0",
    ),
    "05-attention.svg": View("The same in the live page: where one head looks", "depth=projector&panel=heads&head=1.2"),
    "06-heads.svg": View(
        "In the live page: the heads of each block side by side, each with a map of its own",
        "depth=student&panel=heads&head=0.0",
    ),
    "07-sines.svg": View(  # this head of quickstart, see docs/glassbox.md
        "In the live page: what positions are good for, a head that looks at the character before",
        "depth=projector&panel=heads&head=0.2",
    ),
    "08-alike.svg": View(
        "In the live page: the stream after each addition, by what the model would answer there",
        "depth=projector&panel=lens",
    ),
    "09-training.svg": View(
        "The same in the live page: the loss of its model in training", "depth=projector&panel=time"
    ),
    "10-temperature.svg": View(
        "The same in the live page: what is drawn from, in orange, at temperature 0.5",
        "depth=projector&panel=expects&text=the+&temperature=0.5",
    ),
    "11-lens.svg": View(
        "The same in the live page: what it would answer after each half of each block",
        "depth=projector&panel=lens&text=the+old+queen+sees+the+quiet+q",
    ),
    "12-ladder.svg": View(
        "In the live page: how one model came down, from its first step to its last", "depth=projector&panel=time"
    ),
}


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

"""The pictures of lessons 7 to 12; see figures.py."""

from collections.abc import Callable, Sequence
from typing import Any

from minigpt.course.drawing import BLUE, ORANGE, box, path, shown, svg, words
from minigpt.course.lesson import lessons

Session = dict[str, Any]


def curve(
    x: float, y: float, width: float, height: float, values: Sequence[float], low: float, high: float
) -> list[tuple[float, float]]:
    """Where a line over evenly spaced places goes, in a field whose top left corner is (x, y)."""
    step = width / (len(values) - 1)
    return [(x + i * step, y + height * (high - value) / (high - low)) for i, value in enumerate(values)]


def sines(session: Session) -> str:
    """Some channels of the table of sines over the places, and how alike the places are."""
    table_TC = session["table_TC"]
    parts = [words(0, 16, "some channels, over places 0 to 63")]
    for row, i in enumerate((0, 2, 4, 6, 8)):
        y = 30 + 46 * row
        parts += [words(0, y + 22, f"2i = {2 * i}", kind="small")]
        parts += [path(curve(60, y, 270, 36, table_TC[:, 2 * i + odd].tolist(), -1, 1), c, 1.5) for odd, c in SINES]
    parts += [
        words(60, 274, "sine", more=f'style="fill:{BLUE}"'),
        words(100, 274, "cosine", more=f'style="fill:{ORANGE}"'),
    ]
    parts += [words(390, 16, "how alike 10, 30 and 50 are to each place")]
    alike_TT = (table_TC @ table_TC.T).tolist()
    parts += [path(curve(390, 40, 300, 200, alike_TT[t], 0, 16), BLUE, 1.5) for t in (10, 30, 50)]
    parts += [path([(390, 240), (690, 240)])]
    parts += [words(390 + 300 * t / 63, 256, str(t), "middle", "small") for t in (0, 10, 30, 50, 63)]
    return svg("Sines of several speeds, and the likeness of places, which depends on their distance alone", 284, parts)


SINES = ((0, BLUE), (1, ORANGE))


def alike(session: Session) -> str:
    """How alike the places of a new model are after each block, with residuals and without."""
    parts = [words(0, 16, "how alike two places are: the cosine of their streams, 1 is the same")]
    for value in (0, 0.5, 1):
        parts += [words(40, 214 - 160 * value, f"{value:g}", "end", "small")]
        parts += [path([(50, 210 - 160 * value), (590, 210 - 160 * value)], width=0.3)]
    named = ((False, ORANGE, "replaced", -8), (True, BLUE, "added", 4))
    for added, colour, name, shift in named:
        points = curve(50, 50, 540, 160, session["alike"][added], 0, 1)
        parts += [path(points, colour, 2), words(600, points[-1][1] + shift, name, more=f'style="fill:{colour}"')]
    parts += [words(50 + 45 * depth, 228, str(depth), "middle", "small") for depth in range(13)]
    parts += [words(590, 246, "blocks", "end")]
    return svg("Without residuals all places of a new model are alike after two blocks", 254, parts)


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


FIGURES: dict[str, Callable[[Session], str]] = {
    "07-sines.svg": sines,
    "08-alike.svg": alike,
    "09-training.svg": training,
    "10-temperature.svg": temperature,
    "11-lens.svg": halfway,
    "12-ladder.svg": ladder,
}

"""The pictures of lessons 7 to 12; see figures.py."""

from collections.abc import Callable, Sequence
from typing import Any

from minigpt.course.drawing import BLUE, ORANGE, path, svg, words

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
    parts += [words(60, 274, "sine", more=f'style="fill:{BLUE}"'), words(100, 274, "cosine", more=f'style="fill:{ORANGE}"')]
    parts += [words(390, 16, "how alike 10, 30 and 50 are to each place")]
    alike_TT = (table_TC @ table_TC.T).tolist()
    parts += [path(curve(390, 40, 300, 200, alike_TT[t], 0, 16), BLUE, 1.5) for t in (10, 30, 50)]
    parts += [path([(390, 240), (690, 240)])]
    parts += [words(390 + 300 * t / 63, 256, str(t), "middle", "small") for t in (0, 10, 30, 50, 63)]
    return svg("Sines of several speeds, and the likeness of places, which depends on their distance alone", 284, parts)


SINES = ((0, BLUE), (1, ORANGE))

FIGURES: dict[str, Callable[[Session], str]] = {"07-sines.svg": sines}

"""What the pictures of the lessons are made of: SVG by hand, in colours that fit light and dark."""

from collections.abc import Sequence
from xml.sax.saxutils import escape

WIDTH = 700  # units of a picture's width
BLUE, ORANGE = "#3f83d6", "#d9822b"  # readable on white and on black
STYLE = (
    ".course{color:#1f2328;font:14px system-ui,sans-serif;max-width:100%}.course text{fill:currentColor}"
    ".course .mono{font-family:ui-monospace,Consolas,monospace}.course .small{font-size:13px}"
    "@media(prefers-color-scheme:dark){.course{color:#d1d7e0}}"
)


def svg(title: str, height: float, parts: Sequence[str]) -> str:
    """An image, whose title a screen reader reads."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="course" role="img" width="{WIDTH}" height="{height:.0f}" '
        f'viewBox="0 0 {WIDTH} {height:.0f}">\n<title>{escape(title)}</title>\n<style>{STYLE}</style>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def words(x: float, y: float, said: str, anchor: str = "start", kind: str = "", more: str = "") -> str:
    """Text; ``anchor`` is start, middle or end, ``kind`` is mono or small."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{escape(said)}</text>'


def box(x: float, y: float, width: float, height: float, colour: str = BLUE, opacity: float = 1.0) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}" '
        f'fill-opacity="{opacity:.2f}"/>'
    )


def path(points: Sequence[tuple[float, float]], colour: str = "currentColor", width: float = 1.0) -> str:
    """A line through points."""
    at = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path d="M{at}" fill="none" stroke="{colour}" stroke-width="{width}"/>'


def shown(character: str) -> str:
    """A character that can be seen."""
    return {" ": "·", "\n": "↵"}.get(character, character)


def heat(
    x: float,
    y: float,
    cell: float,
    values: Sequence[Sequence[float]],
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    colour: str = BLUE,
) -> list[str]:
    """A table of squares, each as strong as its number from 0 to 1, with a character before each row and column."""
    height, width = len(values) * cell, len(values[0]) * cell
    parts = [
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="none" '
        'stroke="currentColor" stroke-opacity="0.3"/>'
    ]
    for r, row in enumerate(values):
        parts += [box(x + c * cell, y + r * cell, cell, cell, colour, v) for c, v in enumerate(row) if v >= 0.005]
    middle = cell / 2 + 4
    parts += [words(x - 7, y + r * cell + middle, shown(row), "end", "mono small") for r, row in enumerate(rows)]
    parts += [
        words(x + (c + 0.5) * cell, y - 6, shown(column), "middle", "mono small") for c, column in enumerate(columns)
    ]
    return parts

"""Figures as SVG, drawn by hand: a chart of lines, bars, attention maps, a table of glyphs.

Colours and fonts come from the page's style sheet, by class, so that a figure follows light and dark. Every figure has
a title, which a screen reader reads and a mouse shows. The text of a figure is escaped here.
"""

import base64
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

WIDTH = 700  # units of a figure's width; its height is chosen for what it shows
TINT = (56, 124, 200)  # the one hue of attention, on light and on dark


@dataclass(frozen=True)
class Line:
    """A line of a chart."""

    name: str  # stands at its end
    points: Sequence[tuple[float, float]]
    kind: str = "accent"  # or "quiet", "faint": a class of the style sheet
    band: Sequence[tuple[float, float]] = ()  # below and above each point, drawn as an area


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers from ``low`` to ``high``, 1, 2 or 5 times a power of ten apart."""
    span = (high - low) / count or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= span * 0.999)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten from ``low`` to ``high``; with twice and five times them where there are few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if math.log10(high / low) > 2.5 else (1, 2, 5)
    return [f * 10.0**d for d in decades for f in factors if low * 0.999 <= f * 10.0**d <= high * 1.001]


def short(value: float) -> str:
    """A number as a tick shows it."""
    return f"{value:,.0f}" if abs(value) >= 1000 or value == 0 else f"{value:.6f}".rstrip("0").rstrip(".")


def figure(title: str, height: float, parts: Sequence[str], kind: str = "") -> Markup:
    """An SVG image of that title."""
    return Markup(
        f'<svg class="{kind}" role="img" viewBox="0 0 {WIDTH} {height:.0f}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def line_chart(
    title: str,
    lines: Sequence[Line],
    x: str,
    y: str,
    log_x: bool = False,
    height: float = 300,
    mark: tuple[float, str] | None = None,
) -> Markup:
    """Lines over a common axis, each named at its end.

    Args:
        title: says what is seen.
        lines: at least one, each with at least one point; with ``log_x`` at x above 0.
        x: what the horizontal axis is, with its unit.
        y: what the vertical axis is, with its unit.
        log_x: whether the horizontal axis is logarithmic.
        height: in units, of which the figure has 700 in width.
        mark: a place on the horizontal axis, and what is there.
    """
    left, right, top, bottom = 62.0, WIDTH - 128.0, 34.0, height - 52.0
    xs = [px for line in lines for px, _ in line.points]
    ys = [v for line in lines for v in (*(py for _, py in line.points), *(v for pair in line.band for v in pair))]
    x_low, x_high, y_low, y_high = min(xs), max(xs), min(ys), max(ys)
    if not log_x and 0 < x_low < 0.1 * x_high:
        x_low = 0
    margin = 0.05 * (y_high - y_low) or abs(y_high) * 0.1 or 1.0
    y_low, y_high = max(y_low - margin, min(0.0, y_low)), y_high + margin
    if x_low == x_high:
        x_high = x_low + 1

    def at_x(value: float) -> float:
        part = math.log(value / x_low) / math.log(x_high / x_low) if log_x else (value - x_low) / (x_high - x_low)
        return left + part * (right - left)

    def at_y(value: float) -> float:
        return bottom - (value - y_low) / (y_high - y_low) * (bottom - top)

    parts = []
    for value in ticks(y_low, y_high):
        parts.append(f'<path class="grid" d="M{left:.1f} {at_y(value):.1f}H{right:.1f}"/>')
        parts.append(text(left - 8, at_y(value) + 4, short(value), anchor="end"))
    for value in log_ticks(max(x_low, 1), x_high) if log_x else ticks(x_low, x_high):
        parts.append(f'<path class="tick" d="M{at_x(value):.1f} {bottom:.1f}v5"/>')
        parts.append(text(at_x(value), bottom + 22, short(value), anchor="middle"))
    parts.append(f'<path class="axis" d="M{left:.1f} {bottom:.1f}H{right:.1f}"/>')
    parts.append(text(0, 14, y, "label"))
    parts.append(text(right, height - 4, x, "label", "end"))
    if mark:
        place, words = at_x(min(max(mark[0], x_low), x_high)), mark[1]
        parts.append(f'<path class="mark" d="M{place:.1f} {top:.1f}V{bottom:.1f}"/>')
        parts.append(text(place, top - 6, words, "name", "end" if place > (left + right) / 2 else "start"))
    for line in lines:
        at = [f"{at_x(px):.1f} {at_y(py):.1f}" for px, py in line.points]
        if line.band:
            edges = [
                f"{at_x(px):.1f} {at_y(low):.1f}" for (px, _), (low, _) in zip(line.points, line.band, strict=True)
            ]
            edges += [
                f"{at_x(px):.1f} {at_y(high):.1f}"
                for (px, _), (_, high) in reversed(list(zip(line.points, line.band, strict=True)))
            ]
            parts.append(f'<path class="band {line.kind}" d="M{"L".join(edges)}z"/>')
        parts.append(f'<path class="line {line.kind}" d="M{"L".join(at)}"/>')
        if len(at) < 40 and line.kind == "accent" and not line.band:
            parts += [f'<circle class="dot" cx="{p.split()[0]}" cy="{p.split()[1]}" r="3"/>' for p in at]
    # Names at the ends, pushed apart where they would overlap: first downwards, then up from the axis.
    ordered = sorted(lines, key=lambda line: -line.points[-1][1])
    heights = [at_y(line.points[-1][1]) + 4 for line in ordered]
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + 18)
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], bottom + 4 - 18 * (len(heights) - 1 - i))
    for line, y_name in zip(ordered, heights, strict=True):
        parts.append(text(right + 10, y_name, line.name, f"name {line.kind}"))
    return figure(title, height, parts)


@dataclass(frozen=True)
class Bar:
    """A bar of a chart."""

    name: str
    value: float
    label: str  # the value as it is shown
    own: bool = False  # in the accent colour
    interval: Sequence[float] | None = None  # a confidence interval, drawn as a whisker


def bar_chart(title: str, bars: Sequence[Bar], x: str) -> Markup:
    """Bars from 0, one below the other, with their names before them and their values behind."""
    left, right, row = 150.0, WIDTH - 80.0, 30.0
    highest = max(max(bar.value, *(bar.interval or (0,))) for bar in bars) or 1.0
    parts = []
    for i, bar in enumerate(bars):
        y, width = 4 + i * row, bar.value / highest * (right - left)
        kind = "own" if bar.own else ""
        parts.append(text(left - 10, y + 17, bar.name, f"name {kind}", "end"))
        parts.append(f'<rect class="bar {kind}" x="{left}" y="{y + 3:.1f}" width="{width:.1f}" height="20"/>')
        end = left + width
        if bar.interval:
            low, high = (left + value / highest * (right - left) for value in bar.interval)
            parts.append(f'<path class="whisker" d="M{low:.1f} {y + 13:.1f}H{high:.1f}M{low:.1f} {y + 8:.1f}v10')
            parts.append(f'M{high:.1f} {y + 8:.1f}v10"/>')
            end = max(end, high)
        parts.append(text(end + 8, y + 17, bar.label, f"value {kind}"))
    height = 4 + len(bars) * row + 24
    parts.append(f'<path class="axis" d="M{left} 2V{height - 24:.1f}"/>')
    parts.append(text(left, height - 4, x, "label"))
    return figure(title, height, parts)


def png(opacity_HW: NDArray[np.floating]) -> str:
    """An image in the hue of attention, as opaque in each pixel as the number from 0 to 1 says, as a data URL."""
    pixels = np.empty((*opacity_HW.shape, 4), np.uint8)
    pixels[..., :3] = TINT
    pixels[..., 3] = np.rint(np.clip(opacity_HW, 0, 1) * 255)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", opacity_HW.shape[1], opacity_HW.shape[0], 8, 6, 0, 0, 0)
    file = b"\x89PNG\r\n\x1a\n"
    for name, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")):
        file += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return f"data:image/png;base64,{base64.b64encode(file).decode()}"


def attention_maps(title: str, pattern_LHTS: NDArray[np.floating], names: Sequence[Sequence[str]]) -> Markup:
    """A map for each head, the layers below each other: which earlier character (column) each one (row) looks at.

    Args:
        title: says what is seen.
        pattern_LHTS: the attention of each head, from 0 to 1. The colour is as strong as its square root, or the many
            small values could not be seen.
        names: what stands above each map.
    """
    n_layer, n_head = pattern_LHTS.shape[:2]
    columns = min(n_head, 4 if n_head <= 8 else 6)
    gap, above = 14.0, 24.0
    size = (WIDTH - gap * (columns - 1)) / columns
    parts, y = [], 0.0
    for layer in range(n_layer):
        for head in range(n_head):
            x = (head % columns) * (size + gap)
            if head and head % columns == 0:
                y += size + above
            name = names[layer][head]
            parts.append(text(x, y + 15, name, "name"))
            parts.append(
                f'<rect class="frame" x="{x:.1f}" y="{y + above:.1f}" width="{size:.1f}" height="{size:.1f}"/>'
            )
            parts.append(
                f'<image x="{x:.1f}" y="{y + above:.1f}" width="{size:.1f}" height="{size:.1f}" '
                f'preserveAspectRatio="none" href="{png(np.sqrt(pattern_LHTS[layer, head]))}"/>'
            )
        y += size + above + 6
    return figure(title, y, parts, "maps")


def glyph_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[str],
    glyphs: Sequence[Sequence[str]],
    strength: NDArray[np.floating],
) -> Markup:
    """A table with one glyph in each cell, whose colour is as strong as a number from 0 to 1 says.

    A glyph that is the one above its column is set off.

    Args:
        title: says what is seen.
        columns: the glyphs above it.
        rows: the names of its rows.
        glyphs: those in each row.
        strength: (rows, columns).
    """
    left, top, row = 118.0, 30.0, 27.0
    width = (WIDTH - left) / len(columns)
    parts = [text(left + (i + 0.5) * width, 18, glyph, "glyph head", "middle") for i, glyph in enumerate(columns)]
    for r, name in enumerate(rows):
        y = top + r * row
        parts.append(text(left - 8, y + 18, name, "name", "end"))
        for c, glyph in enumerate(glyphs[r]):
            x = left + c * width
            opacity = f"{0.55 * float(strength[r, c]):.2f}"
            parts.append(
                f'<rect class="cell" x="{x:.1f}" y="{y:.1f}" width="{width - 1:.1f}" height="{row - 1:.1f}" '
                f'fill-opacity="{opacity}"/>'
            )
            parts.append(
                text(x + width / 2, y + 18, glyph, "glyph right" if glyph == columns[c] else "glyph", "middle")
            )
    return figure(title, top + len(rows) * row, parts, "glyphs")

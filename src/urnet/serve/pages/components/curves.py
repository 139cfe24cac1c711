"""Training curves as SVG: lines told apart by their dashes and names, not by colour alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

WIDTH, HEIGHT = 420, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 128, 10, 26
DASHES = ("", "6 4", "2 3")
NEAR = 15
"""Least distance of two names, in units of the drawing."""


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        name: written at its end.
        points: epoch and value, those that are no numbers left out.
        colour: 1, 2 or 3, of the style sheet.
        dash: 0, 1 or 2.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 1
    dash: int = 0


def line(name: str, epochs: Sequence[float], values: Sequence[float], colour: int = 1, dash: int = 0) -> Line:
    """A curve of two columns."""
    known = [(float(x), float(y)) for x, y in zip(epochs, values, strict=True) if math.isfinite(y)]
    return Line(name, known, colour, dash)


def chart(lines: Sequence[Line], about: str) -> str:
    """Draw curves over the epoch.

    Args:
        lines: those without a point are left out.
        about: what is drawn, said to who cannot see it together with the last values.

    Returns:
        An SVG element; "" where there is no point at all.
    """
    lines = [one for one in lines if one.points]
    if not lines:
        return ""
    xs = [x for one in lines for x, _ in one.points]
    ys = [y for one in lines for _, y in one.points]
    steps_x = ticks(min(xs), max(xs), 5, whole=True)
    steps_y = ticks(min(ys), max(ys), 4)
    low_x, high_x = min(xs), max(max(xs), min(xs) + 1)
    low_y, high_y = min(steps_y[0], *ys), max(steps_y[-1], *ys)

    def at(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - low_x) / (high_x - low_x) * (WIDTH - LEFT - RIGHT)
        return across, HEIGHT - BOTTOM - (y - low_y) / (high_y - low_y) * (HEIGHT - TOP - BOTTOM)

    drawn = []
    for y in steps_y:
        height = at(low_x, y)[1]
        drawn.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>')
        drawn.append(f'<text x="{LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">{y:g}</text>')
    for x in steps_x:
        drawn.append(f'<text x="{at(x, low_y)[0]:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{x:g}</text>')
    drawn.append(f'<text x="{WIDTH - RIGHT + 22}" y="{HEIGHT - 8}">epoch</text>')
    heights = _apart([at(*one.points[-1])[1] for one in lines])
    for one, height in zip(lines, heights, strict=True):
        path = " ".join(f"{across:.1f},{down:.1f}" for across, down in (at(*point) for point in one.points))
        colour = f"var(--line-{one.colour})"
        drawn.append(
            f'<polyline class="line" points="{path}" stroke="{colour}" stroke-dasharray="{DASHES[one.dash]}"/>'
        )
        end = at(*one.points[-1])
        drawn.append(f'<circle cx="{end[0]:.1f}" cy="{end[1]:.1f}" r="3" fill="{colour}"/>')
        name = escape(_cut(one.name))
        key = f'x1="{WIDTH - RIGHT + 8}" x2="{WIDTH - RIGHT + 28}" y1="{height:.1f}" y2="{height:.1f}"'
        drawn.append(f'<line class="line" {key} stroke="{colour}" stroke-dasharray="{DASHES[one.dash]}"/>')
        drawn.append(f'<text class="name" x="{WIDTH - RIGHT + 33}" y="{height + 4:.1f}">{name}</text>')
    last = "; ".join(f"{one.name} {one.points[-1][1]:.3g} in epoch {one.points[-1][0]:g}" for one in lines)
    label = escape(f"{about}. Last values: {last}.", quote=True)
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(drawn)}</svg>'


def ticks(low: float, high: float, about: int, *, whole: bool = False) -> list[float]:
    """Round numbers that span a range, so many about."""
    span = high - low
    if span <= 0:
        span = abs(high) or 1.0
    step = 10 ** math.floor(math.log10(span / about))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (factor * step) <= about)
    if whole:
        step = max(1, round(step))
        first = math.ceil(low / step) * step
        return [first + k * step for k in range(int((high - first) // step) + 1)] or [low]
    first = math.floor(low / step + 1e-9)
    last = max(first + 1, math.ceil(high / step - 1e-9))
    return [round(k * step, 12) for k in range(first, last + 1)]


def _apart(heights: Sequence[float]) -> list[float]:
    """Heights of names moved so that none covers another."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    placed = list(heights)
    for above, below in pairwise(order):
        placed[below] = max(placed[below], placed[above] + NEAR)
    lowest = HEIGHT - BOTTOM
    placed[order[-1]] = min(placed[order[-1]], lowest)
    for below, above in pairwise(order[::-1]):
        placed[above] = min(placed[above], placed[below] - NEAR)
    return placed


def _cut(name: str) -> str:
    return name if len(name) <= 16 else name[:15] + "…"

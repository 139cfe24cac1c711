"""Training curves as SVG. Dashes and names distinguish the curves, not colours alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

WIDTH, HEIGHT = 420, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 128, 10, 26
"""Size and margins of the chart, in units of the drawing."""

DASHES = ("", "6 4", "2 3")
MIN_NAME_DISTANCE = 15
"""Minimum vertical distance of two names, in units of the drawing."""

MAX_NAME_LENGTH = 16
"""Maximum length of the name of a curve, in characters."""


@dataclass(frozen=True)
class Curve:
    """One curve.

    Attributes:
        name: name beside the end of the curve.
        points: epoch and value of each point, without missing values.
        colour: 1, 2 or 3, a colour of the style sheet.
        dash: 0, 1 or 2, a dash pattern.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 1
    dash: int = 0


def make_curve(name: str, epochs: Sequence[float], values: Sequence[float], colour: int = 1, dash: int = 0) -> Curve:
    """Make a curve from two columns, without missing values."""
    points = [(float(x), float(y)) for x, y in zip(epochs, values, strict=True) if math.isfinite(y)]
    return Curve(name, points, colour, dash)


def draw_chart(curves: Sequence[Curve], title: str) -> str:
    """Draw curves over the epochs.

    Args:
        curves: the curves; those without points are left out.
        title: what the chart shows, for screen readers.

    Returns:
        An SVG element; empty if no curve has points.
    """
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return ""
    xs = [x for curve in curves for x, _ in curve.points]
    ys = [y for curve in curves for _, y in curve.points]
    ticks_x = choose_ticks(min(xs), max(xs), 5, integers=True)
    ticks_y = choose_ticks(min(ys), max(ys), 4)
    low_x, high_x = min(xs), max(max(xs), min(xs) + 1)
    low_y, high_y = min(ticks_y[0], *ys), max(ticks_y[-1], *ys)

    def position(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - low_x) / (high_x - low_x) * (WIDTH - LEFT - RIGHT)
        return across, HEIGHT - BOTTOM - (y - low_y) / (high_y - low_y) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for y in ticks_y:
        height = position(low_x, y)[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">{y:g}</text>')
    for x in ticks_x:
        parts.append(f'<text x="{position(x, low_y)[0]:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{x:g}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT + 22}" y="{HEIGHT - 8}">epoch</text>')
    name_heights = _spread([position(*curve.points[-1])[1] for curve in curves])
    for curve, height in zip(curves, name_heights, strict=True):
        path = " ".join(f"{across:.1f},{down:.1f}" for across, down in (position(*point) for point in curve.points))
        colour, dash = f"var(--line-{curve.colour})", DASHES[curve.dash]
        parts.append(f'<polyline class="line" points="{path}" stroke="{colour}" stroke-dasharray="{dash}"/>')
        end = position(*curve.points[-1])
        parts.append(f'<circle cx="{end[0]:.1f}" cy="{end[1]:.1f}" r="3" fill="{colour}"/>')
        sample = f'x1="{WIDTH - RIGHT + 8}" x2="{WIDTH - RIGHT + 28}" y1="{height:.1f}" y2="{height:.1f}"'
        parts.append(f'<line class="line" {sample} stroke="{colour}" stroke-dasharray="{dash}"/>')
        name = escape(_truncate(curve.name))
        parts.append(f'<text class="name" x="{WIDTH - RIGHT + 33}" y="{height + 4:.1f}">{name}</text>')
    last = "; ".join(f"{curve.name} {curve.points[-1][1]:.3g} in epoch {curve.points[-1][0]:g}" for curve in curves)
    label = escape(f"{title}. Last values: {last}.", quote=True)
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def choose_ticks(low: float, high: float, number: int, *, integers: bool = False) -> list[float]:
    """Choose about `number` round values that span a range."""
    span = high - low
    if span <= 0:
        span = abs(high) or 1.0
    step = 10 ** math.floor(math.log10(span / number))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (factor * step) <= number)
    if integers:
        step = max(1, round(step))
        first = math.ceil(low / step) * step
        return [first + k * step for k in range(int((high - first) // step) + 1)] or [low]
    first = math.floor(low / step + 1e-9)
    last = max(first + 1, math.ceil(high / step - 1e-9))
    return [round(k * step, 12) for k in range(first, last + 1)]


def _spread(heights: Sequence[float]) -> list[float]:
    """Move the heights of names apart, so that no name covers another."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    placed = list(heights)
    for above, below in pairwise(order):
        placed[below] = max(placed[below], placed[above] + MIN_NAME_DISTANCE)
    lowest = HEIGHT - BOTTOM
    placed[order[-1]] = min(placed[order[-1]], lowest)
    for below, above in pairwise(order[::-1]):
        placed[above] = min(placed[above], placed[below] - MIN_NAME_DISTANCE)
    return placed


def _truncate(name: str) -> str:
    return name if len(name) <= MAX_NAME_LENGTH else name[: MAX_NAME_LENGTH - 1] + "…"

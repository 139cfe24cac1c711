"""What all HTML pages share: their style, and how figures are written in them."""

import base64
import math
from collections.abc import Mapping
from typing import Any

import jinja2

NO_VALUE = "–"


def create_environment(room: str) -> jinja2.Environment:
    """Where a room's templates are: everything that they show is escaped, and a name that is missing is an error.

    Args:
        room: the package with a folder `templates`; `style.css` comes from `urnet` itself.
    """
    made = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(room), jinja2.PackageLoader("urnet")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "png": _png,
        "jpeg": _jpeg,
        "number": _number,
        "percent": _percent,
        "count": _count,
        "bar": _bar,
    }
    return made


def format_interval(figure: Mapping[str, Any], scale: float = 100) -> str:
    """A figure with its interval, in per cent: `83.3 (80.1–86.0)`.

    Args:
        figure: `value` and `interval`; none where there are none.
        scale: 100 for a share, 1 for what is in per cent already.
    """
    if figure["value"] is None:
        return NO_VALUE
    text = f"{scale * figure['value']:.1f}"
    if figure["interval"] is None:
        return text
    low, high = figure["interval"]
    return f"{text} ({scale * low:.1f}–{scale * high:.1f})"


def describe_intervals(intervals: Mapping[str, Any]) -> str:
    """What the intervals are, in a few words: `95 % intervals over 40 source images`.

    Args:
        intervals: their description from `urnet.evaluation.metrics.choose_groups`.
    """
    if intervals["groups"] < 2:
        return f"no intervals: all cells come from one {intervals['unit']}"
    return f"{100 * intervals['level']:g} % intervals over {intervals['groups']:,} {intervals['unit']}s"


def _png(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode("ascii")


def _jpeg(picture: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(picture).decode("ascii")


def _number(figure: float | None) -> str:
    return NO_VALUE if figure is None else f"{figure:.3f}"


def _percent(figure: float | None) -> str:
    return NO_VALUE if figure is None else f"{figure:.1f}"


def _count(figure: float) -> str:
    return NO_VALUE if math.isnan(figure) else f"{int(figure):,}"


def _bar(figure: Mapping[str, Any], whole: float) -> str:
    """Place of a figure and its interval on a bar that is `whole` long, as CSS variables in per cent."""
    value = figure["value"]
    low, high = figure["interval"] or (value, value)
    low, wide, at = (100 * length / whole for length in (low, high - low, value))
    return f"--low:{low:.2f}%;--wide:{wide:.2f}%;--at:{at:.2f}%"

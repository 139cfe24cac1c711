"""Templates of HTML pages and reports: environment, style and number formats."""

import base64
import math
from collections.abc import Mapping
from typing import Any

import jinja2

NO_VALUE = "–"
"""Text for a missing value."""


def create_environment(package: str) -> jinja2.Environment:
    """Create the Jinja environment of a package. All values are escaped, and an unknown name is an error.

    Args:
        package: package with a folder `templates`; `style.css` comes from `urnet`.
    """
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(package), jinja2.PackageLoader("urnet")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "png": _png,
        "jpeg": _jpeg,
        "number": _number,
        "percent": _percent,
        "count": _count,
        "bar": _bar,
    }
    return environment


def format_interval(figure: Mapping[str, Any], scale: float = 100) -> str:
    """Format a value with its interval in percent: `83.3 (80.1–86.0)`.

    Args:
        figure: `value` and `interval`, each None where missing.
        scale: 100 for a share, 1 for a percentage.
    """
    if figure["value"] is None:
        return NO_VALUE
    text = f"{scale * figure['value']:.1f}"
    if figure["interval"] is None:
        return text
    low, high = figure["interval"]
    return f"{text} ({scale * low:.1f}–{scale * high:.1f})"


def describe_intervals(intervals: Mapping[str, Any]) -> str:
    """Describe the intervals of metrics: `95 % t interval over 40 source images`.

    Args:
        intervals: their description from `urnet.statistics.donors.choose_groups`.
    """
    if intervals["groups"] < 2:
        return f"no intervals: all cells come from one {intervals['unit']}"
    groups = f"{intervals['groups']:,} {intervals['unit']}s"
    old = f"bootstrap of {groups} by an earlier version, too narrow for few {intervals['unit']}s"
    return f"{100 * intervals['level']:g} % {intervals.get('method', old)}"


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
    """Format a value and its interval as CSS variables, in percent of a bar of length `whole`."""
    value = figure["value"]
    low, high = figure["interval"] or (value, value)
    low, wide, at = (100 * length / whole for length in (low, high - low, value))
    return f"--low:{low:.2f}%;--wide:{wide:.2f}%;--at:{at:.2f}%"

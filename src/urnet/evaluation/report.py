"""The report of one evaluation: one HTML file that opens offline, on paper, on a phone, by day and by night."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

import urnet.html_pages


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a report shows.

    Args:
        title: Its heading.
        run: Name of the run.
        dataset: One line on the cells: what they are, and which part was evaluated.
        protocol: "honest", or "paper", which the report marks as optimistic.
        metrics: From `metrics.score`.
        intervals: Description of the intervals, from `metrics.choose_groups`.
        counts: Cells by class (rows) and part (columns).
        recipe: The resolved recipe, as YAML.
        versions: Name and version of what computed it.
        seed: Of the training.
        simulated: What of the images is simulated ("simulated destaining"), or nothing.
        figures: Title, caption and PNG of each.
        mistakes: Caption and PNG of the cells that were most confidently wrong.
        warnings: What the reader should know before believing the numbers.
        differential: True and predicted per cent by class; without it, that of the metrics.
    """

    title: str
    run: str
    dataset: str
    protocol: str
    metrics: Mapping[str, Any]
    intervals: Mapping[str, Any]
    counts: pd.DataFrame
    recipe: str
    versions: Mapping[str, str]
    seed: int
    simulated: str = ""
    figures: Sequence[tuple[str, str, bytes]] = ()
    mistakes: Sequence[tuple[str, bytes]] = ()
    warnings: Sequence[str] = ()
    differential: Mapping[str, Any] | None = None


def write_report(path: Path, context: Report) -> None:
    """Write a report.

    Args:
        path: The HTML file; it is replaced if it exists.
        context: What it shows. Names may hold any characters: everything is escaped.

    Raises:
        OSError: The file cannot be written.
    """
    # A file name that is not valid Unicode, as Linux allows, must not stop the report.
    path.write_text(render_report(context), encoding="utf-8", errors="backslashreplace", newline="\n")


def render_report(context: Report) -> str:
    """The report as HTML."""
    return (
        template_environment()
        .get_template("report.html.j2")
        .render(
            report=context,
            differential=context.differential or context.metrics["differential"],
            level=f"{100 * context.intervals['level']:g} %",
        )
    )


def template_environment() -> jinja2.Environment:
    """Where the pages of evaluation and benchmark are."""
    return urnet.html_pages.create_environment("urnet.evaluation")

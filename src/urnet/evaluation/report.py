"""The report of an evaluation: one HTML file that opens offline, on paper and on a phone, in light and dark."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

import urnet.html_pages
from urnet.evaluation.judgement import Judgement

if TYPE_CHECKING:
    from urnet.evaluation.report_figures import Mistake, ReportFigure


@dataclass(frozen=True, kw_only=True)
class Report:
    """Content of a report.

    Args:
        title: its heading.
        run: name of the run.
        dataset: one line on the cells: what they are, and which part was evaluated.
        protocol: "honest", or "paper", which the report marks as optimistic.
        judgement: the sentences that open the report.
        metrics: from `metrics.score`.
        intervals: description of the intervals, from `urnet.statistics.donors.choose_groups`.
        counts: cells by class (rows) and part (columns).
        recipe: the resolved recipe, as YAML.
        versions: name and version of each package.
        seed: seed of the training.
        simulated: how the images were simulated ("simulated destaining"); "" for real ones.
        figures: the figures.
        mistakes: the worst mistakes.
        warnings: what the reader should know before believing the numbers.
    """

    title: str
    run: str
    dataset: str
    protocol: str
    judgement: Judgement
    metrics: Mapping[str, Any]
    intervals: Mapping[str, Any]
    counts: pd.DataFrame
    recipe: str
    versions: Mapping[str, str]
    seed: int
    simulated: str = ""
    figures: Sequence["ReportFigure"] = ()
    mistakes: Sequence["Mistake"] = ()
    warnings: Sequence[str] = ()


def write_report(path: Path, report: Report) -> None:
    """Write a report as HTML.

    Args:
        path: the HTML file; an existing one is replaced.
        report: its content. Names may have any characters: everything is escaped.

    Raises:
        OSError: the file cannot be written.
    """
    # Linux allows file names that are not valid Unicode.
    path.write_text(render_report(report), encoding="utf-8", errors="backslashreplace", newline="\n")


def render_report(report: Report) -> str:
    """Render a report as HTML."""
    template = urnet.html_pages.create_environment("urnet.evaluation").get_template("report.html.j2")
    return template.render(report=report, intervals=urnet.html_pages.describe_intervals(report.intervals))

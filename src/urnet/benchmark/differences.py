"""Format differences: in points, with interval or the reason why there is none, and with a verdict."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from urnet.benchmark.render import SIMULATED_NOTE, TableData
from urnet.evaluation.paired import ALIKE, ONE_GROUP
from urnet.html_pages import NO_VALUE

ONE_TRAINING = (
    "Each model was trained once. Another training would have given another difference; the intervals do not include "
    "that, so they are too narrow. Several folds or seeds include it."
)
MISSING_INTERVAL_NOTES = {
    ONE_GROUP: "No interval (one group): all cells come from one donor or source image, so it is not known whether the "
    "difference is chance. Test on cells of several.",
    ALIKE: "No interval (all groups alike): the difference is the same for every donor or source image.",
}
"""Explanations of missing intervals, by the note in the table."""


def build_differences_table(
    differences: pd.DataFrame,
    titles: Mapping[str, str] | None = None,
    metrics: Sequence[str] | None = None,
    *,
    simulated: str = "",
) -> TableData:
    """Build the table of paired differences, in points, with a group of rows per metric.

    Args:
        differences: from `paired_differences`.
        titles: titles of the runs, by name.
        metrics: metrics to show. Default: all.
        simulated: how the images were simulated; "" for real ones.
    """
    titles = titles or {}
    rows: list[list[str]] = []
    for metric, group in differences.groupby("metric", sort=False):
        if metrics is not None and metric not in metrics:
            continue
        rows.append([metric_title(str(metric))])
        for row in group.to_dict("records"):
            name = f"{titles.get(row['second'], row['second'])} against {titles.get(row['first'], row['first'])}"
            p = NO_VALUE if math.isnan(row["p_holm"]) else f"{row['p_holm']:.3f}"
            rows.append(
                [
                    name,
                    format_points(row["difference"]),
                    format_difference_interval(row, "_simultaneous"),
                    p,
                    format_verdict(row),
                ]
            )
    notes = []
    if len(differences):
        pairs = len(differences[["first", "second"]].drop_duplicates())
        counts = ", ".join(_format_range(differences[what], what) for what in ("cells", "folds", "seeds"))
        known = differences[differences["note"] == ""]
        drawn = " or ".join(dict.fromkeys(known["resampled"]))
        notes = [f"Paired on the same cells ({counts})" + (f"; {drawn} drawn with replacement." if drawn else ".")]
        if len(known):
            notes.append(
                f"Corrected for {pairs} comparison{'s' * (pairs > 1)}, per metric: the intervals hold for all at once "
                "(Bonferroni), p is adjusted by Holm's method. A difference could be chance if its interval has zero."
            )
        notes += missing_interval_notes(differences["note"])
        if ((known["folds"] == 1) & (known["seeds"] == 1)).any():
            notes.append(ONE_TRAINING)
    if simulated:
        notes.append(SIMULATED_NOTE.format(simulated))
    header = ["Difference", "Points", "Simultaneous interval", "p (Holm)", "Verdict"]
    return TableData("Paired differences", [header], rows, notes)


def format_points(share: float) -> str:
    """Format a difference in points, with its sign; zero has no sign."""
    if math.isnan(share):
        return NO_VALUE
    text = f"{100 * share:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def format_difference_interval(row: Mapping[str, Any], which: str = "") -> str:
    """Format the interval of a difference in points, or the reason why there is none.

    Args:
        row: a row of `paired_differences`.
        which: "_simultaneous" for the interval that holds for all comparisons at once.
    """
    return row["note"] or f"{format_points(row[f'low{which}'])} to {format_points(row[f'high{which}'])}"


def format_verdict(row: Mapping[str, Any]) -> str:
    """Format the verdict on the second run: higher, lower, could be chance; a dash without an interval.

    Args:
        row: a row of `paired_differences`.
    """
    if row["note"]:
        return NO_VALUE
    return "could be chance" if row["chance"] else "higher" if row["difference"] > 0 else "lower"


def missing_interval_notes(notes: Iterable[str]) -> list[str]:
    """List the explanations of missing intervals."""
    return [MISSING_INTERVAL_NOTES[note] for note in dict.fromkeys(notes) if note in MISSING_INTERVAL_NOTES]


def metric_title(metric: str) -> str:
    """Name a metric of `paired_differences` in words."""
    known = {"accuracy": "Accuracy", "macro_recall": "Macro recall"}
    return known.get(metric) or f"Recall of {metric.removeprefix('recall_')}"


def _format_range(counts: pd.Series, what: str) -> str:
    low, high = int(counts.min()), int(counts.max())
    return f"{low:,} {what if low != 1 else what[:-1]}" if low == high else f"{low:,} to {high:,} {what}"

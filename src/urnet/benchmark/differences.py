"""How a difference is written: in points, with its interval or why there is none, and with a verdict."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from urnet.benchmark.render import SIMULATED_NOTE, TableData
from urnet.evaluation.paired import ALIKE, ONE_GROUP
from urnet.html_pages import NO_VALUE

ONE_TRAINING = (
    "Each model was trained once, and another training would have given another difference: the intervals leave that "
    "out, so they are too narrow. Several folds or seeds take it in."
)
MISSING_INTERVAL_NOTES = {
    ONE_GROUP: "No interval (one group): all cells of the figure come from one donor or source image. From a single "
    "one nothing can be drawn, so nobody knows whether the difference is chance; cells of several would tell.",
    ALIKE: "No interval (all groups alike): every donor or source image differs by as much, so that drawing them says "
    "nothing.",
}
"""What is said of differences without an interval, by their notes."""


def build_differences_table(
    differences: pd.DataFrame,
    titles: Mapping[str, str] | None = None,
    metrics: Sequence[str] | None = None,
    *,
    simulated: str = "",
) -> TableData:
    """What `paired_differences` found, in points, a group of rows a metric.

    Args:
        differences: from `paired_differences`.
        titles: what to print for the names of runs.
        metrics: those to show; all when not given.
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
                "(Bonferroni), p is adjusted by Holm's method. A difference whose interval holds zero could be chance."
            )
        notes += missing_interval_notes(differences["note"])
        if ((known["folds"] == 1) & (known["seeds"] == 1)).any():
            notes.append(ONE_TRAINING)
    if simulated:
        notes.append(SIMULATED_NOTE.format(simulated))
    header = ["Difference", "Points", "Simultaneous interval", "p (Holm)", "Verdict"]
    return TableData("Paired differences", [header], rows, notes)


def format_points(share: float) -> str:
    """A signed difference in points; what rounds to zero has no sign."""
    if math.isnan(share):
        return NO_VALUE
    text = f"{100 * share:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def format_difference_interval(row: Mapping[str, Any], which: str = "") -> str:
    """The interval of a difference in points, or why there is none.

    Args:
        row: of `paired_differences`.
        which: "_simultaneous" for the interval that holds for all comparisons at once.
    """
    return row["note"] or f"{format_points(row[f'low{which}'])} to {format_points(row[f'high{which}'])}"


def format_verdict(row: Mapping[str, Any]) -> str:
    """What a difference says of the second run; a dash where nobody knows whether it is chance.

    Args:
        row: of `paired_differences`.
    """
    if row["note"]:
        return NO_VALUE
    return "could be chance" if row["chance"] else "higher" if row["difference"] > 0 else "lower"


def missing_interval_notes(notes: Iterable[str]) -> list[str]:
    """Why some differences have no interval."""
    return [MISSING_INTERVAL_NOTES[note] for note in dict.fromkeys(notes) if note in MISSING_INTERVAL_NOTES]


def metric_title(metric: str) -> str:
    """A metric of `paired_differences` in words."""
    known = {"accuracy": "Accuracy", "macro_recall": "Macro recall"}
    return known.get(metric) or f"Recall of {metric.removeprefix('recall_')}"


def _format_range(counts: pd.Series, what: str) -> str:
    low, high = int(counts.min()), int(counts.max())
    return f"{low:,} {what if low != 1 else what[:-1]}" if low == high else f"{low:,} to {high:,} {what}"

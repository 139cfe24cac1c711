"""Format differences: in points, with interval or the reason why there is none, and with a verdict."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from urnet.benchmark.render import SIMULATED_NOTE, TableData
from urnet.evaluation.paired import ALIKE, NO_VERDICT, ONE_FOLD, ONE_GROUP, ONE_SPLIT, ONE_TRAINING, PRIMARY
from urnet.html_pages import NO_VALUE
from urnet.statistics.estimate import POWER
from urnet.statistics.multiple import FAMILY_ERROR

NOTES = {
    ONE_GROUP: "No interval (one group): all cells come from one donor or source image, so it is not known whether the "
    "difference is chance. Test on cells of several.",
    ONE_FOLD: "No interval (one fold): only one fold has cells of this class.",
    ALIKE: "No interval (all alike): the difference is the same in all folds, donors or source images.",
    ONE_TRAINING: "No verdict on the recipes (one training each): the 95 % intervals are for these two trained models; "
    "nothing is known of other trainings. Compare cross-validations.",
    ONE_SPLIT: "No verdict on the recipes (one split): the 95 % intervals are for trainings on this split; nothing is "
    "known of other training cells. Compare cross-validations.",
}
"""Explanations of missing intervals and verdicts, by the note in the table."""
VERDICTS = (
    "The verdict of the table is on macro recall. Its p is adjusted for {} by Holm's method. Accuracy and recalls of "
    "classes are secondary: p is adjusted for all of them together, and is never below that of macro recall. If all "
    f"models were equal, at most {100 * FAMILY_ERROR:g} % of such tables would have any wrong verdict."
)
INTERVALS = "Each 95 % interval holds for its own difference; the verdict allows for all comparisons."
DETECTABLE = (
    f"Detectable: the smallest difference that a table like this shows with a probability of {100 * POWER:g} %, "
    "allowing for all comparisons. A smaller one cannot be ruled out by “could be chance”."
)
WEIGHTS = (
    "All folds weigh alike. A fold without cells of a class says nothing about its recall, and macro recall of that "
    "fold is over its other classes."
)
DIFFERENCE_COLUMNS = ("Points", "Interval", "p (Holm)", "Detectable, points", "Verdict")
UNDECIDED_COLUMNS = 2
"""Number of the columns that have content without a verdict."""
UNKNOWN_DONORS = "Donors are not known, or fewer than five, so nothing is known of other donors."


def build_differences_table(
    differences: pd.DataFrame,
    titles: Mapping[str, str] | None = None,
    metrics: Sequence[str] | None = None,
    *,
    simulated: str = "",
) -> TableData:
    """Build the table of paired differences, in points, with a group of rows per metric, macro recall first.

    Args:
        differences: from `paired_differences`.
        titles: titles of the runs, by name.
        metrics: metrics to show. Default: all.
        simulated: how the images were simulated; "" for real ones.
    """
    titles = titles or {}
    rows: list[list[str]] = []
    shown = [metric for metric in dict.fromkeys(differences["metric"]) if metrics is None or metric in metrics]
    for metric in sorted(shown, key=lambda metric: metric != PRIMARY):
        rows.append([metric_title(str(metric))])
        for row in differences[differences["metric"] == metric].to_dict("records"):
            name = f"{titles.get(row['second'], row['second'])} against {titles.get(row['first'], row['first'])}"
            rows.append([name, *format_difference_row(row)])
    notes = list_difference_notes(differences)
    if simulated:
        notes.append(SIMULATED_NOTE.format(simulated))
    return TableData("Paired differences", [["Difference", *DIFFERENCE_COLUMNS]], rows, notes)


def format_difference_row(row: Mapping[str, Any]) -> list[str]:
    """Format the cells of `DIFFERENCE_COLUMNS`.

    Args:
        row: a row of `paired_differences`.
    """
    return [
        format_points(row["difference"]),
        format_difference_interval(row),
        NO_VALUE if math.isnan(row["p_holm"]) else f"{row['p_holm']:.3f}",
        format_detectable(row),
        format_verdict(row),
    ]


def list_difference_notes(differences: pd.DataFrame) -> list[str]:
    """List the sentences below a table of differences: what was compared, by which method, and what is missing.

    Args:
        differences: from `paired_differences`.
    """
    if differences.empty:
        return []
    pairs = len(differences[["first", "second"]].drop_duplicates())
    main = differences[differences["metric"] == PRIMARY]
    counted = [what for what in ("cells", "repeats", "folds", "seeds") if what != "repeats" or main[what].max() > 1]
    counts = ", ".join(_format_range(main[what], what) for what in counted)
    methods = " or ".join(dict.fromkeys(method for method in main["method"] if method))
    notes = [f"Paired on the same cells ({counts})" + (f"; {methods}." if methods else ".")]
    if differences["chance"].notna().any():
        notes += [VERDICTS.format(f"{pairs} comparison{'s' * (pairs > 1)}"), INTERVALS, DETECTABLE, WEIGHTS]
    notes += missing_interval_notes(differences["note"])
    if methods and (main["unit"] != "donor").any():
        notes.append(UNKNOWN_DONORS)
    return notes


def format_points(share: float) -> str:
    """Format a difference in points, with its sign; zero has no sign."""
    if math.isnan(share):
        return NO_VALUE
    text = f"{100 * share:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def format_difference_interval(row: Mapping[str, Any]) -> str:
    """Format the interval of a difference in points, or the reason why there is none.

    Args:
        row: a row of `paired_differences`.
    """
    if math.isnan(row["low"]):
        return row["note"]
    return f"{format_points(row['low'])} to {format_points(row['high'])}"


def format_detectable(row: Mapping[str, Any]) -> str:
    """Format the smallest detectable difference, in points.

    Args:
        row: a row of `paired_differences`.
    """
    points = 100 * row["detectable"]
    return NO_VALUE if math.isnan(points) else "over 100" if points > 100 else f"{points:.1f}"


def format_verdict(row: Mapping[str, Any]) -> str:
    """Format the verdict on the second run: higher, lower, could be chance, no verdict; a dash without an interval.

    Args:
        row: a row of `paired_differences`.
    """
    if row["note"]:
        return row["note"] if row["note"].startswith(NO_VERDICT) else NO_VALUE
    return "could be chance" if row["chance"] else "higher" if row["difference"] > 0 else "lower"


def missing_interval_notes(notes: Iterable[str]) -> list[str]:
    """List the explanations of missing intervals and verdicts."""
    return [NOTES[note] for note in dict.fromkeys(notes) if note in NOTES]


def metric_title(metric: str) -> str:
    """Name a metric of `paired_differences` in words."""
    known = {"accuracy": "Accuracy", "macro_recall": "Macro recall"}
    return known.get(metric) or f"Recall of {metric.removeprefix('recall_')}"


def _format_range(counts: pd.Series, what: str) -> str:
    low, high = int(counts.min()), int(counts.max())
    return f"{low:,} {what if low != 1 else what[:-1]}" if low == high else f"{low:,} to {high:,} {what}"

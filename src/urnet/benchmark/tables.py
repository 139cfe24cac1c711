"""The tables of a comparison.

Metrics are in per cent with one decimal and their interval, `83.3 (80.1–86.0)`; differences are in points. Unknown
values are a dash. The row of a failed run shows its error.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pandas as pd

from urnet.benchmark.differences import (
    format_detectable,
    format_difference_interval,
    format_points,
    list_difference_notes,
    metric_title,
)
from urnet.benchmark.published import Published, find_published, normalize_class, published_accuracies
from urnet.benchmark.render import CHANCE, SIMULATED_NOTE, TableData, single_line
from urnet.benchmark.row import ResultRow, describe_run
from urnet.evaluation.paired import NO_INTERVAL, PRIMARY
from urnet.html_pages import NO_VALUE, format_interval

Kind = Literal["table2", "table3", "table4", "ablation", "compare"]

TITLES: dict[str, str] = {
    "table2": "Table 2: enhancers and classifiers",
    "table3": "Table 3: Net1 to Net4",
    "table4": "Table 4: UR-Net and the work of others",
    "ablation": "Ablation: what each part of Net4 does",
    "compare": "Comparison of runs",
}
FIGURES = {"recall": "Recall", "precision": "Precision", "f1": "F1 score"}
COSTS = ["Parameters, M", "GMAC", "Training, s", "Images/s"]
CONTROLS = ("net1-stem", "net1-long")
PAPER_NOTE = (
    "Paper: Zheng et al., Sensors 2023, 23, 7605, on its own three-class cells; there the epoch was chosen on the test "
    "part, which was augmented and balanced."
)
RECOMPUTED_NOTE = "Computed here from the paper's recalls and precisions: accuracy, F1 of lymphocytes and mean F1 of"
PROTOCOLS = {
    "honest": "Protocol honest: the epoch is chosen on a validation part, the test part is untouched.",
    "paper": "Protocol paper is optimistic: the epoch is chosen on the test part, which is augmented and balanced.",
}


def build_tables(
    table: Kind, entries: Sequence[ResultRow], differences: pd.DataFrame | None = None, *, simulated: str = ""
) -> dict[str, TableData]:
    """Build the tables of a comparison.

    Args:
        table: name of the comparison.
        entries: its rows in order.
        differences: from `paired_differences` over `list_comparisons`, for `ablation` and `compare`.
        simulated: how the images were simulated; "" for real ones.

    Returns:
        Tables by the name of their file: `<table>` with the accuracies, then `<table>-classes` (Tables 3 and 4) or
        `<table>-cost` (`ablation` and `compare`; the others have costs and accuracies in one table).
    """
    if table == "table2":
        built = {table: _build_overview(table, entries)}
    elif table in ("table3", "table4"):
        built = {table: _build_overview(table, entries), f"{table}-classes": _build_class_table(table, entries)}
    else:
        built = {
            table: _build_baseline_table(table, entries, differences),
            f"{table}-cost": _build_cost_table(table, entries),
        }
    for data in built.values() if simulated else []:
        data.notes.append(SIMULATED_NOTE.format(simulated))
    return built


def list_comparisons(table: Kind, names: Sequence[str]) -> list[tuple[str, str]]:
    """List the pairs to compare, (first, second). Differences are second minus first.

    Args:
        table: `table2` compares rows that differ in one network. `table4` compares all rows to Net1, and Net4 to all
            rows. `ablation` compares all rows to Net4, and the controls to Net1 as well. Other tables compare all rows
            to the first one, and each to the next.
        names: names of the rows that exist.
    """
    if table == "table2":
        grid = {name: name.partition("-")[::2] for name in names}
        pairs = []
        for k in (1, 0):  # down a column of the grid, then along a row
            for part in dict.fromkeys(key[k] for key in grid.values()):
                pairs += pairwise(name for name in names if grid[name][k] == part)
    elif table == "table4":
        pairs = [("net1", name) for name in names] + [(name, "net4") for name in names]
    elif table == "ablation":
        pairs = [("net4", name) for name in names] + [("net1", name) for name in names if name in CONTROLS]
    else:
        pairs = [(names[0], name) for name in names] + list(pairwise(names))
    return [(a, b) for a, b in dict.fromkeys(pairs) if a != b and a in names and b in names]


def build_optimism_table(honest: Sequence[ResultRow], optimistic: Sequence[ResultRow]) -> TableData | None:
    """Build the table of macro recall under both protocols; None if no row is complete under both.

    Args:
        honest: rows under protocol `honest`.
        optimistic: rows under protocol `paper`.
    """
    paper = {entry.name: entry.metrics for entry in optimistic if entry.complete}
    rows = []
    for entry in honest:
        published = paper.get(entry.name)
        if entry.complete and entry.metrics and published:
            pair = [metrics["macro_recall"] for metrics in (entry.metrics, published)]
            rows.append([entry.title, *map(format_interval, pair), format_points(pair[1]["value"] - pair[0]["value"])])
    if not rows:
        return None
    header = ["Model", "Macro recall, honest, %", "Macro recall, paper, %", "Gain, points"]
    note = "Accuracies are not compared: under protocol paper the test part is balanced, so its classes weigh alike."
    return TableData("What the paper's protocol buys", [header], rows, [note])


def build_results_frame(entries: Sequence[ResultRow], dataset: str, table: str) -> pd.DataFrame:
    """Build the content of `results.csv`: one row per run; unknown values are empty.

    Args:
        entries: rows of the comparison.
        dataset: name of the cells.
        table: the comparison.

    Returns:
        `dataset, table, recipe, seed, repeat, fold, accuracy, macro_recall`, then `recall_`, `precision_` and `f1_` of
        each class, `parameters, gmac, train_seconds, images_per_second, epoch, protocol, status, error`; shares as
        fractions.
    """
    classes = list(dict.fromkeys(name for entry in entries if entry.metrics for name in entry.metrics["classes"]))
    rows = []
    for entry in entries:
        for run in entry.runs.to_dict("records"):
            cells = _select_run(entry.predictions, run)
            figures = {name: _class_metrics(cells, name) for name in classes}
            rows.append(
                {
                    "dataset": dataset,
                    "table": table,
                    "recipe": entry.name,
                    "seed": run["seed"],
                    "repeat": run.get("repeat", 0),
                    "fold": run["fold"],
                    "accuracy": run.get("accuracy"),
                    "macro_recall": run.get("macro_recall"),
                    **{f"{figure}_{name}": figures[name][figure] for figure in FIGURES for name in classes},
                    "parameters": entry.parameters or None,
                    "gmac": entry.macs / 1e9 or None,
                    "train_seconds": run.get("train_seconds"),
                    "images_per_second": run.get("images_per_second"),
                    "epoch": run.get("epoch"),
                    "protocol": entry.recipe.protocol,
                    "status": run["status"],
                    "error": run.get("error"),
                }
            )
    return pd.DataFrame(rows)


def _select_run(predictions: pd.DataFrame, run: Mapping[str, Any]) -> pd.DataFrame:
    """Select the predictions of one run."""
    if predictions.empty:
        return predictions
    known = [column for column in ("seed", "repeat", "fold") if column in predictions and column in run]
    return predictions[np.logical_and.reduce([predictions[column] == run[column] for column in known])]


def _class_metrics(cells: pd.DataFrame, name: str) -> dict[str, float]:
    """Compute recall, precision and F1 of one class as `urnet.evaluation.metrics` does."""
    if cells.empty or not (true := int((cells["label"] == name).sum())):
        return dict.fromkeys(FIGURES, np.nan)
    called = cells["predicted"] == name
    right = int((called & (cells["label"] == name)).sum())
    return {
        "recall": right / true,
        "precision": right / max(1, int(called.sum())),
        "f1": 2 * right / (true + int(called.sum())),
    }


def _build_overview(table: Kind, entries: Sequence[ResultRow]) -> TableData:
    """Build the table of accuracy, macro recall and cost."""
    paper = published_accuracies(table)
    has_paper = any(entry.name in paper for entry in entries)
    header = [*_first_columns(entries), "Accuracy, %", *["Paper, %"] * has_paper, "Macro recall, %", *COSTS]
    rows = []
    for entry, first in _list_rows(entries):
        if entry.metrics is None:
            rows.append(first)
            continue
        published = [_format_percent(paper.get(entry.name))] * has_paper
        measured = [format_interval(entry.metrics[metric]) for metric in ("accuracy", "macro_recall")]
        rows.append([*first, measured[0], *published, measured[1], *_format_costs(entry)])
    notes = _list_notes(entries) + _list_cost_notes(entries) + (_list_paper_notes(table, entries) if has_paper else [])
    return TableData(TITLES[table], [header], rows, notes)


def _build_class_table(table: Kind, entries: Sequence[ResultRow]) -> TableData:
    """Build the table of recall, precision and F1 by class, with the paper's values if the classes are the same."""
    done = [entry for entry in entries if entry.metrics is not None]
    classes = done[0].metrics["classes"] if done and done[0].metrics else []
    paper = {entry.name: find_published(table, entry.name, tuple(classes)) for entry in entries}
    has_paper = any(paper.values())
    first, names = _first_columns(entries), (*classes, "Average")
    if has_paper:
        upper = [*[""] * len(first), *(text for name in names for text in (name, ""))]
        header = [upper, [*first, *["ours, %", "paper, %"] * len(names)]]
    else:
        header = [[*first, *(f"{name}, %" for name in names)]]
    rows: list[list[str]] = []
    for figure, title in FIGURES.items():
        rows.append([title])
        for entry, cells in _list_rows(entries):
            metrics, published = entry.metrics, paper[entry.name]
            if metrics is None:
                rows.append([cells[0], cells[1].split(":")[0]])
                continue
            measured = [metrics["per_class"][name][figure] for name in classes] + [metrics[f"macro_{figure}"]]
            known = [_published_value(published, figure, name) for name in (*classes, None)]
            for value, paper_value in zip(measured, known, strict=True):
                cells += [format_interval(value), *[_format_percent(paper_value)] * has_paper]
            rows.append(cells)
    title = f"{TITLES[table]} (by class)"
    notes = _list_notes(entries) + (_list_paper_notes(table, entries) if has_paper else [])
    return TableData(title, header, rows, notes)


def _published_value(published: Published | None, figure: str, name: str | None) -> float | None:
    """Look up the paper's value of a class, or the average."""
    if published is None:
        return None
    return getattr(published, f"macro_{figure}") if name is None else getattr(published, figure)[normalize_class(name)]


def _build_baseline_table(table: Kind, entries: Sequence[ResultRow], differences: pd.DataFrame | None) -> TableData:
    """Build the table of accuracy, macro recall and recall of the rarest class, with differences to the baseline."""
    baseline = next((entry for entry in entries if table == "ablation" and entry.name == "net4"), entries[0])
    known = pd.DataFrame() if differences is None else differences[differences["first"] == baseline.name]
    by_row = {row["second"]: row for row in known.to_dict("records") if row["metric"] == PRIMARY}
    done = [entry.metrics for entry in entries if entry.metrics]
    support = {name: row["support"] for name, row in done[0]["per_class"].items() if row["support"]} if done else {}
    rarest = min(support, key=lambda name: support[name], default=None)
    metrics = ["accuracy", PRIMARY, *([f"recall_{rarest}"] if rarest else [])]

    first = _first_columns(entries)
    if by_row:
        added = {PRIMARY: [f"to {baseline.title}, points", "detectable, points"]}
        upper = [text for metric in metrics for text in (metric_title(metric), *[""] * len(added.get(metric, ())))]
        lower = [text for metric in metrics for text in ("%", *added.get(metric, ()))]
        header = [[*[""] * len(first), *upper], [*first, *lower]]
    else:
        header = [[*first, *(f"{metric_title(metric)}, %" for metric in metrics)]]
    rows = []
    for entry, cells in _list_rows(entries):
        if entry.metrics is not None:
            for metric in metrics:
                cells.append(format_interval(entry.metrics.get(metric) or entry.metrics["per_class"][rarest]["recall"]))
                if by_row and metric == PRIMARY:
                    row = by_row.get(entry.name)
                    cells += [_format_difference(row), NO_VALUE if row is None else format_detectable(row)]
        rows.append(cells)
    notes = _list_notes(entries)
    if by_row:
        if any(row["chance"] is True for row in by_row.values()):
            notes.append(f"{CHANCE} could be chance.")
        notes += list_difference_notes(differences)
    if rarest is not None:
        notes.append(f"{rarest} is the rarest class.")
    return TableData(TITLES[table], header, rows, notes)


def _build_cost_table(table: Kind, entries: Sequence[ResultRow]) -> TableData:
    """Build the table of size and speed."""
    rows = [[entry.title, *_format_costs(entry)] for entry in entries]
    return TableData(f"{TITLES[table]} (cost)", [["Model", *COSTS]], rows, _list_cost_notes(entries))


def _format_costs(entry: ResultRow) -> list[str]:
    times = [
        entry.mean(column) if column in entry.runs else math.nan for column in ("train_seconds", "images_per_second")
    ]
    sizes = [entry.parameters / 1e6 or math.nan, entry.macs / 1e9 or math.nan]  # unknown while no run is done
    return [*(_format_number(size) for size in sizes), *(_format_number(time, 0) for time in times)]


def _first_columns(entries: Sequence[ResultRow]) -> list[str]:
    return ["Model"] if all(entry.complete or entry.metrics is None for entry in entries) else ["Model", "Runs"]


def _list_rows(entries: Sequence[ResultRow]) -> list[tuple[ResultRow, list[str]]]:
    """List each entry with the first cells of its row: all cells of the row if no run is finished."""
    counted = len(_first_columns(entries)) > 1
    rows = []
    for entry in entries:
        status = entry.runs["status"]
        if entry.metrics is not None:
            rows.append((entry, [entry.title, *[f"{(status == 'done').sum()} of {len(status)}"] * counted]))
        elif (status == "failed").any():
            rows.append(
                (entry, [entry.title, f"failed: {single_line(entry.runs['error'][status == 'failed'].iloc[0])}"])
            )
        else:
            rows.append((entry, [entry.title, "not run yet"]))
    return rows


def _list_notes(entries: Sequence[ResultRow]) -> list[str]:
    """List the notes: protocol, intervals, failed runs."""
    notes = [PROTOCOLS[protocol] for protocol in dict.fromkeys(entry.recipe.protocol for entry in entries)]
    evaluated = [entry for entry in entries if entry.metrics and "intervals" in entry.metrics]
    if evaluated and evaluated[0].metrics:
        runs, intervals = evaluated[0].runs, evaluated[0].metrics["intervals"]
        runs = runs[runs["status"] == "done"]
        if intervals["groups"] < 2:
            return [*notes, intervals["note"], *_list_failures(entries)]
        counts = {what: runs[what].nunique() for what in ("repeat", "fold", "seed") if what in runs}
        counts = {what: n for what, n in counts.items() if what != "repeat" or n > 1}
        pooled = " and ".join(f"{n} {what}{'s' * (n > 1)}" for what, n in counts.items())
        level = f"{100 * intervals['level']:g}"
        notes.append(f"In brackets: {level} % intervals over {pooled} together. {intervals['note']}")
    return [*notes, *_list_failures(entries)]


def _list_failures(entries: Sequence[ResultRow]) -> list[str]:
    return [
        f"{entry.title}, {describe_run(run)} failed: {single_line(run['error'])}".rstrip(".") + "."
        for entry in entries
        for run in (entry.runs[entry.runs["status"] == "failed"].to_dict("records") if entry.metrics else [])
    ]


def _list_paper_notes(table: Kind, entries: Sequence[ResultRow]) -> list[str]:
    """List the notes on the paper's values: their source, and which of them were computed here."""
    rows = {entry.title: find_published(table, entry.name) for entry in entries}
    computed = [title for title, published in rows.items() if published is not None and published.recomputed]
    if not computed:
        return [PAPER_NOTE]
    return [PAPER_NOTE, f"{RECOMPUTED_NOTE} {', '.join(computed)}."]


def _list_cost_notes(entries: Sequence[ResultRow]) -> list[str]:
    devices = ", ".join(dict.fromkeys(entry.device for entry in entries if entry.device))
    note = f"Training seconds are the mean of a run, images per second those of inference, on {devices}."
    return [note] if devices else []


def _format_percent(share: float | None) -> str:
    return NO_VALUE if share is None or math.isnan(share) else f"{100 * share:.1f}"


def _format_difference(row: Mapping[str, Any] | None) -> str:
    if row is None or math.isnan(row["difference"]):
        return NO_VALUE
    if math.isnan(row["low"]):
        return f"{format_points(row['difference'])} ({NO_INTERVAL})"
    mark = CHANCE * (row["chance"] is True)
    return f"{format_points(row['difference'])} ({format_difference_interval(row)}){mark}"


def _format_number(number: float, decimals: int = 1) -> str:
    """Format a number with about three digits: 0.42, 78.6, 1,204."""
    if math.isnan(number):
        return NO_VALUE
    return f"{number:,.{decimals}f}" if number >= 10 else f"{number:.{decimals + 1}f}"

"""Runs in the folder of the served run: progress, evaluations, and comparison of two runs.

A client names a run, and the name is looked up among the existing folders. No input of a client becomes a path.
"""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from urnet.errors import RunError
from urnet.evaluation.paired import paired_differences
from urnet.files.csv_tables import read_own_table
from urnet.html_pages import describe_intervals
from urnet.run_folder import HISTORY_COLUMNS, Run, find_run

MAX_RUNS = 500
"""Most runs that are listed; the folder of a benchmark has more, and a report of its own."""


@dataclass(frozen=True)
class Evaluation:
    """Evaluation of a run on one split.

    Attributes:
        split: name of the folder below `evaluation`.
        metrics: content of `metrics.json`.
        report: the HTML report; none without one.
    """

    split: str
    metrics: dict[str, Any]
    report: Path | None


@dataclass(frozen=True)
class ListedRun:
    """A run folder in its present state.

    Attributes:
        name: name of the folder; `<folder>/fold0` for a fold.
        run: the run folder.
        written: time of the last epoch, in seconds since 1970; none before the first epoch.
    """

    name: str
    run: Run
    written: float | None

    @property
    def finished(self) -> bool:
        """Whether the training has finished."""
        return self.run.finished

    @property
    def predictions(self) -> Path:
        """File with the predictions for the test split."""
        return self.run.folder / "evaluation" / "test" / "predictions.csv"

    def state(self) -> str:
        """Describe the state in words."""
        if self.finished:
            return "finished"
        if self.written is None:
            return "no epoch yet"
        return f"unfinished, last epoch {format_age(time.time() - self.written)} ago"

    def read_evaluations(self) -> list[Evaluation]:
        """Read the evaluations, the test split first; leave out unreadable ones."""
        evaluations = []
        for folder in _folders(self.run.folder / "evaluation"):
            try:
                metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
                metrics["macro_recall"]["value"], metrics["accuracy"]["value"], metrics["per_class"]
                describe_intervals(metrics["intervals"])
            except (OSError, ValueError, KeyError, TypeError):
                continue
            report = folder / "report.html"
            evaluations.append(Evaluation(folder.name, metrics, report if report.is_file() else None))
        return sorted(evaluations, key=lambda one: (one.split != "test", one.split))


def list_runs(served: Path) -> dict[str, ListedRun]:
    """List the runs in the folder of the served run by name, the latest first.

    Args:
        served: a run folder, or the bundle in one.
    """
    served = Path(served).resolve()
    if served.name == "model" and find_run(served.parent) is not None:
        served = served.parent
    if served.name.startswith("fold") and _is_cross_validation(served.parent):
        served = served.parent
    runs = []
    for folder in _folders(served.parent):
        if find_run(folder) is not None:
            runs.append(_listed(folder.name, folder))
        elif _is_cross_validation(folder):
            folds = [fold for fold in _folders(folder) if find_run(fold) is not None]
            runs += [_listed(f"{folder.name}/{fold.name}", fold) for fold in folds]
        if len(runs) >= MAX_RUNS:
            break
    runs.sort(key=lambda one: (-(one.written or 0.0), one.name))
    return {one.name: one for one in runs[:MAX_RUNS]}


def read_history(run: Run) -> pd.DataFrame:
    """Read the history of a run, without a last row that is still being written.

    Raises:
        RunError: the file is not a history.
    """
    try:
        return run.history()
    except RunError:
        try:
            table = pd.read_csv(run.history_path, encoding="utf-8", on_bad_lines="skip", dtype=str)
            table = table[list(HISTORY_COLUMNS)].iloc[:-1]
            return table.astype({"stage": str, "epoch": int, **dict.fromkeys(HISTORY_COLUMNS[2:], float)})
        except (OSError, ValueError, KeyError):
            pass
        raise


def recipe_differences(first: Run, second: Run) -> list[tuple[str, str, str]]:
    """List the keys that differ between two recipes, with both values.

    Raises:
        RecipeError: a recipe cannot be read.
    """
    one, two = (_flat(run.recipe().model_dump(mode="json")) for run in (first, second))
    keys = dict.fromkeys((*one, *two))
    return [(key, one.get(key, "–"), two.get(key, "–")) for key in keys if one.get(key) != two.get(key)]


def compare_test_results(first: ListedRun, second: ListedRun) -> pd.DataFrame:
    """Compute second minus first on the cells that both tested, with paired intervals (`paired_differences`).

    Raises:
        RunError: a run has no evaluation of its test split, or the runs have different classes.
        CellsError: the runs were tested on different cells.
    """
    predictions, classes = {}, []
    for one in (first, second):
        known = next((part.metrics.get("classes") for part in one.read_evaluations() if part.split == "test"), None)
        if known is None or not one.predictions.is_file():
            raise RunError(
                f"{one.name}: the test split is not evaluated; run `urnet evaluate` on it", code="run.not_evaluated"
            )
        rows = read_own_table(one.predictions, ("path", "label", "predicted", "source", "donor"))
        here = one.run.folder.resolve()
        predictions[one.name] = rows.assign(path=[os.path.normpath(here / path) for path in rows["path"]])
        classes.append(tuple(known))
    if classes[0] != classes[1]:
        raise RunError(
            f"{first.name} has the classes {', '.join(classes[0])}, {second.name} {', '.join(classes[1])}; compare "
            "runs with the same classes",
            code="run.other_classes",
        )
    return paired_differences(predictions, [(first.name, second.name)], classes[0])


def best_epoch(history: pd.DataFrame) -> pd.Series | None:
    """Return the epoch of the joint training with the best macro recall in validation; none before the first."""
    rows = history[(history["stage"] == "train") & np.isfinite(history["validation_macro_recall"])]
    return None if rows.empty else rows.loc[rows["validation_macro_recall"].idxmax()]


def format_age(seconds: float) -> str:
    """Format a time span with its largest unit, such as "5 min"."""
    for length, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def _listed(name: str, folder: Path) -> ListedRun:
    run = Run(folder)
    try:
        written = run.history_path.stat().st_mtime
    except OSError:
        written = None
    return ListedRun(name, run, written)


def _is_cross_validation(folder: Path) -> bool:
    return find_run(folder / "fold0") is not None


def _folders(folder: Path) -> list[Path]:
    """List the visible folders in a folder, by name; none where it cannot be opened."""
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(one.path) for one in entries if one.is_dir() and not one.name.startswith("."))
    except OSError:
        return []


def _flat(tree: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Flatten a nested recipe to keys such as `train.epochs`."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{name}.")
        else:
            flat[name] = json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else str(value)
    return flat

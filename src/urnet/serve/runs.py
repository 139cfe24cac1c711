"""The runs beside the served one: how far they are, what they reached, and how two of them differ.

A run is asked for by its name, and the name is looked up among the folders that are there: nothing that a client sends
becomes a path.
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
"""Runs that are listed; a folder with more of them is a benchmark's, which has its own report."""


@dataclass(frozen=True)
class Evaluation:
    """What a run reached on one part.

    Attributes:
        split: name of the folder below `evaluation`.
        metrics: as in its `metrics.json`.
        report: the HTML page; none where it is not there.
    """

    split: str
    metrics: dict[str, Any]
    report: Path | None


@dataclass(frozen=True)
class ListedRun:
    """A run folder as it is at the moment.

    Attributes:
        name: of its folder; of a fold `<folder>/fold0`.
        run: the folder.
        written: when its history last grew, in seconds of the epoch; none before the first one.
    """

    name: str
    run: Run
    written: float | None

    @property
    def finished(self) -> bool:
        """Whether training came to its end."""
        return self.run.finished

    @property
    def predictions(self) -> Path:
        """What it said of its test part, where it was evaluated."""
        return self.run.folder / "evaluation" / "test" / "predictions.csv"

    def state(self) -> str:
        """In words."""
        if self.finished:
            return "finished"
        if self.written is None:
            return "no epoch yet"
        return f"unfinished, last epoch {format_age(time.time() - self.written)} ago"

    def read_evaluations(self) -> list[Evaluation]:
        """The evaluations that are there, the test part first; those that cannot be read are left out."""
        found = []
        for folder in _folders(self.run.folder / "evaluation"):
            try:
                metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
                metrics["macro_recall"]["value"], metrics["accuracy"]["value"], metrics["per_class"]
                describe_intervals(metrics["intervals"])
            except (OSError, ValueError, KeyError, TypeError):
                continue
            report = folder / "report.html"
            found.append(Evaluation(folder.name, metrics, report if report.is_file() else None))
        return sorted(found, key=lambda one: (one.split != "test", one.split))


def list_runs(served: Path) -> dict[str, ListedRun]:
    """The runs in the folder that the served run lies in, by name: those written last come first.

    Args:
        served: a run folder, or the bundle in one.
    """
    served = Path(served).resolve()
    if served.name == "model" and find_run(served.parent) is not None:
        served = served.parent
    if served.name.startswith("fold") and _is_cross_validation(served.parent):
        served = served.parent
    found = []
    for folder in _folders(served.parent):
        if find_run(folder) is not None:
            found.append(_listed(folder.name, folder))
        elif _is_cross_validation(folder):
            folds = [fold for fold in _folders(folder) if find_run(fold) is not None]
            found += [_listed(f"{folder.name}/{fold.name}", fold) for fold in folds]
        if len(found) >= MAX_RUNS:
            break
    found.sort(key=lambda one: (-(one.written or 0.0), one.name))
    return {one.name: one for one in found[:MAX_RUNS]}


def read_history(run: Run) -> pd.DataFrame:
    """The history; while its last row is being written, what stands before it.

    Raises:
        RunError: the file is no history.
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
    """Keys whose values differ between two recipes, with both values.

    Raises:
        RecipeError: a recipe cannot be read.
    """
    one, two = (_flat(run.recipe().model_dump(mode="json")) for run in (first, second))
    keys = dict.fromkeys((*one, *two))
    return [(key, one.get(key, "–"), two.get(key, "–")) for key in keys if one.get(key) != two.get(key)]


def compare_test_results(first: ListedRun, second: ListedRun) -> pd.DataFrame:
    """Second minus first on the cells that both tested, with paired intervals (`paired_differences`).

    Raises:
        RunError: one was not evaluated on its test part, or they know different classes.
        CellsError: they were tested on different cells.
    """
    predictions, classes = {}, []
    for one in (first, second):
        known = next((found.metrics.get("classes") for found in one.read_evaluations() if found.split == "test"), None)
        if known is None or not one.predictions.is_file():
            raise RunError(f"{one.name}: has no figures of its test part; run `urnet evaluate` on it")
        rows = read_own_table(one.predictions, ("path", "label", "predicted", "source", "donor"))
        here = one.run.folder.resolve()
        predictions[one.name] = rows.assign(path=[os.path.normpath(here / path) for path in rows["path"]])
        classes.append(tuple(known))
    if classes[0] != classes[1]:
        raise RunError(
            f"{first.name} knows the classes {', '.join(classes[0])}, {second.name} {', '.join(classes[1])}; "
            "compare runs of one task"
        )
    return paired_differences(predictions, [(first.name, second.name)], classes[0])


def best_epoch(history: pd.DataFrame) -> pd.Series | None:
    """The epoch of the joint training with the best macro recall in validation; none before there is one."""
    rows = history[(history["stage"] == "train") & np.isfinite(history["validation_macro_recall"])]
    return None if rows.empty else rows.loc[rows["validation_macro_recall"].idxmax()]


def format_age(seconds: float) -> str:
    """A time span as people say it."""
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
    """Folders in a folder that are no hidden ones, by name; none where it cannot be entered."""
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(one.path) for one in entries if one.is_dir() and not one.name.startswith("."))
    except OSError:
        return []


def _flat(tree: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """A nested recipe as `train.epochs: 40`."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{name}.")
        else:
            flat[name] = json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else str(value)
    return flat

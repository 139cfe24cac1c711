"""From the cells of a grid, or from run folders, to the rows of a comparison."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pandas as pd

from urnet.benchmark.grid import Grid
from urnet.benchmark.job import GridCell, score_cell
from urnet.benchmark.plans import Row
from urnet.benchmark.row import Entry
from urnet.errors import RunError
from urnet.evaluation.evaluate import named, runs_of
from urnet.evaluation.metrics import interval_groups, score
from urnet.evaluation.predictions import Progress
from urnet.run_folder import Run, order_classes


def entry_of(grid: Grid, row: Row, seeds: int, folds: int) -> Entry:
    """A row of a benchmark with what its cells gave so far."""
    cells = [grid.cell(row, seed, fold) for seed in range(seeds) for fold in range(folds)]
    return _entry(row.name, row.title, cells, order_classes(row.recipe, grid.cells), portable_predictions)


def entries_of_runs(folders: Sequence[Path], progress: Progress | None = None) -> list[Entry]:
    """Trained runs, or cross-validations, as rows of a comparison; each is tested on its own test part.

    Args:
        folders: run folders, or folders of cross-validations.
        progress: called with what is done and the share of it.

    Raises:
        RunError: a folder is no finished run, or two runs know different classes.
    """
    entries: list[Entry] = []
    for index, (name, folder) in enumerate(named(folders).items()):
        if progress is not None:
            progress("test", index / len(folders))
        cells = [GridCell(run.recipe(), run.folder) for run in runs_of(folder)]
        for cell in cells:
            if cell.outcome()["status"] != "done":
                score_cell(cell)
        classes = order_classes(cells[0].recipe, Run.open(cells[0].folder).cells())
        if entries and classes != entries[0].metrics["classes"]:
            raise RunError(
                f"{folder}: knows the classes {', '.join(classes)}, {folders[0]} the classes "
                f"{', '.join(entries[0].metrics['classes'])}; compare runs of one task"
            )
        entries.append(_entry(name, name, cells, classes, _placed))
    if progress is not None:
        progress("test", 1.0)
    return entries


def _entry(
    name: str,
    title: str,
    cells: Sequence[GridCell],
    classes: Sequence[str],
    predictions_of: Callable[[GridCell], pd.DataFrame],
) -> Entry:
    outcomes = [cell.outcome() for cell in cells]
    runs = pd.DataFrame(
        [{"seed": c.recipe.seed, "fold": c.recipe.split.fold or 0, **o} for c, o in zip(cells, outcomes, strict=True)]
    )
    done = [cell for cell, outcome in zip(cells, outcomes, strict=True) if outcome["status"] == "done"]
    predictions = pd.concat([predictions_of(cell) for cell in done], ignore_index=True) if done else pd.DataFrame()
    history = [
        Run(cell.folder).history().assign(seed=cell.recipe.seed, fold=cell.recipe.split.fold or 0) for cell in done
    ]
    first = next((o for o in outcomes if o["status"] == "done"), {})
    return Entry(
        name=name,
        title=title,
        recipe=cells[0].recipe,
        runs=runs,
        predictions=predictions,
        history=pd.concat(history, ignore_index=True) if history else pd.DataFrame(),
        metrics=pooled_metrics(predictions, classes) if done else None,
        parameters=first.get("parameters", 0),
        macs=first.get("macs", 0),
        device=first.get("device", ""),
        examples=next((kept for cell in done if (kept := cell.examples())), {}),
    )


def portable_predictions(cell: GridCell) -> pd.DataFrame:
    """The predictions of a grid's cell with paths from the folder that the images share.

    A run names them from its own folder. A grid may have been moved since some of its runs were trained, and all that
    test the same fold share the same images.
    """
    table = cell.predictions()
    try:
        shared = os.path.commonpath(table["path"].tolist())
    except ValueError:  # images on several drives
        return table
    return table.assign(path=[PurePath(path).relative_to(shared).as_posix() for path in table["path"]])


def _placed(cell: GridCell) -> pd.DataFrame:
    """The predictions of any run with absolute paths; folders at other places name the same image in other ways."""
    table, folder = cell.predictions(), cell.folder.resolve()
    return table.assign(path=[os.path.normpath(folder / path) for path in table["path"]])


def pooled_metrics(predictions: pd.DataFrame, classes: Sequence[str]) -> dict[str, Any]:
    """Figures with intervals over the tested cells of all folds and seeds."""
    order = {name: index for index, name in enumerate(classes)}
    truth = predictions["label"].map(order).to_numpy(np.int64)
    probabilities = predictions[[f"p_{name}" for name in classes]].to_numpy(float)
    donors = predictions["donor"].tolist() if "donor" in predictions else None
    groups, description = interval_groups(donors, predictions["source"].tolist())
    metrics = score(truth, probabilities, list(classes), groups)
    return metrics | {"classes": tuple(classes), "intervals": description}

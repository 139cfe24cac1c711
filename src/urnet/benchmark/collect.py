"""Collect the results of jobs or run folders into the rows of a comparison."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pandas as pd

from urnet.benchmark.grid import Grid
from urnet.benchmark.job import Job, score_job
from urnet.benchmark.plans import PlannedRow
from urnet.benchmark.row import ResultRow
from urnet.evaluation.metrics import score
from urnet.evaluation.predictions import Progress
from urnet.evaluation.runs import check_same_classes, name_runs, open_trainings
from urnet.run_folder import Run, order_classes
from urnet.statistics.donors import choose_groups


def collect_row(grid: Grid, row: PlannedRow, seeds: int, folds: int, repeats: int = 1) -> ResultRow:
    """Collect the results of one row of a benchmark, as far as its jobs are done."""
    jobs = grid.jobs([row], seeds, folds, repeats)
    return _collect_jobs(row.name, row.title, jobs, order_classes(row.recipe, grid.cells), read_portable_predictions)


def collect_runs(folders: Sequence[Path], progress: Progress | None = None) -> list[ResultRow]:
    """Test runs or cross-validations on their own test parts, and collect the results.

    Args:
        folders: run folders, or folders of cross-validations; a row of a benchmark has several seeds and repeats.
        progress: called with the name of a step and the share of it that is done.

    Raises:
        RunError: a folder is no finished run, or two runs know different classes.
    """
    entries: list[ResultRow] = []
    named = {name: (folder, open_trainings(folder)) for name, folder in name_runs(folders).items()}
    repeats = _number_repeats([runs for _, runs in named.values()])
    for index, (name, (folder, runs)) in enumerate(named.items()):
        if progress is not None:
            progress("test", index / len(folders))
        jobs = [Job(recipe := run.recipe(), run.folder, repeats.get(recipe.split.seed, 0)) for run in runs]
        for job in jobs:
            if job.outcome()["status"] != "done":
                score_job(job)
        classes = order_classes(jobs[0].recipe, Run.open(jobs[0].folder).cells())
        if entries:
            check_same_classes(folders[0], entries[0].metrics["classes"], folder, classes)
        entries.append(_collect_jobs(name, name, jobs, classes, _read_absolute_predictions))
    if progress is not None:
        progress("test", 1.0)
    return entries


def _number_repeats(rows: Sequence[Sequence[Run]]) -> dict[int, int]:
    """Assign a number to each `split.seed`; the result is empty if every row has only one."""
    seeds = [{run.recipe().split.seed for run in runs} for runs in rows]
    if all(len(one) == 1 for one in seeds):
        return {}
    return {seed: number for number, seed in enumerate(sorted(set().union(*seeds)))}


def _collect_jobs(
    name: str,
    title: str,
    jobs: Sequence[Job],
    classes: Sequence[str],
    predictions_of: Callable[[Job], pd.DataFrame],
) -> ResultRow:
    outcomes = [job.outcome() for job in jobs]
    runs = pd.DataFrame([{**job.place, **outcome} for job, outcome in zip(jobs, outcomes, strict=True)])
    done = [job for job, outcome in zip(jobs, outcomes, strict=True) if outcome["status"] == "done"]
    predictions = pd.concat([predictions_of(job) for job in done], ignore_index=True) if done else pd.DataFrame()
    history = [Run(job.folder).history().assign(**job.place) for job in done]
    first = next((o for o in outcomes if o["status"] == "done"), {})
    return ResultRow(
        name=name,
        title=title,
        recipe=jobs[0].recipe,
        runs=runs,
        predictions=predictions,
        history=pd.concat(history, ignore_index=True) if history else pd.DataFrame(),
        metrics=pool_metrics(predictions, classes) if done else None,
        parameters=first.get("parameters", 0),
        macs=first.get("macs", 0),
        device=first.get("device", ""),
        examples=next((images for job in done if (images := job.examples())), {}),
    )


def read_portable_predictions(job: Job) -> pd.DataFrame:
    """Read the predictions of a job, with paths relative to the common folder of the images.

    A run has paths relative to its own folder, which may have been moved since. Jobs that test the same fold have the
    same images, so these paths are the same for all of them.
    """
    table = job.predictions()
    try:
        shared = os.path.commonpath(table["path"].tolist())
    except ValueError:  # images on several drives
        return table
    return table.assign(path=[PurePath(path).relative_to(shared).as_posix() for path in table["path"]])


def _read_absolute_predictions(job: Job) -> pd.DataFrame:
    """Read the predictions of a run with absolute paths, so that runs in different folders can be compared."""
    table, folder = job.predictions(), job.folder.resolve()
    return table.assign(path=[os.path.normpath(folder / path) for path in table["path"]])


def pool_metrics(predictions: pd.DataFrame, classes: Sequence[str]) -> dict[str, Any]:
    """Compute metrics with intervals over the test cells of all folds and seeds."""
    order = {name: index for index, name in enumerate(classes)}
    truth = predictions["label"].map(order).to_numpy(np.int64)
    probabilities = predictions[[f"p_{name}" for name in classes]].to_numpy(float)
    donors = predictions["donor"].tolist() if "donor" in predictions else None
    groups, description = choose_groups(donors, predictions["source"].tolist())
    metrics = score(truth, probabilities, list(classes), groups, cells=predictions["path"].tolist())
    return metrics | {"classes": tuple(classes), "intervals": description}

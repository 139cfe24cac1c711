"""`urnet benchmark` from top to bottom: plan, grid, tables."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from urnet.benchmark.collect import collect_row
from urnet.benchmark.grid import Grid, open_grid, run_sequentially, run_with_ray, unfinished_jobs
from urnet.benchmark.plans import SCALES, TABLES, PlannedRow, Scale, Table, plan_rows
from urnet.cells.pixels import survey_images
from urnet.cells.read import read_recipe_cells
from urnet.cells.split import split_cells
from urnet.cells.table import TARGET_COLUMNS, Cells
from urnet.errors import CellsError, RecipeError
from urnet.nets import build_from_recipe, create_classifier
from urnet.progress import NoProgress
from urnet.recipe import Classifier, load_recipe
from urnet.run_folder import check_not_within

PROTOCOLS = ("honest", "paper")


@dataclass(frozen=True)
class BenchmarkResult:
    """Where a benchmark's results are, and which of its cells failed.

    Attributes:
        folder: holds `<table>/report.html`, `results.csv`, `tables/`, `figures/`.
        failed: the titles of the cells that failed, with their errors.
    """

    folder: Path
    failed: list[str]

    @property
    def report(self) -> Path:
        """The page to open."""
        return self.folder / "report.html"


def run_benchmark(
    table: Table,
    cells: Path | str,
    out: Path | str,
    *,
    folds: int | str = 5,
    seeds: int = 1,
    scale: Scale = "paper",
    protocol: str = "honest",
    overrides: Iterable[str] = (),
    only: Iterable[str] = (),
    jobs: int | None = None,
    ray: str | None = None,
    train: bool = True,
    reporter: Any = None,
) -> BenchmarkResult:
    """Fill one of the paper's tables with anyone's cells.

    Args:
        table: `table2`, `table3`, `table4` or `ablation`.
        cells: a cells table, or a folder per class.
        out: the benchmark's folder; one that was begun with the same cells goes on with what is missing.
        folds: number of folds, shared by all rows; every cell is tested once for each seed. `donor` for as many as
            there are donors, so that each is left out once.
        seeds: trainings of each row and fold.
        scale: `paper`, or `laptop` for what two cores can train.
        protocol: `honest` or `paper`.
        overrides: changes to every recipe, `key=value`.
        only: names of the rows to train and show; all when not given.
        jobs: cells at once on this machine, through Ray.
        ray: address of a Ray cluster.
        train: whether to train what is missing; else the tables are made of what is there.
        reporter: is told how it goes.

    Raises:
        UrnetError: the cells, the settings or the folder do not allow it.
        KeyboardInterrupt: Ctrl-C; its message says how to go on.
    """
    from urnet.benchmark.report import write_comparison  # draws, and takes seconds to import

    check_not_within(Path(out), Path(cells))
    reporter = reporter or NoProgress()
    what = plan_benchmark(table, cells, folds=folds, scale=scale, protocol=protocol, overrides=overrides, only=only)
    rows, folds = what.rows, what.folds
    with open_grid(Path(out), what.cells, rows[0].recipe, reporter.update) as grid:
        todo = unfinished_jobs(grid.jobs(rows, seeds, folds)) if train else []
        if ray is None:
            _download_weights(job.recipe.classifier for job in todo)
        try:
            if todo and (jobs is not None or ray is not None):
                run_with_ray(grid, todo, jobs, ray, reporter)
            elif todo:
                run_sequentially(grid, todo, reporter)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("interrupted; the same command goes on with what is missing") from None
        entries = [collect_row(grid, row, seeds, folds) for row in rows]
        folder = grid.folder / (table if protocol == "honest" else f"{table}-paper-protocol")
        write_comparison(
            folder,
            table,
            entries,
            name=Path(cells).resolve().stem,
            dataset=_describe_dataset(grid),
            simulated=grid.cells.simulated,
            counts=_class_counts(grid, rows[0]),
            optimistic=[collect_row(grid, row, seeds, folds) for row in what.optimistic],
        )
    failed = [
        f"{entry.name}, seed {run['seed']}, fold {run['fold']}: {run['error']}"
        for entry in entries
        for run in entry.runs.to_dict("records")
        if run["status"] == "failed"
    ]
    return BenchmarkResult(folder, failed)


@dataclass(frozen=True)
class BenchmarkPlan:
    """What a benchmark is about to do.

    Attributes:
        rows: of the table, each with its recipe.
        optimistic: the same rows under protocol `paper`, whose results are shown beside those of `honest`.
        cells: undivided.
        folds: number of folds.
    """

    rows: list[PlannedRow]
    optimistic: list[PlannedRow]
    cells: Cells
    folds: int


def plan_benchmark(
    table: Table,
    cells: Path | str,
    *,
    folds: int | str = 5,
    scale: Scale = "paper",
    protocol: str = "honest",
    overrides: Iterable[str] = (),
    only: Iterable[str] = (),
) -> BenchmarkPlan:
    """Read the cells and plan the rows; the arguments are those of `run_benchmark`.

    Raises:
        UrnetError: the cells or the settings do not allow it, or a network cannot be built.
    """
    choices = (("table", table, TABLES), ("--scale", scale, SCALES), ("--protocol", protocol, PROTOCOLS))
    for name, value, known in choices:
        if value not in known:
            raise RecipeError(f"{name} is {value!r}; it must be one of {', '.join(known)}")
    overrides, only = list(overrides), list(only)
    base = load_recipe("net1", overrides)
    read = read_recipe_cells(Path(cells), base)
    settings: dict[str, Any] = {
        "scale": scale,
        "folds": _parse_folds(folds, read),
        "channels": 3 if survey_images(read).colour else 1,
        "paired": next((column.removeprefix("target_") for column in TARGET_COLUMNS if read.is_complete(column)), ""),
        "overrides": overrides,
    }
    rows = _select_rows(plan_rows(table, protocol=protocol, **settings), only)
    optimistic = _select_rows(plan_rows(table, protocol="paper", **settings), only) if protocol == "honest" else []
    _check_networks(rows, read)
    return BenchmarkPlan(rows, optimistic, read, settings["folds"])


def _parse_folds(folds: int | str, cells: Cells) -> int:
    """The number of folds asked for.

    Raises:
        RecipeError: it is no number of at least two.
        CellsError: one for each donor is asked for, and not every cell's donor is known.
    """
    if folds == "donor":
        if not cells.is_complete("donor"):
            raise CellsError(
                "--folds donor: not every cell names its donor (column 'donor'); fill it, or give a number"
            )
        return int(cells.table["donor"].nunique())
    if not str(folds).isdecimal() or not 2 <= int(folds) <= 100:
        raise RecipeError(f"--folds {folds}: give a number from 2 to 100, or 'donor'")
    return int(folds)


def _select_rows(rows: list[PlannedRow], only: list[str]) -> list[PlannedRow]:
    unknown = sorted(set(only) - {row.name for row in rows})
    if unknown:
        raise RecipeError(f"no row {unknown[0]!r} in this table; its rows are {', '.join(row.name for row in rows)}")
    return [row for row in rows if not only or row.name in only]


def _check_networks(rows: list[PlannedRow], cells: Cells) -> None:
    """Build every network once without memory, so that a misspelt name is not found out after hours.

    Raises:
        RecipeError: a network cannot be built.
    """
    import torch

    for row in rows:
        recipe = row.recipe
        try:
            with torch.device("meta"):
                build_from_recipe(recipe, len(recipe.classes or cells.classes), recipe.input.channels or 1)
        except RecipeError as error:
            raise RecipeError(f"row {row.name}: {error}") from None


def _download_weights(classifiers: Iterable[Classifier]) -> None:
    """Ask the hub once for what the runs will want of it: it takes a minute to say no, and would say so to each run.

    Raises:
        WeightsError: the hub cannot be reached, or has no such weights.
    """
    wanted = {c.name: c.options for c in classifiers if c.pretrained and c.weights is None}
    for name, options in wanted.items():
        create_classifier(name, 2, pretrained=True, options=options)


def _describe_dataset(grid: Grid) -> str:
    counts = grid.cells.where(grid.audit.distinct).table["label"].value_counts()
    classes = ", ".join(f"{name} {counts[name]:,}" for name in grid.cells.classes)
    return f"{int(counts.sum()):,} cells: {classes}" + (f"; {grid.cells.simulated}" if grid.cells.simulated else "")


def _class_counts(grid: Grid, row: PlannedRow) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Cells of each class in the first fold's training and test parts, as they are and as an epoch shows them."""
    divided = split_cells(grid.cells, row.recipe.with_changes(split={"fold": 0}), grid.audit).table
    before = pd.crosstab(divided["label"], divided["split"])[["train", "test"]].reindex(grid.cells.classes)
    shown = row.recipe.augment.per_class or math.ceil(before["train"].sum() / len(before))
    return before, before.assign(train=shown)

"""`urnet benchmark`: plan the rows, run the jobs, write the tables."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from urnet.benchmark.collect import collect_row
from urnet.benchmark.grid import Grid, open_grid, run_sequentially, run_with_ray, unfinished_jobs
from urnet.benchmark.plans import SCALES, TABLES, PlannedRow, Scale, Table, plan_rows
from urnet.benchmark.row import describe_run
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
    """The results of a benchmark.

    Attributes:
        folder: folder with `report.html`, `results.csv`, `tables/` and `figures/`.
        failed: title and error of each job that failed.
    """

    folder: Path
    failed: list[str]

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.folder / "report.html"


def run_benchmark(
    table: Table,
    cells: Path | str,
    out: Path | str,
    *,
    folds: int | str = 5,
    repeats: int = 1,
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
    """Fill one of the paper's tables with these cells.

    Args:
        table: `table2`, `table3`, `table4` or `ablation`.
        cells: a cells table, or a folder per class.
        out: the benchmark's folder. An unfinished benchmark of the same cells is resumed.
        folds: number of folds, the same for all rows. Every cell is tested once per seed and repeat. `donor`: one fold
            per donor.
        repeats: number of times that the cells are divided into folds.
        seeds: number of trainings of each row and fold.
        scale: `paper`, or `laptop` for what two cores can train.
        protocol: `honest` or `paper`.
        overrides: changes to every recipe, `key=value`.
        only: names of the rows to train and show. Default: all.
        jobs: number of jobs at once on this machine, through Ray.
        ray: address of a Ray cluster.
        train: whether to train what is missing. Otherwise the tables show the results that exist.
        reporter: receives messages and progress.

    Raises:
        UrnetError: the cells, the settings or the folder do not allow it.
        KeyboardInterrupt: Ctrl-C; the message says how to resume.
    """
    from urnet.benchmark.report import write_comparison  # draws, and takes seconds to import

    check_not_within(Path(out), Path(cells))
    reporter = reporter or NoProgress()
    what = plan_benchmark(table, cells, folds=folds, scale=scale, protocol=protocol, overrides=overrides, only=only)
    asked, rows, folds = folds, what.rows, what.folds
    _check_repeats(repeats, asked, what.cells)
    with open_grid(Path(out), what.cells, rows[0].recipe, reporter.update, repeats) as grid:
        jobs_of_grid = grid.jobs(rows, seeds, folds, repeats)
        todo = unfinished_jobs(jobs_of_grid) if train else []
        if todo:
            reporter.notify(f"{len(todo)} trainings to do, {len(jobs_of_grid) - len(todo)} done")
        if ray is None:
            _download_weights(job.recipe.classifier for job in todo)
        try:
            if todo and (jobs is not None or ray is not None):
                run_with_ray(grid, todo, jobs, ray, reporter)
            elif todo:
                run_sequentially(grid, todo, reporter)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("interrupted; the same command resumes the benchmark") from None
        entries = [collect_row(grid, row, seeds, folds, repeats) for row in rows]
        folder = grid.folder / (table if protocol == "honest" else f"{table}-paper-protocol")
        write_comparison(
            folder,
            table,
            entries,
            name=Path(cells).resolve().stem,
            dataset=_describe_dataset(grid),
            simulated=grid.cells.simulated,
            counts=_class_counts(grid, rows[0]),
            optimistic=[collect_row(grid, row, seeds, folds, repeats) for row in what.optimistic],
        )
    failed = [
        f"{entry.name}, {describe_run(run)}: {run['error']}"
        for entry in entries
        for run in entry.runs.to_dict("records")
        if run["status"] == "failed"
    ]
    return BenchmarkResult(folder, failed)


@dataclass(frozen=True)
class BenchmarkPlan:
    """The rows and cells of a benchmark.

    Attributes:
        rows: rows of the table, each with its recipe.
        optimistic: the same rows under protocol `paper`, for comparison with `honest`.
        cells: all cells.
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
            raise RecipeError(
                f"{name} is {value!r}; it must be one of {', '.join(known)}", code="benchmark.setting_unknown"
            )
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
    """Convert the option `--folds` to a number.

    Raises:
        RecipeError: it is neither `donor` nor a number from 2 to 100.
        CellsError: it is `donor`, and the donor of a cell is not known.
    """
    if folds == "donor":
        if not cells.is_complete("donor"):
            raise CellsError(
                "--folds donor: not every cell names its donor. Fill the column 'donor', or give a number",
                code="benchmark.donors_unknown",
            )
        return int(cells.table["donor"].nunique())
    if not str(folds).isdecimal() or not 2 <= int(folds) <= 100:
        raise RecipeError(
            f"--folds is {folds}; it must be a number from 2 to 100, or 'donor'", code="benchmark.setting_unknown"
        )
    return int(folds)


def _check_repeats(repeats: int, folds: int | str, cells: Cells) -> None:
    """Check that repeats divide the cells anew.

    Raises:
        RecipeError: they do not, or their number is not from 1 to 100.
    """
    if not 1 <= repeats <= 100:
        raise RecipeError(
            f"--repeats is {repeats}; it must be a number from 1 to 100", code="benchmark.setting_unknown"
        )
    if repeats > 1 and (folds == "donor" or cells.is_complete("fold")):
        given = "--folds donor" if folds == "donor" else "the column 'fold'"
        raise RecipeError(
            f"--repeats {repeats}: {given} gives the same folds each time. Use --seeds for more trainings",
            code="benchmark.folds_repeat",
        )


def _select_rows(rows: list[PlannedRow], only: list[str]) -> list[PlannedRow]:
    unknown = sorted(set(only) - {row.name for row in rows})
    if unknown:
        raise RecipeError(
            f"this table has no row {unknown[0]!r}. Its rows are {', '.join(row.name for row in rows)}",
            code="benchmark.row_unknown",
        )
    return [row for row in rows if not only or row.name in only]


def _check_networks(rows: list[PlannedRow], cells: Cells) -> None:
    """Build every network without weights, so that a misspelt name is reported before hours of training.

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
            raise RecipeError(f"row {row.name}: {error}", code=error.code) from None


def _download_weights(classifiers: Iterable[Classifier]) -> None:
    """Download the pretrained weights once. Without a connection every job would wait a minute for its error.

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
    """Count cells by class in the training and test parts of the first fold, before and after balancing."""
    divided = split_cells(grid.cells, row.recipe.with_changes(split={"fold": 0}), grid.audit).table
    before = pd.crosstab(divided["label"], divided["split"])[["train", "test"]].reindex(grid.cells.classes)
    shown = row.recipe.augment.per_class or math.ceil(before["train"].sum() / len(before))
    return before, before.assign(train=shown)

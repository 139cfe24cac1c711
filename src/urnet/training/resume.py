"""Resuming an interrupted training: the same command continues after the last complete epoch."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from urnet.cells.table import Cells
from urnet.errors import RunError, UrnetError, list_first
from urnet.files.outputs import OutputLock, lock_output
from urnet.recipe import Recipe
from urnet.run_folder import Run
from urnet.training.trainer import get_rank


def lock_run(out: Path) -> AbstractContextManager[OutputLock]:
    """Lock a folder for all processes of a distributed training. Only the first process takes the lock."""
    return lock_output(out, in_place=True) if get_rank() == 0 else nullcontext(OutputLock())


def is_interrupted(recipes: Mapping[Path, Recipe], lock: OutputLock) -> bool:
    """Return whether folders hold interrupted runs of exactly these recipes.

    A run is interrupted if it stopped before its end, or if the command was killed right after it.

    Args:
        recipes: recipe of each run folder.
        lock: lock of the folder.
    """
    runs = {Run(folder): recipe for folder, recipe in recipes.items() if folder.is_dir()}
    try:
        same = all(not run.recipe_path.is_file() or run.recipe() == recipe for run, recipe in runs.items())
    except UrnetError:
        return False
    finished = sum(run.finished for run in runs)
    return bool(runs) and same and (lock.interrupted or finished < len(recipes))


def read_cells_of(run: Run, cells: Cells, recipe: Recipe, progress: Callable[[float], None]) -> Cells:
    """Read the cells of an interrupted run, after a check that cells and recipe are the same.

    Args:
        run: the interrupted run.
        cells: cells of the present command.
        recipe: recipe of the present command.
        progress: receives the share of the images that have been compared, 0 to 1.

    Raises:
        RunError: the recipe, the cells or the pixels of an image have changed.
    """
    run.refuse_bundle()
    if run.recipe() != recipe:
        raise RunError(
            f"{run.folder}: {_describe_difference(run.recipe(), recipe)}. Resume with the same recipe, or train into a "
            "new --out",
            code="run.recipe_changed",
        )
    if not run.has_cells(cells):
        raise RunError(
            f"{run.folder}: the run was started with other cells. Resume with those, or train into a new --out",
            code="run.cells_changed",
        )
    changed = run.changed_images(progress)
    if changed:
        raise RunError(
            f"{run.folder}: the pixels of {len(changed)} image(s) have changed since the run was started: "
            f"{list_first(changed)} (relative to the run folder). A run can only be resumed with the same pixels. "
            "Restore the files, or train into a new --out",
            code="run.pixels_changed",
        )
    return run.cells()


def _describe_difference(old: Recipe, new: Recipe) -> str:
    """Describe the first key in which two recipes differ."""

    def flatten(data: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
        for key, value in data.items():
            yield from flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]

    before, after = dict(flatten(old.model_dump())), dict(flatten(new.model_dump()))
    key = next(key for key in [*before, *after] if before.get(key) != after.get(key))
    return f"the run was started with {key}={before.get(key)}, and now it is {after.get(key)}"

"""Run folders and cross-validations, as the commands that evaluate and compare them take them."""

import re
from collections.abc import Sequence
from pathlib import Path

from urnet.errors import CellsError, RunError
from urnet.run_folder import Run

FOLD = re.compile(r"(repeat\d+/)?(seed\d+-)?(repeat\d+-)?fold\d+")
"""Name of the run folder of a fold, below the folder of its cross-validation."""


def name_runs(folders: Sequence[Path]) -> dict[str, Path]:
    """Map a short, unique name to each run folder.

    The name is that of the folder. If two folders have the same name, all names include the parent folder.

    Raises:
        RunError: there is no folder, or one folder is given twice.
    """
    if not folders:
        raise RunError("no run given. Name at least one run folder", code="evaluation.no_run")
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = ["/".join(folder.resolve().parts[-2:]) for folder in folders]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise RunError(f"{repeated[0]} is named twice. Name each run once", code="evaluation.run_repeated")
    return dict(zip(names, folders, strict=True))


def open_runs(folder: Path, split: str = "test") -> list[Run]:
    """Open one run, or all folds of a cross-validation in their order.

    Args:
        folder: a run folder, or the folder of a cross-validation. For a row of a benchmark: the folds of its first
            seed.
        split: the part to evaluate. Only the test parts of folds can be pooled.

    Raises:
        RunError: the folder is no run, is a bundle, or has folds that are not trained.
        CellsError: `split` is not "test" for a cross-validation.
    """
    Run(folder).refuse_bundle()
    folds = _find_folds(folder, "fold*", "seed0-fold*")
    if not folds:
        return [Run.open(folder)]
    if split != "test":
        raise CellsError(
            f"{folder} is a cross-validation: only its test parts can be pooled. Evaluate the {split} part of one fold",
            code="evaluation.folds_pool_test",
        )
    _check_finished(folder, folds)
    return folds


def open_trainings(folder: Path) -> list[Run]:
    """Open one run, or all trainings of a cross-validation: its folds, their repeats, and all seeds.

    Args:
        folder: a run folder, the folder of a cross-validation, a folder of cross-validations with other values of
            `split.seed` (`repeat0`, `repeat1`, …), or a row of a benchmark.

    Raises:
        RunError: the folder is no run, is a bundle, or has folds that are not trained.
    """
    Run(folder).refuse_bundle()
    runs = _find_folds(folder, "*fold*", "repeat*/fold*")
    if not runs:
        return [Run.open(folder)]
    _check_finished(folder, runs)
    return runs


def _find_folds(folder: Path, *patterns: str) -> list[Run]:
    """Find the runs of folds in a folder, sorted by the numbers in their names."""
    found: dict[tuple[int, ...], Run] = {}
    for pattern in patterns:
        for path in folder.glob(f"{pattern}/recipe.yaml"):
            name = path.parent.relative_to(folder).as_posix()
            if FOLD.fullmatch(name):
                found[tuple(map(int, re.findall(r"\d+", name)))] = Run(path.parent)
    for run in found.values():
        run.refuse_bundle()
    return [found[numbers] for numbers in sorted(found)]


def _check_finished(folder: Path, runs: Sequence[Run]) -> None:
    """Check that each cross-validation among some runs has all its folds.

    Raises:
        RunError: one has not.
    """
    recipes = [run.recipe() for run in runs]
    rounds = {(recipe.seed, recipe.split.seed) for recipe in recipes}
    expected = len(rounds) * (recipes[0].split.folds or 1)
    finished = sum(run.finished for run in runs)
    if finished != expected:
        raise RunError(
            f"{folder}: {finished} of {expected} folds are trained. Repeat its `urnet train` or "
            "`urnet benchmark` to train the others",
            code="evaluation.folds_unfinished",
        )


def check_same_classes(first: Path, classes: Sequence[str], other: Path, other_classes: Sequence[str]) -> None:
    """Check that two runs have the same classes.

    Raises:
        RunError: they have not.
    """
    if tuple(classes) != tuple(other_classes):
        raise RunError(
            f"{first} has the classes {', '.join(classes)}, {other} has {', '.join(other_classes)}. Compare runs with "
            "the same classes",
            code="evaluation.classes_differ",
        )

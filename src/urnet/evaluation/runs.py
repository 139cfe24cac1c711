"""Run folders and cross-validations, as the commands that evaluate and compare them take them."""

from collections.abc import Sequence
from pathlib import Path

from urnet.errors import CellsError, RunError
from urnet.run_folder import Run


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
    paths = [*folder.glob("fold*/recipe.yaml"), *folder.glob("seed0-fold*/recipe.yaml")]
    numbered = [(path.parent.name.rpartition("fold")[2], Run(path.parent)) for path in paths]
    folds = {int(number): run for number, run in numbered if number.isdecimal()}
    if not folds:
        return [Run.open(folder)]
    for run in folds.values():
        run.refuse_bundle()
    if split != "test":
        raise CellsError(
            f"{folder} is a cross-validation: only its test parts can be pooled. Evaluate the {split} part of one fold",
            code="evaluation.folds_pool_test",
        )
    expected = next(iter(folds.values())).recipe().split.folds
    finished = sum(run.finished for run in folds.values())
    if finished != expected:
        raise RunError(
            f"{folder}: {finished} of {expected} folds are trained. Repeat its `urnet train` to train the others",
            code="evaluation.folds_unfinished",
        )
    return [folds[number] for number in sorted(folds)]


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

"""Models in Python: train, load, evaluate and compare them, and count cells with them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from urnet.api.progress import show_progress

if TYPE_CHECKING:
    from urnet.benchmark.compare import Comparison
    from urnet.bundle.model import Model
    from urnet.cells.table import Cells
    from urnet.counting.differential import Differential
    from urnet.evaluation.evaluate import Evaluation
    from urnet.recipe import Recipe
    from urnet.run_folder import Run


def load(path: "Path | str | Run", *, expect: str | None = None) -> "Model":
    """Load a trained model from a run folder or a bundle.

    Args:
        path: the folder.
        expect: the first 8 to 32 digits of the model's digest (`urnet about` shows it); another model is refused.

    Returns:
        The model, with `predict`, `enhance` and `explain`; each takes paths, folders, tables or arrays.

    Raises:
        RunError: there is no model, it is damaged, or it is another one.

    Examples:
        >>> import urnet
        >>> model = urnet.load("run")
        >>> model.classes
        ('granulocyte', 'lymphocyte', 'monocyte')
        >>> model.predict("phantom/cells/monocyte").to_frame().columns[:2].to_list()
        ['path', 'predicted']
    """
    from urnet.bundle.model import Model

    return Model.load(_folder(path), expect=expect)


def train(
    cells: "Cells | Path | str",
    recipe: "Recipe | str | Path" = "quick",
    out: Path | str = "run",
    *,
    overrides: Iterable[str] | Mapping[str, Any] = (),
    seed: int | None = None,
    resume: bool = False,
    devices: int = 1,
    allow_leaks: bool = False,
    progress: bool = True,
    **keys: Any,
) -> "Run | list[Run]":
    """Train a model: audit, split, pre-training, joint training, calibration.

    Args:
        cells: a cells table (CSV), a folder with one folder for each class, or a table that was read.
        recipe: name of a shipped recipe, a YAML file, or a recipe.
        out: new run folder; with folds, the folder of the runs `fold0`, `fold1`, ….
        overrides: changed keys of the recipe: `{"train.epochs": 5}`, or `["train.epochs=5"]`.
        seed: seed of the training; the recipe's when not given.
        resume: continue an interrupted run; a finished one is returned.
        devices: number of GPUs, or of processes on the CPU.
        allow_leaks: train although the given split has one cell or one donor in two parts.
        progress: show progress.
        **keys: changed sections of the recipe, as `train={"epochs": 5}`.

    Returns:
        The run, or a list with one run for each fold of a cross-validation.

    Raises:
        CellsError: the cells do not allow the training.
        RecipeError: an unknown key, or a value outside its range.
        RunError: `out` exists.
        TrainingError: the loss is no number, or the disk is full.

    Examples:
        >>> import urnet
        >>> run = urnet.train(
        ...     "phantom", "quick", "new run", train={"epochs": 1}, augment={"per_class": 8}, progress=False
        ... )
        >>> run.folder.name
        'new run'
    """
    from urnet.recipe import Recipe
    from urnet.training.fit import train as train_runs

    changes = {**(overrides if isinstance(overrides, Mapping) else {}), **keys}
    texts = [] if isinstance(overrides, Mapping) else list(overrides)
    texts += [f"{key}={json.dumps(value, default=str)}" for key, value in changes.items()]
    if isinstance(recipe, Recipe) and keys and not overrides:
        recipe, texts = recipe.with_changes(**keys), []
    with show_progress(progress) as reporter:
        runs = train_runs(
            cells,
            recipe,
            out,
            overrides=texts,
            seed=seed,
            resume=resume,
            devices=devices,
            allow_leaks=allow_leaks,
            reporter=reporter,
        )
    return runs[0] if len(runs) == 1 and runs[0].folder == Path(out) else runs


def evaluate(
    run: "Run | Path | str",
    cells: Path | str | None = None,
    *,
    split: str = "test",
    out: Path | str | None = None,
    expect: str | None = None,
    progress: bool = True,
) -> "Evaluation":
    """Evaluate a trained run on a part of its cells, or on other cells.

    Args:
        run: a run, its folder, or the folder of a cross-validation, whose test parts are then pooled.
        cells: other cells; the run's own when not given.
        split: part to evaluate: `train`, `validation` or `test`.
        out: new folder; `evaluation/<split>` in the run when not given.
        expect: the first digits of the model's digest; another model is refused.
        progress: show progress.

    Returns:
        The metrics, with data frames, and the folder with the report.

    Raises:
        RunError: no trained run, other classes, or `out` exists.
        CellsError: the part has no cells.

    Examples:
        >>> import urnet
        >>> evaluation = urnet.evaluate("run", progress=False)
        >>> evaluation.metrics["n"] > 0
        True
    """
    from urnet.evaluation.evaluate import evaluate as evaluate_run

    with show_progress(progress) as reporter:
        return evaluate_run(run, cells, split=split, out=out, expect=expect, progress=reporter.update)


def differential(
    run: "Run | Path | str",
    source: Path | str,
    out: Path | str,
    *,
    coverage: float = 0.9,
    engine: str = "auto",
    scene: str | int | None = None,
    expect: str | None = None,
    progress: bool = True,
) -> "Differential":
    """Count the cells of each donor, corrected for the confusion of the classifier, with 95 % intervals.

    Args:
        run: a run, a run folder or a bundle, with a calibrated model.
        source: fields (an image, a folder or a field table), or cells (a table, or a folder of crops).
        out: new folder for the counts and reports.
        coverage: share of cells whose prediction set holds the true class, 0 to 1.
        engine: what runs the networks: `auto`, `torch`, `onnx` or `openvino`.
        scene: name or number of the scene of every field.
        expect: the first digits of the model's digest; another model is refused.
        progress: show progress.

    Returns:
        The differential of each donor.

    Raises:
        RunError: the model is not calibrated, or was trained on crops of another kind.
        CellsError: there is nothing to count.
        ImageError: a field cannot be read.

    Examples:
        >>> import urnet
        >>> counted = urnet.differential("run", "phantom", "counts", progress=False)
        >>> [sample.cells > 0 for sample in counted.samples][:1]
        [True]
    """
    from urnet.counting.differential import count_cells

    with show_progress(progress) as reporter:
        return count_cells(
            _folder(run),
            Path(source),
            Path(out),
            coverage=coverage,
            engine=engine,
            scene=None if scene is None else str(scene),
            expect=expect,
            progress=reporter.update,
        )


def compare(runs: "Sequence[Run | Path | str]", out: Path | str, *, progress: bool = True) -> "Comparison":
    """Compare runs on the cells that all of them tested: paired differences with intervals.

    Args:
        runs: two or more runs, run folders or folders of cross-validations; the first is the baseline.
        out: new folder for the tables, figures and the report.
        progress: show progress.

    Returns:
        The paired differences (`differences`), and the folder with the report.

    Raises:
        RunError: fewer than two runs, other classes or other test cells.

    Examples:
        >>> import urnet
        >>> comparison = urnet.compare(["run", "other run"], "comparison", progress=False)
        >>> comparison.report.name
        'report.html'
    """
    from urnet.benchmark.compare import compare as compare_runs

    with show_progress(progress) as reporter:
        return compare_runs([_folder(run) for run in runs], Path(out), reporter.update)


def _folder(run: "Run | Path | str") -> Path:
    return Path(run) if isinstance(run, Path | str) else run.folder

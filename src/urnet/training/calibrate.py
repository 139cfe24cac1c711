"""Calibrate a trained model on the cells of its run: temperature, prediction sets, rejection, confusion.

Temperature and sets come from the validation part, limits of rejection from the training and validation parts, and the
confusion with its column of rejected cells is counted on the test part, which nothing is fitted to.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from urnet.bundle.files import seal_bundle
from urnet.bundle.model import Model
from urnet.calibration.calibration import Calibration
from urnet.calibration.conformal import conformal_scores
from urnet.calibration.confusion import ReferenceCells
from urnet.calibration.files import save_calibration
from urnet.calibration.rejection import FALSE_REJECTION, fit_rejection
from urnet.calibration.temperature import fit_temperature, softmax
from urnet.cells.split import empty_part_error
from urnet.cells.table import Cells
from urnet.errors import RunError
from urnet.progress import Progress
from urnet.run_folder import Run

TRAIN_CELLS = 2000
"""Cells of the training part that are looked at; a distribution needs no more."""

_AT_ONCE = 256


@dataclass(frozen=True)
class ModelOutputs:
    """What a model makes of labelled cells.

    Attributes:
        labels: (N,) class indices.
        logits: (N, K) before the temperature.
        features: (N, F) of several depths in one row.
        sizes: number of features at each depth.
        rows: the measures of each cell, from `Model.measures`.
    """

    labels: np.ndarray
    logits: np.ndarray
    features: np.ndarray
    sizes: tuple[int, ...]
    rows: list[dict[str, float]]


def calibrate(run: Run, *, false_rejection: float = FALSE_REJECTION, progress: Progress | None = None) -> Calibration:
    """Calibrate the model of a finished run anew, and write the result into its bundle, which is sealed anew.

    Args:
        run: the run; its cells must still be there.
        false_rejection: share of good cells that may be rejected, above 0 and at most 0.5.
        progress: called with what is done and the share of it.

    Raises:
        RunError: the run is not trained to its end, was trained under protocol `paper`, or has lost its cells.
        CellsError: a part is empty.
        ImageError: a cell cannot be read.
    """
    model, recipe = Model.load(run.folder, calibrated=False), run.recipe()
    if recipe.protocol == "paper":
        raise RunError(
            f"{run.folder}: trained under protocol paper, which has no validation part to calibrate on; "
            "train with protocol=honest"
        )
    cells = run.cells()
    if cells.classes != model.classes:
        raise RunError(
            f"{run.cells_path}: its labels ({', '.join(cells.classes)}) are not the model's classes "
            f"({', '.join(model.classes)}); restore the file"
        )
    calibration = calibrate_model(model, cells, false_rejection=false_rejection, progress=progress)
    save_calibration(calibration, run.model)
    seal_bundle(run.model)
    return calibration


def calibrate_model(
    model: Model, cells: Cells, *, false_rejection: float = FALSE_REJECTION, progress: Progress | None = None
) -> Calibration:
    """Calibrate a model; the same cells and seed give the same calibration.

    Args:
        model: the trained model; an earlier calibration of it has no influence.
        cells: with the parts that it was trained and chosen on.
        false_rejection: share of good cells that may be rejected, above 0 and at most 0.5.
        progress: called with what is done and the share of it.

    Raises:
        RunError: the rate is outside its range.
        CellsError: no cells in the training or validation part.
        ImageError: a cell cannot be read.
    """
    if not 0 < false_rejection <= 0.5:
        raise RunError(f"a false rejection of {false_rejection:g} was asked for; it must be above 0 and at most 0.5")
    train, held, test = (cells.part(name) for name in ("train", "validation", "test"))
    for name, part in (("train", train), ("validation", held)):
        if not len(part):
            raise empty_part_error(name, "calibration")
    if len(train) > TRAIN_CELLS:
        chosen = np.random.default_rng(model.config.seed).permutation(len(train))[:TRAIN_CELLS]
        train = train.where(np.isin(np.arange(len(train)), chosen))
    total, done = len(train) + len(held) + len(test), 0

    def observed(part: Cells) -> ModelOutputs:
        nonlocal done
        found = collect_outputs(model, part, lambda n: progress("calibrate", (done + n) / total) if progress else None)
        done += len(part)
        return found

    trained, held_out = observed(train), observed(held)
    temperature = fit_temperature(held_out.logits, held_out.labels)
    donors = [donor for part in (train, held) for donor in part.table.get("donor", [""] * len(part))]
    rejection = fit_rejection(
        trained.rows, trained.features, held_out.rows, held_out.features, trained.sizes, false_rejection, donors
    )
    judged = observed(test) if len(test) else held_out
    rejected = np.array(rejection.reject(judged.rows, judged.features)) != ""
    return Calibration(
        classes=model.classes,
        temperature=temperature,
        scores=tuple(conformal_scores(softmax(held_out.logits, temperature), held_out.labels)),
        rejection=rejection,
        reference=ReferenceCells(softmax(judged.logits, temperature), judged.labels, rejected),
        reference_part="test" if len(test) else "validation",
        parts={"train": len(train), "validation": len(held), "test": len(test)},
        false_rejection=false_rejection,
    )


def collect_outputs(model: Model, cells: Cells, progress: Callable[[int], None] | None = None) -> ModelOutputs:
    """Look at labelled cells; one at least.

    Args:
        model: the model.
        cells: the cells, labelled with its classes.
        progress: called with the number of cells done.

    Raises:
        ImageError: a cell cannot be read.
    """
    logits, features, rows = [], [], []
    sizes: tuple[int, ...] = ()
    for start in range(0, len(cells), _AT_ONCE):
        index = np.arange(len(cells))
        part = cells.where((index >= start) & (index < start + _AT_ONCE))
        images = model.read(part)
        for outputs in model.outputs(model.config.scaling.apply(images)):
            logits.append(outputs.logits)
            features.append(outputs.features)
            sizes = outputs.sizes
        rows += model.measure_crops(images, part.table)
        if progress is not None:
            progress(start + len(part))
    return ModelOutputs(cells.labels, np.concatenate(logits), np.concatenate(features), sizes, rows)

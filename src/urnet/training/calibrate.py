"""Calibrate a trained model on the cells of its run: temperature, prediction sets, rejection, confusion.

The temperature is fitted to the validation part, the limits of rejection to the training and validation parts. What
states a rate comes from the test part, on which nothing was chosen: the scores of the prediction sets, and the
confusion with its column of rejected cells.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

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
"""Largest number of cells of the training part that calibration uses."""

_AT_ONCE = 256
"""Number of cells in memory at a time."""


@dataclass(frozen=True)
class ModelOutputs:
    """Outputs of a model for labelled cells.

    Attributes:
        labels: (N,) class indices.
        logits: (N, K) before the temperature.
        features: (N, F), the features of all depths side by side.
        sizes: number of features at each depth.
        rows: measurements of each crop, from `Model.measure_crops`.
    """

    labels: np.ndarray
    logits: np.ndarray
    features: np.ndarray
    sizes: tuple[int, ...]
    rows: list[dict[str, float]]


def calibrate(run: Run, *, false_rejection: float = FALSE_REJECTION, progress: Progress | None = None) -> Calibration:
    """Calibrate the model of a finished run again, write the result into its bundle, and seal the bundle.

    Args:
        run: the run; its cells must still exist.
        false_rejection: share of good cells that may be rejected, above 0 and at most 0.5.
        progress: receives the task and its share done.

    Raises:
        RunError: the run is not finished, was trained under protocol `paper`, or its labels changed.
        CellsError: a part is empty, or images are missing.
        ImageError: a cell cannot be read.
    """
    model, recipe = Model.load(run.folder, calibrated=False), run.recipe()
    if recipe.protocol == "paper":
        raise RunError(
            f"{run.folder}: trained under protocol paper, which has no validation part for the calibration. "
            "Train with protocol=honest",
            code="calibration.protocol",
        )
    cells = run.cells_for(model)
    calibration = calibrate_model(model, cells, false_rejection=false_rejection, progress=progress)
    save_calibration(calibration, run.model)
    seal_bundle(run.model)
    return calibration


def calibrate_model(
    model: Model, cells: Cells, *, false_rejection: float = FALSE_REJECTION, progress: Progress | None = None
) -> Calibration:
    """Calibrate a model; the same cells and seed give the same calibration.

    Args:
        model: the trained model; an earlier calibration has no influence.
        cells: cells with the split of its training.
        false_rejection: share of good cells that may be rejected, above 0 and at most 0.5.
        progress: receives the task and its share done.

    Raises:
        RunError: the rate is outside its range.
        CellsError: the training or the validation part is empty.
        ImageError: a cell cannot be read.
    """
    if not 0 < false_rejection <= 0.5:
        raise RunError(
            f"the false rejection is {false_rejection:g}; it must be above 0 and at most 0.5",
            code="calibration.false_rejection",
        )
    train, validation, test = (cells.part(name) for name in ("train", "validation", "test"))
    for name, part in (("train", train), ("validation", validation)):
        if not len(part):
            raise empty_part_error(name, "calibration")
    if len(train) > TRAIN_CELLS:
        chosen = np.random.default_rng(model.config.seed).permutation(len(train))[:TRAIN_CELLS]
        train = train.where(np.isin(np.arange(len(train)), chosen))
    total, done = len(train) + len(validation) + len(test), 0

    def collect(part: Cells) -> ModelOutputs:
        nonlocal done
        outputs = collect_outputs(
            model, part, lambda n: progress("calibrate", (done + n) / total) if progress else None
        )
        done += len(part)
        return outputs

    trained, validated = collect(train), collect(validation)
    temperature = fit_temperature(validated.logits, validated.labels)
    donors = [donor for part in (train, validation) for donor in part.table.get("donor", [""] * len(part))]
    rejection = fit_rejection(
        trained.rows, trained.features, validated.rows, validated.features, trained.sizes, false_rejection, donors
    )
    judged = collect(test) if len(test) else validated
    rejected = np.array(rejection.reject(judged.rows, judged.features)) != ""
    probabilities = softmax(judged.logits, temperature)
    judged_cells, judged_part = (test, "test") if len(test) else (validation, "validation")
    return Calibration(
        classes=model.classes,
        temperature=temperature,
        scores=tuple(conformal_scores(probabilities, judged.labels)),
        rejection=rejection,
        reference=ReferenceCells(probabilities, judged.labels, rejected, number_donors(judged_cells)),
        reference_part=judged_part,
        scores_part=judged_part,
        parts={"train": len(train), "validation": len(validation), "test": len(test)},
        false_rejection=false_rejection,
    )


def number_donors(cells: Cells) -> np.ndarray:
    """Assign a number to the donor of each cell, (N,) from 0; -1 where the donor is not known."""
    donors = cells.table["donor"] if "donor" in cells.table else pd.Series("", index=cells.table.index)
    return pd.factorize(donors.where(donors != ""))[0].astype(np.int64)


def collect_outputs(model: Model, cells: Cells, progress: Callable[[int], None] | None = None) -> ModelOutputs:
    """Collect the outputs of a model for labelled cells.

    Args:
        model: the model.
        cells: at least one cell, labelled with the classes of the model.
        progress: receives the number of cells done.

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

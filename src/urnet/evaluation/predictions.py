"""Score cells with a trained model: the run's own parts, or other cells."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from urnet.bundle.model import Model
from urnet.calibration.conformal import COVERAGE, cross_sets, name_sets
from urnet.calibration.temperature import softmax
from urnet.cells.audit import audit_cells, format_counts
from urnet.cells.cache.crops import use_cached_crops
from urnet.cells.copies import hash_any_orientation
from urnet.cells.read import read_recipe_cells
from urnet.cells.table import PARTS, Cells
from urnet.errors import CellsError, RunError, UrnetError
from urnet.files.outputs import refuse_existing
from urnet.nets.pixel_range import PixelRange
from urnet.progress import Progress
from urnet.run_folder import Run
from urnet.training.data import augment_test_part

BATCH = 64


@dataclass(frozen=True)
class ScoredCells:
    """Cells with the predictions of a model. Under protocol `paper` one cell can have several rows.

    Attributes:
        model: the trained model.
        cells: the table, one row per image.
        images: (N, C, S, S) raw counts at the network's size.
        probabilities: (N, K), with the temperature if the model is calibrated.
        truth: (N,) class indices.
        uncalibrated: (N, K) probabilities without the temperature.
        rejected: (N,) why the model rejects each cell; "" if it does not, or is not calibrated.
        pixels: range of the enhanced images.
        correlation: (N,) Pearson correlation of each enhanced image with the raw one; NaN for a constant image.
        seen_in_training: number of cells that took part in training; None if that is not known.
        gave_scores: whether the scores of the model's prediction sets were measured on these cells.
    """

    model: Model
    cells: Cells
    images: np.ndarray
    probabilities: np.ndarray
    truth: np.ndarray
    uncalibrated: np.ndarray
    rejected: np.ndarray
    pixels: PixelRange
    correlation: np.ndarray
    seen_in_training: int | None = 0
    gave_scores: bool = False

    def inputs(self, index: "np.ndarray | slice") -> np.ndarray:
        """Scale some of the images to [0, 1], as the network takes them."""
        return self.model.config.scaling.apply(self.images[index])

    def to_frame(self) -> pd.DataFrame:
        """Build the table of predictions, one row per image.

        Columns: `path`, `label`, `predicted`, `p_<class>`; `rejected` and `set` if the model is calibrated; `source`
        and `donor` if known.
        """
        table, names = self.cells.table, self.model.classes
        rows: dict[str, Any] = {
            "path": table["path"],
            "label": [names[k] for k in self.truth],
            "predicted": [names[k] for k in self.probabilities.argmax(axis=1)],
            **{f"p_{name}": self.probabilities[:, k].round(6) for k, name in enumerate(names)},
        }
        if self.model.calibration is not None:
            rows |= {"rejected": self.rejected, "set": name_sets(self.prediction_sets(), names)}
        return pd.DataFrame(rows | {column: table[column] for column in ("source", "donor") if column in table})

    def prediction_sets(self, coverage: float = COVERAGE) -> np.ndarray:
        """Find the classes that cannot be ruled out for each cell, (N, K) booleans; the model must be calibrated.

        Cells on which the calibration's scores were measured get their sets from the scores of other donors, or of
        other source images if fewer than two donors are known.

        Args:
            coverage: share of each class's cells whose set holds the true class, in (0, 1).
        """
        assert self.model.calibration is not None
        if not self.gave_scores:
            return self.model.calibration.prediction_sets(self.probabilities, coverage)
        table = self.cells.table
        groups = table["donor"] if "donor" in table and table["donor"].nunique() > 1 else table["source"]
        return cross_sets(self.probabilities, self.truth, groups.to_numpy(dtype=str), coverage)

    def summary(self) -> dict[str, float]:
        """Compute `accuracy` and `macro_recall`, without intervals."""
        right = self.probabilities.argmax(axis=1) == self.truth
        recalls = [float(right[self.truth == k].mean()) for k in np.unique(self.truth)]
        return {"accuracy": float(right.mean()), "macro_recall": float(np.mean(recalls))}

    def examples(self, per_class: int) -> np.ndarray:
        """Choose a few cells of each class, always the same ones, and return their indices."""
        generator = np.random.default_rng(0)
        classes = range(len(self.model.classes))
        return np.concatenate([generator.permutation(np.flatnonzero(self.truth == k))[:per_class] for k in classes])


def score_run_part(run: Run, split: str, progress: Progress | None, expect: str | None = None) -> ScoredCells:
    """Score one of the run's own parts. Under protocol `paper` the test part is augmented and balanced.

    Args:
        run: the trained run.
        split: the part.
        progress: called with the name of a step and the share of it that is done.
        expect: the first digits of the model's digest.

    Raises:
        RunError: the training is not finished, or the labels of the run's table are not the model's classes.
        CellsError: the part is empty.
        ImageError: a cell cannot be read.
    """
    model, recipe = run.load_model(expect), run.recipe()
    cells = run.cells_for(model).part(split)
    if not len(cells):
        raise CellsError(f"{run.folder}: this run has no cells in its {split} part", code="evaluation.part_empty")
    images, truth = _read_images(model, cells, progress), cells.labels
    if recipe.protocol == "paper" and split == "test":
        images, truth, origin = augment_test_part(images, truth, recipe)
        cells = replace(cells, table=cells.table.iloc[origin].reset_index(drop=True))
    scored = _classify_cells(model, cells, images, truth, progress)
    gave_scores = model.calibration is not None and model.calibration.scores_part == split
    return replace(scored, seen_in_training=len(cells) if split == "train" else 0, gave_scores=gave_scores)


def score_other_cells(
    run: Run,
    path: Path,
    split: str,
    target: Path | None,
    progress: Progress | None,
    expect: str | None = None,
) -> tuple[ScoredCells, str, list[str]]:
    """Score other cells than the run's own. Copies of a cell count once, padding does not count.

    Args:
        run: the trained run.
        path: the cells. Without a split column all of them are scored.
        split: the part to score if there is a split column.
        target: folder of the results; None for a folder in the run, which must not exist yet.
        progress: called with the name of a step and the share of it that is done.
        expect: the first digits of the model's digest.

    Returns:
        The scored cells, a name for them, and warnings: how many are left out, how many took part in training.

    Raises:
        RunError: a label is no class of the model, or results for cells of this name exist.
        CellsError: the part is empty, or one cell has two labels.
        ImageError: a cell has another depth than the cells of the training.
    """
    model, recipe = run.load_model(expect), run.recipe()
    cells = read_recipe_cells(path, recipe)
    unknown = sorted(set(cells.classes) - set(model.classes))
    if unknown:
        raise RunError(
            f"{path}: label(s) {', '.join(unknown)} are no classes of {run.folder} ({', '.join(model.classes)}). "
            "Evaluate cells of the same task, or merge the labels in the recipe (classes)",
            code="evaluation.label_unknown",
        )
    cells, name = replace(cells, classes=model.classes), path.resolve().stem
    if cells.has_split:
        cells, name = cells.part(split), f"{name}-{split}"
        if not len(cells):
            raise CellsError(f"{path}: there are no cells in the {split} part", code="evaluation.part_empty")
    if target is None:
        refuse_existing(run.folder / "evaluation" / name)  # cells of the same name may lie elsewhere
    audit = audit_cells(
        cells, near_copies=False, progress=(lambda share: progress("audit", share)) if progress else None
    )
    audit.raise_leaks(allow_leaks=True)
    warnings = []
    excluded = [reason.split(" ")[0] for reason in audit.exclusions if reason]
    if excluded:
        warnings.append(f"{len(excluded)} image(s) are not counted: {format_counts(excluded)} (see `urnet audit`).")
    keys = [key for key, distinct in zip(audit.copy_keys, audit.distinct, strict=True) if distinct]
    cells = use_cached_crops(cells).where(audit.distinct)
    if not len(cells):
        raise CellsError(f"{path}: no cell can be used. See `urnet audit`", code="evaluation.part_empty")
    trained_on = training_cell_keys(run)
    warnings += overlap_warnings(keys, trained_on)
    scored = _classify_cells(model, cells, _read_images(model, cells, progress), cells.labels, progress)
    count = None if trained_on is None else sum(key in trained_on for key in keys)
    return replace(scored, seen_in_training=count), name, warnings


def training_cell_keys(run: Run, *, calibration: bool = False) -> set[str] | None:
    """Hash the cells that a run was trained on (`hash_any_orientation`).

    Args:
        run: the run.
        calibration: whether to include the test part, on which the confusion was counted.

    Returns:
        The hashes; None if the cells cannot be read any more.
    """
    try:
        cells = run.cells()
        parts = PARTS if calibration or run.recipe().protocol == "paper" else PARTS[:2]
        cells = cells.where(cells.table["split"].isin(parts))
        return {hash_any_orientation(cells.read(index)) for index in range(len(cells))}
    except UrnetError:
        return None


def overlap_warnings(keys: list[str], trained_on: set[str] | None, *, calibration: bool = False) -> list[str]:
    """Warn if cells are among those of a training, or if that is not known.

    Args:
        keys: hashes of the cells (`hash_any_orientation`).
        trained_on: from `training_cell_keys`.
        calibration: whether the cells of the calibration are among `trained_on`.

    Returns:
        One warning, or none.
    """
    if trained_on is None:
        return ["The cells of the training cannot be read any more, so it is not known whether these are among them."]
    count = sum(key in trained_on for key in keys)
    if not count:
        return []
    what = "training or calibration" if calibration else "training"
    return [f"{count} of {len(keys)} cells took part in this run's {what}; the figures are too optimistic."]


def _classify_cells(
    model: Model, cells: Cells, images: np.ndarray, truth: np.ndarray, progress: Progress | None
) -> ScoredCells:
    parts, pixels = [], PixelRange()
    for start in range(0, len(images), BATCH):
        index = slice(start, start + BATCH)
        inputs = model.config.scaling.apply(images[index])
        outputs = next(model.outputs(inputs, BATCH))
        rejected = model.reject(images[index], outputs.features, cells.table.iloc[index])
        pixels.add(outputs.enhanced)
        correlation = _correlate(inputs, outputs.enhanced)
        parts.append((outputs.probabilities, softmax(outputs.logits), rejected, correlation))
        if progress is not None:
            progress("classify", min(1.0, (start + BATCH) / len(images)))
    probabilities, uncalibrated, rejected, correlation = map(np.concatenate, zip(*parts, strict=True))
    return ScoredCells(model, cells, images, probabilities, truth, uncalibrated, rejected, pixels, correlation)


def _correlate(raw: np.ndarray, enhanced: np.ndarray) -> np.ndarray:
    """Compute the Pearson correlation of each pair of images (N, C, S, S), as (N,); NaN if one of them is constant."""
    a, b = (images.reshape(len(images), -1).astype(np.float64) for images in (raw, enhanced))
    a, b = (rows - rows.mean(axis=1, keepdims=True) for rows in (a, b))
    norm = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return np.divide((a * b).sum(axis=1), norm, out=np.full(len(a), np.nan), where=norm > 0)


def _read_images(model: Model, cells: Cells, progress: Progress | None) -> np.ndarray:
    """Read all cells as raw counts at the network's size, (N, C, S, S)."""
    return model.read(cells, (lambda done: progress("read cells", done / len(cells))) if progress else None)

"""Cells, and what a trained model makes of them: the run's own parts, or cells that it does not know."""

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from urnet.bundle.model import Model
from urnet.calibration.temperature import softmax
from urnet.cells.audit import audit_cells, format_counts
from urnet.cells.cache.crops import use_cached_crops
from urnet.cells.copies import hash_any_orientation
from urnet.cells.read import find_images, read_recipe_cells
from urnet.cells.table import PARTS, Cells
from urnet.errors import CellsError, ImageError, RunError, UrnetError
from urnet.files.outputs import refuse_existing
from urnet.nets.pixel_range import PixelRange
from urnet.progress import Progress
from urnet.run_folder import Run
from urnet.training.data import augment_test_part

BATCH = 64


@dataclass(frozen=True)
class ScoredCells:
    """Cells and what a model made of them; a cell may stand there several times under protocol `paper`.

    Attributes:
        model: the trained model.
        cells: the table, a row an image.
        images: (N, C, S, S) raw counts at the network's size.
        probabilities: (N, K), with the temperature of a calibrated model.
        truth: (N,) class indices.
        uncalibrated: (N, K) probabilities without it.
        rejected: (N,) why each is no countable cell; "" where it is one, and everywhere without a calibration.
        pixels: range of the enhanced images.
    """

    model: Model
    cells: Cells
    images: np.ndarray
    probabilities: np.ndarray
    truth: np.ndarray
    uncalibrated: np.ndarray
    rejected: np.ndarray
    pixels: PixelRange

    def inputs(self, index: "np.ndarray | slice") -> np.ndarray:
        """Some of the images as the network saw them, in [0, 1]."""
        return self.model.config.scaling.apply(self.images[index])

    def to_frame(self) -> pd.DataFrame:
        """A row an image: `path, label, predicted, p_<class>…`, if calibrated `rejected, set`, `source`, `donor`."""
        table, names = self.cells.table, self.model.classes
        rows: dict[str, Any] = {
            "path": table["path"],
            "label": [names[k] for k in self.truth],
            "predicted": [names[k] for k in self.probabilities.argmax(axis=1)],
            **{f"p_{name}": self.probabilities[:, k].round(6) for k, name in enumerate(names)},
        }
        if self.model.calibration is not None:
            rows |= {"rejected": self.rejected, "set": self.model.calibration.set_names(self.probabilities)}
        return pd.DataFrame(rows | {column: table[column] for column in ("source", "donor") if column in table})

    def summary(self) -> dict[str, float]:
        """`accuracy` and `macro_recall`, without intervals."""
        right = self.probabilities.argmax(axis=1) == self.truth
        recalls = [float(right[self.truth == k].mean()) for k in np.unique(self.truth)]
        return {"accuracy": float(right.mean()), "macro_recall": float(np.mean(recalls))}

    def examples(self, per_class: int) -> np.ndarray:
        """Indices of a few cells of each class, the same ones at every call."""
        generator = np.random.default_rng(0)
        classes = range(len(self.model.classes))
        return np.concatenate([generator.permutation(np.flatnonzero(self.truth == k))[:per_class] for k in classes])


def score_run_part(run: Run, split: str, progress: Progress | None, expect: str | None = None) -> ScoredCells:
    """Score one of the run's own parts; under protocol `paper` the test part is as the paper had it.

    Raises:
        RunError: the run is not trained to its end, or its table has other labels than its model.
        CellsError: nothing in the part.
        ImageError: a cell cannot be read.
    """
    model, recipe = run.load_model(expect), run.recipe()
    cells = run.cells()
    if cells.classes != model.classes:
        raise RunError(
            f"{run.cells_path}: its labels ({', '.join(cells.classes)}) are not the model's classes "
            f"({', '.join(model.classes)}); restore the file"
        )
    cells = cells.part(split)
    if not len(cells):
        raise CellsError(f"{run.folder}: no cells in the {split} part of this run")
    images, truth = _read_images(model, cells, progress), cells.labels
    if recipe.protocol == "paper" and split == "test":
        images, truth, origin = augment_test_part(images, truth, recipe)
        cells = replace(cells, table=cells.table.iloc[origin].reset_index(drop=True))
    return _classify_cells(model, cells, images, truth, progress)


def score_other_cells(
    run: Run,
    path: Path,
    split: str,
    target: Path | None,
    progress: Progress | None,
    expect: str | None = None,
) -> tuple[ScoredCells, str, list[str]]:
    """Score cells that the run does not know. Copies and padding count once.

    Args:
        run: the trained run.
        path: the cells; used whole where they have no split column.
        split: the part to take where they have one.
        target: where the results will go; none for a folder in the run, which must be new.
        progress: called with what is done and the share of it.
        expect: the first digits of the model's digest.

    Returns:
        The scored cells, a name for them, and what the reader should know: how many are left out, and how many took
        part in training.

    Raises:
        RunError: labels that the model does not know, or results of cells of this name are there already.
        CellsError: nothing in the part, or one cell under two labels.
        ImageError: a cell has another depth than the training's.
    """
    model, recipe = run.load_model(expect), run.recipe()
    cells = read_recipe_cells(path, recipe)
    unknown = sorted(set(cells.classes) - set(model.classes))
    if unknown:
        raise RunError(
            f"{path}: label(s) {', '.join(unknown)} are no classes of {run.folder} ({', '.join(model.classes)}); "
            "evaluate cells of the same task, or merge the labels in the recipe (classes)"
        )
    cells, name = replace(cells, classes=model.classes), path.resolve().stem
    if cells.has_split:
        cells, name = cells.part(split), f"{name}-{split}"
        if not len(cells):
            raise CellsError(f"{path}: no cells in the {split} part")
    if target is None:
        refuse_existing(run.folder / "evaluation" / name)  # cells of the same name may lie elsewhere
    audit = audit_cells(
        cells, near_copies=False, progress=(lambda share: progress("audit", share)) if progress else None
    )
    audit.raise_leaks(allow_leaks=True)
    warnings = []
    left_out = [reason.split(" ")[0] for reason in audit.exclusions if reason]
    if left_out:
        warnings.append(f"{len(left_out)} image(s) are not counted: {format_counts(left_out)} (see `urnet audit`).")
    keys = [key for key, kept in zip(audit.copy_keys, audit.distinct, strict=True) if kept]
    cells = use_cached_crops(cells).where(audit.distinct)
    if not len(cells):
        raise CellsError(f"{path}: no usable cells; see `urnet audit`")
    warnings += _overlap_with_training(run, keys)
    return _classify_cells(model, cells, _read_images(model, cells, progress), cells.labels, progress), name, warnings


def training_overlap(run: Run, path: Path, *, calibration: bool = False) -> list[str]:
    """A warning where images took part in a run's training, or where that cannot be told; nothing where none did.

    Args:
        run: the run.
        path: images, a folder of them or a table, with or without labels; those that cannot be read do not count.
        calibration: whether the test part, on which the confusion was counted, is a part in question too.

    Raises:
        CellsError: no images there.
    """
    config = Model.load(run.folder, calibrated=False).config
    cells, keys = use_cached_crops(find_images([path], config.tile, config.image)), []
    for index in range(len(cells)):
        with suppress(ImageError):
            keys.append(hash_any_orientation(cells.read(index)))
    return _overlap_with_training(run, keys, calibration=calibration)


def _overlap_with_training(run: Run, keys: list[str], *, calibration: bool = False) -> list[str]:
    """A warning where cells with these keys took part in training, or where that cannot be told."""
    return overlap_warnings(keys, training_cell_keys(run, calibration=calibration), calibration=calibration)


def training_cell_keys(run: Run, *, calibration: bool = False) -> set[str] | None:
    """Keys (`hash_any_orientation`) of the cells that a run was trained on; none where they are no longer there."""
    try:
        known = run.cells()
        parts = PARTS if calibration or run.recipe().protocol == "paper" else PARTS[:2]
        known = known.where(known.table["split"].isin(parts))
        return {hash_any_orientation(known.read(index)) for index in range(len(known))}
    except UrnetError:
        return None


def overlap_warnings(keys: list[str], seen: set[str] | None, *, calibration: bool = False) -> list[str]:
    """A warning where cells with these keys are among those of `training_cell_keys`, or where that cannot be told."""
    if seen is None:
        return ["The cells of the training are not where they were, so that it is not known whether it saw these."]
    count = sum(key in seen for key in keys)
    if not count:
        return []
    what = "training or calibration" if calibration else "training"
    return [f"{count} of {len(keys)} cells took part in this run's {what}; the figures are too good."]


def _classify_cells(
    model: Model, cells: Cells, images: np.ndarray, truth: np.ndarray, progress: Progress | None
) -> ScoredCells:
    parts, pixels = [], PixelRange()
    for start in range(0, len(images), BATCH):
        index = slice(start, start + BATCH)
        outputs = next(model.outputs(model.config.scaling.apply(images[index]), BATCH))
        rejected = model.reject(images[index], outputs.features, cells.table.iloc[index])
        pixels.add(outputs.enhanced)
        parts.append((outputs.probabilities, softmax(outputs.logits), rejected))
        if progress is not None:
            progress("classify", min(1.0, (start + BATCH) / len(images)))
    probabilities, uncalibrated, rejected = map(np.concatenate, zip(*parts, strict=True))
    return ScoredCells(model, cells, images, probabilities, truth, uncalibrated, rejected, pixels)


def _read_images(model: Model, cells: Cells, progress: Progress | None) -> np.ndarray:
    """All cells in raw counts at the network's size, (N, C, S, S)."""
    return model.read(cells, (lambda done: progress("read cells", done / len(cells))) if progress else None)

"""Decoded cells for the training (paper, section 3.1): pixels, scaling, labels, and target images."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from urnet.cells.augment import make_balanced_copies
from urnet.cells.batches import CellDataset
from urnet.cells.cache.arrays import load_cached_pixels
from urnet.cells.pixels import survey_images
from urnet.cells.split import empty_part_error
from urnet.cells.table import Cells
from urnet.errors import CellsError
from urnet.images.rows import LazyRows
from urnet.images.scale import ANY_DEPTH, Scaling, fit_scaling, fit_scaling_0_1_0
from urnet.nets import create_enhancer, list_traditional
from urnet.progress import Progress
from urnet.recipe import Recipe
from urnet.run_folder import Run

BATCH = 64
"""Number of images that a traditional method enhances at a time."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingData:
    """Decoded cells of one run.

    Attributes:
        size: edge of the network's input, px.
        channels: channels of the network's input, 1 or 3.
        classes: number of classes.
        scaling: map of raw counts to [0, 1], fitted to the training part.
        train: the training part, with target images if the recipe needs them.
        validation: the part that chooses the epoch: validation, or test under protocol `paper`.
        converted: number of crops that were converted between grey and colour.
    """

    size: int
    channels: int
    classes: int
    scaling: Scaling
    train: CellDataset
    validation: CellDataset
    converted: int


def prepare_data(
    cells: Cells, recipe: Recipe, progress: Progress | None = None, *, run: Run | None = None
) -> TrainingData:
    """Decode the cells of a training, and fit their scaling.

    Args:
        cells: cells with a split.
        recipe: input size, colour, scale, protocol.
        progress: receives the task and its share done.
        run: an existing run, whose scaling is used.

    Raises:
        CellsError: a part is empty, or target images are missing.
        ImageError: an image cannot be read, or the images have no common scale.
    """
    part_name = "test" if recipe.protocol == "paper" else "validation"
    train, validation = cells.part("train"), cells.part(part_name)
    for name, part in (("train", train), (part_name, validation)):
        if not len(part):
            raise empty_part_error(name, "training")
    # The survey and the cache cover the whole table. Images of another depth in the test part are found before the
    # training, and all folds share the decoded cells.
    used = cells.where(cells.table["split"] != "")
    survey = survey_images(used)
    size, channels = recipe.input.size or survey.edge, recipe.input.channels or (3 if survey.colour else 1)
    if len(survey.depths) > 1 and recipe.input.limits is None:
        counts = ", ".join(f"{count} {depth}" for depth, count in survey.depths.most_common())
        raise CellsError(
            f"images of several depths ({counts}) have no common scale. Convert them to one depth, "
            "or give input.limits=[low,high] in raw counts",
            code="cells.depths",
        )
    pixels = load_cached_pixels(used, size, channels, progress=_count(progress, "read cells", len(used)))
    rows = [np.flatnonzero(used.table["split"] == name) for name in ("train", part_name)]
    images, validation_images = (LazyRows(pixels, row) for row in rows)
    depth = next(iter(survey.depths)) if len(survey.depths) == 1 else ANY_DEPTH
    scaling, fit = (run.scaling() if run else None), fit_scaling
    if run is not None and scaling is None:  # a run of version 0.1.0
        fit = fit_scaling_0_1_0
    scaling = scaling or fit(images, depth, recipe.input.limits)
    targets = validation_targets = target_scaling = None
    if recipe.uses_target_images:
        name = recipe.pretrain.target
        if name in list_traditional():
            targets, validation_targets = (_enhance(name, scaling, x) for x in (images, validation_images))
            target_scaling = Scaling(0.0, 1.0, "float32")
        else:
            targets, validation_targets, target_scaling = _read_targets(used, rows, size, channels, name, fit)
    labels = validation.labels
    if recipe.protocol == "paper":
        validation_images, labels, origin = augment_test_part(validation_images[:], labels, recipe)
        validation_targets = None if validation_targets is None else validation_targets[origin]
    return TrainingData(
        size,
        channels,
        len(cells.classes),
        scaling,
        CellDataset(images, train.labels, scaling, targets, target_scaling),
        CellDataset(validation_images, labels, scaling, validation_targets, target_scaling),
        int((survey.colours[np.concatenate(rows)] != (channels == 3)).sum()),
    )


def augment_test_part(
    images: np.ndarray, labels: np.ndarray, recipe: Recipe
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Augment and balance the test part for protocol `paper`, as the paper's recalls imply: about 2,000 images a class.

    Args:
        images: (N, C, S, S) raw counts of the test part.
        labels: (N,) class indices.
        recipe: its `augment.per_class` counts training images. The test part gets the same share of it as of the cells.

    Returns:
        Images (M, C, S, S), labels (M,), and the index of the original of each image (M,).
    """
    share = recipe.split.test / (1 - recipe.split.test)
    per_class = round(recipe.augment.per_class * share) if recipe.augment.per_class else int(np.bincount(labels).max())
    flips, rotation = recipe.augment.flips, recipe.augment.rotation
    return make_balanced_copies(images, labels, per_class, flips=flips, rotation=rotation, seed=recipe.split.seed)


def _enhance(name: str, scaling: Scaling, images: LazyRows) -> np.ndarray:
    """Apply a traditional method to raw counts: (N, C, S, S) in [0, 1]."""
    enhancer = create_enhancer(name, images.shape[1])
    parts = (images[start : start + BATCH] for start in range(0, len(images), BATCH))
    return np.concatenate([enhancer(torch.from_numpy(scaling.apply(part))).clamp(0, 1).numpy() for part in parts])


def _read_targets(
    cells: Cells, rows: list[np.ndarray], size: int, channels: int, kind: str, fit: Callable[..., Scaling]
) -> tuple[LazyRows, LazyRows, Scaling]:
    """Read the paired images of two parts, given as rows of the table, and fit their scaling."""
    table = cells.table.iloc[np.concatenate(rows)]
    columns = ["target"] if kind == "target" else [f"target_{kind}", "target"]
    column = next((name for name in columns if name in table and (table[name] != "").all()), None)
    if column is None:
        raise CellsError(
            f"pretrain.target={kind} needs a paired image for every cell, in the column "
            f"{' or '.join(repr(name) for name in columns)} (or by target=FILE for folders). Add them, or set "
            "pretrain.target=identity",
            code="cells.target_missing",
        )
    if column != columns[0]:
        logger.warning("pretrain.target=%s: there is no column %r; the column %r is used", kind, columns[0], column)
    depths = survey_images(replace(cells, table=table), column).depths
    if len(depths) > 1:
        raise CellsError(
            f"paired images of several depths ({', '.join(sorted(depths))}); convert them to one depth",
            code="cells.depths",
        )
    has_target = (cells.table[column] != "").to_numpy()
    pixels = load_cached_pixels(cells.where(has_target), size, channels, column=column)
    position = np.cumsum(has_target) - 1  # of each cell in `pixels`
    targets, validation_targets = (LazyRows(pixels, position[row]) for row in rows)
    return targets, validation_targets, fit(targets, next(iter(depths)), None)


def _count(progress: Progress | None, task: str, total: int) -> Callable[[int], None] | None:
    return None if progress is None else lambda done: progress(task, done / total)

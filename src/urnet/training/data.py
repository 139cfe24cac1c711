"""From divided cells and a recipe to what the trainings see: decoded, scaled, with paired images."""

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
from urnet.images.scale import ANY_DEPTH, Scaling, fit_scaling
from urnet.nets import create_enhancer, list_traditional
from urnet.progress import Progress
from urnet.recipe import Recipe

BATCH = 64

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingData:
    """Decoded cells of one run.

    Attributes:
        size, channels: of the network's input.
        classes: number of classes.
        scaling: raw counts to [0, 1], fitted on the training part.
        train: the training part, with paired images where pre-training needs them.
        validation: the part that chooses the epoch: validation, or under protocol `paper` the test part.
        converted: crops that changed between grey and colour.
    """

    size: int
    channels: int
    classes: int
    scaling: Scaling
    train: CellDataset
    validation: CellDataset
    converted: int


def prepare_data(
    cells: Cells,
    recipe: Recipe,
    progress: Progress | None = None,
    *,
    scaling: Scaling | None = None,
    fit: Callable[..., Scaling] = fit_scaling,
) -> TrainingData:
    """Decode the parts that training needs.

    Args:
        cells: cells with a split.
        recipe: input size, colour, scale, protocol.
        progress: called with what is done and the share of it.
        scaling: that a run was begun with; fitted when not given.
        fit: fits the scaling of images and of paired images, as `fit_scaling`.

    Raises:
        CellsError: an empty part, or no paired images where pre-training asks for them.
        ImageError: an image that cannot be read, or depths without a common scale.
    """
    chooser = "test" if recipe.protocol == "paper" else "validation"
    train, validation = cells.part("train"), cells.part(chooser)
    for name, part in (("train", train), (chooser, validation)):
        if not len(part):
            raise empty_part_error(name, "training")
    # The whole table, so that a depth that only the test part has is not found out after hours of training.
    used = cells.where(cells.table["split"] != "")
    look = survey_images(used)
    size, channels = recipe.input.size or look.edge, recipe.input.channels or (3 if look.colour else 1)
    if len(look.depths) > 1 and recipe.input.limits is None:
        counts = ", ".join(f"{count} {depth}" for depth, count in look.depths.most_common())
        raise CellsError(
            f"images of several depths ({counts}) have no common scale; convert them to one depth, "
            "or give input.limits=[low,high] in raw counts"
        )
    # The whole table as well, so that all folds share what is decoded.
    whole = load_cached_pixels(used, size, channels, progress=_counter(progress, "read cells", len(used)))
    parts = [np.flatnonzero(used.table["split"] == name) for name in ("train", chooser)]
    images, held = (LazyRows(whole, part) for part in parts)
    depth = next(iter(look.depths)) if len(look.depths) == 1 else ANY_DEPTH
    scaling = scaling or fit(images, depth, recipe.input.limits)
    targets = held_targets = target_scaling = None
    if recipe.uses_target_images:
        if recipe.pretrain.target in list_traditional():
            targets, held_targets = (_enhanced(recipe.pretrain.target, scaling, x) for x in (images, held))
            target_scaling = Scaling(0.0, 1.0, "float32")
        else:
            targets, held_targets, target_scaling = _paired(used, parts, size, channels, recipe.pretrain.target, fit)
    labels, held_images = validation.labels, held
    if recipe.protocol == "paper":
        held_images, labels, origin = augment_test_part(held[:], labels, recipe)
        held_targets = None if held_targets is None else held_targets[origin]
    return TrainingData(
        size,
        channels,
        len(cells.classes),
        scaling,
        CellDataset(images, train.labels, scaling, targets, target_scaling),
        CellDataset(held_images, labels, scaling, held_targets, target_scaling),
        int((look.colours[np.concatenate(parts)] != (channels == 3)).sum()),
    )


def augment_test_part(
    images: np.ndarray, labels: np.ndarray, recipe: Recipe
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The test part as the paper's recalls imply it was: augmented and balanced, about 2,000 images a class.

    Args:
        images: (N, C, S, S) raw counts of the test part.
        labels: (N,).
        recipe: its `augment.per_class` counts training images; the test part gets the same share as of the cells.

    Returns:
        Images (M, C, S, S), labels (M,), and the index of each image's original (M,).
    """
    share = recipe.split.test / (1 - recipe.split.test)
    wanted = round(recipe.augment.per_class * share) if recipe.augment.per_class else int(np.bincount(labels).max())
    geometry = recipe.augment
    return make_balanced_copies(
        images, labels, wanted, flips=geometry.flips, rotation=geometry.rotation, seed=recipe.split.seed
    )


def _enhanced(name: str, scaling: Scaling, images: LazyRows) -> np.ndarray:
    """What a fixed enhancer makes of raw counts, (N, C, S, S) in [0, 1]."""
    enhancer = create_enhancer(name, images.shape[1])
    parts = (images[start : start + BATCH] for start in range(0, len(images), BATCH))
    return np.concatenate([enhancer(torch.from_numpy(scaling.apply(part))).clamp(0, 1).numpy() for part in parts])


def _paired(
    cells: Cells, parts: list[np.ndarray], size: int, channels: int, kind: str, fit: Callable[..., Scaling]
) -> tuple[LazyRows, LazyRows, Scaling]:
    """The paired images of two parts, given as rows of the table, and their scale."""
    seen = cells.table.iloc[np.concatenate(parts)]
    columns = ["target"] if kind == "target" else [f"target_{kind}", "target"]
    column = next((name for name in columns if name in seen and (seen[name] != "").all()), None)
    if column is None:
        raise CellsError(
            f"pretrain.target={kind} needs a paired image for every cell, named in the column "
            f"{' or '.join(repr(name) for name in columns)} (or by target=FILE for folders); give them, or use "
            "pretrain.target=identity"
        )
    if column != columns[0]:
        logger.warning("pretrain.target=%s: no column %r, so the column %r is used", kind, columns[0], column)
    depths = survey_images(replace(cells, table=seen), column).depths
    if len(depths) > 1:
        found = ", ".join(sorted(depths))
        raise CellsError(f"paired images of several depths ({found}); convert them to one depth")
    there = (cells.table[column] != "").to_numpy()
    whole = load_cached_pixels(cells.where(there), size, channels, column=column)
    row = np.cumsum(there) - 1  # of each cell in `whole`
    targets, held = (LazyRows(whole, row[part]) for part in parts)
    return targets, held, fit(targets, next(iter(depths)), None)


def _counter(progress: Progress | None, what: str, total: int) -> Callable[[int], None] | None:
    return None if progress is None else lambda done: progress(what, done / total)

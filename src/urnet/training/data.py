"""From divided cells and a recipe to what the trainings see: decoded, scaled, with paired images."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from urnet.cells.augment import balanced_copies
from urnet.cells.batches import CellDataset
from urnet.cells.pixels import load_pixels, survey
from urnet.cells.table import Cells
from urnet.errors import CellsError
from urnet.images.scale import ANY_DEPTH, Scaling, fit_scaling
from urnet.recipe import Recipe

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Prepared:
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


def prepare(cells: Cells, recipe: Recipe, progress: Progress | None = None) -> Prepared:
    """Decode the parts that training needs.

    Args:
        cells: cells with a split.
        recipe: input size, colour, scale, protocol.
        progress: called with what is done and the share of it.

    Raises:
        CellsError: an empty part, or no paired images where pre-training asks for them.
        ImageError: an image that cannot be read, or depths without a common scale.
    """
    chooser = "test" if recipe.protocol == "paper" else "validation"
    train, validation = cells.part("train"), cells.part(chooser)
    for name, part in (("train", train), (chooser, validation)):
        if not len(part):
            raise CellsError(f"no cells in the {name} part, which training needs; mend the split column")
    # The whole table, so that a depth that only the test part has is not found out after hours of training.
    look = survey(cells.where(cells.table["split"] != ""))
    size, channels = recipe.input.size or look.edge, recipe.input.channels or (3 if look.colour else 1)
    if len(look.depths) > 1 and recipe.input.limits is None:
        counts = ", ".join(f"{count} {depth}" for depth, count in look.depths.most_common())
        raise CellsError(
            f"images of several depths ({counts}) have no common scale; convert them to one depth, "
            "or give input.limits=[low,high] in raw counts"
        )
    images = load_pixels(train, size, channels, progress=_counter(progress, "read training cells", len(train)))
    held = load_pixels(
        validation, size, channels, progress=_counter(progress, f"read {chooser} cells", len(validation))
    )
    depth = next(iter(look.depths)) if len(look.depths) == 1 else ANY_DEPTH
    scaling = fit_scaling(images.images, depth, recipe.input.limits)
    targets = held_targets = target_scaling = None
    if recipe.pretrain.epochs and recipe.pretrain.target == "target":
        targets, held_targets, target_scaling = _paired(train, validation, size, channels)
    labels, held_images = validation.labels, held.images
    if recipe.protocol == "paper":
        held_images, labels, origin = paper_test(held_images, labels, recipe)
        held_targets = None if held_targets is None else held_targets[origin]
    return Prepared(
        size,
        channels,
        len(cells.classes),
        scaling,
        CellDataset(images.images, train.labels, scaling, targets, target_scaling),
        CellDataset(held_images, labels, scaling, held_targets, target_scaling),
        images.converted + held.converted,
    )


def paper_test(images: np.ndarray, labels: np.ndarray, recipe: Recipe) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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
    return balanced_copies(
        images, labels, wanted, flips=geometry.flips, rotation=geometry.rotation, seed=recipe.split.seed
    )


def _paired(train: Cells, validation: Cells, size: int, channels: int) -> tuple[np.ndarray, np.ndarray, Scaling]:
    for part in (train, validation):
        if not part.known("target"):
            raise CellsError(
                "pretrain.target=target needs a paired image for every cell, named in the column 'target' "
                "(or by target=FILE for folders); give them, or use pretrain.target=identity"
            )
    targets = load_pixels(train, size, channels, column="target").images
    held = load_pixels(validation, size, channels, column="target").images
    if held.dtype != targets.dtype:
        raise CellsError(f"paired images of several depths ({targets.dtype}, {held.dtype}); convert them to one depth")
    return targets, held, fit_scaling(targets, str(targets.dtype))


def _counter(progress: Progress | None, what: str, total: int) -> Callable[[int], None] | None:
    return None if progress is None else lambda done: progress(what, done / total)

"""Augmentation: random mirroring and rotation of whole batches, on their device.

Only the training part is augmented. Paired images are in the same tensor, so they get the same geometry.
"""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from urnet.cells.table import PATH_COLUMNS, Cells
from urnet.errors import CellsError

BATCH_SIZE = 256
"""Number of images that are augmented at once when copies are made."""


def augment(
    images: torch.Tensor, *, flips: bool, rotation: bool, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Augment every image of a batch with its own random geometry.

    Args:
        images: (B, C, H, H) float.
        flips: whether to apply one of the eight right-angle rotations and mirrorings, exact to the pixel.
        rotation: whether to rotate by any angle as well, bilinear, with reflected borders.
        generator: random generator on the CPU; None for torch's own.

    Returns:
        (B, C, H, H).
    """
    which = torch.randint(8, (len(images),), generator=generator) if flips else torch.zeros(len(images), dtype=int)
    if not rotation or not len(images):
        return _apply_dihedral(images, which) if flips else images
    angle = torch.rand(len(images), generator=generator) * (2 * math.pi)
    return _apply_matrices(images, _DIHEDRAL_MATRICES[which] @ _make_rotation_matrices(angle))


_DIHEDRAL_MATRICES = torch.tensor(
    [[[c, -s], [s, c]] for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
    + [[[-c, s], [s, c]] for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))],
    dtype=torch.float32,
)
"""(8, 2, 2): matrices from a point (x, y) of the result to its source in `_apply_dihedral`, coordinates -1 to 1."""


def _apply_dihedral(images: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    result = torch.empty_like(images)
    for orientation in range(8):
        index = (which == orientation).nonzero().squeeze(1).to(images.device)
        if len(index):
            selected = images[index]
            mirrored = selected.flip(-1) if orientation >= 4 else selected
            result[index] = torch.rot90(mirrored, orientation % 4, (-2, -1))
    return result


def _make_rotation_matrices(angle: torch.Tensor) -> torch.Tensor:
    """Make rotation matrices, (B, 2, 2), from angles in radians, (B,)."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)


def _apply_matrices(images: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Sample each image at the points to which its matrix, (B, 2, 2), maps the pixels of the result."""
    side = images.shape[-1]
    axis = (2 * torch.arange(side, device=images.device, dtype=images.dtype) + 1) / side - 1  # centres of the pixels
    columns, rows = matrix.to(images, non_blocking=True)[..., None].mul(axis).unbind(2)  # (B, 2, S)
    # Five to ten times as fast as affine_grid, which multiplies matrices for each pixel.
    grid = columns.mT[:, None] + rows.mT[:, :, None]  # (B, S, S, 2)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def draw_epoch_order(labels: np.ndarray, *, balanced: bool, per_class: int | None, seed: int, epoch: int) -> np.ndarray:
    """Draw the cells of an epoch, in order.

    Args:
        labels: (N,) class of each training cell.
        balanced: whether to draw equally often from each class. Within a class, cells are drawn almost equally often.
        per_class: number of draws per class; None for an equal share of N.
        seed: seed of the training.
        epoch: number of the epoch.

    Returns:
        Indices into `labels`: classes · per_class of them if balanced, else each cell once.
    """
    generator = np.random.default_rng((seed, epoch))
    if not balanced:
        return generator.permutation(len(labels))
    classes = np.unique(labels)
    draws = per_class or math.ceil(len(labels) / len(classes))
    chosen = [_draw_repeatedly(np.flatnonzero(labels == c), draws, generator) for c in classes]
    return generator.permutation(np.concatenate(chosen))


def _draw_repeatedly(members: np.ndarray, draws: int, generator: np.random.Generator) -> np.ndarray:
    rounds = max(1, math.ceil(draws / len(members)))
    return np.concatenate([generator.permutation(members) for _ in range(rounds)])[:draws]


def make_balanced_copies(
    images: np.ndarray, labels: np.ndarray, per_class: int, *, flips: bool, rotation: bool, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Augment images to equal numbers per class, as the paper did with its test set too (protocol `paper`).

    Args:
        images: (N, C, S, S) raw counts.
        labels: (N,).
        per_class: number of images per class. Every original is kept, before its copies.
        flips: as in `augment`.
        rotation: as in `augment`.
        seed: seed of the copies.

    Returns:
        Images (M, C, S, S), labels (M,), and the index of each image's original (M,).
    """
    generator = torch.Generator().manual_seed(seed)
    origins, parts = [], []
    for index in np.unique(labels):
        members = np.flatnonzero(labels == index)
        chosen = _draw_repeatedly(members, max(per_class, len(members)), np.random.default_rng((seed, int(index))))
        parts.append(images[chosen])
        # In batches: thousands of large crops do not fit into memory as floating point.
        for start in range(len(members), len(chosen), BATCH_SIZE):
            batch = parts[-1][start : start + BATCH_SIZE]
            batch[:] = _augment_counts(batch, generator, flips=flips, rotation=rotation)
        origins.append(chosen)
    origin = np.concatenate(origins)
    return np.concatenate(parts), labels[origin], origin


def write_augmented(cells: Cells, out: Path, per_class: int, *, seed: int = 0) -> Cells:
    """Write augmented copies of the training part, so that each class has `per_class` training images.

    Crops that are not square are padded by reflection.

    Args:
        cells: cells with a split.
        out: folder for `augmented/`, and for `augmented_<column>/` with paired images.
        per_class: number of training images per class, originals included.
        seed: seed of the copies.

    Returns:
        The cells and their copies. A copy has the label, donor and source of its original, and its path in `augmented`.

    Raises:
        CellsError: the cells have no split (`cells.no_split`).
    """
    if not cells.has_split:
        raise CellsError(
            "these cells have no split, and only the training part is augmented. Split them first with `urnet split`",
            code="cells.no_split",
        )
    cells = cells.with_columns(augmented=cells.table.get("augmented", ""))
    labels = cells.labels
    train = np.flatnonzero(cells.table["split"] == "train")
    rows: list[dict[str, object]] = []
    for index in np.unique(labels[train]):
        members = train[labels[train] == index]
        wanted = max(0, per_class - len(members))
        for original in _draw_repeatedly(members, wanted, np.random.default_rng((seed, int(index)))):
            row = cells.table.iloc[original].to_dict()
            name = f"{len(rows):06d}.tif"
            copy = row | {"tile": "", "augmented": row["path"]}
            copy_seed = int(np.random.default_rng((seed, len(rows))).integers(2**62))
            for column in PATH_COLUMNS:
                if row.get(column):
                    folder = "augmented" if column == "path" else f"augmented_{column}"
                    # The same seed for both images of a pair, so that they get the same geometry.
                    generator = torch.Generator().manual_seed(copy_seed)
                    copy[column] = _write_augmented_copy(
                        out / folder / name, cells.read(int(original), column), generator
                    )
            rows.append(copy)
    table = pd.concat([cells.table, pd.DataFrame(rows)], ignore_index=True).fillna("")
    return Cells(cells.root, table, cells.classes)


def _write_augmented_copy(path: Path, crop: np.ndarray, generator: torch.Generator) -> str:
    """Write an augmented copy of (H, W) or (H, W, 3) in its own depth. Return its absolute path."""
    import tifffile

    side = max(crop.shape[:2])
    padding = [(0, side - edge) for edge in crop.shape[:2]] + [(0, 0)] * (crop.ndim - 2)
    planes = np.atleast_3d(np.pad(crop, padding, mode="symmetric")).transpose(2, 0, 1)[None]  # (1, C, S, S)
    augmented = _augment_counts(planes, generator, flips=True, rotation=True)[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    if crop.ndim == 3:
        tifffile.imwrite(path, augmented.transpose(1, 2, 0), photometric="rgb")
    else:
        tifffile.imwrite(path, augmented[0], photometric="minisblack")
    return path.resolve().as_posix()


def _augment_counts(images: np.ndarray, generator: torch.Generator, *, flips: bool, rotation: bool) -> np.ndarray:
    """Augment raw counts, (B, C, S, S), in their own depth."""
    augmented = augment(
        torch.from_numpy(images.astype(np.float32)), flips=flips, rotation=rotation, generator=generator
    ).numpy()
    return (augmented if images.dtype.kind == "f" else np.rint(augmented)).astype(images.dtype)

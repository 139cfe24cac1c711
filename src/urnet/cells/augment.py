"""Random geometry of whole batches, on the device where they are: mirroring, right angles, free rotation.

Only the training part is ever augmented. Paired images travel in the same tensor and so get the same geometry.
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
"""Images that are turned at once when copies are made."""


def augment(
    images: torch.Tensor, *, flips: bool, rotation: bool, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Turn every image of a batch by its own random geometry.

    Args:
        images: (B, C, H, H) float.
        flips: one of the eight rotations by right angles and mirrorings, exact to the pixel.
        rotation: then a rotation by any angle, bilinear, with reflected borders.
        generator: source of randomness on the CPU; torch's own when not given.

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
"""(8, 2, 2): where `_apply_dihedral` takes the point (x, y) from, coordinates from -1 to 1."""


def _apply_dihedral(images: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    result = torch.empty_like(images)
    for kind in range(8):
        index = (which == kind).nonzero().squeeze(1).to(images.device)
        if len(index):
            some = images[index]
            result[index] = torch.rot90(some.flip(-1) if kind >= 4 else some, kind % 4, (-2, -1))
    return result


def _make_rotation_matrices(angle: torch.Tensor) -> torch.Tensor:
    """(B, 2, 2) of (B,) radians."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)


def _apply_matrices(images: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Each image sampled where its matrix (B, 2, 2) takes the points (x, y) of the result."""
    side = images.shape[-1]
    axis = (2 * torch.arange(side, device=images.device, dtype=images.dtype) + 1) / side - 1  # centres of the pixels
    columns, rows = matrix.to(images, non_blocking=True)[..., None].mul(axis).unbind(2)  # (B, 2, S)
    # The sum of both comes five to ten times as fast as affine_grid, which multiplies matrices pixel by pixel.
    grid = columns.mT[:, None] + rows.mT[:, :, None]  # (B, S, S, 2)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def draw_epoch_order(labels: np.ndarray, *, balanced: bool, per_class: int | None, seed: int, epoch: int) -> np.ndarray:
    """Which cells an epoch shows, in order.

    Args:
        labels: (N,) class of each training cell.
        balanced: draw equally often from each class. Within a class every cell is drawn nearly equally often.
        per_class: draws of each class; an equal share of N when not given.
        seed, epoch: fix the order.

    Returns:
        Indices into `labels`. Balanced: classes · per_class of them, else each cell once.
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
    """As many augmented images of each class, as the paper made of its test set too (protocol `paper`).

    Args:
        images: (N, C, S, S) raw counts.
        labels: (N,).
        per_class: images of each class; every original comes first, as it is.
        flips, rotation: as in `augment`.
        seed: fixes the copies.

    Returns:
        Images (M, C, S, S), labels (M,), and the index of each image's original (M,).
    """
    generator = torch.Generator().manual_seed(seed)
    origins, parts = [], []
    for index in np.unique(labels):
        members = np.flatnonzero(labels == index)
        chosen = _draw_repeatedly(members, max(per_class, len(members)), np.random.default_rng((seed, int(index))))
        parts.append(images[chosen])
        # A batch at a time: thousands of large crops would not fit in memory as floating point.
        for start in range(len(members), len(chosen), BATCH_SIZE):
            some = parts[-1][start : start + BATCH_SIZE]
            some[:] = _augment_counts(some, generator, flips=flips, rotation=rotation)
        origins.append(chosen)
    origin = np.concatenate(origins)
    return np.concatenate(parts), labels[origin], origin


def write_augmented(cells: Cells, out: Path, per_class: int, *, seed: int = 0) -> Cells:
    """Write augmented copies of the training part, so that each class has `per_class` training images.

    Args:
        cells: cells with a split.
        out: folder that gets `augmented/`, and `augmented_<column>/` where there are paired images.
        per_class: training images of each class, originals counted in.
        seed: fixes the copies.

    Returns:
        The cells and their copies; a copy keeps its original's label, donor and source, and names it in `augmented`.
        Crops that are not square are filled up by reflection.

    Raises:
        CellsError: no split, so that copies could land in a test part.
    """
    if not cells.has_split:
        raise CellsError("only the training part is augmented, and these cells have no split")
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
                    # Seeded anew for each of a pair, so that both get the same geometry.
                    generator = torch.Generator().manual_seed(copy_seed)
                    copy[column] = _write_augmented_copy(
                        out / folder / name, cells.read(int(original), column), generator
                    )
            rows.append(copy)
    table = pd.concat([cells.table, pd.DataFrame(rows)], ignore_index=True).fillna("")
    return Cells(cells.root, table, cells.classes)


def _write_augmented_copy(path: Path, crop: np.ndarray, generator: torch.Generator) -> str:
    """Write a turned copy of (H, W) or (H, W, 3) at its own depth; the absolute path of it."""
    import tifffile

    side = max(crop.shape[:2])
    fill = [(0, side - edge) for edge in crop.shape[:2]] + [(0, 0)] * (crop.ndim - 2)
    planes = np.atleast_3d(np.pad(crop, fill, mode="symmetric")).transpose(2, 0, 1)[None]  # (1, C, S, S)
    turned = _augment_counts(planes, generator, flips=True, rotation=True)[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    if crop.ndim == 3:
        tifffile.imwrite(path, turned.transpose(1, 2, 0), photometric="rgb")
    else:
        tifffile.imwrite(path, turned[0], photometric="minisblack")
    return path.resolve().as_posix()


def _augment_counts(images: np.ndarray, generator: torch.Generator, *, flips: bool, rotation: bool) -> np.ndarray:
    """Raw counts (B, C, S, S), each turned by its own random geometry, in their own depth."""
    turned = augment(
        torch.from_numpy(images.astype(np.float32)), flips=flips, rotation=rotation, generator=generator
    ).numpy()
    return (turned if images.dtype.kind == "f" else np.rint(turned)).astype(images.dtype)

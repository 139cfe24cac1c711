"""Random geometry of whole batches, on the device where they are: mirroring, right angles, free rotation.

Only the training part is ever augmented. Paired images travel in the same tensor and so get the same geometry.
"""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from urnet.cells.table import Cells
from urnet.errors import CellsError


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
    if flips:
        images = _dihedral(images, torch.randint(8, (len(images),), generator=generator))
    if rotation:
        angle = torch.rand(len(images), generator=generator) * (2 * math.pi)
        images = _rotated(images, angle)
    return images


def _dihedral(images: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    result = torch.empty_like(images)
    for kind in range(8):
        index = (which == kind).nonzero().squeeze(1).to(images.device)
        if len(index):
            some = images[index]
            result[index] = torch.rot90(some.flip(-1) if kind >= 4 else some, kind % 4, (-2, -1))
    return result


def _rotated(images: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    matrix = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)  # (B, 2, 3)
    grid = F.affine_grid(matrix.to(images), list(images.shape), align_corners=False)  # (B, H, W, 2)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def epoch_order(labels: np.ndarray, *, balanced: bool, per_class: int | None, seed: int, epoch: int) -> np.ndarray:
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
    chosen = [_repeated(np.flatnonzero(labels == c), draws, generator) for c in classes]
    return generator.permutation(np.concatenate(chosen))


def _repeated(members: np.ndarray, draws: int, generator: np.random.Generator) -> np.ndarray:
    rounds = math.ceil(draws / len(members))
    return np.concatenate([generator.permutation(members) for _ in range(rounds)])[:draws]


def balanced_copies(
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
        chosen = _repeated(members, max(per_class, len(members)), np.random.default_rng((seed, int(index))))
        copies = torch.from_numpy(images[chosen[len(members) :]].astype(np.float32))
        turned = augment(copies, flips=flips, rotation=rotation, generator=generator).numpy()
        turned = turned if images.dtype.kind == "f" else np.rint(turned)
        parts.append(np.concatenate([images[chosen[: len(members)]], turned.astype(images.dtype)]))
        origins.append(chosen)
    origin = np.concatenate(origins)
    return np.concatenate(parts), labels[origin], origin


def write_augmented(cells: Cells, out: Path, per_class: int, *, seed: int = 0) -> Cells:
    """Write augmented copies of the training part, so that each class has `per_class` training images.

    Args:
        cells: cells with a split.
        out: folder that gets `augmented/` and where the new table belongs.
        per_class: training images of each class, originals counted in.
        seed: fixes the copies.

    Returns:
        The cells and their copies; a copy keeps its original's label, donor and source, and names it in `augmented`.

    Raises:
        CellsError: no split, so that copies could land in a test part.
    """
    import tifffile

    if not cells.has_split:
        raise CellsError("only the training part is augmented, and these cells have no split")
    cells = cells.with_columns(augmented=cells.table.get("augmented", ""))
    generator = torch.Generator().manual_seed(seed)
    train = np.flatnonzero(cells.table["split"] == "train")
    rows: list[dict[str, object]] = []
    for index in range(len(cells.classes)):
        members = train[cells.labels[train] == index]
        wanted = max(0, per_class - len(members))
        if not len(members):
            continue
        for number, original in enumerate(_repeated(members, wanted, np.random.default_rng((seed, index)))):
            row = cells.table.iloc[original].to_dict()
            crop = cells.read(int(original))
            name = Path("augmented") / cells.classes[index] / f"{number:06d}.tif"
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            planes = torch.from_numpy(np.atleast_3d(crop).astype(np.float32)).movedim(-1, 0)[None]
            turned = augment(_square(planes), flips=True, rotation=True, generator=generator)[0].movedim(0, -1).numpy()
            turned = turned if crop.dtype.kind == "f" else np.rint(turned)
            tifffile.imwrite(
                out / name, turned.astype(crop.dtype).squeeze(), photometric="rgb" if crop.ndim == 3 else "minisblack"
            )
            rows.append(
                row | {"path": (out / name).resolve().as_posix(), "target": "", "tile": "", "augmented": row["path"]}
            )
    table = pd.concat([cells.table, pd.DataFrame(rows)], ignore_index=True).fillna("")
    return Cells(cells.root, table, cells.classes)


def _square(planes: torch.Tensor) -> torch.Tensor:
    """Free rotation works on squares: the shorter edge is filled up by reflection."""
    height, width = planes.shape[-2:]
    side = max(height, width)
    return F.pad(planes, (0, side - width, 0, side - height), mode="reflect") if height != width else planes

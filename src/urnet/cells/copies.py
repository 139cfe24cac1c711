"""Which cells are the same picture, as it is or turned; near-copies are found by `near_copies`.

A copy that is counted as a cell, or that stands in two parts, makes every figure too good. Exact and turned copies are
found by hashing the decoded pixels in an orientation that all eight turned copies share.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from urnet.cells.table import Cells
from urnet.errors import ImageError
from urnet.images.montage import Address

MIN_PADDING_COPIES = 12
"""From this many identical copies on, a tile is the padding of an archive and no cell."""

THUMBNAIL_PX = 32
"""Edge of the small versions that are compared, in pixels."""


@dataclass(frozen=True, slots=True)
class CropHashes:
    """What is kept of one crop to compare it with all others.

    Attributes:
        exact: hash of the pixels as they stand.
        invariant: hash that is equal for an image and its turned copies, as `hash_any_orientation`.
    """

    exact: str
    invariant: str


def list_orientations(image: np.ndarray) -> list[np.ndarray]:
    """The eight rotations by right angles and mirrorings of (H, W[, C]); the image itself comes first."""
    return [np.rot90(side, turns) for side in (image, image[:, ::-1]) for turns in range(4)]


def hash_crop(crop: np.ndarray) -> CropHashes:
    """Hashes of one raw crop of any depth, (H, W) or (H, W, 3)."""
    return CropHashes(hash_pixels(crop), hash_any_orientation(crop))


def hash_pixels(pixels: np.ndarray) -> str:
    """Hash of one raw crop's pixels, shape and depth, 32 letters."""
    digest = hashlib.blake2b(f"{pixels.shape}{pixels.dtype}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels))
    return digest.hexdigest()


def hash_any_orientation(crop: np.ndarray) -> str:
    """A key that a crop shares with its exact and turned copies, and with nothing else.

    It is the hash of the orientation whose first row comes first in order of bytes, so that as a rule one of the eight
    is hashed; where several share that row, the least of their hashes.
    """
    turned = list_orientations(crop)
    first_rows = [pixels[0].tobytes() for pixels in turned]
    least = min(first_rows)
    return min(hash_pixels(pixels) for pixels, row in zip(turned, first_rows, strict=True) if row == least)


def group_equal_keys(keys: Iterable[str]) -> list[np.ndarray]:
    """Groups of indices, two or more each, that share a key; in order of first appearance."""
    groups: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    return [np.array(members) for members in groups.values() if len(members) > 1]


def find_padding_tiles(cells: Cells) -> set[int]:
    """Find the tiles that only fill up a montage: `MIN_PADDING_COPIES` or more identical ones. Return their indices."""
    tiles, keys = [], []
    for index, path in enumerate(cells.table["path"]):
        place = Address.parse(path)
        if place.row is None:
            continue
        try:
            keys.append(f"{place.file} {hash_pixels(cells.read(index))}")
        except ImageError:
            continue
        tiles.append(index)
    return {tiles[k] for members in group_equal_keys(keys) if len(members) >= MIN_PADDING_COPIES for k in members}


def make_thumbnail(crop: np.ndarray) -> np.ndarray:
    """One raw crop in small, (32, 32) float32 with zero mean and unit norm; all zeros for a constant crop."""
    planes = np.atleast_3d(crop)
    grey = sum(planes[..., k].astype(np.float32) for k in range(planes.shape[-1]))  # (H, W)
    small = np.asarray(Image.fromarray(grey).resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BILINEAR))
    small = small - small.mean()
    norm = np.linalg.norm(small)
    return small / norm if norm and crop.min() < crop.max() else np.zeros_like(small)

"""Exact and turned copies of crops, by hashes of their pixels. `near_copies` finds copies that were altered.

A copy that counts as a cell of its own, or is in two parts of a split, makes every result too good.
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
"""Number of identical tiles from which they are padding of a montage, not cells."""

THUMBNAIL_PX = 32
"""Edge of thumbnails, in pixels."""


@dataclass(frozen=True, slots=True)
class CropHashes:
    """Hashes of one crop.

    Attributes:
        exact: hash of the pixels in their given orientation.
        invariant: hash that an image shares with its turned copies, from `hash_any_orientation`.
    """

    exact: str
    invariant: str


def list_orientations(image: np.ndarray) -> list[np.ndarray]:
    """List the eight rotations by right angles and mirrorings of (H, W[, C]), the image itself first."""
    return [np.rot90(side, turns) for side in (image, image[:, ::-1]) for turns in range(4)]


def hash_crop(crop: np.ndarray) -> CropHashes:
    """Hash one raw crop of any depth, (H, W) or (H, W, 3)."""
    return CropHashes(hash_pixels(crop), hash_any_orientation(crop))


def hash_pixels(pixels: np.ndarray) -> str:
    """Hash the pixels, shape and depth of one raw crop: 32 hexadecimal digits."""
    digest = hashlib.blake2b(f"{pixels.shape}{pixels.dtype}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels))
    return digest.hexdigest()


def hash_any_orientation(crop: np.ndarray) -> str:
    """Hash a crop so that its exact and turned copies, and no other crops, have the same hash.

    The result is the hash of the orientation with the smallest first row, in byte order. If several orientations share
    that row, it is the smallest of their hashes.
    """
    turned = list_orientations(crop)
    first_rows = [pixels[0].tobytes() for pixels in turned]
    smallest = min(first_rows)
    return min(hash_pixels(pixels) for pixels, row in zip(turned, first_rows, strict=True) if row == smallest)


def group_equal_keys(keys: Iterable[str]) -> list[np.ndarray]:
    """Group the indices of equal keys: groups of two or more, in order of first appearance."""
    groups: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    return [np.array(members) for members in groups.values() if len(members) > 1]


def find_padding_tiles(cells: Cells) -> set[int]:
    """Find the tiles that only fill up a montage: `MIN_PADDING_COPIES` or more identical ones. Return their indices."""
    tiles, keys = [], []
    for index, path in enumerate(cells.table["path"]):
        address = Address.parse(path)
        if address.row is None:
            continue
        try:
            keys.append(f"{address.file} {hash_pixels(cells.read(index))}")
        except ImageError:
            continue
        tiles.append(index)
    return {tiles[k] for members in group_equal_keys(keys) if len(members) >= MIN_PADDING_COPIES for k in members}


def make_thumbnail(crop: np.ndarray) -> np.ndarray:
    """Make a thumbnail, (32, 32) float32 with zero mean and unit norm; all zeros for a constant crop."""
    planes = np.atleast_3d(crop)
    grey = sum(planes[..., k].astype(np.float32) for k in range(planes.shape[-1]))  # (H, W)
    small = np.asarray(Image.fromarray(grey).resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BILINEAR))
    small = small - small.mean()
    norm = np.linalg.norm(small)
    return small / norm if norm and crop.min() < crop.max() else np.zeros_like(small)

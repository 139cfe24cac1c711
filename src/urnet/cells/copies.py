"""Which cells are the same picture: exact copies, turned copies and near-copies.

A copy that is counted as a cell, or that stands in two parts, makes every figure too good. Exact and turned copies are
found by hashing the decoded pixels in an orientation that all eight turned copies share; near-copies by a perceptual
hash and then, pair by pair, by the correlation of small versions of the crops.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from urnet.cells.table import Cells
from urnet.errors import ImageError
from urnet.images.montage import Address

PADDING_COPIES = 12
"""From this many identical copies on, a tile is the padding of an archive and no cell."""

HASH_BITS = 10
"""Most bits of 64 in which the perceptual hashes of a candidate pair may differ."""

SAME_CORRELATION = 0.98
"""Least correlation of two aligned thumbnails that makes a candidate pair a near-copy; measured, see docs/audit.md."""

THUMBNAIL = 32


@dataclass(frozen=True)
class Fingerprint:
    """What is kept of one crop to compare it with all others.

    Attributes:
        exact: hash of the pixels as they stand.
        turned: hash that is equal for an image and its turned copies, as `copy_key`.
        thumbnail: (32, 32) float32, zero mean and unit norm; all zeros for a constant crop.
    """

    exact: str
    turned: str
    thumbnail: np.ndarray


def orientations(image: np.ndarray) -> list[np.ndarray]:
    """The eight rotations by right angles and mirrorings of (H, W[, C]); the image itself comes first."""
    return [np.rot90(side, turns) for side in (image, image[:, ::-1]) for turns in range(4)]


def fingerprint(crop: np.ndarray) -> Fingerprint:
    """Hashes and thumbnail of one raw crop of any depth, (H, W) or (H, W, 3)."""
    return Fingerprint(_pixel_hash(crop), copy_key(crop), _thumbnail(crop))


def copy_key(crop: np.ndarray) -> str:
    """A key that a crop shares with its exact and turned copies, and with nothing else.

    It is the hash of the orientation whose first row comes first in order of bytes, so that as a rule one of the eight
    is hashed; where several share that row, the least of their hashes.
    """
    turned = orientations(crop)
    first_rows = [pixels[0].tobytes() for pixels in turned]
    least = min(first_rows)
    return min(_pixel_hash(pixels) for pixels, row in zip(turned, first_rows, strict=True) if row == least)


def same(keys: Iterable[str]) -> list[np.ndarray]:
    """Groups of indices, two or more each, that share a key; in order of first appearance."""
    groups: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    return [np.array(members) for members in groups.values() if len(members) > 1]


def padding_tiles(cells: Cells) -> set[int]:
    """Indices of a montage's tiles that stand `PADDING_COPIES` times or more in it: the archive's filling, no cells."""
    tiles, keys = [], []
    for index, path in enumerate(cells.table["path"]):
        place = Address.parse(path)
        if place.row is None:
            continue
        try:
            keys.append(f"{place.file} {_pixel_hash(cells.read(index))}")
        except ImageError:
            continue
        tiles.append(index)
    return {tiles[k] for members in same(keys) if len(members) >= PADDING_COPIES for k in members}


def near_pairs(
    prints: list[Fingerprint], progress: Callable[[int], None] | None = None
) -> list[tuple[int, int, float]]:
    """Pairs of different crops that look alike in some orientation.

    Args:
        prints: one fingerprint a crop; exact and turned copies should have been taken out before.
        progress: called with the number of crops compared so far.

    Returns:
        (i, j, correlation) with i < j, most alike first.
    """
    if len(prints) < 2:
        return []
    thumbnails = np.stack([p.thumbnail for p in prints])  # (N, 32, 32)
    # With the crops as last axis, all of them turn at once.
    hashes = np.stack([perceptual_hashes(t) for t in orientations(np.moveaxis(thumbnails, 0, -1))], axis=-1)  # (N, 8)
    flat = thumbnails.reshape(len(prints), -1)  # (N, 1024)
    pairs = []
    for i, thumbnail in enumerate(thumbnails[:-1]):
        distance = np.bitwise_count(hashes[i] ^ hashes[i + 1 :, :1]).min(axis=1)  # (N - i - 1,)
        candidates = i + 1 + np.flatnonzero(distance <= HASH_BITS)
        if len(candidates):
            turned = np.stack(orientations(thumbnail)).reshape(8, -1)  # (8, 1024)
            alike = (flat[candidates] @ turned.T).max(axis=1)
            pairs += [(i, int(j), float(r)) for j, r in zip(candidates, alike, strict=True) if r >= SAME_CORRELATION]
        if progress is not None:
            progress(i + 1)
    return sorted(pairs, key=lambda pair: -pair[2])


def perceptual_hashes(thumbnails: np.ndarray) -> np.ndarray:
    """The 64-bit perceptual hash of many thumbnails at once (the pHash of Zauner 2010, bits as in imagehash).

    Args:
        thumbnails: (32, 32, N), the crops as last axis.

    Returns:
        (N,) uint64: which of the 8 × 8 lowest frequencies of the cosine transform are above their median.
    """
    from scipy.fft import dctn

    low = dctn(thumbnails, axes=(0, 1))[:8, :8].reshape(64, -1).T  # (N, 64)
    low[:, 0] = np.inf  # the mean of a picture is above the median of its frequencies; a thumbnail's is taken out
    bits = np.packbits(low > np.median(low, axis=1, keepdims=True), axis=1)  # (N, 8) bytes
    return np.ascontiguousarray(bits).view(np.uint64)[:, 0]


def _pixel_hash(pixels: np.ndarray) -> str:
    digest = hashlib.blake2b(f"{pixels.shape}{pixels.dtype}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels))
    return digest.hexdigest()


def _thumbnail(crop: np.ndarray) -> np.ndarray:
    planes = np.atleast_3d(crop)
    grey = sum(planes[..., k].astype(np.float32) for k in range(planes.shape[-1]))  # (H, W)
    small = np.asarray(Image.fromarray(grey).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR))
    small = small - small.mean()
    norm = np.linalg.norm(small)
    return small / norm if norm and crop.min() < crop.max() else np.zeros_like(small)

"""Which cells are the same picture: exact copies, turned copies and near-copies.

A copy that is counted as a cell, or that stands in two parts, makes every figure too good. Exact and turned copies are
found by hashing the decoded pixels in their eight orientations; near-copies by a perceptual hash and then, pair by
pair, by the correlation of the pixels themselves.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import imagehash
import numpy as np
from PIL import Image

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
        turned: the smallest of the eight orientations' hashes; equal for an image and its turned copy.
        perceptual: (8,) uint64, the 64-bit perceptual hash of each orientation.
        thumbnail: (32, 32) float32, zero mean and unit norm.
    """

    exact: str
    turned: str
    perceptual: np.ndarray
    thumbnail: np.ndarray


def orientations(image: np.ndarray) -> list[np.ndarray]:
    """The eight rotations by right angles and mirrorings of (H, W[, C]); the image itself comes first."""
    return [np.rot90(side, turns) for side in (image, image[:, ::-1]) for turns in range(4)]


def fingerprint(crop: np.ndarray) -> Fingerprint:
    """Hashes and thumbnail of one raw crop of any depth, (H, W) or (H, W, 3)."""
    hashes = _hashes(crop)
    grey = crop.mean(axis=-1) if crop.ndim == 3 else crop.astype(np.float64)
    low, high = grey.min(), grey.max()
    eight_bit = np.zeros(grey.shape, np.uint8) if high <= low else ((grey - low) / (high - low) * 255).astype(np.uint8)
    small = Image.fromarray(eight_bit).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR)
    perceptual = [_perceptual_hash(turned) for turned in orientations(np.asarray(small))]
    thumbnail = np.asarray(small, np.float32) - np.asarray(small, np.float32).mean()
    norm = np.linalg.norm(thumbnail)
    return Fingerprint(hashes[0], min(hashes), np.array(perceptual, np.uint64), thumbnail / norm if norm else thumbnail)


def copy_key(crop: np.ndarray) -> str:
    """A key that a crop shares with its exact and turned copies, and with nothing else."""
    return min(_hashes(crop))


def same(keys: Iterable[str]) -> list[np.ndarray]:
    """Groups of indices, two or more each, that share a key; in order of first appearance."""
    groups: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    return [np.array(members) for members in groups.values() if len(members) > 1]


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
    straight = np.array([p.perceptual[0] for p in prints])  # (N,)
    turned = np.array([p.perceptual for p in prints])  # (N, 8)
    pairs = []
    for i in range(len(prints) - 1):
        distance = np.bitwise_count(turned[i][None, :] ^ straight[i + 1 :, None])  # (N - i - 1, 8)
        for j in np.flatnonzero(distance.min(axis=1) <= HASH_BITS):
            alike = _correlation(prints[i].thumbnail, prints[i + 1 + j].thumbnail)
            if alike >= SAME_CORRELATION:
                pairs.append((i, int(i + 1 + j), alike))
        if progress is not None:
            progress(i + 1)
    return sorted(pairs, key=lambda pair: -pair[2])


def _hashes(crop: np.ndarray) -> list[str]:
    return [_pixel_hash(turned) for turned in orientations(crop)]


def _pixel_hash(pixels: np.ndarray) -> str:
    digest = hashlib.blake2b(f"{pixels.shape}{pixels.dtype}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def _perceptual_hash(thumbnail: np.ndarray) -> int:
    return int(str(imagehash.phash(Image.fromarray(thumbnail))), 16)


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Largest correlation of two unit-norm thumbnails over the eight orientations."""
    return max(float((turned * second).sum()) for turned in orientations(first))

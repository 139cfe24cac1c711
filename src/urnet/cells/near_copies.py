"""Near-copies: different crops that show one picture, slightly altered, in any orientation.

A perceptual hash proposes pairs, and the correlation of their thumbnails decides.

Not all pairs are compared. Each thumbnail becomes a point: the amplitudes of its cosine transform, ordered so that
right angles and mirroring do not change it. Two points are never farther apart than the thumbnails in their best
orientation. So only pairs of near points are compared. Up to `LEAF_SIZE` crops, this misses no pair.

Larger sets are divided by random planes into leaves of that size, several times (random projection trees, Dasgupta and
Freund 2008). The work grows as n log n. A pair is missed if planes divide it every time; the documentation of the audit
says how often that happens.
"""

from collections.abc import Callable, Iterator

import numpy as np

from urnet.cells.copies import THUMBNAIL_PX
from urnet.images.rows import LazyRows

MAX_HASH_DISTANCE = 10
"""Largest number of different bits, of 64, in the perceptual hashes of a candidate pair."""

MIN_CORRELATION = 0.98
"""Correlation of two aligned thumbnails from which a candidate pair is a near-copy. It was measured."""

LEAF_SIZE = 4096
"""Largest number of crops of which all pairs are compared."""

N_TREES = 8
"""Number of random divisions of more than `LEAF_SIZE` crops."""

N_FREQUENCIES = 16
"""Number of frequencies of a point in each direction, of `THUMBNAIL_PX`."""

N_DIMENSIONS = 32
"""Number of dimensions of the points after reduction to the directions of largest variance."""

BATCH_SIZE = 2048
"""Number of thumbnails that are transformed, and of pairs that are correlated, at once."""

SAMPLE_SIZE = 4096
"""Number of crops that determine these directions."""

_SIGNS = (-1.0) ** np.arange(N_FREQUENCIES)

Pair = tuple[int, int, float]


def find_near_copies(thumbnails: np.ndarray | LazyRows, progress: Callable[[float], None] | None = None) -> list[Pair]:
    """Find pairs of different crops that look alike in some orientation.

    Args:
        thumbnails: (N, 32, 32) float32, zero mean and unit norm, from `copies.make_thumbnail`, without exact and turned
            copies.
        progress: called with the finished share, 0 to 1.

    Returns:
        (i, j, correlation) with i < j, highest correlation first.
    """
    count = len(thumbnails)
    if count < 2:
        return []
    progress = progress or (lambda share: None)
    hashes, points = _describe(thumbnails, lambda share: progress(0.3 * share))
    candidates = [np.empty(0, np.int64)]
    rng = np.random.default_rng(0)
    trees = N_TREES if count > LEAF_SIZE else 1
    compared = 0
    for _ in range(trees):
        for leaf in _split_into_leaves(points, np.arange(count), rng):
            candidates.append(_find_candidates(hashes, points, leaf))
            compared += len(leaf)
            progress(0.3 + 0.6 * compared / (trees * count))
        candidates = [np.unique(np.concatenate(candidates))]
    pairs: list[Pair] = []
    for start in range(0, len(candidates[0]), BATCH_SIZE):
        first, second = np.divmod(candidates[0][start : start + BATCH_SIZE], count)
        correlation = correlate_pairs(thumbnails[first], thumbnails[second])
        near = correlation >= MIN_CORRELATION
        pairs += zip(first[near].tolist(), second[near].tolist(), correlation[near].tolist(), strict=True)
        progress(0.9 + 0.1 * start / len(candidates[0]))
    return sorted(pairs, key=lambda pair: -pair[2])


def correlate_pairs(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Correlate pairs of thumbnails, (N, 32, 32) each, in their best orientation, (N,)."""
    sides = (first, first[:, :, ::-1])
    turned = (np.rot90(side, turns, (1, 2)) for side in sides for turns in range(4))
    return np.max([np.einsum("nij,nij->n", one, second) for one in turned], axis=0)


def compute_spectra(thumbnails: np.ndarray) -> np.ndarray:
    """Compute the lowest frequencies, (N, 16, 16), of the cosine transform of (N, 32, 32)."""
    from scipy.fft import dctn

    return dctn(thumbnails, axes=(1, 2))[:, :N_FREQUENCIES, :N_FREQUENCIES]


def compute_perceptual_hashes(spectra: np.ndarray) -> np.ndarray:
    """Compute 64-bit perceptual hashes of thumbnails (pHash of Zauner 2010, bits as in imagehash).

    Args:
        spectra: (N, 16, 16), from `compute_spectra`.

    Returns:
        (N,) uint64: one bit for each of the 8 × 8 lowest frequencies, 1 above their median.
    """
    low = spectra[:, :8, :8].reshape(-1, 64).copy()
    low[:, 0] = np.inf  # the mean of a picture is above the median of its frequencies; a thumbnail's is taken out
    bits = np.packbits(low > np.median(low, axis=1, keepdims=True), axis=1)  # (N, 8) bytes
    return np.ascontiguousarray(bits).view(np.uint64)[:, 0]


def orient_spectra(spectra: np.ndarray) -> list[np.ndarray]:
    """List the spectra of the eight orientations, in the order of `copies.list_orientations`."""
    turned = []
    for side in (spectra, spectra * _SIGNS):  # mirroring changes the sign of odd frequencies
        for _ in range(4):
            turned.append(side)
            side = side.transpose(0, 2, 1) * _SIGNS[:, None]
    return turned


def compute_invariant_points(spectra: np.ndarray) -> np.ndarray:
    """Compute points that are equal for all orientations of a thumbnail, and no farther apart than the thumbnails.

    A right angle or mirroring swaps the frequencies (u, v) and (v, u) and changes signs. Two such amplitudes a and b
    become their sum and difference, or their absolute values in order. Each of these maps is 1-Lipschitz.

    Args:
        spectra: (N, 16, 16), from `compute_spectra`.

    Returns:
        (N, 256).
    """
    scale = np.full(N_FREQUENCIES, (2 * THUMBNAIL_PX) ** -0.5)
    scale[0] /= np.sqrt(2)  # to the orthonormal transform, which keeps distances
    amplitudes = spectra * scale[:, None] * scale
    u, v = np.triu_indices(N_FREQUENCIES, 1)
    a, b = amplitudes[:, u, v], amplitudes[:, v, u]
    total, difference = (a + b) / np.sqrt(2), np.abs(a - b) / np.sqrt(2)
    odd, mixed = (u % 2 == 1) & (v % 2 == 1), (u + v) % 2 == 1
    one = np.where(mixed, np.minimum(np.abs(a), np.abs(b)), np.where(odd, np.abs(total), total))
    other = np.where(mixed, np.maximum(np.abs(a), np.abs(b)), difference)
    diagonal = np.einsum("nkk->nk", amplitudes)
    return np.concatenate([np.where(_SIGNS > 0, diagonal, np.abs(diagonal)), one, other], axis=1)


def _describe(thumbnails: np.ndarray | LazyRows, progress: Callable[[float], None]) -> tuple[np.ndarray, np.ndarray]:
    """Compute the hashes of all orientations, (N, 8), and the points in the directions of largest variance, (N, 32)."""
    count = len(thumbnails)
    sample = compute_invariant_points(
        compute_spectra(thumbnails[np.linspace(0, count - 1, min(SAMPLE_SIZE, count)).astype(int)])
    )
    mean = sample.mean(axis=0)
    directions = np.linalg.eigh(np.cov(sample, rowvar=False))[1][:, ::-1][:, :N_DIMENSIONS]  # (256, 32)
    hashes, points = np.empty((count, 8), np.uint64), np.empty((count, N_DIMENSIONS), np.float32)
    for start in range(0, count, BATCH_SIZE):
        part = slice(start, start + BATCH_SIZE)
        spectra = compute_spectra(thumbnails[part])
        hashes[part] = np.stack([compute_perceptual_hashes(one) for one in orient_spectra(spectra)], axis=1)
        points[part] = (compute_invariant_points(spectra) - mean) @ directions
        progress(min(1.0, part.stop / count))
    return hashes, points


def _split_into_leaves(points: np.ndarray, members: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Divide members into halves along random directions until no part is larger than `LEAF_SIZE`."""
    if len(members) <= LEAF_SIZE:
        yield members
        return
    sample = points[rng.choice(members, N_DIMENSIONS)]
    direction = rng.normal(size=N_DIMENSIONS).astype(np.float32) @ (sample - sample.mean(axis=0))
    order = np.argpartition(points[members] @ direction, len(members) // 2)
    for half in np.array_split(order, [len(members) // 2]):
        yield from _split_into_leaves(points, members[np.sort(half)], rng)


def _find_candidates(hashes: np.ndarray, points: np.ndarray, leaf: np.ndarray) -> np.ndarray:
    """Find the pairs of a leaf whose hashes and points are near enough, each as i · N + j."""
    max_squared = 2 - 2 * MIN_CORRELATION + 1e-4  # squared distance of unit vectors of that correlation, with rounding
    members = points[leaf]
    half_squares = (members**2).sum(axis=1) / 2
    pairs = []
    for start in range(0, len(leaf), 256):
        rows = slice(start, start + 256)
        # (256, M): half the squared distance, minus the row's half square
        distance = half_squares[start:] - members[rows] @ members[start:].T
        i, j = np.nonzero(distance <= max_squared / 2 - half_squares[rows, None])
        i, j = leaf[i[i < j] + start], leaf[j[i < j] + start]
        is_close = np.bitwise_count(hashes[i] ^ hashes[j, :1]).min(axis=1, initial=64) <= MAX_HASH_DISTANCE
        pairs.append(i[is_close] * len(points) + j[is_close])
    return np.concatenate(pairs)

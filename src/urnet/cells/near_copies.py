"""Near-copies: different crops that show the same picture, altered a little, in some orientation.

A perceptual hash proposes pairs, and the correlation of small versions of the crops decides. Neither is asked of all
pairs. The amplitudes of a thumbnail's cosine transform, ordered so that turning it by right angles and mirroring it
changes nothing, make a point; two thumbnails are at least as far apart, in their best orientation, as their points are.
So only points nearer than the least correlation allows are looked at. Up to `LEAF_SIZE` crops, that misses nothing.
More are divided by random planes into leaves of that size, several times over (random projection trees, Dasgupta and
Freund 2008): the work grows as n log n, and a pair is missed if planes part it every time; docs/audit.md says how
often.
"""

from collections.abc import Callable, Iterator

import numpy as np

from urnet.cells.copies import THUMBNAIL_PX
from urnet.images.rows import LazyRows

MAX_HASH_DISTANCE = 10
"""Most bits of 64 in which the perceptual hashes of a candidate pair may differ."""

MIN_CORRELATION = 0.98
"""Least correlation of two aligned thumbnails that makes a candidate pair a near-copy; measured, see docs/audit.md."""

LEAF_SIZE = 4096
"""Crops that are compared with one another directly."""

N_TREES = 8
"""How often more than `LEAF_SIZE` crops are divided anew."""

N_FREQUENCIES = 16
"""Frequencies each way that make a point; of `THUMBNAIL_PX`."""

N_DIMENSIONS = 32
"""Of the points: the directions in which they differ most."""

BATCH_SIZE = 2048
"""Thumbnails that are transformed at once; as many pairs are correlated at once."""

SAMPLE_SIZE = 4096
"""Crops from which those directions are taken."""

_SIGNS = (-1.0) ** np.arange(N_FREQUENCIES)

Pair = tuple[int, int, float]


def find_near_copies(thumbnails: np.ndarray | LazyRows, progress: Callable[[float], None] | None = None) -> list[Pair]:
    """Pairs of different crops that look alike in some orientation.

    Args:
        thumbnails: (N, 32, 32) float32, zero mean and unit norm, from `copies.make_thumbnail`, without exact and turned
            copies.
        progress: called with the share done, 0 to 1.

    Returns:
        (i, j, correlation) with i < j, most alike first.
    """
    count = len(thumbnails)
    if count < 2:
        return []
    progress = progress or (lambda share: None)
    hashes, points = _describe(thumbnails, lambda share: progress(0.3 * share))
    found = [np.empty(0, np.int64)]
    rng = np.random.default_rng(0)
    trees = N_TREES if count > LEAF_SIZE else 1
    compared = 0
    for _ in range(trees):
        for leaf in _split_into_leaves(points, np.arange(count), rng):
            found.append(_find_candidates(hashes, points, leaf))
            compared += len(leaf)
            progress(0.3 + 0.6 * compared / (trees * count))
        found = [np.unique(np.concatenate(found))]
    pairs = []
    for start in range(0, len(found[0]), BATCH_SIZE):
        first, second = np.divmod(found[0][start : start + BATCH_SIZE], count)
        alike = correlate_pairs(thumbnails[first], thumbnails[second])
        same = alike >= MIN_CORRELATION
        pairs += zip(first[same].tolist(), second[same].tolist(), alike[same].tolist(), strict=True)
        progress(0.9 + 0.1 * start / len(found[0]))
    return sorted(pairs, key=lambda pair: -pair[2])


def correlate_pairs(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Of thumbnails (N, 32, 32) and others, pair by pair, each in its best orientation, (N,)."""
    sides = (first, first[:, :, ::-1])
    turned = (np.rot90(side, turns, (1, 2)) for side in sides for turns in range(4))
    return np.max([np.einsum("nij,nij->n", one, second) for one in turned], axis=0)


def compute_spectra(thumbnails: np.ndarray) -> np.ndarray:
    """The lowest frequencies of the cosine transform of (N, 32, 32), (N, 16, 16)."""
    from scipy.fft import dctn

    return dctn(thumbnails, axes=(1, 2))[:, :N_FREQUENCIES, :N_FREQUENCIES]


def compute_perceptual_hashes(spectra: np.ndarray) -> np.ndarray:
    """The 64-bit perceptual hash of many thumbnails at once (the pHash of Zauner 2010, bits as in imagehash).

    Args:
        spectra: (N, 16, 16), as `compute_spectra` gives them.

    Returns:
        (N,) uint64: which of the 8 × 8 lowest frequencies are above their median.
    """
    low = spectra[:, :8, :8].reshape(-1, 64).copy()
    low[:, 0] = np.inf  # the mean of a picture is above the median of its frequencies; a thumbnail's is taken out
    bits = np.packbits(low > np.median(low, axis=1, keepdims=True), axis=1)  # (N, 8) bytes
    return np.ascontiguousarray(bits).view(np.uint64)[:, 0]


def orient_spectra(spectra: np.ndarray) -> list[np.ndarray]:
    """Spectra of the eight orientations of thumbnails, in the order of `copies.list_orientations`."""
    turned = []
    for side in (spectra, spectra * _SIGNS):  # mirroring changes the sign of odd frequencies
        for _ in range(4):
            turned.append(side)
            side = side.transpose(0, 2, 1) * _SIGNS[:, None]
    return turned


def compute_invariant_points(spectra: np.ndarray) -> np.ndarray:
    """Points that the eight orientations of a thumbnail share, no farther apart than the thumbnails are.

    A right angle or mirroring swaps the frequencies (u, v) and (v, u) and changes signs; what is left of each two
    amplitudes a and b is their sum and difference, or their sizes in order. Each of these maps is 1-Lipschitz.

    Args:
        spectra: (N, 16, 16), as `compute_spectra` gives them.

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
    """Hashes in all orientations (N, 8), and points in the directions in which they differ most (N, 32)."""
    count = len(thumbnails)
    some = compute_invariant_points(
        compute_spectra(thumbnails[np.linspace(0, count - 1, min(SAMPLE_SIZE, count)).astype(int)])
    )
    mean = some.mean(axis=0)
    directions = np.linalg.eigh(np.cov(some, rowvar=False))[1][:, ::-1][:, :N_DIMENSIONS]  # (256, 32)
    hashes, points = np.empty((count, 8), np.uint64), np.empty((count, N_DIMENSIONS), np.float32)
    for start in range(0, count, BATCH_SIZE):
        part = slice(start, start + BATCH_SIZE)
        found = compute_spectra(thumbnails[part])
        hashes[part] = np.stack([compute_perceptual_hashes(one) for one in orient_spectra(found)], axis=1)
        points[part] = (compute_invariant_points(found) - mean) @ directions
        progress(min(1.0, part.stop / count))
    return hashes, points


def _split_into_leaves(points: np.ndarray, members: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Divide members into halves along random directions, in which the points differ, until all are small."""
    if len(members) <= LEAF_SIZE:
        yield members
        return
    some = points[rng.choice(members, N_DIMENSIONS)]
    direction = rng.normal(size=N_DIMENSIONS).astype(np.float32) @ (some - some.mean(axis=0))
    order = np.argpartition(points[members] @ direction, len(members) // 2)
    for half in np.array_split(order, [len(members) // 2]):
        yield from _split_into_leaves(points, members[np.sort(half)], rng)


def _find_candidates(hashes: np.ndarray, points: np.ndarray, leaf: np.ndarray) -> np.ndarray:
    """Pairs of a leaf that hash and points allow, each as i · N + j."""
    nearest = 2 - 2 * MIN_CORRELATION + 1e-4  # squared distance of unit vectors with that correlation; and rounding
    mine = points[leaf]
    half_squares = (mine**2).sum(axis=1) / 2
    found = []
    for start in range(0, len(leaf), 256):
        rows = slice(start, start + 256)
        apart = (
            half_squares[start:] - mine[rows] @ mine[start:].T
        )  # (256, M): half the squared distance, less the row's
        i, j = np.nonzero(apart <= nearest / 2 - half_squares[rows, None])
        i, j = leaf[i[i < j] + start], leaf[j[i < j] + start]
        close = np.bitwise_count(hashes[i] ^ hashes[j, :1]).min(axis=1, initial=64) <= MAX_HASH_DISTANCE
        found.append(i[close] * len(points) + j[close])
    return np.concatenate(found)

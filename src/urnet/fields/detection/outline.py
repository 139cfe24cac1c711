"""Outlines of a field's cells whose middles are known, many at once, and how neighbours share pixels by them.

A cell without stain shows a closed outline along which the brightness rises, or falls, all the way round (as in
`images.mask`, which does this for one centred crop). Blur weakens that edge until the rim of the shaded inside is the
stronger one; what the cell does to the background still reaches just beyond its true outline then, and is measured.
"""

import numpy as np
from scipy.ndimage import gaussian_filter1d, map_coordinates

from urnet.fields.detection.energy import MIN_CELL_ENERGY
from urnet.fields.detection.split_touching import Segment
from urnet.images.contour import find_closed_paths

ANGLES, RADII = 64, 56

MIN_RADIUS_RATIO, MAX_RADIUS_RATIO = 0.5, 1.5
"""Least and greatest distance of an outline from the middle, in first guesses of the radius."""

TRACE_RADII = np.arange(1.1, 2.2, 0.05)
"""Where beyond an outline the cell's trace is looked for, in its radii."""

TRACE_EXTENT = 1.2
"""How far diffraction and point spread carry the trace of a cell, in true radii; 1.15 to 1.29 on phantom donors."""

MAX_OUTLINE_EXTENT = 1.38
"""From this reach of the trace on, the strongest edge is one inside the cell and not its outline."""

MIN_TRACE_SNR = 4.0
"""Least trace, in standard deviations of the noise's mean along the outline."""

RINGS = 4
"""Rings from a particle's middle to its outline in which its shading is compared with others'."""


def trace_outlines(
    deviation: np.ndarray, owner: np.ndarray, middles: np.ndarray, radii: np.ndarray, noise: float
) -> tuple[np.ndarray, np.ndarray]:
    """Find the outline about each of N middles.

    Args:
        deviation: smoothed brightness minus background, (H, W).
        owner: number of the cell, from 1, that a pixel was first given to, (H, W); 0 is background.
        middles: row and column of cells 1 to N, (N, 2).
        radii: first guess of their radii, px, (N,).
        noise: standard deviation of `deviation` in the background.

    Returns:
        Distance of the outline from the middle in directions 0 to 2 pi from the column axis towards the row axis, px,
        (N, ANGLES), and the strength of the edge, in brightness a px, (N,).
    """
    angles = np.arange(ANGLES) * 2 * np.pi / ANGLES
    sine, cosine = np.sin(angles)[:, None], np.cos(angles)[:, None]

    def at(image: np.ndarray, distance: np.ndarray, order: int = 1) -> np.ndarray:
        places = [middles[:, 0, None, None] + sine * distance, middles[:, 1, None, None] + cosine * distance]
        return map_coordinates(image, places, order=order, mode="nearest")

    steps = np.linspace(MIN_RADIUS_RATIO, MAX_RADIUS_RATIO, RADII)
    distance = radii[:, None, None] * steps
    down, right = np.gradient(deviation)
    edges = at(down, distance) * sine + at(right, distance) * cosine  # (N, ANGLES, RADII)
    strength = np.percentile(np.abs(edges), 97, axis=(1, 2))
    edges = np.clip(edges / np.maximum(strength, np.finfo(np.float32).tiny)[:, None, None], -1, 1)
    (brighter, gain), (darker, loss) = find_closed_paths(edges), find_closed_paths(-edges)  # outside
    outline = radii[:, None] * steps[np.where((gain > loss)[:, None], brighter, darker)]  # (N, ANGLES)

    beyond = outline[:, :, None] * TRACE_RADII
    theirs = at(owner, beyond, order=0)
    free = (theirs == 0) | (theirs == np.arange(1, len(middles) + 1)[:, None, None])
    count = free.sum(axis=1)  # (N, TRACE_RADII)
    trace = np.abs((at(deviation, beyond) * free).sum(axis=1)) / np.maximum(count, 1)
    # Smoothed noise is correlated over about 3 px, so that a ring holds a third of its length of independent values.
    independent = 2 * np.pi * outline.mean(axis=1)[:, None] * TRACE_RADII * count / ANGLES / 3
    faint = trace < MIN_TRACE_SNR * noise / np.sqrt(np.maximum(independent, 1))
    end = np.where(faint.any(axis=1), TRACE_RADII[faint.argmax(axis=1)], TRACE_RADII[-1])
    return outline * np.where(end > MAX_OUTLINE_EXTENT, end / TRACE_EXTENT, 1.0)[:, None], strength


def assign_pixels(
    pieces: list[Segment], deviation: np.ndarray, bright: np.ndarray, noise: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Trace every piece's outline: owner of each pixel (H, W), looks (N, 1 + RINGS) and roundness (N,)."""
    owner = np.zeros(deviation.shape, np.int32)
    middles, seen = [], []
    for number, piece in enumerate(pieces, 1):
        owner[piece.box][piece.mask] = number
        middles.append(np.argwhere(piece.mask).mean(axis=0) + np.array([piece.top, piece.left]))
        seen.append(bright[piece.box][piece.mask].mean() >= MIN_CELL_ENERGY)
    guesses = np.sqrt([piece.area / np.pi for piece in pieces])
    traced, strength = trace_outlines(deviation, owner, np.array(middles), guesses, noise)
    traced = gaussian_filter1d(traced, 1.0, axis=1, mode="wrap")  # (N, ANGLES)

    nearest = np.full(deviation.shape, 1.0, np.float32)  # distance to the owner's middle as a share of its outline's
    owner = np.zeros_like(owner)
    angles = np.arange(ANGLES + 1) * 2 * np.pi / ANGLES
    H, W = owner.shape
    for number, (piece, (y, x), ring) in enumerate(zip(pieces, middles, traced, strict=True), 1):
        if seen[number - 1]:
            reach = int(np.ceil(ring.max())) + 1
            top, left = max(0, int(y) - reach), max(0, int(x) - reach)
            box = (slice(top, min(H, int(y) + reach + 2)), slice(left, min(W, int(x) + reach + 2)))
            rows, columns = np.ogrid[box]
            limit = np.interp(np.arctan2(rows - y, columns - x) % (2 * np.pi), angles, np.append(ring, ring[0]))
            share = np.hypot(rows - y, columns - x) / limit
        else:
            box = piece.box
            share = np.where(piece.mask, 0.5, 2.0)
        closer = share <= nearest[box]
        nearest[box][closer] = share[closer]
        owner[box][closer] = number

    looks = np.full((len(pieces) + 1, 1 + RINGS), np.nan)
    looks[1:, 0] = np.log(np.maximum(strength, 1e-30))
    ring = np.minimum((nearest * RINGS).astype(np.int64), RINGS - 1)
    counts, sums = (
        np.bincount((owner * RINGS + ring).ravel(), weights, looks[:, 1:].size).reshape(-1, RINGS)
        for weights in (None, deviation.ravel())
    )
    looks[:, 1:] = np.divide(sums, counts, out=looks[:, 1:].copy(), where=counts > 0)
    looks[1:][~np.array(seen)] = np.nan
    turned = np.roll(traced, -1, axis=1)
    area = 0.5 * np.sin(2 * np.pi / ANGLES) * (traced * turned).sum(axis=1)
    sides = np.sqrt(traced**2 + turned**2 - 2 * traced * turned * np.cos(2 * np.pi / ANGLES))
    return owner, looks[1:], np.minimum(1, 4 * np.pi * area / sides.sum(axis=1) ** 2)

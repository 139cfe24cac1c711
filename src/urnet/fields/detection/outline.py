"""Trace the outlines of cells, and assign each pixel to one cell by these outlines.

A cell without stain has a closed outline along which the brightness rises, or falls, all the way round. (`images.mask`
traces it for one centred crop.) Blur weakens this edge, until the edge of the shading within the cell is stronger. The
trace that the cell leaves in the background then gives the size: it ends just beyond the true outline.
"""

import numpy as np
from scipy.ndimage import gaussian_filter1d, map_coordinates

from urnet.fields.detection.energy import MIN_CELL_ENERGY
from urnet.fields.detection.split_touching import Segment
from urnet.images.contour import find_closed_paths

ANGLES, RADII = 64, 56

MIN_RADIUS_RATIO, MAX_RADIUS_RATIO = 0.5, 1.5
"""Smallest and largest distance of an outline from the centre, in units of the first guess of the radius."""

TRACE_RADII = np.arange(1.1, 2.2, 0.05)
"""Distances from the centre at which the trace of the cell is measured, in units of the radius of the outline."""

TRACE_EXTENT = 1.2
"""End of the trace of a cell, in units of the true radius; 1.15 to 1.29 on phantom donors."""

MAX_OUTLINE_EXTENT = 1.38
"""End of the trace, in units of the traced radius, above which the traced edge lies inside the cell."""

MIN_TRACE_SNR = 4.0
"""Smallest trace, in standard deviations of the mean noise along the outline."""

RINGS = 4
"""Number of rings from the centre of a particle to its outline in which the shading is compared."""


def trace_outlines(
    deviation: np.ndarray, owner: np.ndarray, centres: np.ndarray, radii: np.ndarray, noise: float
) -> tuple[np.ndarray, np.ndarray]:
    """Trace the outline around each of N centres.

    Args:
        deviation: smoothed brightness minus background, (H, W).
        owner: number of the cell, from 1, to which a pixel belongs at first, (H, W); 0 is background.
        centres: row and column of cells 1 to N, (N, 2).
        radii: first guess of the radii, px, (N,).
        noise: standard deviation of `deviation` in the background.

    Returns:
        Distance of the outline from the centre in directions 0 to 2 pi from the column axis towards the row axis, px,
        (N, ANGLES), and the strength of the edge, in brightness per px, (N,).
    """
    angles = np.arange(ANGLES) * 2 * np.pi / ANGLES
    sine, cosine = np.sin(angles)[:, None], np.cos(angles)[:, None]

    def at(image: np.ndarray, distance: np.ndarray, order: int = 1) -> np.ndarray:
        places = [centres[:, 0, None, None] + sine * distance, centres[:, 1, None, None] + cosine * distance]
        return map_coordinates(image, places, order=order, mode="nearest")

    steps = np.linspace(MIN_RADIUS_RATIO, MAX_RADIUS_RATIO, RADII)
    distance = radii[:, None, None] * steps
    down, right = np.gradient(deviation)
    edges = at(down, distance) * sine + at(right, distance) * cosine  # (N, ANGLES, RADII)
    strength = np.percentile(np.abs(edges), 97, axis=(1, 2))
    edges = np.clip(edges / np.maximum(strength, np.finfo(np.float32).tiny)[:, None, None], -1, 1)
    (brighter, gain), (darker, loss) = (
        find_closed_paths(edges),
        find_closed_paths(-edges),
    )
    outline = radii[:, None] * steps[np.where((gain > loss)[:, None], brighter, darker)]  # (N, ANGLES)

    beyond = outline[:, :, None] * TRACE_RADII
    others = at(owner, beyond, order=0)
    free = (others == 0) | (others == np.arange(1, len(centres) + 1)[:, None, None])
    count = free.sum(axis=1)  # (N, TRACE_RADII)
    trace = np.abs((at(deviation, beyond) * free).sum(axis=1)) / np.maximum(count, 1)
    # Smoothed noise is correlated over about 3 px, so a third of the values along a ring are independent.
    independent = 2 * np.pi * outline.mean(axis=1)[:, None] * TRACE_RADII * count / ANGLES / 3
    faint = trace < MIN_TRACE_SNR * noise / np.sqrt(np.maximum(independent, 1))
    end = np.where(faint.any(axis=1), TRACE_RADII[faint.argmax(axis=1)], TRACE_RADII[-1])
    return outline * np.where(end > MAX_OUTLINE_EXTENT, end / TRACE_EXTENT, 1.0)[:, None], strength


def assign_pixels(
    segments: list[Segment], deviation: np.ndarray, bright: np.ndarray, noise: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Assign each pixel to the cell whose outline it lies in.

    Args:
        segments: the N cells as first segmented.
        deviation: smoothed brightness minus background, (H, W).
        bright: energy of the brightfield in units of the threshold, (H, W).
        noise: standard deviation of `deviation` in the background.

    Returns:
        Number of the cell of each pixel, (H, W), 0 for background; appearance of each cell, (N, 1 + RINGS); and
        roundness, (N,).
    """
    owner = np.zeros(deviation.shape, np.int32)
    centres, seen = [], []
    for number, segment in enumerate(segments, 1):
        owner[segment.box][segment.mask] = number
        centres.append(np.argwhere(segment.mask).mean(axis=0) + np.array([segment.top, segment.left]))
        seen.append(bright[segment.box][segment.mask].mean() >= MIN_CELL_ENERGY)
    guesses = np.sqrt([segment.area / np.pi for segment in segments])
    traced, strength = trace_outlines(deviation, owner, np.array(centres), guesses, noise)
    traced = gaussian_filter1d(traced, 1.0, axis=1, mode="wrap")  # (N, ANGLES)

    nearest = np.full(deviation.shape, 1.0, np.float32)  # distance to the centre of the owner, as a share of its radius
    owner = np.zeros_like(owner)
    angles = np.arange(ANGLES + 1) * 2 * np.pi / ANGLES
    H, W = owner.shape
    for number, (segment, (y, x), ring) in enumerate(zip(segments, centres, traced, strict=True), 1):
        if seen[number - 1]:
            reach = int(np.ceil(ring.max())) + 1
            top, left = max(0, int(y) - reach), max(0, int(x) - reach)
            box = (slice(top, min(H, int(y) + reach + 2)), slice(left, min(W, int(x) + reach + 2)))
            rows, columns = np.ogrid[box]
            limit = np.interp(np.arctan2(rows - y, columns - x) % (2 * np.pi), angles, np.append(ring, ring[0]))
            share = np.hypot(rows - y, columns - x) / limit
        else:
            box = segment.box
            share = np.where(segment.mask, 0.5, 2.0)
        closer = share <= nearest[box]
        nearest[box][closer] = share[closer]
        owner[box][closer] = number

    appearance = np.full((len(segments) + 1, 1 + RINGS), np.nan)
    appearance[1:, 0] = np.log(np.maximum(strength, 1e-30))
    ring = np.minimum((nearest * RINGS).astype(np.int64), RINGS - 1)
    counts, sums = (
        np.bincount((owner * RINGS + ring).ravel(), weights, appearance[:, 1:].size).reshape(-1, RINGS)
        for weights in (None, deviation.ravel())
    )
    appearance[:, 1:] = np.divide(sums, counts, out=appearance[:, 1:].copy(), where=counts > 0)
    appearance[1:][~np.array(seen)] = np.nan
    turned = np.roll(traced, -1, axis=1)
    area = 0.5 * np.sin(2 * np.pi / ANGLES) * (traced * turned).sum(axis=1)
    sides = np.sqrt(traced**2 + turned**2 - 2 * traced * turned * np.cos(2 * np.pi / ANGLES))
    return owner, appearance[1:], np.minimum(1, 4 * np.pi * area / sides.sum(axis=1) ** 2)

"""Outlines of cells whose middles are known, many at once.

A cell without stain shows a closed outline along which the brightness rises, or falls, all the way round (as in
`images.mask`, which does this for one centred crop). Blur weakens that edge until the rim of the shaded inside is the
stronger one; what the cell does to the background still reaches just beyond its true outline then, and is measured.
"""

import numpy as np
from scipy.ndimage import map_coordinates

ANGLES, RADII = 64, 56

NEAREST, FARTHEST = 0.5, 1.5
"""Least and greatest distance of an outline from the middle, in first guesses of the radius."""

BEND = 0.05
"""What an outline pays for each step inwards or outwards, in edge strengths."""

REACH = np.arange(1.1, 2.2, 0.05)
"""Where beyond an outline the cell's trace is looked for, in its radii."""

HALO = 1.2
"""How far diffraction and point spread carry the trace of a cell, in true radii; 1.15 to 1.29 on phantom donors."""

SHADED = 1.38
"""From this reach of the trace on, the strongest edge is one inside the cell and not its outline."""

SURE = 4.0
"""Least trace, in standard deviations of the noise's mean along the outline."""


def outlines(
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

    steps = np.linspace(NEAREST, FARTHEST, RADII)
    distance = radii[:, None, None] * steps
    down, right = np.gradient(deviation)
    edges = at(down, distance) * sine + at(right, distance) * cosine  # (N, ANGLES, RADII)
    strength = np.percentile(np.abs(edges), 97, axis=(1, 2))
    edges = np.clip(edges / np.maximum(strength, np.finfo(np.float32).tiny)[:, None, None], -1, 1)
    (brighter, gain), (darker, loss) = closed_paths(edges), closed_paths(-edges)  # outside
    outline = radii[:, None] * steps[np.where((gain > loss)[:, None], brighter, darker)]  # (N, ANGLES)

    beyond = outline[:, :, None] * REACH
    theirs = at(owner, beyond, order=0)
    free = (theirs == 0) | (theirs == np.arange(1, len(middles) + 1)[:, None, None])
    count = free.sum(axis=1)  # (N, REACH)
    trace = np.abs((at(deviation, beyond) * free).sum(axis=1)) / np.maximum(count, 1)
    # Smoothed noise is correlated over about 3 px, so that a ring holds a third of its length of independent values.
    independent = 2 * np.pi * outline.mean(axis=1)[:, None] * REACH * count / ANGLES / 3
    faint = trace < SURE * noise / np.sqrt(np.maximum(independent, 1))
    end = np.where(faint.any(axis=1), REACH[faint.argmax(axis=1)], REACH[-1])
    return outline * np.where(end > SHADED, end / HALO, 1.0)[:, None], strength


def closed_paths(gain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The path once round, at most one radius further in or out at each angle, along which the gain is greatest.

    Two turns are made, and the middle one of their length kept, so that its end meets its beginning.

    Args:
        gain: (N, A, R) for N cells, A angles and R radii.

    Returns:
        The index of the radius at each angle, (N, A), and the mean gain, (N,).
    """
    N, A, R = gain.shape
    total, came_from = gain[:, 0], np.zeros((2 * A, N, R), dtype=np.int8)
    for step in range(1, 2 * A):
        padded = np.pad(total, ((0, 0), (1, 1)), constant_values=-np.inf)
        moves = np.stack([padded[:, :-2] - BEND, total, padded[:, 2:] - BEND])  # from further in, the same, further out
        came_from[step] = moves.argmax(axis=0) - 1
        total = moves.max(axis=0) + gain[:, step % A]
    cells = np.arange(N)
    path = np.empty((2 * A, N), dtype=np.int64)
    path[-1] = total.argmax(axis=1)
    for step in range(2 * A - 1, 0, -1):
        path[step - 1] = path[step] + came_from[step, cells, path[step]]
    ring = np.concatenate([path[A : A + A // 2], path[A // 2 : A]]).T  # (N, A)
    return ring, np.take_along_axis(gain, ring[:, :, None], axis=2)[:, :, 0].mean(axis=1)

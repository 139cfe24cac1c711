"""Active contour by dynamic programming: the closed path around a centre with the largest gain, in polar coordinates.

After D. H. Ballard and C. M. Brown, "Computer Vision", 1982, section 4.5. `mask` follows the edges of one centred cell
in this way, and `fields.detection.outline` those of the cells of a field.
"""

import numpy as np

BENDING_PENALTY = 0.05
"""Penalty of a path for each step inwards or outwards, in units of the gain."""


def find_closed_paths(gain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find closed paths with the largest gain. From one angle to the next, the radius changes by one step at most.

    The path goes round twice. The result is the middle of it, so that its end meets its start.

    Args:
        gain: (N, A, R) for N centres, A angles and R radii.

    Returns:
        Index of the radius at each angle, (N, A), and the mean gain, (N,).
    """
    N, A, R = gain.shape
    total, came_from = gain[:, 0], np.zeros((2 * A, N, R), dtype=np.int8)
    for step in range(1, 2 * A):
        padded = np.pad(total, ((0, 0), (1, 1)), constant_values=-np.inf)
        moves = np.stack(
            [padded[:, :-2] - BENDING_PENALTY, total, padded[:, 2:] - BENDING_PENALTY]
        )  # from inside, the same radius, outside
        came_from[step] = moves.argmax(axis=0) - 1
        total = moves.max(axis=0) + gain[:, step % A]
    centres = np.arange(N)
    path = np.empty((2 * A, N), dtype=np.int64)
    path[-1] = total.argmax(axis=1)
    for step in range(2 * A - 1, 0, -1):
        path[step - 1] = path[step] + came_from[step, centres, path[step]]
    ring = np.concatenate([path[A : A + A // 2], path[A // 2 : A]]).T  # (N, A)
    return ring, np.take_along_axis(gain, ring[:, :, None], axis=2)[:, :, 0].mean(axis=1)

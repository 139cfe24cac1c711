"""The strongest closed path about a middle, by dynamic programming over polar coordinates.

After D. H. Ballard and C. M. Brown, "Computer Vision", 1982, section 4.5. The outline of one centred cell (in `mask`)
and those of a field's cells (in `fields.outline`) are such paths, along edges.
"""

import numpy as np

BENDING_PENALTY = 0.05
"""What a path pays for each step inwards or outwards, in units of the gain."""


def find_closed_paths(gain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The path once round, at most one radius further in or out at each angle, along which the gain is greatest.

    Two turns are made, and the middle one of their length kept, so that its end meets its beginning.

    Args:
        gain: (N, A, R) for N middles, A angles and R radii.

    Returns:
        The index of the radius at each angle, (N, A), and the mean gain, (N,).
    """
    N, A, R = gain.shape
    total, came_from = gain[:, 0], np.zeros((2 * A, N, R), dtype=np.int8)
    for step in range(1, 2 * A):
        padded = np.pad(total, ((0, 0), (1, 1)), constant_values=-np.inf)
        moves = np.stack(
            [padded[:, :-2] - BENDING_PENALTY, total, padded[:, 2:] - BENDING_PENALTY]
        )  # from further in, the same, further out
        came_from[step] = moves.argmax(axis=0) - 1
        total = moves.max(axis=0) + gain[:, step % A]
    middles = np.arange(N)
    path = np.empty((2 * A, N), dtype=np.int64)
    path[-1] = total.argmax(axis=1)
    for step in range(2 * A - 1, 0, -1):
        path[step - 1] = path[step] + came_from[step, middles, path[step]]
    ring = np.concatenate([path[A : A + A // 2], path[A // 2 : A]]).T  # (N, A)
    return ring, np.take_along_axis(gain, ring[:, :, None], axis=2)[:, :, 0].mean(axis=1)

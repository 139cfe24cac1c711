"""Find red cells: a cluster of small particles of equal size and appearance.

Red cells have no nucleus and one shape. In one field their sizes, edges and shading agree to a few percent, while white
cells of any class vary by ten percent and more. So a narrow cluster of small particles, with a gap between it and the
other particles in all measured features, is a cluster of red cells. Where blur makes small lymphocytes look like red
cells, there is no gap, and no particle is dropped.
"""

import numpy as np

BOX_HALF_WIDTH = 0.1
"""Half the width of the box in which the densest point is searched, in logarithms of diameter and edge strength."""

MIN_CLUSTER_SIZE = 20
"""Smallest number of particles in a cluster; smaller clusters occur by chance."""

MAX_LOG_DIAMETER_STD = 0.055
"""Largest standard deviation of the logarithm of the diameters in a cluster."""

MAX_GAP_SHARE = 0.12
"""Largest number of particles in the gap around a cluster (to twice its radius), as a share of the cluster.

The value was set on phantom fields. Of 32 fields with red cells, 24 had a cluster, and 2 of 1,920 white cells fell into
one. Of 64 fields without red cells (all classes, lymphocytes alone, or lymphocytes and monocytes) none had a cluster;
the closest share was 0.24. Of 32 further fields with red cells, 22 had a cluster, and 11 of 1,920 white cells fell into
one, all on a single field of 60. At 0.18 it would have been 24 fields and 21 cells."""

MIN_LARGER_SHARE = 0.3
"""Smallest number of larger particles, as a share of the cluster. A field of red cells alone cannot be told from one
of lymphocytes alone."""

MAX_DIAMETER_RATIO = 0.87
"""Largest diameter of a cluster, in units of the median diameter of the larger particles."""


def find_red_cells(widths: np.ndarray, appearance: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Find the particles of a field that are red cells, or smaller than red cells.

    Args:
        widths: diameters, px, (N,).
        appearance: logarithm of the strength of the edge, then shadings on one linear scale, (N, D); NaN where
            brightfield does not show the particle.
        whole: whether a particle is round and lies fully in the field, (N,).

    Returns:
        Booleans, (N,); all False without a separate cluster.
    """
    from scipy.stats import chi2

    none = np.zeros(len(widths), dtype=bool)
    whole = whole & np.isfinite(appearance).all(axis=1)
    if whole.sum() < MIN_CLUSTER_SIZE:
        return none
    shades = appearance[:, 1:] / max(np.abs(appearance[whole, 1:]).mean(), 1e-30)
    seen = np.column_stack([np.log(widths), appearance[:, 0], shades])  # (N, 1 + D)
    points = seen[whole]
    cluster = _densest(points[:, :2])
    limit = chi2.ppf(0.975, points.shape[1])
    for _ in range(4):
        if cluster.sum() < MIN_CLUSTER_SIZE:
            return none
        middle = points[cluster].mean(axis=0)
        inverse = np.linalg.inv(np.cov(points[cluster].T) + 1e-4 * np.eye(points.shape[1]))
        distance = np.einsum("ni,ij,nj->n", points - middle, inverse, points - middle)  # squared
        cluster = distance <= limit
    count, between = cluster.sum(), ((distance > limit) & (distance <= 4 * limit)).sum()
    width = np.exp(middle[0])
    larger = points[:, 0] > middle[0] + BOX_HALF_WIDTH
    if (
        count < MIN_CLUSTER_SIZE
        or points[cluster, 0].std() > MAX_LOG_DIAMETER_STD
        or between > MAX_GAP_SHARE * count
        or larger.sum() < MIN_LARGER_SHARE * count
        or width > MAX_DIAMETER_RATIO * np.exp(np.median(points[larger, 0]))
    ):
        return none
    offset = np.where(np.isfinite(seen), seen, np.inf)
    known = np.isfinite(offset).all(axis=1)
    offset = np.where(known[:, None], offset, 0) - middle
    red = known & (np.einsum("ni,ij,nj->n", offset, inverse, offset) <= 1.5 * limit)
    return red | (widths < 0.8 * width)


def _densest(points: np.ndarray) -> np.ndarray:
    """Select the points near the densest point of the smaller half: (N, 2) to booleans, (N,)."""
    from scipy.spatial import KDTree

    tree = KDTree(points)
    counts = tree.query_ball_point(points, BOX_HALF_WIDTH, p=np.inf, return_length=True)
    counts[points[:, 0] > np.median(points[:, 0])] = 0
    near = np.zeros(len(points), dtype=bool)
    near[tree.query_ball_point(points[np.argmax(counts)], BOX_HALF_WIDTH, p=np.inf)] = True
    return near

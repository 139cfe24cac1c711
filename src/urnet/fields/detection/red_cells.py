"""Small particles that all look the same, as red cells do, among cells that do not.

Red cells have no nucleus and one shape: in one field their sizes, edges and shading agree to a few per cent, while
white cells of any class vary by ten and more. So a narrow cluster of the smaller particles that stands apart from the
others, in all that can be measured of them, is taken for red cells. Where blur makes small lymphocytes look like red
cells there is no such gap, and nothing is left out: what brightfield cannot tell apart is not guessed.
"""

import numpy as np

BOX_HALF_WIDTH = 0.1
"""Half the width, in logarithm of diameter and edge, of the box in which the densest place is looked for."""

MIN_CLUSTER_SIZE = 20
"""Least number of particles that make a cluster; of fewer, chance gathers some anywhere."""

MAX_LOG_DIAMETER_STD = 0.055
"""Greatest standard deviation of a cluster's log diameter."""

MAX_GAP_SHARE = 0.12
"""Most particles in the gap about a cluster (to twice its radius), as a share of it. On the 32 phantom fields with
red cells that this was set on, 24 had such a cluster, and 2 of 1,920 white cells fell into one; on 64 without (all
classes, lymphocytes alone, or lymphocytes and monocytes) there was none, the closest with 0.24. On 32 others, 22 had
one, and 11 of 1,920 white cells fell into one, all on a single field of 60; at 0.18 it would have been 24, and 21."""

MIN_LARGER_SHARE = 0.3
"""Least number of larger particles, as a share of a cluster's: in a field of red cells alone, or of lymphocytes alone,
nothing tells which they are."""

MAX_DIAMETER_RATIO = 0.87
"""Greatest diameter of a cluster, in the median one of the larger particles."""


def find_red_cells(widths: np.ndarray, looks: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Say which particles of a field are red cells, or smaller than those.

    Args:
        widths: diameters, px, (N,).
        looks: what else is seen of them, (N, D): first the logarithm of the edge's strength, then shadings on one
            linear scale. NaN where nothing is seen.
        whole: whether a particle is round and lies wholly in the field, (N,).

    Returns:
        Booleans, (N,); all False where no cluster stands apart.
    """
    from scipy.stats import chi2

    none = np.zeros(len(widths), dtype=bool)
    whole = whole & np.isfinite(looks).all(axis=1)
    if whole.sum() < MIN_CLUSTER_SIZE:
        return none
    shades = looks[:, 1:] / max(np.abs(looks[whole, 1:]).mean(), 1e-30)
    seen = np.column_stack([np.log(widths), looks[:, 0], shades])  # (N, 1 + D)
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
    """The points near the one with the most neighbours in the smaller half, (N,) booleans, of (N, 2)."""
    from scipy.spatial import KDTree

    tree = KDTree(points)
    counts = tree.query_ball_point(points, BOX_HALF_WIDTH, p=np.inf, return_length=True)
    counts[points[:, 0] > np.median(points[:, 0])] = 0
    near = np.zeros(len(points), dtype=bool)
    near[tree.query_ball_point(points[np.argmax(counts)], BOX_HALF_WIDTH, p=np.inf)] = True
    return near

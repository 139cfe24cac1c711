"""Match detected with true positions, and measure precision and recall of a detection."""

from dataclasses import dataclass

import numpy as np

CONFIDENCE_LEVEL = 0.95
"""Confidence level of the intervals."""


def match_positions(detected: np.ndarray, truth: np.ndarray, reach: float) -> np.ndarray:
    """Pair detected with true positions, one to one: as many pairs as possible, then the smallest total distance.

    Args:
        detected: x and y of N cells, px, (N, 2).
        truth: x and y of M cells, px, (M, 2).
        reach: largest distance within a pair, px, inclusive.

    Returns:
        Indices (detected, true) of P pairs, (P, 2), sorted by the first.

    Raises:
        ValueError: positions of another shape.
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import KDTree

    sides = [np.asarray(side, dtype=float) for side in (detected, truth)]
    for side in sides:
        if side.size and (side.ndim != 2 or side.shape[1] != 2):
            raise ValueError(f"positions of shape {side.shape}; they must have one row of x and y per cell, (N, 2)")
    if not all(side.size for side in sides):
        return np.zeros((0, 2), dtype=np.int64)
    detected, truth = sides
    N, M = len(detected), len(truth)
    near = KDTree(detected).sparse_distance_matrix(KDTree(truth), reach, output_type="ndarray")
    if not len(near):
        return np.zeros((0, 2), dtype=np.int64)
    # Solve each connected group of candidate pairs on its own, which avoids an N x M matrix.
    graph = coo_array((np.ones(len(near)), (near["i"], N + near["j"])), shape=(N + M, N + M))
    group = connected_components(graph, directed=False)[1][near["i"]]
    order = np.argsort(group, kind="stable")
    pairs = []
    for links in np.split(near[order], np.flatnonzero(np.diff(group[order])) + 1):
        rows, columns = np.unique(links["i"]), np.unique(links["j"])
        far = 1 + reach * (1 + min(len(rows), len(columns)))  # costs more than all pairs within reach together
        cost = np.full((len(rows), len(columns)), far)
        cost[np.searchsorted(rows, links["i"]), np.searchsorted(columns, links["j"])] = links["v"]
        i, j = linear_sum_assignment(cost)
        close = cost[i, j] < far
        pairs.append(np.stack([rows[i[close]], columns[j[close]]], axis=1))
    joined = np.concatenate(pairs).astype(np.int64)
    return joined[np.argsort(joined[:, 0])]


@dataclass(frozen=True)
class Agreement:
    """Agreement of detected with true cells.

    Args:
        detected: number of detected cells.
        truth: number of true cells.
        matched: number of pairs of a detected and a true cell.
    """

    detected: int
    truth: int
    matched: int

    def __post_init__(self) -> None:
        if not 0 <= self.matched <= min(self.detected, self.truth):
            raise ValueError(
                f"{self.matched} pairs are impossible for {self.detected} detected and {self.truth} true cells"
            )

    def __add__(self, other: "Agreement") -> "Agreement":
        return Agreement(self.detected + other.detected, self.truth + other.truth, self.matched + other.matched)

    @property
    def precision(self) -> float:
        """Share of the detected cells that are true; NaN without detected cells."""
        return self.matched / self.detected if self.detected else np.nan

    @property
    def recall(self) -> float:
        """Share of the true cells that were detected; NaN without true cells."""
        return self.matched / self.truth if self.truth else np.nan

    @property
    def precision_interval(self) -> tuple[float, float]:
        """95 % interval of the precision (Wilson)."""
        return wilson(self.matched, self.detected)

    @property
    def recall_interval(self) -> tuple[float, float]:
        """95 % interval of the recall (Wilson)."""
        return wilson(self.matched, self.truth)


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Compute the 95 % interval of a proportion (Wilson, J. Am. Stat. Assoc. 22, 209, 1927); (0, 1) without trials."""
    if not trials:
        return 0.0, 1.0
    from scipy.stats import binomtest

    interval = binomtest(successes, trials).proportion_ci(CONFIDENCE_LEVEL, method="wilson")
    return float(interval.low), float(interval.high)

"""Limits of a proportion from independent cells, and the limit where all cells, or none, are right.

- `mid_p_limits` inverts the exact binomial test with the mid-p value (Lancaster, J. Am. Stat. Assoc. 56, 1961; Berry
  and Armitage, The Statistician 44, 1995). For large counts it is close to Wilson's interval; it covers better near 0
  and 1. Counts may be fractions, as those of an effective number of cells are (Korn and Graubard, Survey Methodology
  24, 1998).
- `limit_of_certainty` is the limit where no error was seen. With one cell in each group it is the limit of Clopper and
  Pearson (Biometrika 26, 1934). Cells of one group may all be right for the same reason, and counts without an error
  say nothing about that. So the groups are assumed to differ with a standard deviation of `ASSUMED_SPREAD` logits.
- `counting_limits` are those of a count by eye, as tabulated by Rümke (in "Differential leukocyte counting", College of
  American Pathologists, 1977): Clopper and Pearson's, for cells that are all recognised rightly.
"""

import numpy as np
from scipy import special

ASSUMED_SPREAD = 0.6
"""Standard deviation between groups, in logits, where the cells cannot show it."""
STEPS = 60
"""Bisection steps, enough for the precision of a double."""
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(48)


def mid_p_limits(right: np.ndarray, cells: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Compute the limits of proportions of independent cells.

    Args:
        right: number of right cells, any shape.
        cells: number of cells, the same shape; at least one.
        level: coverage of the interval.

    Returns:
        Lower and upper limits. At 0 and 1 the limit on the other side is that of Clopper and Pearson.
    """
    right, cells = np.broadcast_arrays(np.asarray(right, dtype=np.float64), np.asarray(cells, dtype=np.float64))
    low, high = _lower_limit(right, cells, level), 1 - _lower_limit(cells - right, cells, level)
    return low, high


def counting_limits(shares: np.ndarray, cells: int, level: float = 0.95) -> np.ndarray:
    """Compute the limits of shares that were counted without any mistake, such as by eye.

    Args:
        shares: (K,) counted shares.
        cells: number of cells counted.
        level: coverage of the interval.

    Returns:
        (K, 2) lower and upper limits.

    Example:
        >>> counting_limits(np.array([0.0, 0.05]), 100).round(3).tolist()
        [[0.0, 0.036], [0.016, 0.113]]
    """
    seen, tail = np.asarray(shares, dtype=np.float64) * cells, (1 - level) / 2
    low = np.where(seen > 0, special.betaincinv(np.maximum(seen, 1e-9), cells - seen + 1, tail), 0.0)
    high = np.where(seen < cells, special.betaincinv(seen + 1, np.maximum(cells - seen, 1e-9), 1 - tail), 1.0)
    return np.stack([low, high], axis=-1)


def _lower_limit(right: np.ndarray, cells: np.ndarray, level: float) -> np.ndarray:
    tail = (1 - level) / 2
    low, high = np.zeros(right.shape), right / cells
    some, more = np.maximum(right, 1), np.maximum(cells - right, 1)
    for _ in range(STEPS):
        middle = (low + high) / 2
        at_least = special.betainc(some, cells - right + 1, middle)
        above = special.betainc(right + 1, more, middle)
        below = (at_least + above) / 2 < tail
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    limit = np.where(right == cells, tail ** (1 / cells), low)
    return np.where(right == 0, 0.0, limit)


def limit_of_certainty(cells: np.ndarray, level: float, spread: float = ASSUMED_SPREAD) -> float:
    """Compute the smallest proportion for which it is not unlikely that all cells are right.

    Args:
        cells: (G,) number of cells of each group.
        level: coverage of the interval; the probability at the limit is (1 - level)/2.
        spread: standard deviation between groups, in logits.

    Returns:
        The mean proportion of groups whose logits are normally distributed.
    """
    sizes, groups = np.unique(np.asarray(cells)[np.asarray(cells) > 0], return_counts=True)
    weights = WEIGHTS / WEIGHTS.sum()
    target = np.log((1 - level) / 2)
    low, high = -20.0, 40.0
    for _ in range(STEPS):
        centre = (low + high) / 2
        log_right = sizes[:, None] * special.log_expit(centre + spread * NODES)  # (sizes, nodes)
        largest = log_right[:, -1:]
        log_all = largest[:, 0] + np.log(np.exp(log_right - largest) @ weights)  # (sizes,)
        low, high = (centre, high) if groups @ log_all < target else (low, centre)
    return float(weights @ special.expit(high + spread * NODES))

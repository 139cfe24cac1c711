"""Differences between models that were trained on one split: t intervals over donors or source images.

One split shows how the trained models differ on other cells. It does not show how much of the difference comes from the
training cells, so it supports no verdict on the recipes.

- The variance between donors is that of the linearised difference, each donor's part enlarged by 1/(1 - share), as in
  the jackknife. Degrees of freedom are those of groups with equal shares.
- Several trainings add the variance between them. Degrees of freedom are combined by Satterthwaite's approximation
  (Biometrics Bulletin 2, 1946).
"""

import numpy as np

from urnet.statistics.estimate import Estimate


def estimate_over_groups(change: np.ndarray, cells: np.ndarray) -> Estimate:
    """Estimate a mean of ratios of sums over groups.

    Args:
        change: (G, C) sum of the differences of each group's cells, by class.
        cells: (G, C) number of cells. Classes without cells are left out of the mean.

    Returns:
        One estimate. The standard error is NaN with fewer than two groups, or without differences between groups.
    """
    change, cells = (np.asarray(part, dtype=np.float64) for part in (change, cells))
    there = cells.sum(axis=0) > 0
    change, cells = change[:, there], cells[:, there]
    unknown = Estimate(np.array(np.nan), np.array(np.nan), np.array(np.nan))
    if not there.any():
        return unknown
    share = cells / cells.sum(axis=0)  # (G, C)
    ratio = change.sum(axis=0) / cells.sum(axis=0)
    value = np.array(ratio.mean())
    if ((share > 0).sum(axis=0) < 2).any():  # the spread of a class in one group is not known
        return Estimate(value, unknown.error, unknown.freedom)
    part = (change - ratio * cells) / cells.sum(axis=0) / (1 - share)
    used = part[share.any(axis=1)]
    squares = (used.mean(axis=1)) ** 2
    error = np.sqrt(squares.sum() * (len(used) - 1) / len(used))
    weight = share.mean(axis=1) ** 2
    freedom = np.maximum(1, weight.sum() ** 2 / (weight**2).sum() - 1)
    return Estimate(value, error, freedom) if error > 0 else Estimate(value, unknown.error, unknown.freedom)


def add_trainings(estimate: Estimate, differences: np.ndarray) -> Estimate:
    """Add the variance between trainings to an estimate of their mean difference.

    Args:
        estimate: over the cells, with the differences of cells averaged over trainings.
        differences: (S,) difference of each pair of trainings.
    """
    S = len(differences)
    trainings, cells = np.var(differences, ddof=1) / S, estimate.error**2
    with np.errstate(invalid="ignore", divide="ignore"):
        freedom = (trainings + cells) ** 2 / (trainings**2 / (S - 1) + cells**2 / estimate.freedom)
    return Estimate(estimate.value, np.sqrt(trainings + cells), freedom)

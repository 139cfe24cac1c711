"""Differences between recipes over the folds of a cross-validation: the corrected resampled t.

Each fold gives one difference, from trainings that other folds do not share, so the spread of the folds contains the
variance of training as well as that of the test cells. The training parts of folds overlap, so their differences are
correlated, and the spread between them is too small. Nadeau and Bengio (Inference for the generalization error, Machine
Learning 52, 2003, section 3) correct the variance of the mean of J differences from s²/J to s²·(1/J + r/(1 - r)), with
a correlation r = n_test/n. Then r/(1 - r) = n_test/n_train. Two things are added here:

- r is at least a quarter of the training part's share of the cells, n_train/n. In five folds this is n_test/n as well.
  With more folds, as when donors are left out one by one, training parts overlap more, and n_test/n would get smaller.
  So up to about a quarter of the variance of a fold's difference may come from its training cells.
- K folds of a repeat have K - 1 degrees of freedom. Repeats regroup the same donors or source images, so their degrees
  of freedom do not simply add up: R repeats have v/(1 + (v - v/R)/(G - 1)) with v = R·(K - 1) and G groups.
"""

from collections.abc import Sequence

import numpy as np

from urnet.statistics.estimate import Estimate

TRAINING_SHARE = 0.25
"""Share of the variance of a fold's difference that may come from training cells."""
ROUNDING = 1e-12
"""Differences that are closer to each other are equal."""


def estimate_over_folds(
    differences: np.ndarray,
    tested: np.ndarray,
    total: np.ndarray | int,
    repeats: Sequence[int] | np.ndarray,
    groups: int,
) -> Estimate:
    """Estimate the mean difference of folds, each with the same weight.

    Args:
        differences: (..., J) difference of each fold, averaged over its trainings; NaN in a fold without cells.
        tested: (J,) or (..., J) number of cells in the test part of each fold.
        total: number of cells in all folds of a repeat; an array broadcasts like `tested`.
        repeats: (J,) number of the repeat of each fold.
        groups: number of donors, or of source images where donors are not known.

    Returns:
        Estimates, (...,). The standard error is NaN with fewer than two folds, and if all folds have one difference.
    """
    differences = np.asarray(differences, dtype=np.float64)
    there = np.isfinite(differences)
    count = there.sum(axis=-1)
    tested, total = (np.broadcast_to(np.asarray(x, dtype=np.float64), differences.shape) for x in (tested, total))
    share = tested / total
    correlation = np.maximum(share, TRAINING_SHARE * (1 - share))
    with np.errstate(invalid="ignore", divide="ignore"):
        value = np.where(there, differences, 0).sum(axis=-1) / count
        deviation = np.where(there, differences - value[..., None], 0)
        variance = (deviation**2).sum(axis=-1) / (count - 1)
        ratio = correlation / (1 - correlation)
        overlap = np.where(there, ratio, 0).sum(axis=-1) / count
        error = np.sqrt(variance * (1 / count + overlap))
        used = _count_repeats(there, np.asarray(repeats))
        freedom = np.where(count > used, count - used, used - 1).astype(np.float64)
        freedom /= 1 + (freedom - freedom / used) / (groups - 1)
    known = (count > 1) & (groups > 1) & (variance > ROUNDING**2)
    return Estimate(value, np.where(known, error, np.nan), np.where(known, freedom, np.nan))


def _count_repeats(there: np.ndarray, repeats: np.ndarray) -> np.ndarray:
    """Count the repeats that have a difference, (...,)."""
    return np.stack([there[..., repeats == one].any(axis=-1) for one in np.unique(repeats)]).sum(axis=0)


def describe_folds(folds: int, repeats: int, donors: int | None) -> str:
    """Name the method in words.

    Args:
        folds: number of folds of all repeats together.
        repeats: number of repeats.
        donors: number of donors if each fold tests one donor, else None.
    """
    if donors is not None and repeats == 1:
        return f"t over {donors} donors left out one by one, corrected for shared training cells"
    each = f" ({repeats} × {folds // repeats})" if repeats > 1 and folds % repeats == 0 else ""
    return f"t over {folds} folds{each}, corrected for shared training cells"

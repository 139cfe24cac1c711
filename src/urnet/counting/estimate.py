"""What share of each class a sample has, from what a classifier that errs said of its cells.

Counting predictions miscounts in a known direction: with 2 % monocytes and a tenth of the granulocytes called
monocytes, most "monocytes" are none. Two corrections, both from cells of known class on which the classifier was
measured (prior-probability shift: the classes look as they did there, only their shares differ):

- The **adjusted count** asks which composition makes the counts that were seen most likely, given the confusion
  (Forman, "Quantifying counts and costs via classification", Data Min. Knowl. Disc. 17, 2008, section 3.2).
- **EM** (Saerens, Latinne and Decaestecker, Neural Computation 14, 2002, Eq. 2.9) reweighs each cell's probabilities
  until their mean and the composition agree. It uses more than the winning class, but takes the probabilities at their
  word. Where the calibration's own cells are at hand, `corrected_em` adjusts the mean of EM's posteriors by what their
  mean is on each class there, as the adjusted count does with counts (probabilistic adjusted count: Bella et al.,
  ICDM 2010), which removes the bias that miscalibrated probabilities leave.

Rejected cells stand in the confusion as a column of their own. What a sample rejects may be debris, so the likelihood
is that of the accepted cells alone: a share q_j ∝ sum_k pi_k C[k, j] of them is called j. A class that is rejected more
often than others is thereby made up for.
"""

from collections.abc import Sequence

import numpy as np

from urnet.calibration.confusion import ReferenceCells
from urnet.errors import CellsError

MAX_STEPS = 10_000  # of EM; it stops long before, but for a composition at the edge
TOLERANCE = 1e-8
MIN_WEIGHT = 0.02  # share of a class, in the weights of EM's posteriors, below which they would tell nothing of it
MAX_CONDITION = 1e10  # condition number


def classify_and_count(counts: np.ndarray) -> np.ndarray:
    """Share of each class among the accepted cells, as predicted.

    Args:
        counts: (K,) accepted cells by predicted class.

    Returns:
        (K,) shares that sum to 1; NaN where there are no cells.
    """
    counts = np.asarray(counts, dtype=np.float64)
    whole = counts.sum()
    return counts / whole if whole else np.full(len(counts), np.nan)


def adjusted_count(counts: np.ndarray, confusion: np.ndarray) -> np.ndarray:
    """The composition that makes the counts most likely, given the confusion.

    Where solving q = C^T pi gives shares of at least 0 it is that solution; else the likeliest composition has none of
    some class. Cells that were called what no calibration cell was say nothing; if all were, all shares are equal.

    Args:
        counts: (K,) accepted cells by predicted class.
        confusion: (K, K + 1) cells of known class (row) by predicted class, the last column rejected.

    Returns:
        (K,) shares of the classes among all cells of the sample, rejected ones included; NaN where none was accepted.

    Raises:
        CellsError: as `check_confusion`.
        ValueError: shapes do not fit each other.
    """
    counts, table = np.asarray(counts, dtype=np.float64), check_confusion(confusion)
    if counts.shape != (len(table),):
        raise ValueError(f"counts have shape {counts.shape}, the confusion {table.shape}")
    if not counts.sum():
        return np.full(len(counts), np.nan)
    rates = table[:, :-1] / table.sum(axis=1, keepdims=True)  # (K, K)
    accepted = rates.sum(axis=1)
    if np.linalg.cond(rates) < MAX_CONDITION:
        solved = np.linalg.solve(rates.T, counts / counts.sum())
        if (solved >= 0).all():
            return solved / solved.sum()
    called = rates[:, counts > 0].T / accepted
    called[~called.any(axis=1)] = 1  # what no calibration cell was called speaks for no class
    return _mixture(called, counts[counts > 0], accepted)


def em(
    probabilities: np.ndarray, training_prior: np.ndarray | None = None, acceptance: np.ndarray | None = None
) -> np.ndarray:
    """The composition at which EM's posteriors agree with it (Saerens et al. 2002, Eq. 2.9).

    Args:
        probabilities: (N, K) predicted probabilities of the accepted cells.
        training_prior: (K,) shares of the classes that the probabilities assume; equal where not given, as balanced
            training leaves them.
        acceptance: (K,) share of each class that is accepted; all where not given.

    Returns:
        (K,) shares of the classes among all cells, rejected ones included; NaN where there are no cells.
    """
    classes = probabilities.shape[1]
    if not len(probabilities):
        return np.full(classes, np.nan)
    accepted = np.ones(classes) if acceptance is None else np.asarray(acceptance, dtype=np.float64)
    return _mixture(_likelihood(probabilities, training_prior), np.ones(len(probabilities)), accepted)


def corrected_em(
    probabilities: np.ndarray, reference: ReferenceCells, training_prior: np.ndarray | None = None
) -> np.ndarray:
    """EM, with what its posteriors say of known cells taken into account.

    Args:
        probabilities: (N, K) predicted probabilities of the accepted cells.
        reference: cells of known class.
        training_prior: as for `em`.

    Returns:
        (K,) shares of the classes among all cells, rejected ones included; NaN where there are no cells.

    Raises:
        CellsError: as `check_confusion`.
    """
    table = check_confusion(reference.confusion)
    if not len(probabilities):
        return np.full(len(table), np.nan)
    scores, known = em_scores(probabilities, reference, training_prior)
    return solve_shares(mean_by_class(known, reference.truth), scores.mean(axis=0))


def em_scores(
    probabilities: np.ndarray, reference: ReferenceCells, training_prior: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """EM's posteriors at the sample's composition: (N, K) of its cells, (N', K) of known ones, 0 where rejected."""
    rejected = reference.rejected.astype(bool)
    rates = mean_by_class(~rejected[:, None], reference.truth, probabilities.shape[1])[:, 0]
    weights = (em(probabilities, training_prior, rates) * rates).clip(min=0)
    weights = (weights / weights.sum()).clip(min=MIN_WEIGHT)
    scores, known = (_likelihood(p, training_prior) * weights for p in (probabilities, reference.probabilities))
    scores, known = (made / made.sum(axis=1, keepdims=True) for made in (scores, known))
    return scores, np.where(rejected[:, None], 0, known)


def solve_shares(rates: np.ndarray, means: np.ndarray) -> np.ndarray:
    """The composition (K,) whose classes, with rates (K, K), have the means (K,); shares below 0 are none."""
    shares = np.linalg.solve(make_invertible(rates).T, means).clip(min=0)
    return shares / shares.sum()


def mean_by_class(values: np.ndarray, truth: np.ndarray, classes: int | None = None) -> np.ndarray:
    """(K, D) means over the cells of each class of (N, D) values."""
    return np.stack([values[truth == k].mean(axis=0) for k in range(classes or values.shape[1])])


def make_invertible(rates: np.ndarray) -> np.ndarray:
    """Rates (K, K) that can be inverted: those of classes that nothing tells apart are moved by a millionth."""
    return rates if np.linalg.cond(rates) < MAX_CONDITION else rates + 1e-6 * np.eye(len(rates))


def check_confusion(confusion: np.ndarray, classes: Sequence[str] | None = None) -> np.ndarray:
    """The confusion as floats, if percentages can be corrected with it.

    Args:
        confusion: (K, K + 1) cells of known class (row) by predicted class, the last column rejected.
        classes: the class names, for messages.

    Raises:
        CellsError: a class has no cell, or none that was accepted.
        ValueError: it has another shape, or a count below 0.
    """
    table = np.asarray(confusion, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] != table.shape[0] + 1 or not np.isfinite(table).all() or (table < 0).any():
        raise ValueError(f"a confusion is (K, K + 1) counts, the last column rejected; this is {table.shape}")
    for index, row in enumerate(table):
        name = repr(classes[index]) if classes is not None else f"number {index}"
        if not row.sum():
            raise CellsError(
                f"the calibration has no cell of class {name}, so nothing says how often such a cell is called what; "
                "percentages can be corrected only with calibration cells of every class: evaluate the run on a part "
                "that has some, or merge classes"
            )
        if not row[:-1].sum():
            raise CellsError(
                f"all {row.sum():.0f} calibration cell(s) of class {name} were rejected, so a sample's accepted cells "
                "say nothing of that class: lower the rejection rate, or leave the class out"
            )
    return table


def _likelihood(probabilities: np.ndarray, training_prior: np.ndarray | None) -> np.ndarray:
    """(N, K) how likely each cell is in each class, up to a factor a cell."""
    probabilities = np.asarray(probabilities, dtype=np.float64).clip(min=1e-12)
    return probabilities if training_prior is None else probabilities / np.asarray(training_prior, dtype=np.float64)


def _mixture(likelihood: np.ndarray, weights: np.ndarray, accepted: np.ndarray) -> np.ndarray:
    """Shares (K,) of the classes from (N, K) likelihoods of accepted observations, by EM."""
    shares = np.full(likelihood.shape[1], 1 / likelihood.shape[1])
    weights = weights / weights.sum()
    for _ in range(MAX_STEPS):
        before, shares = shares, shares * (likelihood.T @ (weights / np.maximum(likelihood @ shares, 1e-300)))
        if np.abs(shares - before).max() < TOLERANCE:
            break
    shares = np.where(accepted > 0, shares / np.where(accepted > 0, accepted, 1), 0)
    return shares / shares.sum()

"""Estimate the share of each class in a sample, corrected for the classifier's confusion.

Counts of predictions are biased: with 2 % monocytes, and a tenth of the granulocytes called monocytes, most cells
called monocytes are granulocytes. Two methods correct this with labelled cells (prior-probability shift: the cells of a
class look as in the calibration, only the shares differ):

- The **adjusted count** is the composition that makes the counts most likely, given the confusion
  (Forman, "Quantifying counts and costs via classification", Data Min. Knowl. Disc. 17, 2008, section 3.2).
- **EM** (Saerens, Latinne and Decaestecker, Neural Computation 14, 2002, Eq. 2.9) reweights the probabilities of each
  cell until their mean equals the composition. It uses more than the predicted class, but relies on calibrated
  probabilities. `corrected_em` also adjusts the mean of the posteriors by their mean on each class of the calibration's
  cells (probabilistic adjusted count: Bella et al., ICDM 2010), which removes the bias of miscalibrated probabilities.

Rejected cells are a column of the confusion. Rejected crops of a sample may be debris, so the likelihood is that of the
accepted cells alone: a share q_j ∝ sum_k pi_k C[k, j] of them is called j. This corrects for classes that are rejected
more often than others.
"""

from collections.abc import Sequence

import numpy as np

from urnet.calibration.confusion import ReferenceCells
from urnet.errors import CellsError

MAX_STEPS = 10_000
"""Maximum number of steps of EM; only a composition at the edge needs many."""
TOLERANCE = 1e-8
"""Change of a share at which EM stops."""
MIN_WEIGHT = 0.02
"""Minimum share of a class in the weights of EM's posteriors."""
MAX_CONDITION = 1e10
"""Condition number above which a confusion cannot be inverted."""


def classify_and_count(counts: np.ndarray) -> np.ndarray:
    """Compute the share of each predicted class among the accepted cells, without correction.

    Args:
        counts: (K,) accepted cells by predicted class.

    Returns:
        (K,) shares that sum to 1; NaN where there are no cells.
    """
    counts = np.asarray(counts, dtype=np.float64)
    whole = counts.sum()
    return counts / whole if whole else np.full(len(counts), np.nan)


def adjusted_count(counts: np.ndarray, confusion: np.ndarray) -> np.ndarray:
    """Compute the composition that makes the counts most likely, given the confusion.

    It is the solution of q = C^T pi if all of its shares are at least 0; otherwise some classes have no share. Cells
    called a class that no calibration cell was called carry no information; if all are, all shares are equal.

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
    called[~called.any(axis=1)] = 1  # a call without calibration cells supports no class
    return _mixture(called, counts[counts > 0], accepted)


def em(
    probabilities: np.ndarray, training_prior: np.ndarray | None = None, acceptance: np.ndarray | None = None
) -> np.ndarray:
    """Compute the composition that equals the mean of EM's posteriors (Saerens et al. 2002, Eq. 2.9).

    Args:
        probabilities: (N, K) predicted probabilities of the accepted cells.
        training_prior: (K,) shares of the classes that the probabilities assume; equal if not given, as after balanced
            training.
        acceptance: (K,) accepted share of each class; 1 if not given.

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
    """Compute EM's composition, corrected by its posteriors of labelled cells.

    Args:
        probabilities: (N, K) predicted probabilities of the accepted cells.
        reference: labelled cells.
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
    """Compute EM's posteriors at the sample's composition.

    Returns:
        (N, K) of the sample's cells, and (N', K) of the labelled cells, 0 where rejected.
    """
    rejected = reference.rejected.astype(bool)
    rates = mean_by_class(~rejected[:, None], reference.truth, probabilities.shape[1])[:, 0]
    weights = (em(probabilities, training_prior, rates) * rates).clip(min=0)
    weights = (weights / weights.sum()).clip(min=MIN_WEIGHT)
    scores, known = (_likelihood(p, training_prior) * weights for p in (probabilities, reference.probabilities))
    scores, known = (made / made.sum(axis=1, keepdims=True) for made in (scores, known))
    return scores, np.where(rejected[:, None], 0, known)


def solve_shares(rates: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Solve for the composition (K,) with the means (K,), given the rates (K, K); negative shares become 0."""
    shares = np.linalg.solve(make_invertible(rates).T, means).clip(min=0)
    return shares / shares.sum()


def mean_by_class(values: np.ndarray, truth: np.ndarray, classes: int | None = None) -> np.ndarray:
    """Average values (N, D) over the cells of each class, (K, D)."""
    return np.stack([values[truth == k].mean(axis=0) for k in range(classes or values.shape[1])])


def make_invertible(rates: np.ndarray) -> np.ndarray:
    """Make rates (K, K) invertible: add a millionth to the diagonal where classes cannot be distinguished."""
    return rates if np.linalg.cond(rates) < MAX_CONDITION else rates + 1e-6 * np.eye(len(rates))


def check_confusion(confusion: np.ndarray, classes: Sequence[str] | None = None) -> np.ndarray:
    """Check that a confusion can correct percentages, and return it as floats.

    Args:
        confusion: (K, K + 1) cells of known class (row) by predicted class, the last column rejected.
        classes: the class names, for messages.

    Raises:
        CellsError: a class has no cell (code `counting.class_missing`), or no accepted cell (code
            `counting.class_rejected`).
        ValueError: another shape, or a negative count.
    """
    table = np.asarray(confusion, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] != table.shape[0] + 1 or not np.isfinite(table).all() or (table < 0).any():
        raise ValueError(f"a confusion must be (K, K + 1) counts with the last column rejected, found {table.shape}")
    for index, row in enumerate(table):
        name = repr(classes[index]) if classes is not None else f"number {index}"
        if not row.sum():
            raise CellsError(
                f"the calibration has no cell of class {name}, so its confusion is not known and percentages cannot be "
                "corrected. Calibrate the run on cells of every class, or merge classes in the recipe",
                code="counting.class_missing",
            )
        if not row[:-1].sum():
            raise CellsError(
                f"all {row.sum():.0f} calibration cell(s) of class {name} were rejected, so this class cannot be "
                "counted. Calibrate with a lower --false-rejection, or leave the class out",
                code="counting.class_rejected",
            )
    return table


def _likelihood(probabilities: np.ndarray, training_prior: np.ndarray | None) -> np.ndarray:
    """Compute the likelihood of each cell in each class, (N, K), up to a factor per cell."""
    probabilities = np.asarray(probabilities, dtype=np.float64).clip(min=1e-12)
    return probabilities if training_prior is None else probabilities / np.asarray(training_prior, dtype=np.float64)


def _mixture(likelihood: np.ndarray, weights: np.ndarray, accepted: np.ndarray) -> np.ndarray:
    """Estimate the shares (K,) of the classes from likelihoods (N, K) of accepted cells, by EM."""
    shares = np.full(likelihood.shape[1], 1 / likelihood.shape[1])
    weights = weights / weights.sum()
    for _ in range(MAX_STEPS):
        before, shares = shares, shares * (likelihood.T @ (weights / np.maximum(likelihood @ shares, 1e-300)))
        if np.abs(shares - before).max() < TOLERANCE:
            break
    shares = np.where(accepted > 0, shares / np.where(accepted > 0, accepted, 1), 0)
    return shares / shares.sum()

"""Confusion of a classifier, counted on labelled cells; it corrects a differential."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ReferenceCells:
    """Labelled cells on which the confusion of a classifier is counted; none of them was used in training.

    Args:
        probabilities: (N, K) predicted probabilities, calibrated.
        truth: (N,) indices of the true classes.
        rejected: (N,) whether the cell was rejected.
    """

    probabilities: np.ndarray
    truth: np.ndarray
    rejected: np.ndarray

    @property
    def confusion(self) -> np.ndarray:
        """Number of cells by true class (rows) and decision (columns), (K, K + 1); the last column: rejected."""
        classes = self.probabilities.shape[1]
        decision = np.where(self.rejected, classes, self.probabilities.argmax(axis=1))
        table = np.zeros((classes, classes + 1), dtype=np.int64)
        np.add.at(table, (self.truth, decision), 1)
        return table

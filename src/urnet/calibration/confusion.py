"""Cells of known class on which a classifier was measured: what a differential is corrected by."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ReferenceCells:
    """Cells of known class on which the classifier was measured; none of them was trained on.

    Args:
        probabilities: (N, K) predicted probabilities, calibrated.
        truth: (N,) class indices.
        rejected: (N,) whether the cell was rejected.
    """

    probabilities: np.ndarray
    truth: np.ndarray
    rejected: np.ndarray

    @property
    def confusion(self) -> np.ndarray:
        """(K, K + 1) cells by class and by predicted class, the last column rejected."""
        classes = self.probabilities.shape[1]
        said = np.where(self.rejected, classes, self.probabilities.argmax(axis=1))
        table = np.zeros((classes, classes + 1), dtype=np.int64)
        np.add.at(table, (self.truth, said), 1)
        return table

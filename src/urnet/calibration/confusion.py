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
        donors: (N,) numbers of the donors, from 0; -1 where the donor is not known. None if no donor is known.
    """

    probabilities: np.ndarray
    truth: np.ndarray
    rejected: np.ndarray
    donors: np.ndarray | None = None

    @property
    def donor_count(self) -> int:
        """Number of known donors."""
        return 0 if self.donors is None else len(np.unique(self.donors[self.donors >= 0]))

    @property
    def confusion(self) -> np.ndarray:
        """Number of cells by true class (rows) and decision (columns), (K, K + 1); the last column: rejected."""
        classes = self.probabilities.shape[1]
        table = np.zeros((classes, classes + 1), dtype=np.int64)
        np.add.at(table, (self.truth, self._decisions), 1)
        return table

    @property
    def by_donor(self) -> np.ndarray:
        """The confusion of each known donor, (D, K, K + 1); without the cells whose donor is not known."""
        classes = self.probabilities.shape[1]
        table = np.zeros((self.donor_count, classes, classes + 1), dtype=np.int64)
        known, donors = self._known_donors
        np.add.at(table, (donors, self.truth[known], self._decisions[known]), 1)
        return table

    def average_by_donor(self, values: np.ndarray) -> np.ndarray:
        """Average values (N, V) over the cells of each known donor and class, (D, K, V); 0 where it has no cells."""
        known, donors = self._known_donors
        classes = self.probabilities.shape[1]
        sums = np.zeros((self.donor_count, classes, values.shape[1]))
        cells = np.zeros((self.donor_count, classes, 1))
        np.add.at(sums, (donors, self.truth[known]), values[known])
        np.add.at(cells, (donors, self.truth[known]), 1)
        return sums / np.maximum(cells, 1)

    def average_by_call(self, values: np.ndarray) -> np.ndarray:
        """Average values (N, V) over the accepted cells of each class and predicted class, (K, K, V); 0 without any."""
        classes = self.probabilities.shape[1]
        accepted = ~self.rejected.astype(bool)
        where = self.truth[accepted], self._decisions[accepted]
        sums, cells = np.zeros((classes, classes, values.shape[1])), np.zeros((classes, classes, 1))
        np.add.at(sums, where, values[accepted])
        np.add.at(cells, where, 1)
        return sums / np.maximum(cells, 1)

    @property
    def _decisions(self) -> np.ndarray:
        return np.where(self.rejected, self.probabilities.shape[1], self.probabilities.argmax(axis=1))

    @property
    def _known_donors(self) -> tuple[np.ndarray, np.ndarray]:
        """Whether the donor of each cell is known, (N,), and the donors of those cells, numbered without gaps."""
        donors = np.full(len(self.truth), -1) if self.donors is None else self.donors
        known = donors >= 0
        return known, np.unique(donors[known], return_inverse=True)[1]

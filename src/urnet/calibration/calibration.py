"""Calibration of a model by held-out cells: temperature, prediction sets, rejection and confusion."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from urnet.calibration import conformal
from urnet.calibration.conformal import COVERAGE
from urnet.calibration.confusion import ReferenceCells
from urnet.calibration.rejection import Measures, Rejection


@dataclass(frozen=True, eq=False)
class Calibration:
    """Calibration of a model, measured on held-out cells.

    Attributes:
        classes: the K class names, in the order of the outputs.
        temperature: number that divides the logits.
        scores: for each class, the conformal scores of its held-out cells, ascending.
        rejection: checks that reject crops without a countable cell.
        reference: labelled cells on which the confusion was counted.
        reference_part: part of the reference cells: `test`, or `validation` where a run has no test part.
        scores_part: part of the cells of the scores, in the same way.
        parts: number of cells used of each part: `train` for distances and limits, `validation` for temperature and
            limits, `test` for scores and confusion.
        false_rejection: intended share of rejected cells among good ones.
    """

    classes: tuple[str, ...]
    temperature: float
    scores: tuple[np.ndarray, ...]
    rejection: Rejection
    reference: ReferenceCells
    reference_part: str
    scores_part: str
    parts: dict[str, int]
    false_rejection: float

    @property
    def confusion(self) -> np.ndarray:
        """Reference cells by true class (rows) and decision (columns), (K, K + 1); the last column: rejected."""
        return self.reference.confusion

    def prediction_sets(self, probabilities: np.ndarray, coverage: float = COVERAGE) -> np.ndarray:
        """Find the classes that cannot be ruled out for each cell, (N, K) booleans.

        Args:
            probabilities: (N, K), with the temperature.
            coverage: share of each class's cells whose set holds it, in (0, 1).
        """
        return conformal.prediction_sets(probabilities, self.scores, coverage)

    def set_names(self, probabilities: np.ndarray, coverage: float = COVERAGE) -> list[str]:
        """Make the prediction sets as text: class names joined by `|`, as `conformal.join_set` does."""
        return conformal.name_sets(self.prediction_sets(probabilities, coverage), self.classes)

    def reject(self, rows: Sequence[Measures], features: np.ndarray) -> list[str]:
        """Give the reason why each crop is rejected; "" for countable cells.

        Args:
            rows: measures of each crop at the network's size, from `Model.measure_crops`: quality and, where known,
            `edge`
                (share of the crop beyond the field's border) and `touching` (share of the outline next to another
                cell).
            features: (N, F), from `Model.outputs`.
        """
        return self.rejection.reject(rows, features)

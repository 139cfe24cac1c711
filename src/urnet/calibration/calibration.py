"""What held-out cells say of a model: temperature, prediction sets, rejection and confusion."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np

from urnet.calibration import conformal
from urnet.calibration.conformal import COVERAGE
from urnet.calibration.confusion import ReferenceCells
from urnet.calibration.rejection import Measures, Rejection


@dataclass(frozen=True, eq=False)
class Calibration:
    """What held-out cells say of a model.

    Attributes:
        classes: the K class names, in the order of the outputs.
        temperature: what the logits are divided by.
        scores: for each class the conformal scores of its held-out cells, ascending.
        rejection: which crops are no countable cells.
        reference: cells on which the decisions were counted.
        reference_part: the part that they are from: `test`, or `validation` where a run has no test part.
        parts: cells of each part that went into it (`train`: distances and limits; `validation`: temperature, scores
            and limits; `test`: the confusion).
        false_rejection: the share of good cells that was to be rejected.
    """

    classes: tuple[str, ...]
    temperature: float
    scores: tuple[np.ndarray, ...]
    rejection: Rejection
    reference: ReferenceCells
    reference_part: str
    parts: dict[str, int]
    false_rejection: float

    @property
    def confusion(self) -> np.ndarray:
        """(K, K + 1) cells by true class (rows) and decision (columns); the last column are those rejected."""
        return self.reference.confusion

    def prediction_sets(self, probabilities: np.ndarray, coverage: float = COVERAGE) -> np.ndarray:
        """The classes that cannot be ruled out for each cell, (N, K) booleans.

        Args:
            probabilities: (N, K), with the temperature.
            coverage: share of each class's cells whose set holds it, in (0, 1).
        """
        return conformal.prediction_sets(probabilities, self.scores, coverage)

    def set_names(self, probabilities: np.ndarray, coverage: float = COVERAGE) -> list[str]:
        """The prediction sets as tables show them: class names joined by `|`, as `conformal.join_set` does."""
        sets = self.prediction_sets(probabilities, coverage)
        return [conformal.join_set(compress(self.classes, row)) for row in sets]

    def reject(self, rows: Sequence[Measures], features: np.ndarray) -> list[str]:
        """Why each crop is not counted; "" for those that are.

        Args:
            rows: the measures of each crop at the network's size, from `quality`, and where known its `edge` (share of
                the crop beyond the field's border) and `touching` (share of the outline next to another cell).
            features: (N, F), from the model's outputs.
        """
        return self.rejection.reject(rows, features)

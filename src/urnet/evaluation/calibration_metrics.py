"""Metrics of a model's calibration on labelled cells: temperature, prediction sets and rejection."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from urnet.calibration.conformal import COVERAGE
from urnet.evaluation.metrics import LEVEL, REPLICATES, add_interval, resample, score
from urnet.evaluation.predictions import ScoredCells


def calibration_metrics(
    scored: Sequence[ScoredCells],
    groups: np.ndarray,
    *,
    coverage: float = COVERAGE,
    replicates: int = REPLICATES,
) -> dict[str, Any] | None:
    """Check the calibration of one model, or of all folds of a cross-validation together.

    Args:
        scored: the cells of each model with its predictions.
        groups: (N,) what the bootstrap draws, over all of `scored`.
        coverage: intended share of prediction sets that contain the true class.
        replicates: number of bootstrap replicates.

    Returns:
        Content of `metrics.json` under `calibration`; None if a model is not calibrated. Metrics have the form
        `{"value": …, "interval": …}`.

        - `temperature`: of each model.
        - `expected_calibration_error`: `before` and `after` the temperature.
        - `sets`: intended `coverage`; `mean_size` and `size_per_class`, in classes; `covered` and `per_class`, the
          share of sets that contain the true class.
        - `rejection`: intended rate (`false_rejection`); share of these labelled cells that is rejected (`rejected`,
          `per_class`); numbers `by_reason`.
    """
    calibrations = [part.model.calibration for part in scored]
    if any(calibration is None for calibration in calibrations):
        return None
    classes = scored[0].model.classes
    truth = np.concatenate([part.truth for part in scored])
    rejected = np.concatenate([part.rejected for part in scored])
    sets = np.concatenate(
        [c.prediction_sets(part.probabilities, coverage) for c, part in zip(calibrations, scored, strict=True)]
    )
    covered = sets[np.arange(len(truth)), truth]
    errors = {
        name: score(truth, np.concatenate(parts), classes, groups, replicates=replicates)["expected_calibration_error"]
        for name, parts in (
            ("before", [part.uncalibrated for part in scored]),
            ("after", [part.probabilities for part in scored]),
        )
    }
    all_cells = np.ones(len(truth), dtype=bool)

    def by_class(values: np.ndarray) -> dict[str, Any]:
        return {name: mean_with_interval(values, truth == k, groups, replicates) for k, name in enumerate(classes)}

    def in_classes(share: dict[str, Any]) -> dict[str, Any]:
        """Convert a share of all classes to a number of classes. A mean size of 1 would count as a proportion."""
        return {
            "value": share["value"] if share["value"] is None else len(classes) * share["value"],
            "interval": share["interval"] and [len(classes) * end for end in share["interval"]],
        }

    return {
        "temperature": [calibration.temperature for calibration in calibrations],
        "expected_calibration_error": errors,
        "sets": {
            "coverage": coverage,
            "mean_size": in_classes(mean_with_interval(sets.mean(axis=1), all_cells, groups, replicates)),
            "size_per_class": {name: in_classes(size) for name, size in by_class(sets.mean(axis=1)).items()},
            "covered": mean_with_interval(covered, all_cells, groups, replicates),
            "per_class": by_class(covered),
        },
        "rejection": {
            "false_rejection": calibrations[0].false_rejection,
            "rejected": mean_with_interval(rejected != "", all_cells, groups, replicates),
            "per_class": by_class(rejected != ""),
            "by_reason": dict(Counter(rejected[rejected != ""].tolist()).most_common()),
        },
    }


def mean_with_interval(
    values: np.ndarray, included: np.ndarray, groups: np.ndarray, replicates: int = REPLICATES, level: float = LEVEL
) -> dict[str, Any]:
    """Compute the mean of a value over some cells, with an interval from the cluster bootstrap.

    Args:
        values: (N,) the value of each cell; booleans for a proportion.
        included: (N,) booleans, the cells that count.
        groups: (N,) what the bootstrap draws.
        replicates: number of bootstrap replicates.
        level: coverage of the interval.

    Returns:
        `{"value": float | None, "interval": [low, high] | None}`; the value is None without cells.
    """
    codes, unique = pd.factorize(np.asarray(groups)[included], use_na_sentinel=False)
    N, G = len(codes), len(unique)
    if not N:
        return {"value": None, "interval": None}
    sums = np.stack([np.asarray(values, dtype=np.float64)[included], np.ones(N)], axis=1)  # (N, 2)
    table = sparse.csr_array((sums.ravel(), (np.repeat(codes, 2), np.tile([0, 1], N))), shape=(G, 2))
    drawn = resample(table, replicates, seed=0)
    return add_interval(float(sums[:, 0].mean()), drawn[:, 0] / drawn[:, 1], G, level)

"""Metrics of a model's calibration on labelled cells: temperature, prediction sets and rejection."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from urnet.calibration.conformal import COVERAGE
from urnet.evaluation.metrics import score, to_figure
from urnet.evaluation.predictions import ScoredCells
from urnet.statistics.donors import LEVEL, interval_of_mean


def calibration_metrics(
    scored: Sequence[ScoredCells],
    groups: np.ndarray,
    *,
    coverage: float = COVERAGE,
) -> dict[str, Any] | None:
    """Check the calibration of one model, or of all folds of a cross-validation together.

    Args:
        scored: the cells of each model with its predictions.
        groups: (N,) donors or source images, over all of `scored`.
        coverage: intended share of prediction sets that contain the true class.

    Returns:
        Content of `metrics.json` under `calibration`; None if a model is not calibrated. Metrics have the form
        `{"value": …, "interval": …}`.

        - `temperature`: of each model.
        - `expected_calibration_error`: `before` and `after` the temperature.
        - `sets`: intended `coverage`; whether the sets are `cross_conformal`, each from the scores of other cells, as
          on the part that the scores come from; `mean_size` and `size_per_class`, in classes; `covered` and
          `per_class`, the share of sets that contain the true class.
        - `rejection`: intended rate (`false_rejection`); share of these labelled cells that is rejected (`rejected`,
          `per_class`); numbers `by_reason`.
    """
    calibrations = [part.model.calibration for part in scored]
    if any(calibration is None for calibration in calibrations):
        return None
    classes = scored[0].model.classes
    truth = np.concatenate([part.truth for part in scored])
    rejected = np.concatenate([part.rejected for part in scored])
    sets = np.concatenate([part.prediction_sets(coverage) for part in scored])
    covered = sets[np.arange(len(truth)), truth]
    errors = {
        name: score(truth, np.concatenate(parts), classes, groups)["expected_calibration_error"]
        for name, parts in (
            ("before", [part.uncalibrated for part in scored]),
            ("after", [part.probabilities for part in scored]),
        )
    }
    all_cells = np.ones(len(truth), dtype=bool)

    def by_class(values: np.ndarray) -> dict[str, Any]:
        return {name: mean_with_interval(values, truth == k, groups) for k, name in enumerate(classes)}

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
            "cross_conformal": any(part.gave_scores for part in scored),
            "mean_size": in_classes(mean_with_interval(sets.mean(axis=1), all_cells, groups)),
            "size_per_class": {name: in_classes(size) for name, size in by_class(sets.mean(axis=1)).items()},
            "covered": mean_with_interval(covered, all_cells, groups),
            "per_class": by_class(covered),
        },
        "rejection": {
            "false_rejection": calibrations[0].false_rejection,
            "rejected": mean_with_interval(rejected != "", all_cells, groups),
            "per_class": by_class(rejected != ""),
            "by_reason": dict(Counter(rejected[rejected != ""].tolist()).most_common()),
        },
    }


def mean_with_interval(
    values: np.ndarray, included: np.ndarray, groups: np.ndarray, level: float = LEVEL
) -> dict[str, Any]:
    """Compute the mean of a value over some cells, with an interval over groups.

    Args:
        values: (N,) the value of each cell, between 0 and 1; booleans for a proportion.
        included: (N,) booleans, the cells that count.
        groups: (N,) donors or source images.
        level: coverage of the interval.

    Returns:
        `{"value": float | None, "interval": [low, high] | None}`; the value is None without cells.
    """
    codes, unique = pd.factorize(np.asarray(groups)[included], use_na_sentinel=False)
    N, G = len(codes), len(unique)
    if not N:
        return {"value": None, "interval": None}
    chosen = np.asarray(values, dtype=np.float64)[included]
    mean, variance = float(chosen.mean()), float(chosen.var())
    if variance == 0 and 0 < mean < 1:
        return {"value": mean, "interval": None}
    # Values between 0 and 1 vary less than a proportion, as those of a larger number of cells do.
    distinct = N * mean * (1 - mean) / variance if variance else N
    sums, sizes = np.bincount(codes, chosen, minlength=G), np.bincount(codes, minlength=G)
    limits = interval_of_mean(sums[:, None], sizes[:, None], distinct=np.array([distinct]), level=level)
    return to_figure(mean, limits, G)

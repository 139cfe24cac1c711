"""What a calibrated model's answers were worth on labelled cells: beside the metrics, which count all cells."""

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
    scored: Sequence[ScoredCells], groups: np.ndarray, *, coverage: float = COVERAGE, replicates: int = REPLICATES
) -> dict[str, Any] | None:
    """Check temperature, prediction sets and rejection of one model, or of the folds of a cross-validation together.

    Args:
        scored: cells and what the models made of them.
        groups: (N,) what the bootstrap draws, over all of `scored`.
        coverage: of the prediction sets.
        replicates: bootstrap replicates.

    Returns:
        What `metrics.json` holds under `calibration`; none where a model is not calibrated. `temperature` of each
        model; `expected_calibration_error` with `before` and `after` the temperature; `sets` with the `coverage` asked
        for, the coverage found (`covered`, and `per_class`) and the `mean_size`; `rejection` with the rate asked for
        (`false_rejection`), the share rejected of these cells, all of which are labelled (`rejected`, and `per_class`),
        and the number `by_reason`. Figures are `{"value": …, "interval": …}` as elsewhere.
    """
    calibrations = [one.model.calibration for one in scored]
    if any(calibration is None for calibration in calibrations):
        return None
    classes = scored[0].model.classes
    truth = np.concatenate([one.truth for one in scored])
    rejected = np.concatenate([one.rejected for one in scored])
    sets = np.concatenate(
        [c.prediction_sets(one.probabilities, coverage) for c, one in zip(calibrations, scored, strict=True)]
    )
    covered = sets[np.arange(len(truth)), truth]
    errors = {
        name: score(truth, np.concatenate(parts), classes, groups, replicates=replicates)["expected_calibration_error"]
        for name, parts in (
            ("before", [one.uncalibrated for one in scored]),
            ("after", [one.probabilities for one in scored]),
        )
    }

    def by_class(hits: np.ndarray) -> dict[str, Any]:
        return {name: mean_with_interval(hits, truth == k, groups, replicates) for k, name in enumerate(classes)}

    everyone = np.ones(len(truth), dtype=bool)
    size = mean_with_interval(
        sets.mean(axis=1), everyone, groups, replicates
    )  # of all classes; a size of 1 would be no proportion
    return {
        "temperature": [calibration.temperature for calibration in calibrations],
        "expected_calibration_error": errors,
        "sets": {
            "coverage": coverage,
            "covered": mean_with_interval(covered, everyone, groups, replicates),
            "per_class": by_class(covered),
            "mean_size": {
                "value": len(classes) * size["value"],
                "interval": size["interval"] and [len(classes) * end for end in size["interval"]],
            },
        },
        "rejection": {
            "false_rejection": calibrations[0].false_rejection,
            "rejected": mean_with_interval(rejected != "", everyone, groups, replicates),
            "per_class": by_class(rejected != ""),
            "by_reason": dict(Counter(rejected[rejected != ""].tolist()).most_common()),
        },
    }


def mean_with_interval(
    hits: np.ndarray, among: np.ndarray, groups: np.ndarray, replicates: int = REPLICATES, level: float = LEVEL
) -> dict[str, Any]:
    """The mean of a figure over some cells, with an interval from the cluster bootstrap.

    Args:
        hits: (N,) the figure of each cell; booleans for a proportion.
        among: (N,) booleans, the cells that count.
        groups: (N,) what the bootstrap draws.
        replicates: bootstrap replicates.
        level: coverage of the interval.

    Returns:
        `{"value": float | None, "interval": [low, high] | None}`; the value is none without cells.
    """
    codes, unique = pd.factorize(np.asarray(groups)[among], use_na_sentinel=False)
    N, G = len(codes), len(unique)
    if not N:
        return {"value": None, "interval": None}
    sums = np.stack([np.asarray(hits, dtype=np.float64)[among], np.ones(N)], axis=1)  # (N, 2)
    table = sparse.csr_array((sums.ravel(), (np.repeat(codes, 2), np.tile([0, 1], N))), shape=(G, 2))
    drawn = resample(table, replicates, seed=0)
    return add_interval(float(sums[:, 0].mean()), drawn[:, 0] / drawn[:, 1], G, level)

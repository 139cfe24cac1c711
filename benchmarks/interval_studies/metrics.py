"""Intervals of one model's metrics over donors.

Three classes; the first one has the given prevalence. The logit of a donor's recall is normal with the spread of the
line as its standard deviation, independently for each class, and its mean gives the recall of the line. Wrong cells go
to the other classes in fixed shares. In the unlike lines donors have different numbers of cells (gamma distribution of
shape 2) and compositions (logit standard deviation 0.5), or a donor lacks the first class with probability 0.3.

The columns: `donors`, `cells`, `prevalence` of the first class, `spread`, `case`. Then for each metric `coverage_…` in
per cent and `length_…`: the mean length relative to a normal interval with the true standard deviation of the estimate.
`recall`, `precision`, `f1` and `share` are those of the first class, `recall_common` that of the second. Tests in which
a class has no cell, or cells of one donor only, do not count. `tiny` is the share of tests in which the first class has
fewer than 10 wrong or fewer than 10 right cells. The lines of `calibration error` are models whose probabilities are
too high by `bias` logits, which differs between donors with the standard deviation `spread`.
"""

import numpy as np
import pandas as pd
from scipy import special

from urnet.evaluation.metrics import calibration_error_interval, class_and_mean_intervals
from urnet.statistics.donors import interval_of_mean

DONORS = (8, 12, 20)
SPREADS = (0.0, 0.3, 0.6)
SETTINGS = (
    (500, 0.01, (0.7, 0.9, 0.8)),
    (500, 0.20, (0.7, 0.8, 0.75)),
    (2000, 0.05, (0.95, 0.95, 0.9)),
    (20000, 0.01, (0.8, 0.95, 0.9)),
    (20000, 0.60, (0.95, 0.9, 0.85)),
)
"""Cells, prevalence of the first class, recalls."""
UNLIKE = ((5, 2000, "equal"), (8, 4000, "sizes"), (12, 4000, "absent"), (20, 1000, "sizes"))
"""Donors, cells, case; prevalence 10 %, recalls as in the second-last setting."""
CONFUSED = np.array([[0, 0.7, 0.3], [0.2, 0, 0.8], [0.3, 0.7, 0]])
"""Shares of the wrong cells of each class that are called another class."""
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(40)
WEIGHTS = WEIGHTS / WEIGHTS.sum()
BINS = (np.arange(15) + 0.5) / 15
"""Confidence of the calibration lines' bins."""


def run(replicates: int, rng: np.random.Generator) -> pd.DataFrame:
    """Simulate all lines.

    Args:
        replicates: number of simulated tests per line.
        rng: source of all random numbers.
    """
    rows = []
    for donors in DONORS:
        for cells, prevalence, recalls in SETTINGS:
            for spread in SPREADS:
                rows.append(_measure(replicates, rng, donors, cells, prevalence, spread, recalls, "equal"))
    for donors, cells, case in UNLIKE:
        for spread in SPREADS:
            rows.append(_measure(replicates, rng, donors, cells, 0.1, spread, SETTINGS[-2][2], case))
    for donors in DONORS:
        for spread in SPREADS:
            for bias in (0.0, 0.2, 0.5):
                rows.append(_measure_calibration(replicates, rng, donors, 2000, bias, spread))
    return pd.DataFrame(rows)


def find_mean_logit(mean: float, spread: float) -> float:
    """Compute the mean of normally distributed logits whose proportions have the given mean."""
    low, high = -12.0, 12.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if WEIGHTS @ special.expit(middle + spread * NODES) < mean else (low, middle)
    return low


def simulate(
    replicates: int,
    rng: np.random.Generator,
    donors: int,
    cells: int,
    prevalence: float,
    spread: float,
    recalls: tuple[float, ...],
    case: str,
) -> np.ndarray:
    """Draw the confusion matrix of each donor, (replicates, donors, K, K), rows: truth."""
    K = len(recalls)
    shape = (replicates, donors)
    weights = rng.gamma(2, size=shape) if case == "sizes" else np.ones(shape)
    sizes = np.maximum(np.round(cells * weights / weights.sum(axis=1, keepdims=True)), 1).astype(int)
    composition = np.tile([prevalence, 0.65 * (1 - prevalence), 0.35 * (1 - prevalence)], (*shape, 1))
    if case == "sizes":
        composition = composition * np.exp(0.5 * rng.normal(size=composition.shape))
    if case == "absent":
        composition[..., 0] *= rng.random(shape) >= 0.3
    true = rng.multinomial(sizes, composition / composition.sum(axis=-1, keepdims=True))
    confusion = np.empty((*shape, K, K), dtype=int)
    for k, recall in enumerate(recalls):
        right = special.expit(find_mean_logit(recall, spread) + spread * rng.normal(size=shape))[..., None]
        confusion[:, :, k] = rng.multinomial(true[..., k], CONFUSED[k] * (1 - right) + np.eye(K)[k] * right)
    return confusion


def estimate(confusion: np.ndarray) -> dict[str, tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]]:
    """Compute each metric of R tests, (R,), and its limits from confusion matrices (R, donors, K, K)."""
    right = np.einsum("...kk->...k", confusion)
    true, predicted = confusion.sum(axis=3), confusion.sum(axis=2)
    sizes = true.sum(axis=2, keepdims=True)
    found = {}
    for name, hits in (("accuracy", right.sum(axis=2, keepdims=True)), ("share", predicted[..., :1])):
        found[name] = hits.sum(axis=(1, 2)) / sizes.sum(axis=(1, 2)), interval_of_mean(hits, sizes)
    for name, counted in (("recall", true), ("precision", predicted), ("f1", true + predicted - right)):
        whole = confusion.sum(axis=1) if name == "f1" else None
        (low, high), mean = class_and_mean_intervals(right, counted, confusion=whole)
        value = right.sum(axis=1) / counted.sum(axis=1)
        value = 2 * value / (1 + value) if name == "f1" else value
        found[name] = value[:, 0], (low[:, 0], high[:, 0])
        if name == "recall":
            found["recall_common"] = value[:, 1], (low[:, 1], high[:, 1])
        found[f"macro_{name}"] = value.mean(axis=1), mean
    return found


def _measure(
    replicates: int,
    rng: np.random.Generator,
    donors: int,
    cells: int,
    prevalence: float,
    spread: float,
    recalls: tuple[float, ...],
    case: str,
) -> dict[str, object]:
    setting = (prevalence, spread, recalls, case)
    many = simulate(1000, rng, 50, 10_000_000, *setting).reshape(1, -1, 3, 3)
    truth = _values(many.sum(axis=1)[0]) | {"recall": recalls[0], "macro_recall": float(np.mean(recalls))}
    truth["recall_common"] = recalls[1]
    confusion = simulate(replicates, rng, donors, cells, *setting)
    true, predicted = confusion.sum(axis=3), confusion.sum(axis=2)
    usable = (((true > 0).sum(axis=1) > 1) & ((predicted > 0).sum(axis=1) > 1)).all(axis=1)
    confusion = confusion[usable]
    first = confusion[:, :, 0].sum(axis=1)
    tiny = np.minimum(first[:, 0], first[:, 1:].sum(axis=1)) < 10
    row: dict[str, object] = {"donors": donors, "cells": cells, "prevalence": prevalence, "spread": spread}
    row |= {"case": case, "tiny": round(float(tiny.mean()), 3)}
    for name, (value, (low, high)) in estimate(confusion).items():
        covered = (low <= truth[name] + 1e-9) & (truth[name] <= high + 1e-9)
        row[f"coverage_{name}"] = round(100 * float(covered.mean()), 2)
        row[f"length_{name}"] = round(float((high - low).mean() / (2 * 1.96 * value.std())), 3)
    return row


def _values(confusion: np.ndarray) -> dict[str, float]:
    """Compute the metrics of one confusion matrix (K, K)."""
    right, true, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    precision, f1 = right / predicted, 2 * right / (true + predicted)
    return {
        "accuracy": float(right.sum() / true.sum()),
        "share": float(predicted[0] / true.sum()),
        "precision": float(precision[0]),
        "macro_precision": float(precision.mean()),
        "f1": float(f1[0]),
        "macro_f1": float(f1.mean()),
    }


def _measure_calibration(
    replicates: int, rng: np.random.Generator, donors: int, cells: int, bias: float, spread: float
) -> dict[str, object]:
    used = np.exp(4 * BINS) * (BINS > 1 / 3)
    used = used / used.sum()
    centre = special.logit(BINS) - bias
    sizes = rng.multinomial(cells // donors, used, size=(replicates, donors))  # (replicates, donors, bins)
    right = rng.binomial(sizes, special.expit(centre + spread * rng.normal(size=(replicates, donors, 1))))
    expected = special.expit(centre[:, None] + spread * NODES) @ WEIGHTS
    truth = float(used @ np.abs(expected - BINS))
    hits, lengths, values = 0, [], []
    for gap, size in zip(right - BINS * sizes, sizes.sum(axis=2), strict=True):
        low, high = calibration_error_interval(gap, size)
        hits += low <= truth <= high
        lengths.append(high - low)
        values.append(np.abs(gap.sum(axis=0)).sum() / size.sum())
    row: dict[str, object] = {"donors": donors, "cells": cells, "bias": bias, "spread": spread}
    return row | {
        "case": "calibration error",
        "coverage_calibration_error": round(100 * hits / replicates, 2),
        "length_calibration_error": round(float(np.mean(lengths) / (2 * 1.96 * np.std(values))), 3),
    }

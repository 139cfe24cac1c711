"""Metrics of a classifier, each with an interval over donors or source images.

Cells of one donor or one image resemble each other, so intervals come from the differences between whole groups, which
`urnet.statistics.donors` chooses. It holds the method as well:

- Accuracy, recall, precision and the predicted share are proportions. F1 is 2p/(1 + p) of a proportion p: the right
  cells among those that are or are called the class. The means over classes combine the classes' intervals.
- The expected calibration error sums the absolute values of the bins' gaps, so noise raises it. The lower limit is what
  such noise can explain: gaps are shrunk by their own noise (positive part of James and Stein, Proc. 4th Berkeley
  Symp. 1, 1961), and multivariate t noise with the jackknife's covariance is added. The upper limit is a t limit for
  the sum with the signs of the gaps. It is conservative where the error is small.

`benchmarks/intervals.py` measures the coverage.

Undefined values are None:

- A class without true cells has no recall, precision or F1, and the means over classes leave it out.
- A class with true cells that is never predicted has precision 0, as in scikit-learn, so that ignoring a rare class
  does not pay. This value has no interval, and counts as a constant in the mean.
- A metric that rests on fewer than two groups has no interval. Neither has a calibration error whose gaps are the same
  in every group.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from urnet.errors import CellsError
from urnet.statistics.donors import LEVEL, interval_of_mean

CALIBRATION_BINS = 15
DRAWS = 2000
"""Draws of the noise of the calibration error."""
ROUNDING = 1e-20
"""Variances below this are zero."""


def score(
    truth: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    groups: Sequence[Any] | np.ndarray,
    *,
    cells: Sequence[Any] | None = None,
    level: float = LEVEL,
) -> dict[str, Any]:
    """Compare predicted probabilities with the truth.

    Args:
        truth: (N,) class indices.
        probabilities: (N, K) predicted probabilities; the largest one names the predicted class.
        classes: The K class names.
        groups: (N,) donors or source images, from `choose_groups`.
        cells: (N,) identity of each cell, such as its path. Entries of the same cell (several seeds or augmented
            copies) count as one cell in the intervals. None if all entries are different cells.
        level: coverage of the intervals.

    Returns:
        Content of `metrics.json`: `accuracy`, `macro_recall`, `macro_precision`, `macro_f1` and
        `expected_calibration_error` (15 bins of equal width, Guo et al., ICML 2017, Eq. 3), each
        `{"value": float | None, "interval": [low, high] | None}`; `per_class` with `recall`, `precision`, `f1` in that
        form and `support`; `confusion_matrix` (rows: truth) in plain integers; `classes`; `n`; `differential` with
        `true_percent` and `predicted_percent` per class; `notes`, sentences on what is undefined and why.
        `macro_f1` is the mean of the classes' F1.

    Raises:
        CellsError: There are no cells.
        ValueError: Shapes do not fit each other, or a probability is not finite.
    """
    truth = np.asarray(truth)
    probabilities = np.asarray(probabilities, dtype=np.float64)
    _check(truth, probabilities, classes, groups)
    K, n = len(classes), len(truth)
    codes, unique = pd.factorize(np.asarray(groups), use_na_sentinel=False)
    G = len(unique)
    predicted = probabilities.argmax(axis=1)
    confusion = np.bincount(truth * K + predicted, minlength=K * K).reshape(K, K)
    true = confusion.sum(axis=1)

    counts = _count_cells(truth, predicted, codes, G, K)
    distinct = _count_distinct(truth, predicted, K, cells)
    per_class: dict[str, dict[str, Any]] = {name: {} for name in classes}
    means = {}
    for figure, of in (("recall", "true"), ("precision", "predicted"), ("f1", "either")):
        rows, means[f"macro_{figure}"] = _score_classes(figure, counts, of, confusion, distinct, level)
        for name, row in zip(classes, rows, strict=True):
            per_class[name][figure] = row
    for name, support in zip(classes, true, strict=True):
        per_class[name]["support"] = int(support)
    whole = counts["true"].sum(axis=1)

    def share(hits: np.ndarray, scale: float = 1) -> dict[str, Any]:
        limits = interval_of_mean(hits[:, None], whole[:, None], distinct=distinct["true"].sum(), level=level)
        return to_figure(hits.sum() / n, limits, G, scale)

    return {
        "accuracy": share(counts["right"].sum(axis=1)),
        **means,
        "expected_calibration_error": _score_calibration(truth, probabilities, codes, G, level),
        "per_class": per_class,
        "confusion_matrix": confusion.tolist(),
        "classes": list(classes),
        "n": n,
        "differential": {
            name: {
                "true_percent": float(100 * true[k] / n),
                "predicted_percent": share(counts["predicted"][:, k], 100),
            }
            for k, name in enumerate(classes)
        },
        "notes": _list_notes(confusion, classes, (counts["true"] > 0).sum(axis=0), G),
    }


def class_and_mean_intervals(
    right: np.ndarray,
    cells: np.ndarray,
    *,
    distinct: np.ndarray | None = None,
    confusion: np.ndarray | None = None,
    level: float = LEVEL,
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Compute the intervals of the recall, precision or F1 of each class and of their mean.

    Args:
        right: (..., G, K) right entries of each group and class.
        cells: (..., G, K) entries that count: those that are the class, are called it, or either for F1.
        distinct: (..., K) number of distinct cells among the entries that count; all by default.
        confusion: (..., K, K) confusion matrix, for F1; none for recall and precision.
        level: coverage of the intervals.

    Returns:
        Lower and upper limits of each class, (..., K), and of the mean, (...,).
    """
    dice = confusion is not None
    correlation = None if confusion is None else _correlate_f1(confusion)
    single = (np.moveaxis(table, -1, 0)[..., None] for table in (right, cells))
    alone = None if distinct is None else np.moveaxis(distinct, -1, 0)[..., None]
    low, high = interval_of_mean(*single, distinct=alone, level=level, dice=dice)  # (K, ...)
    mean = interval_of_mean(right, cells, distinct=distinct, level=level, dice=dice, correlation=correlation)
    return (np.moveaxis(low, 0, -1), np.moveaxis(high, 0, -1)), mean


def to_figure(value: float, limits: Sequence[Any], groups: int, scale: float = 1) -> dict[str, Any]:
    """Combine a value with its limits, as for `metrics.json`.

    Args:
        value: the value; NaN if undefined.
        limits: lower and upper limit.
        groups: number of groups that it rests on; fewer than two give no interval.
        scale: factor for both.
    """
    if np.isnan(value):
        return {"value": None, "interval": None}
    ends = [float(scale * end) for end in limits]
    return {"value": float(scale * value), "interval": ends if groups > 1 and np.isfinite(ends).all() else None}


def bin_confidence(truth: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sort predictions into bins of equal width by their confidence.

    Args:
        truth: (N,) class indices.
        probabilities: (N, K).

    Returns:
        Confidence (N,); whether it is right (N,), booleans; bin (N,) from 0 to 14. A bin contains its upper edge.
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == truth
    bins = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(int) - 1, 0, CALIBRATION_BINS - 1)
    return confidence, right, bins


def _check(truth: np.ndarray, probabilities: np.ndarray, classes: Sequence[str], groups: Sequence[Any]) -> None:
    if not len(truth):
        raise CellsError(
            "there are no cells to evaluate. Give another part, or more cells", code="evaluation.part_empty"
        )
    if truth.shape != (len(groups),) or probabilities.shape != (len(truth), len(classes)):
        raise ValueError(
            f"truth {truth.shape}, groups ({len(groups)},) and probabilities {probabilities.shape} do not fit "
            f"{len(classes)} classes: expected (N,), (N,) and (N, {len(classes)})"
        )
    if len(set(classes)) != len(classes):
        raise ValueError(f"class names repeat: {list(classes)}")
    if truth.min() < 0 or truth.max() >= len(classes):
        raise ValueError(f"truth holds indices {truth.min()} to {truth.max()}: expected 0 to {len(classes) - 1}")
    if not np.isfinite(probabilities).all():
        broken = int((~np.isfinite(probabilities)).any(axis=1).sum())
        raise ValueError(f"{broken} of {len(truth)} cells have a probability that is no number")


def _count_cells(
    truth: np.ndarray, predicted: np.ndarray, codes: np.ndarray, G: int, K: int, weights: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Count the entries of each group and class, (G, K) each: right, true, predicted, and either of the last two."""

    def count(labels: np.ndarray, included: np.ndarray | slice) -> np.ndarray:
        entries = None if weights is None else weights[included]
        return np.bincount(codes[included] * K + labels[included], entries, minlength=G * K).reshape(G, K)

    everything = slice(None)
    counts = {"right": count(truth, truth == predicted), "true": count(truth, everything)}
    counts["predicted"] = count(predicted, everything)
    counts["either"] = counts["true"] + counts["predicted"] - counts["right"]
    return counts


def _count_distinct(
    truth: np.ndarray, predicted: np.ndarray, K: int, cells: Sequence[Any] | None
) -> dict[str, np.ndarray]:
    """Count the distinct cells of each class, (K,) each. Each of m entries of a cell counts 1/m."""
    weights = None
    if cells is not None:
        codes = pd.factorize(np.asarray(cells, dtype=object), use_na_sentinel=False)[0]
        weights = 1 / np.bincount(codes)[codes]
    one = np.zeros(len(truth), dtype=int)
    return {name: table[0] for name, table in _count_cells(truth, predicted, one, 1, K, weights).items()}


def _score_classes(
    figure: str,
    counts: dict[str, np.ndarray],
    of: str,
    confusion: np.ndarray,
    distinct: dict[str, np.ndarray],
    level: float,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Compute recall, precision or F1 of each class and their mean, with intervals."""
    K, present = len(confusion), confusion.any(axis=1)
    counted = present & (counts[of].sum(axis=0) > 0)
    value = np.where(present, 0.0, np.nan)  # a class that is never predicted has precision 0
    limits = np.full((2, K), np.nan)
    mean: tuple[Any, Any] = (np.nan, np.nan)
    if counted.any():
        right, cells = counts["right"][:, counted], counts[of][:, counted]
        share = right.sum(axis=0) / cells.sum(axis=0)
        value[counted] = 2 * share / (1 + share) if figure == "f1" else share
        limits[:, counted], mean = class_and_mean_intervals(
            right,
            cells,
            distinct=distinct[of][counted],
            confusion=confusion[np.ix_(counted, counted)] if figure == "f1" else None,
            level=level,
        )
    groups = (counts[of] > 0).sum(axis=0)
    part = counted.sum() / present.sum()
    rows = [to_figure(value[k], limits[:, k], groups[k]) for k in range(K)]
    return rows, to_figure(np.nanmean(value), [part * end for end in mean], len(counts[of]))


def _correlate_f1(confusion: np.ndarray) -> np.ndarray:
    """Compute the correlation between the F1 of K classes over independent cells, (..., K, K).

    A confused cell lowers the F1 of two classes. The correlation follows from the influence of each entry of the
    confusion matrix on each class.
    """
    K = confusion.shape[-1]
    unit = np.eye(K)
    either = np.maximum(unit[:, :, None], unit[:, None, :])  # (class, truth, predicted)
    hits = unit[:, :, None] * unit[:, None, :]
    counted = np.einsum("...ij,kij->...k", confusion, either)
    share = np.einsum("...kk->...k", confusion) / counted
    influence = (hits - share[..., None, None] * either) / counted[..., None, None]
    covariance = np.einsum("...ij,...kij,...lij->...kl", confusion, influence, influence)
    deviation = np.sqrt(np.einsum("...kk->...k", covariance))
    product = deviation[..., :, None] * deviation[..., None, :]
    return np.where(unit > 0, 1, np.where(product > 0, covariance / np.where(product > 0, product, 1), 0))


def _score_calibration(
    truth: np.ndarray, probabilities: np.ndarray, codes: np.ndarray, G: int, level: float
) -> dict[str, Any]:
    """Compute the expected calibration error with its interval, as the module's docstring says."""
    confidence, right, bins = bin_confidence(truth, probabilities)
    gap = np.bincount(codes * CALIBRATION_BINS + bins, right - confidence, minlength=G * CALIBRATION_BINS)
    gap = gap.reshape(G, CALIBRATION_BINS)
    value = float(np.abs(gap.sum(axis=0)).sum() / len(truth))
    if G < 2:
        return {"value": value, "interval": None}
    low, high = calibration_error_interval(gap, np.bincount(codes, minlength=G), level)
    return {"value": value, "interval": None if low == high else [low, high]}


def calibration_error_interval(gap: np.ndarray, sizes: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """Compute the interval of the expected calibration error.

    Args:
        gap: (G, B) sum of right minus confidence of each group and bin.
        sizes: (G,) cells of each group, at least two groups.
        level: coverage of the interval.
    """
    share = sizes / sizes.sum()
    mean = gap.sum(axis=0) / sizes.sum()  # (B,)
    G = len(sizes)
    residual = (gap / sizes.sum() - mean * share[:, None]) * np.sqrt((G - 1) / G) / (1 - share)[:, None]
    covariance = residual.T @ residual  # (B, B)
    variance = np.diag(covariance)
    value = float(np.abs(mean).sum())
    if variance.max() < ROUNDING:
        return value, value
    freedom = max(1.0, 1 / float((share**2).sum()) - 1)

    rng = np.random.default_rng(0)
    noise = rng.multivariate_normal(np.zeros(len(mean)), covariance, size=DRAWS, method="eigh")
    noise /= np.sqrt(rng.chisquare(freedom, size=(DRAWS, 1)) / freedom)
    shrunk = mean * np.maximum(0, 1 - variance / np.where(mean == 0, 1, mean**2))
    raised = np.abs(shrunk + noise).sum(axis=1) - np.abs(shrunk).sum()
    low = value - np.quantile(raised, (1 + level) / 2)

    unclear = mean**2 < 4 * variance
    signs = np.stack([np.where(unclear, sign, np.sign(mean)) for sign in (np.sign(mean), -1, 0, 1)])
    longest = np.sqrt(np.einsum("sb,bc,sc->s", signs, covariance, signs).max())
    high = value + special.stdtrit(freedom, (1 + level) / 2) * longest
    return float(max(0, min(low, value))), float(min(1, high))


def _list_notes(confusion: np.ndarray, classes: Sequence[str], true_in: np.ndarray, G: int) -> list[str]:
    notes = []
    for k, name in enumerate(classes):
        if not confusion[k].any():
            notes.append(f"{name}: no true cells in this part; its metrics are undefined and not in the means.")
            continue
        if not confusion[:, k].any():
            notes.append(f"{name}: never predicted; its precision is 0 by convention.")
        if true_in[k] == 1 and G > 1:
            notes.append(f"{name}: all its cells belong to one group, so its recall has no interval.")
    return notes

"""Wrong verdicts, coverage, length and power of comparisons between recipes.

Simulated: recipes that are all equal. Cells are of three classes (60, 30 and 10 %). A fifth of the cells is right for
some recipes only, and stays so in every training. Recipes suit some donors better than others (`spread`, in logits of
that fifth); where donors are not known, they do not, since nothing could show it. Each training shifts all recalls by a
normal number of points with standard deviation `trainings` and correlation 0.75 between classes. A share of that
variance comes from the training cells: it is a sum over donors or images in the training part, so folds with common
training cells have it in common. Each line is the worst, or for length and power the mean, over all numbers of donors
(8, 12, 20, not known), spreads (0, 0.6) and shares (0, 0.2).

- `wrong 1`, `wrong 5`: per cent of tables with one and with five comparisons that have any wrong verdict, in any row.
- `wrong shared`: the worst of `wrong 5` where half of the variance of trainings comes from the training cells.
- `coverage`: per cent of 95 % intervals of macro recall that contain the true difference.
- `length`: mean length relative to that of an interval with the true standard error.
- `power 2`, `power 5`: per cent of true differences of 2 and 5 points that are found among five comparisons.

Trained: two classifiers on ten features each, of twenty that are alike, so that both are equally good.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from urnet.statistics.estimate import Estimate
from urnet.statistics.folds import estimate_over_folds
from urnet.statistics.multiple import FAMILY_ERROR, adjust_holm, adjust_secondary
from urnet.statistics.one_split import add_trainings, estimate_over_groups

CLASSES = np.array([0.6, 0.3, 0.1])
CONTESTED = 0.2
PAIRS = 5
IMAGES = 60
CELLS, DONORS, TRAININGS, SPREADS, SHARES = (2000, 20_000), (8, 12, 20, 0), (0, 2, 4, 8), (0.0, 0.6), (0.0, 0.2)
LEVEL = 0.95


@dataclass(frozen=True)
class Setting:
    """One simulated experiment; `folds` 0 is one fold for each donor, `donors` 0 is unknown donors."""

    folds: int
    repeats: int
    donors: int
    cells: int
    trainings: float
    spread: float
    share: float

    @property
    def groups(self) -> int:
        """Number of what stays in one fold: donors or images."""
        return self.donors or IMAGES


def simulate_folds(setting: Setting, replicates: int, rng: np.random.Generator) -> Estimate:
    """Simulate experiments whose recipes are equal, and estimate all differences from the first recipe.

    Returns:
        Estimates of accuracy, macro recall and the three recalls, (R, pairs, 5).
    """
    right, cells = _draw_cells(setting, replicates, rng)
    test = _draw_folds(setting, replicates, rng)  # (R, J, G)
    tested = test.astype(float) @ cells
    recall = _sum_over(test, right) / np.maximum(tested, 1)[:, None]
    recall += _draw_trainings(setting, ~test, rng)
    there, all_cells = tested > 0, tested.sum(axis=-1)
    with np.errstate(invalid="ignore"):  # a fold without cells
        accuracy = np.einsum("rajc,rjc->raj", recall, tested) / all_cells[:, None]
        macro = np.einsum("rajc,rjc->raj", recall, there.astype(float)) / there.sum(axis=-1)[:, None]
    recall = np.where(there[:, None], recall, np.nan)
    metrics = np.concatenate([accuracy[..., None], macro[..., None], recall], axis=-1)
    change = metrics[:, 1:] - metrics[:, :1]  # (R, pairs, J, 5)
    folds = test.shape[1] // setting.repeats
    return estimate_over_folds(
        change.transpose(0, 1, 3, 2),
        all_cells[:, None, None],
        cells.sum(axis=(1, 2))[:, None, None, None],
        np.repeat(np.arange(setting.repeats), folds),
        setting.groups,
    )


def _sum_over(parts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Sum values of groups, (R, A, G, C), over the groups of each part, (R, J, G): (R, A, J, C)."""
    return parts[:, None].astype(float) @ values


def _draw_cells(setting: Setting, replicates: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw how many cells are right, (R, A, G, C), of how many, (R, G, C)."""
    G = setting.groups
    size = rng.gamma(4, size=(replicates, G, 1))  # donors have unequal numbers of cells
    cells = rng.poisson(setting.cells * size / size.sum(axis=1, keepdims=True) * CLASSES)
    contested = rng.binomial(cells, CONTESTED)
    spread = setting.spread if setting.donors else 0.0
    logits = rng.normal(0, spread, (replicates, PAIRS + 1, G, 1))
    return rng.binomial(contested[:, None], 1 / (1 + np.exp(-logits))), cells


def _draw_folds(setting: Setting, replicates: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the test parts: (R, J, G) booleans."""
    G, K = setting.groups, setting.folds or setting.groups
    order = rng.permuted(np.broadcast_to(np.arange(G), (replicates, setting.repeats, G)), axis=-1)
    test = (order % K)[:, :, None] == np.arange(K)[:, None]
    return test.reshape(replicates, -1, G)


def _draw_trainings(setting: Setting, train: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw what each training adds to the recalls, (R, A, J, C)."""
    R, J, G = train.shape
    shape = (R, PAIRS + 1, J, 1)

    def correlated(draw: np.ndarray, each: np.ndarray) -> np.ndarray:
        return np.sqrt(0.75) * draw + 0.5 * each

    alone = correlated(rng.normal(size=shape), rng.normal(size=(*shape[:3], len(CLASSES))))
    influence = correlated(rng.normal(size=(R, PAIRS + 1, G, 1)), rng.normal(size=(R, PAIRS + 1, G, len(CLASSES))))
    common = _sum_over(train, influence) / np.sqrt(train.sum(axis=-1))[:, None, :, None]
    return setting.trainings / 100 * (np.sqrt(1 - setting.share) * alone + np.sqrt(setting.share) * common)


def count_verdicts(p: np.ndarray) -> np.ndarray:
    """Decide which rows of a table count, (R, pairs, 5) booleans, from their p values."""
    primary = adjust_holm(p[..., 1])
    secondary = adjust_secondary(np.delete(p, 1, axis=-1), primary)
    return np.insert(secondary, 1, primary, axis=-1) <= FAMILY_ERROR


def measure(setting: Setting, replicates: int, rng: np.random.Generator) -> dict[str, float]:
    """Measure one setting."""
    estimate = simulate_folds(setting, replicates, rng)
    p = estimate.p_value()
    low, high = (limit[..., 1] for limit in estimate.interval(LEVEL))
    found = {}
    for points in (2, 5):
        shifted = estimate.value.copy()
        shifted[:, 0] += points / 100
        moved = Estimate(shifted, estimate.error, estimate.freedom)
        found[f"power {points}"] = 100 * count_verdicts(moved.p_value())[:, 0, 1].mean()
    true_error = estimate.value[..., 1].std()
    return {
        "wrong 1": 100 * count_verdicts(p[:, :1]).any(axis=(1, 2)).mean(),
        "wrong 5": 100 * count_verdicts(p).any(axis=(1, 2)).mean(),
        "coverage": 100 * ((low <= 0) & (high >= 0)).mean(),
        "length": float((high - low).mean() / (2 * 1.96 * true_error)),
        **found,
    }


def _list_settings(folds: int, repeats: int, cells: int, trainings: float, shares: tuple[float, ...]) -> list[Setting]:
    return [
        Setting(folds, repeats, donors, cells, trainings, spread, share)
        for donors in DONORS
        for spread in (SPREADS if donors else SPREADS[:1])
        for share in (shares if trainings else shares[:1])
        if folds or donors
    ]


DESIGNS = {"5 folds": (5, 1), "3 × 5 folds": (5, 3), "donors one by one": (0, 1), "5 × 2 folds": (2, 5)}


def _measure_folds(replicates: int, rng: np.random.Generator) -> Iterator[dict[str, object]]:
    for design, (folds, repeats) in DESIGNS.items():
        for cells in CELLS:
            for trainings in TRAININGS:
                lines = [
                    measure(setting, replicates, rng)
                    for setting in _list_settings(folds, repeats, cells, trainings, SHARES)
                ]
                shared = [
                    measure(setting, replicates, rng)["wrong 5"]
                    for setting in (_list_settings(folds, repeats, cells, trainings, (0.5,)) if trainings else [])
                ]
                table = pd.DataFrame(lines)
                yield {
                    "design": design,
                    "cells": cells,
                    "trainings": trainings,
                    "wrong 1": table["wrong 1"].max(),
                    "wrong 5": table["wrong 5"].max(),
                    "wrong shared": max(shared, default=np.nan),
                    "coverage": table["coverage"].min(),
                    **table[["length", "power 2", "power 5"]].mean(),
                }


def _measure_one_split(replicates: int, rng: np.random.Generator) -> Iterator[dict[str, object]]:
    """Measure the intervals of one split; there are no verdicts. The truth is the mean of trainings on this split."""
    for trainings in TRAININGS:
        for seeds in (1, 5):
            covered, lengths, values = [], [], []
            for donors in DONORS:
                setting = Setting(5, 1, donors, CELLS[0], trainings, 0.6, 0.0)
                right, cells = _draw_cells(setting, replicates, rng)
                luck = rng.normal(0, trainings / 100, (replicates, 2, seeds))
                for one in range(replicates):
                    shift = luck[one, 1] - luck[one, 0]
                    change = right[one, 1] - right[one, 0] + shift.mean() * cells[one]
                    estimate = estimate_over_groups(change, cells[one])
                    if seeds > 1:
                        estimate = add_trainings(estimate, shift)
                    low, high = estimate.interval(LEVEL)
                    truth = 0 if seeds > 1 else shift[0]
                    covered.append(low <= truth <= high)
                    lengths.append(high - low)
                    values.append(estimate.value - truth)
            yield {
                "design": f"one split, {seeds} training{'s' * (seeds > 1)}",
                "cells": CELLS[0],
                "trainings": trainings,
                "coverage": 100 * np.mean(covered),
                "length": np.mean(lengths) / (2 * 1.96 * np.std(values)),
            }


def _measure_trained(replicates: int, rng: np.random.Generator) -> Iterator[dict[str, object]]:
    """Train pairs of classifiers that are equally good, and count wrong verdicts."""
    from sklearn.tree import DecisionTreeClassifier

    def fit_line(x: np.ndarray, y: np.ndarray, new: np.ndarray) -> np.ndarray:
        design = np.column_stack([x, np.ones(len(x))])
        return np.column_stack([new, np.ones(len(new))]) @ np.linalg.lstsq(design, 2.0 * y - 1, rcond=None)[0] > 0

    def fit_tree(x: np.ndarray, y: np.ndarray, new: np.ndarray) -> np.ndarray:
        tree = DecisionTreeClassifier(min_samples_leaf=5, random_state=int(rng.integers(2**31)))
        return tree.fit(x, y).predict(new)

    n, halves = 300, (slice(0, 10), slice(10, 20))
    for name, fit in (("linear classifiers", fit_line), ("decision trees", fit_tree)):
        for design, donors, folds, repeats in (
            ("5 folds", 0, 5, 1),
            ("3 × 5 folds", 0, 5, 3),
            ("12 donors one by one", 12, 12, 1),
        ):
            differences = np.empty((replicates, repeats * folds))
            for one in range(replicates):
                donor = np.arange(n) % (donors or n)
                x = rng.normal(size=(n, 20)) + (rng.normal(0, 0.5, (donors, 20))[donor] if donors else 0)
                y = (0.5 * x.sum(axis=1) + rng.normal(0, 1, n) > 0).astype(int)
                for repeat in range(repeats):
                    fold = donor if donors else rng.permutation(n) % folds
                    for k in range(folds):
                        train, test = fold != k, fold == k
                        right = [(fit(x[train, half], y[train], x[test, half]) == y[test]).mean() for half in halves]
                        differences[one, repeat * folds + k] = right[1] - right[0]
            repeat = np.repeat(np.arange(repeats), folds)
            estimate = estimate_over_folds(differences, np.array(n / folds), n, repeat, donors or n)
            low, high = estimate.interval(LEVEL)
            yield {
                "design": f"{name}, {design}",
                "cells": n,
                "trainings": np.nan,
                "wrong 1": 100 * (estimate.p_value() <= FAMILY_ERROR).mean(),
                "coverage": 100 * ((low <= 0) & (high >= 0)).mean(),
                "length": (high - low).mean() / (2 * 1.96 * estimate.value.std()),
            }


def run(replicates: int, rng: np.random.Generator) -> pd.DataFrame:
    """Simulate all lines, and train small classifiers.

    Args:
        replicates: number of simulated experiments per setting.
        rng: source of all random numbers.
    """
    lines = [
        part for study in (_measure_folds, _measure_one_split, _measure_trained) for part in study(replicates, rng)
    ]
    return pd.DataFrame(lines)

"""Rejection of crops without a countable cell: badly taken crops, and crops unlike all cells of the training.

Each check compares one measure of a crop with that of the training's cells, on one side. Its p value is the share of
those cells that are as extreme. It is counted in the body of their distribution, and extrapolated beyond the last tenth
by an exponential tail (Pickands, Ann. Stat. 3, 119, 1975, with shape 0), so that a few dozen cells give usable limits.
A crop is rejected if the smallest of its p values (Tippett, "The Methods of Statistics", 1931) is at or below a level.
The level is set so that all checks together reject the intended share of the training's cells.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from urnet.calibration.mahalanobis import MahalanobisDistance, fit_mahalanobis

FALSE_REJECTION = 0.02
"""Default share of rejected cells among good ones."""

TAIL_SHARE = 0.1
"""Share of the cells in a tail."""

FOLDS = 10
"""Number of folds of the cross-validation that finds the level."""

MIN_DONORS = 5
"""Minimum number of donors for folds of whole donors."""

DISTANCE = "distance"

_MIN_P_VALUE = 1e-12
"""Smallest level."""


@dataclass(frozen=True)
class Check:
    """One side of one measure.

    Attributes:
        measure: its name in the rows of measures.
        side: 1 where large values are bad, -1 where small ones are.
        reason: reason of a rejection.
        resolution: differences below this are ignored.
        logarithm: whether the measure is compared by its logarithm (base 10).
    """

    measure: str
    side: int
    reason: str
    resolution: float
    logarithm: bool = False


CHECKS = (
    Check("edge", 1, "cut by the field's border", 0.01),
    Check("touching", 1, "touches another cell", 0.01),
    Check("saturation", 1, "saturated", 0.01),
    Check("brightness", -1, "too dark", 0.005),
    Check("brightness", 1, "too bright", 0.005),
    Check("ramp", 1, "unevenly lit", 0.005),
    Check("contrast", -1, "hardly any contrast", 0.02, logarithm=True),
    Check("contrast", 1, "too much contrast", 0.02, logarithm=True),
    Check("noise", 1, "too noisy", 0.02, logarithm=True),
    Check("focus", -1, "out of focus", 0.02),
    Check(DISTANCE, 1, "unlike the training cells", 0.05),
)
"""All checks, in the order in which they give the reason of a rejection."""

Measures = Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Rejection:
    """Distributions of the measures of the training's cells, and the level at which a crop is rejected.

    Attributes:
        checks: indices into `CHECKS` of the checks in use.
        quantiles: (C, 101) of each check's measure over those cells, signed so that large is bad.
        tails: (C, 3) start of the tail, share of cells beyond it, and their mean excess.
        level: p value at or below which a crop is rejected.
        distance: distance from the training cells, in the features.
    """

    checks: tuple[int, ...]
    quantiles: np.ndarray
    tails: np.ndarray
    level: float
    distance: MahalanobisDistance

    def p_values(self, rows: Sequence[Measures], features: np.ndarray) -> np.ndarray:
        """Compute the p value of each check, (N, C); 1 where its measure is not known.

        Args:
            rows: measures of each crop, from `Model.measure_crops`.
            features: (N, F).
        """
        return self._p_values_of(_measure_values(rows, self.distance.measure(features), self.checks))

    def score(self, rows: Sequence[Measures], features: np.ndarray) -> np.ndarray:
        """Compute how unlike the training's cells each crop is, (N,): −log10 of its smallest p value."""
        return -np.log10(np.maximum(self.p_values(rows, features).min(axis=1, initial=1.0), 1e-300))

    def reject(self, rows: Sequence[Measures], features: np.ndarray) -> list[str]:
        """Give the reason why each crop is rejected; "" for countable cells.

        Args:
            rows: as `p_values`.
            features: (N, F).
        """
        failed = self.p_values(rows, features) <= self.level  # (N, C)
        return [CHECKS[self.checks[row.argmax()]].reason if row.any() else "" for row in failed]

    def limits(self) -> dict[str, float]:
        """Compute the value beyond which a crop is rejected, by reason, in the units of the measure."""
        start, share, excess = self.tails.T
        beyond = start + excess * np.log(share / np.minimum(self.level, share))
        limits = {}
        for index, value in zip(self.checks, beyond, strict=True):
            check = CHECKS[index]
            limits[check.reason] = float(10 ** (check.side * value) if check.logarithm else check.side * value)
        return limits

    @cached_property
    def _bodies(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Distinct quantiles of each check, and the share of cells below each."""
        grid = np.linspace(0, 1, self.quantiles.shape[1])
        distinct = (np.unique(row, return_index=True) for row in self.quantiles)
        return [(values, grid[first]) for values, first in distinct]

    def _p_values_of(self, values: np.ndarray) -> np.ndarray:
        """Compute the p values of signed measures (N, C)."""
        p = np.ones(values.shape)
        for column, ((start, share, excess), (body, below)) in enumerate(zip(self.tails, self._bodies, strict=True)):
            value = values[:, column]
            inside = np.maximum(1 - np.interp(value, body, below), share)
            beyond = share * np.exp(-np.maximum(value - start, 0) / excess)
            p[:, column] = np.where(np.isnan(value), 1.0, np.where(value > start, beyond, inside))
        return p


def fit_rejection(
    train_rows: Sequence[Measures],
    train_features: np.ndarray,
    held_out_rows: Sequence[Measures],
    held_out_features: np.ndarray,
    sizes: Sequence[int],
    false_rejection: float = FALSE_REJECTION,
    donors: Sequence[str] = (),
) -> Rejection:
    """Fit the checks to the cells of a training.

    The cells of the training part lie nearer to each other than new cells, because the network was trained on them.
    Their distances are therefore shifted to the median of the held-out cells. The level is found by cross-validation,
    which compares each cell with other cells. If enough donors are known, these are cells of other donors, because
    cells of a new donor are more distant.

    Args:
        train_rows: measures of cells of the training part.
        train_features: their features (N, F), all depths in one row.
        held_out_rows: measures of held-out cells.
        held_out_features: their features (M, F).
        sizes: number of features at each depth.
        false_rejection: share of good cells that all checks together may reject, in (0, 1).
        donors: donor of each cell, (N + M,), "" where unknown; empty if none is known.
    """
    rows, features = [*train_rows, *held_out_rows], np.concatenate([train_features, held_out_features])
    trained = np.arange(len(rows)) < len(train_rows)

    def fit_inside(inside: np.ndarray) -> tuple[Rejection, np.ndarray]:
        """Fit the distributions to the cells inside; return them and the measures of all cells, (N + M, C)."""
        distance = fit_mahalanobis(features[trained & inside], sizes)
        distances = distance.measure(features)
        if (inside & ~trained).any():
            distances[trained] += np.median(distances[inside & ~trained]) - np.median(distances[inside & trained])
        values = _measure_values(rows, distances, checks)
        return _describe(values[inside], checks, distance), values

    known = np.isfinite(_measure_values(rows, np.zeros(len(rows)), range(len(CHECKS)))).mean(axis=0) > 0.5
    checks = tuple(np.flatnonzero(known).tolist())
    folds, smallest = _folds(len(rows), donors), np.ones(len(rows))
    for fold in range(FOLDS):
        inside = folds != fold
        if (trained & inside).any():
            others, values = fit_inside(inside)
            smallest[~inside] = others._p_values_of(values[~inside]).min(axis=1)
    rank = int(false_rejection * (len(rows) + 1))
    # With too few cells to count so small a share, each check gets an equal part of it (Bonferroni).
    level = np.sort(smallest)[rank - 1] if rank else false_rejection / len(checks)
    return replace(fit_inside(np.ones(len(rows), dtype=bool))[0], level=max(float(level), _MIN_P_VALUE))


def _folds(count: int, donors: Sequence[str]) -> np.ndarray:
    """Assign a fold to each cell, (count,); the same to all cells of a donor if enough donors are known."""
    rng = np.random.default_rng(0)
    names, codes = np.unique(donors, return_inverse=True)
    if len(names) < MIN_DONORS or "" in names:
        return rng.permutation(count) % FOLDS
    return (rng.permutation(len(names)) % FOLDS)[codes]


def _describe(values: np.ndarray, checks: tuple[int, ...], distance: MahalanobisDistance) -> Rejection:
    """Fit body and tail of the distribution of each check's signed measure (N, C); the level is not set."""
    quantiles = np.nanquantile(values, np.linspace(0, 1, 101), axis=0).T
    known = [column[np.isfinite(column)] for column in values.T]
    tails = np.array([_tail(column, CHECKS[index].resolution) for column, index in zip(known, checks, strict=True)])
    return Rejection(checks, quantiles, tails, 0.0, distance)


def _measure_values(rows: Sequence[Measures], distances: np.ndarray, checks: Sequence[int]) -> np.ndarray:
    """Collect the measures of the checks, signed so that large is bad, (N, C); NaN where unknown."""
    columns = []
    for check in (CHECKS[index] for index in checks):
        if check.measure == DISTANCE:
            column = distances
        else:
            column = np.array([row.get(check.measure, np.nan) for row in rows], dtype=np.float64)
        columns.append(check.side * (np.log10(np.maximum(column, 1e-6)) if check.logarithm else column))
    return np.stack(columns, axis=1) if columns else np.empty((len(rows), 0))


def _tail(values: np.ndarray, resolution: float) -> tuple[float, float, float]:
    """Compute the start of the upper tail, the share of values beyond it, and their mean excess."""
    start = float(np.quantile(values, 1 - TAIL_SHARE)) + resolution
    excess = values[values > start] - start
    if not len(excess):
        return start, 1 / (len(values) + 1), resolution
    return start, len(excess) / len(values), max(float(excess.mean()), resolution)

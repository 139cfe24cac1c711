"""Which crops are no countable cells: badly taken, or unlike all cells of the training.

Each check compares one measure of a crop with that of the training's cells, on one side. Its p value is the share of
those cells that are as extreme: counted in the body of their distribution, and continued beyond its last tenth by an
exponential tail (Pickands, Ann. Stat. 3, 119, 1975, with shape 0), so that a few dozen cells give usable limits too. A
crop is rejected when the smallest of its p values (Tippett, "The Methods of Statistics", 1931) is at or below a level.
The level is set so that all checks together reject the stated share of the training's own cells.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from urnet.calibration.mahalanobis import MahalanobisDistance, fit_mahalanobis

FALSE_REJECTION = 0.02
"""Share of good cells that may be rejected, unless another is asked for."""

TAIL_SHARE = 0.1
"""Share of the cells that make up a tail."""

FOLDS = 10
"""The level is found with cells that were not described, a tenth at a time."""

MIN_DONORS = 5
"""Below this, donors are too few for whole ones to be left out."""

DISTANCE = "distance"

_MIN_P_VALUE = 1e-12
"""P values below this are all the same."""


@dataclass(frozen=True)
class Check:
    """One side of one measure.

    Attributes:
        measure: its name in the rows of measures.
        side: 1 where large values are bad, -1 where small ones are.
        reason: what is said of a crop that fails.
        resolution: differences below this are of no matter.
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
"""In the order in which a reason is looked for; the plainest first."""

REASONS = tuple(check.reason for check in CHECKS)

Measures = Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Rejection:
    """What is known of the training's cells, and from where on a crop is none of them.

    Attributes:
        checks: indices into `CHECKS` of the checks that are made.
        quantiles: (C, 101) of each check's measure over those cells, turned so that large is bad.
        tails: (C, 3) where the tail begins, the share of cells beyond, and their mean excess.
        level: the p value at or below which a crop is rejected.
        distance: from the training cells, in the features.
    """

    checks: tuple[int, ...]
    quantiles: np.ndarray
    tails: np.ndarray
    level: float
    distance: MahalanobisDistance

    def p_values(self, rows: Sequence[Measures], features: np.ndarray) -> np.ndarray:
        """The p value of each check, (N, C); 1 where its measure is not known.

        Args:
            rows: the measures of each crop, from `quality`, and where known its `edge` and `touching`.
            features: (N, F).
        """
        return self._p_values_of(_measure_values(rows, self.distance.measure(features), self.checks))

    def score(self, rows: Sequence[Measures], features: np.ndarray) -> np.ndarray:
        """How little each crop is like the training's cells, (N,): −log10 of its smallest p value."""
        return -np.log10(np.maximum(self.p_values(rows, features).min(axis=1, initial=1.0), 1e-300))

    def reject(self, rows: Sequence[Measures], features: np.ndarray) -> list[str]:
        """Why each crop is not counted; "" for those that are.

        Args:
            rows: as `p_values`.
            features: (N, F).
        """
        failed = self.p_values(rows, features) <= self.level  # (N, C)
        return [CHECKS[self.checks[row.argmax()]].reason if row.any() else "" for row in failed]

    def limits(self) -> dict[str, float]:
        """The value beyond which a crop is rejected, by reason; in each measure's own units."""
        start, share, excess = self.tails.T
        beyond = start + excess * np.log(share / np.minimum(self.level, share))
        found = {}
        for index, value in zip(self.checks, beyond, strict=True):
            check = CHECKS[index]
            found[check.reason] = float(10 ** (check.side * value) if check.logarithm else check.side * value)
        return found

    @cached_property
    def _bodies(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Distinct quantiles of each check, and the share of cells below each."""
        grid = np.linspace(0, 1, self.quantiles.shape[1])
        distinct = (np.unique(row, return_index=True) for row in self.quantiles)
        return [(values, grid[first]) for values, first in distinct]

    def _p_values_of(self, values: np.ndarray) -> np.ndarray:
        """P values of turned measures (N, C)."""
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
    """Learn what the cells of a training look like.

    The network has seen the training part, so its cells lie nearer to each other than new ones will: their distances
    are taken with the median of the held-out cells. And each cell is judged by what the others look like, which means
    the other donors where enough are known, since the cells of a new donor are further out than those of a known one.

    Args:
        train_rows: measures of cells of the training part.
        train_features: their features (N, F), all depths in one row.
        held_out_rows: measures of held-out cells.
        held_out_features: their features (M, F).
        sizes: number of features at each depth.
        false_rejection: share of such cells that may be rejected, by all checks together, in (0, 1).
        donors: of all cells, (N + M,), "" where unknown; or nothing.
    """
    rows, features = [*train_rows, *held_out_rows], np.concatenate([train_features, held_out_features])
    trained = np.arange(len(rows)) < len(train_rows)

    def described(inside: np.ndarray) -> tuple[Rejection, np.ndarray]:
        """What the cells inside look like, and the measures of all cells, (N + M, C)."""
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
            others, values = described(inside)
            smallest[~inside] = others._p_values_of(values[~inside]).min(axis=1)
    rank = int(false_rejection * (len(rows) + 1))
    # With too few cells to count so small a share, each check gets its part of it (Bonferroni).
    level = np.sort(smallest)[rank - 1] if rank else false_rejection / len(checks)
    return replace(described(np.ones(len(rows), dtype=bool))[0], level=max(float(level), _MIN_P_VALUE))


def _folds(count: int, donors: Sequence[str]) -> np.ndarray:
    """A fold for each cell, (count,); the same for all cells of a donor where enough donors are known."""
    rng = np.random.default_rng(0)
    names, codes = np.unique(donors, return_inverse=True)
    if len(names) < MIN_DONORS or "" in names:
        return rng.permutation(count) % FOLDS
    return (rng.permutation(len(names)) % FOLDS)[codes]


def _describe(values: np.ndarray, checks: tuple[int, ...], distance: MahalanobisDistance) -> Rejection:
    """Body and tail of each check's turned measure (N, C), as yet without a level."""
    quantiles = np.nanquantile(values, np.linspace(0, 1, 101), axis=0).T
    known = [column[np.isfinite(column)] for column in values.T]
    tails = np.array([_tail(column, CHECKS[index].resolution) for column, index in zip(known, checks, strict=True)])
    return Rejection(checks, quantiles, tails, 0.0, distance)


def _measure_values(rows: Sequence[Measures], distances: np.ndarray, checks: Sequence[int]) -> np.ndarray:
    """The measures that the checks ask for, turned so that large is bad, (N, C); NaN where unknown."""
    columns = []
    for check in (CHECKS[index] for index in checks):
        if check.measure == DISTANCE:
            column = distances
        else:
            column = np.array([row.get(check.measure, np.nan) for row in rows], dtype=np.float64)
        columns.append(check.side * (np.log10(np.maximum(column, 1e-6)) if check.logarithm else column))
    return np.stack(columns, axis=1) if columns else np.empty((len(rows), 0))


def _tail(values: np.ndarray, resolution: float) -> tuple[float, float, float]:
    """Where the upper tail begins, the share of the values beyond, and their mean excess; all above 0 but the first."""
    start = float(np.quantile(values, 1 - TAIL_SHARE)) + resolution
    excess = values[values > start] - start
    if not len(excess):
        return start, 1 / (len(values) + 1), resolution
    return start, len(excess) / len(values), max(float(excess.mean()), resolution)

"""Donors as the unit of variation: which interval applies, and intervals of means of proportions over donors.

Cells of one donor resemble each other, so the number of donors limits what a test can say. `choose_groups` decides
whether donors or source images count. `interval_of_mean` computes a t interval over these groups:

- The variance between groups comes from the jackknife that leaves out one group at a time, and its degrees of freedom
  from the groups' sizes (Bell and McCaffrey, Survey Methodology 28, 2002). Groups of the same size have G - 1.
- Cells of one group are at least as alike as independent cells. So the squared length has two parts: independent cells
  (z², with the exact limits of `proportions`), and what the jackknife's variance (t²) exceeds that.
- The parts, and the classes of a mean, are combined by their squared distances to the value (MOVER: Zou and Donner,
  Stat. Med. 27, 2008). So a class with three right cells is not certain in a mean over classes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from urnet.statistics.proportions import ASSUMED_SPREAD, limit_of_certainty, mid_p_limits

MIN_DONORS = 5
"""Minimum number of donors from which the spread between donors is estimated."""
LEVEL = 0.95
"""Coverage of intervals."""
NO_INTERVALS = "No value has an interval: all cells come from one {}, and intervals need several."
SKEW = 0.25
"""Relative lengthening of an interval per logit, towards 0.5."""


def choose_groups(
    donors: Sequence[Any] | None, sources: Sequence[Any], *, level: float = LEVEL
) -> tuple[np.ndarray, dict[str, Any]]:
    """Choose the groups that intervals are over: donors if all are known and there are enough, else source images.

    Args:
        donors: (N,) donor of each cell, or None where the table names none; missing entries count as unknown.
        sources: (N,) source image of each cell.
        level: coverage of the intervals, for the description.

    Returns:
        The groups, (N,) integers, and their description for `metrics.json`: `method` ("t interval over 8 donors"),
        `unit` ("donor" or "source image"), `groups`, `level` and `note`. The note says what the intervals cover, or
        why there are none.
    """
    known = pd.Series(donors if donors is not None else [None] * len(sources), dtype=object)
    known = known.mask(known.eq(""))
    number, missing = known.nunique(), int(known.isna().sum())
    if number >= MIN_DONORS and not missing:
        unit, codes = "donor", pd.factorize(known)[0]
        note = "The intervals are over donors, so they hold for new donors."
    else:
        unit, codes = "source image", pd.factorize(np.asarray(sources, dtype=object), use_na_sentinel=False)[0]
        if not number:
            why = "The donors of these cells are not known"
        elif missing:
            why = f"The donor of {missing:,} of {len(known):,} cells is not known"
        else:
            why = f"This part holds {number} donor{'s' * (number > 1)}, fewer than the {MIN_DONORS} needed"
        note = f"{why}, so the intervals are over source images: they leave out differences between donors."
    count = len(np.unique(codes))
    method = f"t interval over {count:,} {unit}s"
    if count < 2:
        method, note = "none", NO_INTERVALS.format(unit)
    return codes, {"method": method, "unit": unit, "groups": count, "level": level, "note": note}


def interval_of_mean(
    right: np.ndarray,
    cells: np.ndarray,
    *,
    distinct: np.ndarray | None = None,
    level: float = LEVEL,
    dice: bool = False,
    correlation: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the interval of a mean of proportions, each a number of right cells over a number of cells.

    Args:
        right: (..., G, K) right cells of each group and class.
        cells: (..., G, K) cells of each group and class. Each class has cells.
        distinct: (..., K) number of distinct cells, if cells are counted more than once.
        level: coverage of the interval.
        dice: whether the mean is over 2p/(1 + p) instead of the proportions p.
        correlation: (..., K, K) correlation of the proportions over independent cells; none by default.

    Returns:
        Lower and upper limits, (...,).
    """
    right, cells = np.asarray(right, dtype=np.float64), np.asarray(cells, dtype=np.float64)
    K = right.shape[-1]
    if distinct is not None:
        once = (distinct / cells.sum(axis=-2))[..., None, :]
        right, cells = right * once, cells * once
    n = cells.sum(axis=-2)  # (..., K)
    p = right.sum(axis=-2) / n
    figure, slope = (2 * p / (1 + p), 2 / (1 + p) ** 2) if dice else (p, np.ones_like(p))
    weight = slope / K
    if correlation is None:
        correlation = np.eye(K)
    alone = weight * np.sqrt(p * (1 - p) / n)  # (..., K)
    of_cells = np.einsum("...k,...kl,...l->...", alone, correlation, alone)
    variance, freedom = _jackknife(right, cells, p, n, weight, of_cells)
    excess = excess_over_cells(variance, freedom, of_cells, level)
    single = (cells > 0).sum(axis=-2) == 1  # the spread of a class in one group is unknown
    assumed = _z(level) * weight * p * (1 - p) * ASSUMED_SPREAD
    excess = excess + (single * assumed**2).sum(axis=-1)

    low, high = _limits_of_cells(right.sum(axis=-2), cells, level)
    if dice:
        low, high = 2 * low / (1 + low), 2 * high / (1 + high)
    apart = np.stack([figure - low, high - figure]) / K  # (2, ..., K)
    squared = np.einsum("s...k,...kl,s...l->s...", apart, correlation, apart)
    return combine_limits(figure.mean(axis=-1), squared, excess)


def excess_over_cells(variance: np.ndarray, freedom: np.ndarray, of_cells: np.ndarray, level: float) -> np.ndarray:
    """Compute the squared half length that groups add to the interval of independent cells.

    The variance of independent cells is known up to the proportion, so half of the difference between t² and z² is left
    out for it. With all of it, intervals cover more than `level` where groups do not differ; with none, too little
    where they differ slightly.

    Args:
        variance: estimated variance between groups.
        freedom: its degrees of freedom.
        of_cells: variance if cells were independent.
        level: coverage of the interval.
    """
    z, t = _z(level), special.stdtrit(freedom, (1 + level) / 2)
    return np.maximum(0, t**2 * variance - (t**2 + z**2) / 2 * of_cells)


def combine_limits(value: np.ndarray, squared: np.ndarray, excess: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Combine the distances of independent cells with the excess of the groups.

    Args:
        value: (...,) value between 0 and 1.
        squared: (2, ...) squared distances of the lower and the upper limit from independent cells.
        excess: (...,) from `excess_over_cells`.

    Returns:
        Lower and upper limits, (...,).
    """
    distance = np.sqrt(np.maximum(squared, 0) + _distances_in_logits(value, np.sqrt(excess)) ** 2)
    return np.clip(value - distance[0], 0, 1), np.clip(value + distance[1], 0, 1)


def _z(level: float) -> float:
    return float(special.ndtri((1 + level) / 2))


def _distances_in_logits(value: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Compute the distances of the limits below and above a value, (2, ...), for the half length of an interval.

    The interval is symmetric in logits, and then longer towards 0.5. Groups whose logits vary have skewed
    proportions, and where the mean is too close to 0 or 1 by chance, their variance looks too small as well.
    """
    inside = (value > 0) & (value < 1)
    value = np.where(inside, value, 0.5)
    logit, step = special.logit(value), half / (value * (1 - value))
    skew = SKEW * np.stack([2 * value - 1, 1 - 2 * value]) * step
    step = step * (1 + np.maximum(skew, 0) / (1 + np.maximum(skew, 0)))
    ends = special.expit(np.stack([logit - step[0], logit + step[1]]))
    return np.where(inside, np.abs(ends - value), 0)


def _limits_of_cells(right: np.ndarray, cells: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Compute the limits of each class from its cells alone, (..., K)."""
    n = cells.sum(axis=-2)
    low, high = mid_p_limits(right, n, level)
    low, high = np.array(low), np.array(high)
    for at in zip(*np.nonzero((right == n) | (right == 0)), strict=True):
        limit = limit_of_certainty(cells[(*at[:-1], slice(None), at[-1])], level)
        if right[at] == 0:
            high[at] = 1 - limit
        else:
            low[at] = limit
    return low, high


def _jackknife(
    right: np.ndarray, cells: np.ndarray, p: np.ndarray, n: np.ndarray, weight: np.ndarray, of_cells: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the variance between groups and its degrees of freedom, (...,) each.

    The variance is corrected for the bias that the jackknife has under a working model: a proportion varies within a
    group as independent cells do, and between groups by what the estimated variance exceeds that.
    """
    share = cells / n[..., None, :]  # (..., G, K)
    there = (cells > 0).sum(axis=-2)
    alone = share >= 1
    scale = weight * np.sqrt((there - 1) / there)  # (..., K)
    factor = np.where(alone, 0, scale[..., None, :] / np.where(alone, 1, 1 - share))
    residual = (right / n[..., None, :] - p[..., None, :] * share) * factor
    raw = (residual.sum(axis=-1) ** 2).sum(axis=-1)

    ratio = np.where(of_cells > 0, raw / np.where(of_cells > 0, of_cells, 1), 1)
    more = np.maximum(ratio - 1, 0)[..., None, None] / (share**2).sum(axis=-2)[..., None, :]
    expected = (p * (1 - p) / n)[..., None, :] * share * (1 + more * share)  # (..., G, K), variance of right / n
    total = expected.sum(axis=-2)  # (..., K)
    # Covariance of the residuals: diagonal + left @ right', over the classes.
    diagonal = (factor**2 * expected).sum(axis=-1)  # (..., G)
    first = np.concatenate([factor * share, factor * expected], axis=-1)
    second = np.concatenate([factor * (total[..., None, :] * share - expected), -factor * share], axis=-1)
    cross = np.einsum("...gk,...gk->...g", first, second)
    product = np.einsum("...gk,...gl->...kl", second, first)
    trace = (diagonal + cross).sum(axis=-1)
    trace_of_square = (diagonal**2 + 2 * diagonal * cross).sum(axis=-1) + np.einsum(
        "...kl,...lk->...", product, product
    )
    known = trace_of_square > 0
    freedom = np.where(known, trace**2 / np.where(known, trace_of_square, 1), 1)
    true = (weight**2 * total).sum(axis=-1)
    variance = np.where(trace > 0, raw * true / np.where(trace > 0, trace, 1), 0)
    return variance, np.maximum(freedom, 1)

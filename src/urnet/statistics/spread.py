"""How much donors differ in the way their cells are misread: the spread of the logits between donors.

A donor's cells of class l are called j at a rate whose logit differs from that of all donors by a normal deviation.
Its standard deviation, the spread, is taken as one number for all classes, because few donors tell little about each.

The calls of each donor are counts with the variance mu + v·mu², where mu is expected from all donors and v is the
variance of the rate's logarithm. Their likelihood is therefore negative binomial. It is adjusted for the rates that are
estimated from the same counts (Cox and Reid, J. R. Statist. Soc. B 49, 1987; for counts McCarthy, Chen and Smyth,
Nucleic Acids Res. 40, 2012), so that one donor alone says nothing. Multiplied by a prior it weighs all spreads.

The prior density of a spread s is proportional to sqrt(s)·exp(-(s/0.35)²/2). It falls to zero at zero (Chung et al.,
Psychometrika 78, 2013), because a few donors that happen to agree do not prove that all donors do.
"""

import numpy as np
from scipy.special import gammaln

from urnet.statistics.donors import MIN_DONORS

SPREADS = np.geomspace(0.02, 2.5, 24)
"""Spreads that are weighed, as standard deviations of the logits."""
PRIOR_SCALE = 0.35
"""Scale of the prior density; without any data, the median spread is 0.33, and 95 % are below 0.78."""

MIN_MOVED = 1e-3
"""Least variance of a rate's logarithm for a spread of 1; a call that nearly all cells get hardly moves."""


def weigh_spreads(tables: np.ndarray) -> np.ndarray:
    """Weigh the spreads between donors by the confusions of several donors.

    Args:
        tables: (D, K, K + 1) cells of each donor by class and predicted class, the last column rejected.

    Returns:
        (24,) weights of `SPREADS`, which sum to 1; those of the prior with fewer than two donors.

    Example:
        >>> alike = np.tile([[90, 10, 0], [5, 95, 0]], (12, 1, 1))
        >>> bool(weigh_spreads(alike) @ SPREADS < weigh_spreads(alike[:1]) @ SPREADS)
        True
    """
    tables = np.asarray(tables, dtype=np.float64)
    log = 0.5 * np.log(SPREADS) - 0.5 * (SPREADS / PRIOR_SCALE) ** 2
    if len(tables) > 1:
        log += _log_likelihood(tables)
    weights = np.exp(log - log.max()) * np.gradient(SPREADS)
    return weights / weights.sum()


def describe_differences(donors: int) -> str:
    """Describe how an interval accounts for differences between donors.

    Args:
        donors: number of donors of the calibration; 0 if they are not known.
    """
    if donors >= MIN_DONORS:
        return f"differences between donors, estimated from the calibration's {donors} donors"
    if donors > 1:
        return f"usual differences between donors, because {donors} calibration donors are too few to estimate them"
    return "usual differences between donors, because the calibration does not show them"


def _log_likelihood(tables: np.ndarray) -> np.ndarray:
    """Compute the adjusted log-likelihood of each spread, (24,)."""
    log = np.zeros(len(SPREADS))
    K = tables.shape[1]
    cells, total = tables.sum(axis=2), tables.sum(axis=0)  # (D, K), (K, K + 1)
    rates = total / np.maximum(total.sum(axis=1, keepdims=True), 1)
    for true, called in zip(*np.nonzero(total[:, :K] * (1 - np.eye(K))), strict=True):
        present = cells[:, true] > 0
        expected = cells[present, true, None] * rates[true, called]  # (D, 1)
        counts = tables[present, true, called, None]
        # The logit of a rate moves against the mean of all logits, weighted by their rates.
        moved = 1 - 2 * rates[true, called] + (rates[true, :K] ** 2).sum()
        variance = SPREADS**2 * max(moved, MIN_MOVED)  # (24,)
        log += np.sum(
            gammaln(counts + 1 / variance)
            - gammaln(1 / variance)
            - np.log1p(expected * variance) / variance
            + counts * np.log(expected * variance / (1 + expected * variance)),
            axis=0,
        )
        log -= 0.5 * np.log(np.sum(expected / (1 + expected * variance), axis=0))
    return log

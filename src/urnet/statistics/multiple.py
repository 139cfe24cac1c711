"""Several comparisons at once: Holm's adjustment of p values, and a gate for secondary ones."""

import numpy as np

FAMILY_ERROR = 0.05
"""Largest probability of any wrong verdict in a table, if no recipe differs from another."""


def adjust_holm(p: np.ndarray) -> np.ndarray:
    """Adjust p values by Holm's method (Scand. J. Stat. 6, 1979).

    Args:
        p: (..., M) p values of one family along the last axis. Unknown ones (NaN) count as comparisons.

    Returns:
        (..., M) adjusted p values: the family's error is at most `alpha` if those up to `alpha` count.
    """
    p = np.asarray(p, dtype=np.float64)
    count = p.shape[-1]
    order = np.argsort(p, axis=-1)  # NaN last
    stepped = np.maximum.accumulate(np.take_along_axis(p, order, axis=-1) * (count - np.arange(count)), axis=-1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(stepped, 1.0), axis=-1)
    return adjusted


def adjust_secondary(p: np.ndarray, primary: np.ndarray) -> np.ndarray:
    """Adjust secondary p values, which count only where the primary one of their pair does.

    Args:
        p: (..., M, S) p values of S secondary metrics of M pairs; all M·S are one family.
        primary: (..., M) adjusted p values of the pairs' primary metric.

    Returns:
        (..., M, S) adjusted p values, never below the pair's primary one; NaN where that is unknown.
    """
    p = np.asarray(p, dtype=np.float64)
    adjusted = adjust_holm(p.reshape(*p.shape[:-2], -1)).reshape(p.shape)
    return np.maximum(adjusted, np.asarray(primary)[..., None])


def strictest_level(comparisons: int, alpha: float = FAMILY_ERROR) -> float:
    """Compute the level at which Holm's method tests the smallest of some p values."""
    return alpha / max(1, comparisons)

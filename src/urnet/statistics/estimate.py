"""Estimates with a standard error: t intervals, p values and the smallest detectable difference."""

from dataclasses import dataclass

import numpy as np
from scipy import optimize, special, stats

POWER = 0.8
"""Probability with which the smallest detectable difference is found."""


@dataclass(frozen=True)
class Estimate:
    """Estimates that follow a t distribution around the truth.

    Attributes:
        value: (...,) the estimates.
        error: (...,) their standard errors; NaN where the spread is not known.
        freedom: (...,) degrees of freedom of the standard errors.
    """

    value: np.ndarray
    error: np.ndarray
    freedom: np.ndarray

    def interval(self, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Compute the t interval.

        Args:
            level: coverage of the interval.

        Returns:
            Lower and upper limits, (...,) each; NaN without a standard error.
        """
        half = special.stdtrit(self.freedom, (1 + level) / 2) * self.error
        return self.value - half, self.value + half

    def p_value(self) -> np.ndarray:
        """Compute the two-sided p value of zero, (...,); NaN without a standard error."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return 2 * special.stdtr(self.freedom, -np.abs(self.value / self.error))

    def detectable(self, alpha: float, power: float = POWER) -> np.ndarray:
        """Compute the smallest true value that a two-sided test finds.

        Args:
            alpha: level of the test.
            power: probability of finding it.

        Returns:
            The value in the unit of the estimate, (...,); NaN without a standard error.
        """
        freedom, where = np.unique(np.asarray(self.freedom, dtype=np.float64), return_inverse=True)
        factors = np.array([_noncentrality(one, alpha, power) for one in freedom])
        return factors[where].reshape(np.shape(self.freedom)) * self.error


def _noncentrality(freedom: float, alpha: float, power: float) -> float:
    """Find the true value, in standard errors, that a two-sided t test finds with a probability of `power`."""
    if not freedom > 0:
        return float("nan")
    critical = special.stdtrit(freedom, 1 - alpha / 2)
    # P(|Z + d| > c·s) for the ratio s of estimated and true error, whose square is chi² / freedom.
    middle = (np.arange(400) + 0.5) / 400
    limits = critical * np.sqrt(stats.chi2.ppf(middle, freedom) / freedom)

    def missing(shift: float) -> float:
        return float((special.ndtr(shift - limits) + special.ndtr(-shift - limits)).mean()) - power

    return float(optimize.brentq(missing, 0, limits.max() + 10))

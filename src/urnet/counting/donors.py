"""The part of a sample's variance that comes from its donor, estimated from the donors of the calibration.

The cells of a new donor are misread at other rates than those of the calibration's donors. A contrast of the predicted
classes, such as h(t) in `interval`, then has a mean m_d that varies between donors. Three things tell how much:

1. The spread of the logits between the calibration's donors (`statistics.spread`), with its own uncertainty.
2. The confusion turns a spread into a variance of the contrast (first order, "delta method"). Donors can differ class
   by class, or by calling the cells of all classes more often one class. Both are weighed.
3. The contrast's means of the calibration's donors, observed at the composition that is tested. They decide between
   both and by how much the variance differs from 2, within a factor of about three (as the moderated variances of
   Smyth, Stat. Appl. Genet. Mol. Biol. 3, 2004).

The result is a mixture of normal distributions, one for each possible variance, so that its tails account for how
little a few donors tell about their spread. It is skewed, since small rates vary by factors. The calibration's donors
count once more, because their mean stands for all donors. That mean scales the variances too; a factor as between the
quantiles of t and normal distribution accounts for it (without it, the intervals covered 91 to 92 % at 12 donors with a
spread of 0.6).
"""

import numpy as np
from scipy.special import ndtr, ndtri, stdtrit

from urnet.statistics.spread import SPREADS, weigh_spreads

FACTOR_FREEDOM = 4
"""Degrees of freedom with which a contrast's variance follows from the spread."""
FACTOR_DEVIATIONS = np.linspace(-1.6, 1.6, 5)
"""Logarithms of the factors that are weighed, in standard deviations."""
EXTRA_FREEDOM = 3
"""Degrees of freedom of that factor beyond the number of the calibration's donors."""
MAX_LOGNORMAL = 0.8
"""Largest standard deviation of the logarithm that a skewness is taken to show."""
ODDS_VARIANCES = np.expm1(2 * SPREADS**2) / 2
"""Squares of the spreads for odds, which vary by factors: half of the relative variance of lognormal odds."""
ALIKE_PRIOR = (0.1, 0.9)
"""Prior probability that donors differ class by class, and that they differ in all classes alike."""
CHUNK = 32
"""Variances that are weighed at a time."""
NEWTON_STEPS = 7
"""Steps that find the length of the interval."""


class DonorVariation:
    """Variation of contrasts between donors.

    Args:
        tables: (D, K, K + 1) calibration cells of each named donor by class and predicted class, the last column
            rejected.
        unnamed: (K, K + 1) calibration cells whose donor is not known, in the same form; they count as one donor.
        scores: (D, K, K) mean score of each named donor's cells of each class for each predicted class, with rejected
            cells as 0; anything where it has no cells of a class.
        called: (K, K, K) mean score of all calibration cells by class and predicted class; anything where there are
            none.
    """

    def __init__(self, tables: np.ndarray, unnamed: np.ndarray, scores: np.ndarray, called: np.ndarray):
        K = tables.shape[1]
        self.cells = tables.sum(axis=2)  # (D, K)
        total = tables.sum(axis=0) + unnamed
        self.rates, self.called = total[:, :K] / total.sum(axis=1, keepdims=True), called
        pooled = np.einsum("lj,ljm->lm", self.rates, called)
        self.scores = np.where(self.cells[:, :, None] > 0, scores, pooled)
        every = np.vstack([self.cells, unnamed.sum(axis=1)])  # (D + 1, K)
        self.parts = every / every.sum(axis=0)
        self.weights = weigh_spreads(tables)

    def widen(
        self, mix: np.ndarray, contrast: np.ndarray, scatter: np.ndarray, variance: np.ndarray, level: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Add the variation between donors to the variance of a contrast.

        Args:
            mix: (T, K) shares of the classes.
            contrast: (T, K) weight of each predicted class.
            scatter: (T, K) variance of the contrast among cells of each class.
            variance: (T,) variance without differences between donors.
            level: coverage of the interval.

        Returns:
            (T,) variance of the normal distribution whose interval is as long as that of the mixture; (T,) skewness.
        """
        T = len(mix)
        factors = np.exp(FACTOR_DEVIATIONS * np.sqrt(2 / FACTOR_FREEDOM))
        prior = np.exp(-0.5 * FACTOR_DEVIATIONS**2)
        per_spread, skewness = self._moments_per_spread(mix, contrast)  # (T, 2)
        between = per_spread[:, :, None, None] * ODDS_VARIANCES[:, None] * factors  # (T, 2, S, F)
        weights = np.array(ALIKE_PRIOR)[:, None, None] * self.weights[:, None] * prior
        weights = np.broadcast_to(weights, between.shape).reshape(T, -1)
        between = between.reshape(T, -1)  # (T, G)
        weights = weights * self._likelihood(mix, contrast, scatter, between)
        weights = weights / weights.sum(axis=1, keepdims=True)
        # The new donor, and the mean of the calibration's donors.
        quantile = ndtri(0.5 + level / 2)
        donors = 1 + np.sum((mix @ self.parts.T) ** 2, axis=1, keepdims=True)
        donors *= (stdtrit(len(self.cells) + EXTRA_FREEDOM, 0.5 + level / 2) / quantile) ** 2
        spread = np.sqrt(variance[:, None] + donors * between).clip(min=1e-12)
        reach = quantile * np.sqrt(np.sum(weights * spread**2, axis=1))
        for _ in range(NEWTON_STEPS):
            scaled = reach[:, None] / spread
            inside = np.sum(weights * (2 * ndtr(scaled) - 1), axis=1)
            density = np.sum(weights * np.exp(-0.5 * scaled**2) / spread, axis=1) * np.sqrt(2 / np.pi)
            reach = np.maximum(reach + (level - inside) / density, reach / 4)
        parts = np.sum((weights * between).reshape(T, 2, -1), axis=2)  # (T, 2)
        shares = weights.reshape(T, 2, -1).sum(axis=2)
        spreads = np.sqrt(parts / np.maximum(shares * per_spread, 1e-15))
        part = parts.sum(axis=1)
        skewness = np.sum(shares * skewness * spreads, axis=1) * (part / (part + variance)) ** 1.5
        return (reach / quantile) ** 2, skewness

    def _moments_per_spread(self, mix: np.ndarray, contrast: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compute variance and skewness of a contrast if the logits of donors had a standard deviation of 1.

        The skewness, to second order, is in proportion to the spread.

        Returns:
            (T, 2) each, if donors differ class by class, and if they differ in all classes alike.
        """
        called = np.einsum("ljm,tm->tlj", self.called, contrast)
        mean = np.sum(self.rates * called, axis=2)  # (T, K)
        # Slope of the contrast by the logit of each call against the right call, and its change.
        slope = mix[:, :, None] * self.rates * (called - mean[:, :, None]) * (1 - np.eye(mix.shape[1]))
        change = slope * (1 - 2 * self.rates)
        of_class, of_call = slope.sum(axis=2), slope.sum(axis=1)  # (T, K)
        shared = of_call - of_class
        # Covariance of the contrast with each logit, if donors differ class by class, or in all classes alike.
        covariances = slope + of_class[:, :, None], shared[:, None, :] - shared[:, :, None]
        variances = [np.sum(slope * covariance, axis=(1, 2)) for covariance in covariances]
        thirds = [3 * np.sum(change * covariance**2, axis=(1, 2)) for covariance in covariances]
        variance = np.stack(variances, axis=1).clip(min=1e-15)
        return variance, np.stack(thirds, axis=1) / variance**1.5

    def _likelihood(
        self, mix: np.ndarray, contrast: np.ndarray, scatter: np.ndarray, between: np.ndarray
    ) -> np.ndarray:
        """Compute the likelihood of each variance between donors (T, G), given the contrast's mean of each donor."""
        if len(self.cells) < 2:
            return np.ones_like(between)
        present = self.cells > 0
        means = np.einsum("tl,dlj,tj->td", mix, self.scores, contrast)  # (T, D)
        noise = (mix**2 * scatter) @ np.where(present, 1 / np.maximum(self.cells, 1), 0).T
        known = (mix @ present.T) ** 2  # a donor without cells of a class tells nothing of it
        log = np.empty_like(between)
        for start in range(0, between.shape[1], CHUNK):
            part = slice(start, start + CHUNK)
            variance = (known[:, None] * between[:, part, None] + noise[:, None]).clip(min=1e-15)  # (T, C, D)
            weight = 1 / variance
            centre = np.sum(weight * means[:, None], axis=2) / weight.sum(axis=2)
            square = np.sum(weight * (means[:, None] - centre[:, :, None]) ** 2, axis=2)
            log[:, part] = -0.5 * (np.log(variance).sum(axis=2) + np.log(weight.sum(axis=2)) + square)
        return np.exp(log - log.max(axis=1, keepdims=True))


def remove_skewness(deviations: np.ndarray, skewness: np.ndarray) -> np.ndarray:
    """Map standardised deviations of a skewed distribution onto those of a normal one, as of a shifted lognormal.

    Args:
        deviations: (T,) deviations from the mean, in standard deviations.
        skewness: (T,) skewness of their distribution.

    Returns:
        (T,) deviations with a standard normal distribution; far away where the lognormal distribution ends.
    """
    sign = np.sign(skewness)
    width = np.clip(np.abs(skewness) / 3, 1e-6, MAX_LOGNORMAL)
    scaled = 1 + np.sqrt(np.expm1(width**2)) * sign * deviations
    return np.where(sign == 0, deviations, sign * (np.log(scaled.clip(min=1e-12)) / width + width / 2))

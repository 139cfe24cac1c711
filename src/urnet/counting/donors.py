"""The part of a sample's variance that comes from its donor, estimated from the donors of the calibration.

The cells of a new donor are misread at other rates than those of the calibration's donors. A contrast of the predicted
classes, such as h(t) in `interval`, then has a mean m_d that varies between donors. Three things tell how much:

1. The spread of the logits between the calibration's donors (`statistics.spread`), with its own uncertainty.
2. The confusion turns a spread into a variance of the contrast (first order, "delta method"). Donors can differ class
   by class, or by calling all cells of all classes more often one class. The larger of both variances is used.
3. The contrast's means of the calibration's donors, observed at the composition that is tested. They decide by how much
   the variance differs from 2, within a factor of about three (as the moderated variances of Smyth, Stat. Appl. Genet.
   Mol. Biol. 3, 2004).

The result is a mixture of normal distributions, one for each possible variance, so that its tails account for how
little a few donors tell about their spread. The calibration's donors count once more, because their mean stands for all
donors. That mean scales the variances too; a factor as between the quantiles of t and normal distribution accounts for
it (without it, the intervals covered 91 to 92 % at 12 donors with a spread of 0.6).
"""

import numpy as np
from scipy.special import ndtr, ndtri, stdtrit

from urnet.statistics.spread import SPREADS, weigh_spreads

FACTOR_FREEDOM = 4
"""Degrees of freedom with which a contrast's variance follows from the spread."""
FACTOR_DEVIATIONS = np.linspace(-1.6, 1.6, 7)
"""Logarithms of the factors that are weighed, in standard deviations."""
EXTRA_FREEDOM = 3
"""Degrees of freedom of that factor beyond the number of the calibration's donors."""
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
    ) -> np.ndarray:
        """Add the variation between donors to the variance of a contrast.

        Args:
            mix: (T, K) shares of the classes.
            contrast: (T, K) weight of each predicted class.
            scatter: (T, K) variance of the contrast among cells of each class.
            variance: (T,) variance without differences between donors.
            level: coverage of the interval.

        Returns:
            (T,) variance of the normal distribution whose interval is as long as that of the mixture.
        """
        factors = np.exp(FACTOR_DEVIATIONS * np.sqrt(2 / FACTOR_FREEDOM))
        prior = np.exp(-0.5 * FACTOR_DEVIATIONS**2)
        between = self._variance_per_spread(mix, contrast)[:, None, None] * SPREADS[:, None] ** 2 * factors
        weights = self.weights[:, None] * (prior / prior.sum()) * self._likelihood(mix, contrast, scatter, between)
        T = len(mix)
        weights, between = weights.reshape(T, -1), between.reshape(T, -1)  # (T, G)
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
        return (reach / quantile) ** 2

    def _variance_per_spread(self, mix: np.ndarray, contrast: np.ndarray) -> np.ndarray:
        """Compute the variance of a contrast (T,) if the logits of donors had a standard deviation of 1."""
        called = np.einsum("ljm,tm->tlj", self.called, contrast)
        mean = np.sum(self.rates * called, axis=2)  # (T, K)
        moved = mix[:, :, None] * self.rates * (called - mean[:, :, None])  # (T, K, K)
        by_class, by_call = np.sum(moved**2, axis=(1, 2)), np.sum(np.sum(moved, axis=1) ** 2, axis=1)
        return np.maximum(by_class, by_call)

    def _likelihood(
        self, mix: np.ndarray, contrast: np.ndarray, scatter: np.ndarray, between: np.ndarray
    ) -> np.ndarray:
        """Compute the likelihood of each variance between donors (T, S, F), given the contrast's mean of each donor."""
        if len(self.cells) < 2:
            return np.ones_like(between)
        present = self.cells > 0
        means = np.einsum("tl,dlj,tj->td", mix, self.scores, contrast)  # (T, D)
        noise = (mix**2 * scatter) @ np.where(present, 1 / np.maximum(self.cells, 1), 0).T
        part = (mix @ present.T) ** 2  # a donor without cells of a class tells nothing of it
        log = np.empty_like(between)
        for s in range(between.shape[1]):
            variance = (part[:, None] * between[:, s, :, None] + noise[:, None]).clip(min=1e-15)  # (T, F, D)
            weight = 1 / variance
            centre = np.sum(weight * means[:, None], axis=2) / weight.sum(axis=2)
            square = np.sum(weight * (means[:, None] - centre[:, :, None]) ** 2, axis=2)
            log[:, s] = -0.5 * (np.log(variance).sum(axis=2) + np.log(weight.sum(axis=2)) + square)
        return np.exp(log - log.max(axis=(1, 2), keepdims=True))

"""95 % intervals of corrected shares: counting error, uncertainty of the confusion, and differences between donors.

A share t of a class is in its interval if a test at level 1 - 95 % does not reject it (score test):

1. Let u solve q = C^T u, where q are the shares of the predicted classes among the accepted cells. Without chance,
   h(t) = u_k - t · sum(u) = a(t) · q is zero if t is the share of class k. This linear form (Fieller, J. R. Statist.
   Soc. B 16, 1954) stays sound where the classes can hardly be distinguished.
2. Its variance has three parts: from drawing the sample's cells, from drawing the calibration's cells, and from the
   sample's donor (`donors`). The first two are computed as if t were true: the confusion is refitted to calibration and
   sample together, with that share fixed at t (restricted maximum likelihood, a few steps of EM). With the measured
   confusion instead, and 40 or 80 calibration cells a class, 95 % intervals of 1 to 2 % monocytes covered 79 to 93 %.
3. Shares lie between 0 and 1, and the estimate of a rare class is often 0. The rejected deviations there follow Feldman
   and Cousins (Phys. Rev. D 57, 1998, section IV.B): the likelihood ratio against the best share in [0, 1], with the
   critical value that makes the coverage exact for a normal x. A clipped interval would cover 97.5 %.

For `corrected_em` the same holds with EM's posteriors in place of the predicted classes; the refit weights the sample's
cells by their posteriors at t.

`benchmarks/intervals.py --part differential` measures coverage and length (docs/explanation/intervals). The intervals
assume that the sample's donor is like those of the calibration; another stain or microscope is not included.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.special import ndtr, ndtri

from urnet.calibration.confusion import ReferenceCells
from urnet.counting.donors import DonorVariation, remove_skewness
from urnet.counting.estimate import (
    adjusted_count,
    check_confusion,
    em_scores,
    make_invertible,
    mean_by_class,
    solve_shares,
)

CONFIDENCE_LEVEL = 0.95
PSEUDO_COUNT = 0.5
"""Part of a calibration cell that is spread over all decisions, so that none is thought impossible."""
REFIT_STEPS = 25
"""Steps of the restricted fit; with up to 1,000 cells, more steps move no end by over 0.2 points."""
GRID_POINTS = 25
"""Shares that are tested first."""
REFINED_POINTS = 17
"""Shares that are tested between two neighbours."""
BISECTIONS = 22
"""Bisections of the critical value, to a millionth."""
MAX_REFIT_CELLS = 4_000
"""Maximum number of a sample's cells that refit EM's moments; of more, an even selection is used."""
MIN_OTHER_SHARE = 1e-3
"""Minimum share of the other classes in a restricted fit."""


@dataclass(frozen=True)
class ShareVariance:
    """Estimate and the parts of its variance if the shares t were true; all (T,).

    Attributes:
        estimate: the estimate.
        counting: variance from drawing the sample's cells.
        calibration: variance from drawing the calibration's cells.
        donors: variance from differences between donors; 0 where they are left out.
        skewness: skewness that these differences bring.
    """

    estimate: np.ndarray
    counting: np.ndarray
    calibration: np.ndarray
    donors: np.ndarray
    skewness: np.ndarray

    @property
    def deviation(self) -> np.ndarray:
        """Standard deviation of the estimate, (T,)."""
        return np.sqrt(self.counting + self.calibration + self.donors)


class ShareTest(Protocol):
    """Test whether class k of a sample can have share t.

    Attributes:
        classes: number of classes.
        cells: number of accepted cells.
    """

    classes: int
    cells: int

    def variance(self, share: np.ndarray, k: np.ndarray) -> ShareVariance:
        """Compute estimate and variance if classes k (T,) had shares (T,)."""
        ...


class CountTest:
    """Test of the adjusted count.

    Args:
        counts: (K,) accepted cells by predicted class; at least one.
        confusion: (K, K + 1) calibration cells, the last column rejected.
        by_donor: (D, K, K + 1) those of them whose donor is known, by donor. Without it, the sample is taken to come
            from the calibration's donors.
        level: coverage of the interval that the test is for.
    """

    def __init__(
        self,
        counts: np.ndarray,
        confusion: np.ndarray,
        by_donor: np.ndarray | None = None,
        level: float = CONFIDENCE_LEVEL,
    ):
        table = check_confusion(confusion)
        self.classes, self.cells = len(table), int(np.sum(counts))
        self.counts = np.asarray(counts, dtype=np.float64)
        self.known = table.sum(axis=1)
        self.solve = np.linalg.inv(make_invertible(table[:, :-1] / self.known[:, None]))
        self.seen = table[:, :-1] + PSEUDO_COUNT / (self.classes + 1)
        self.accepted = self.seen.sum(axis=1) / (self.known + PSEUDO_COUNT)
        self.start = adjusted_count(counts, confusion)
        self.level, self.donors = level, None
        if by_donor is not None:
            by_donor = np.asarray(by_donor, dtype=np.float64)
            scores = by_donor[:, :, :-1] / np.maximum(by_donor.sum(axis=2, keepdims=True), 1)
            called = np.tile(np.eye(self.classes), (self.classes, 1, 1))
            self.donors = DonorVariation(by_donor, table - by_donor.sum(axis=0), scores, called)

    def variance(self, share: np.ndarray, k: np.ndarray) -> ShareVariance:
        """Compute estimate and variance if classes k (T,) had shares (T,)."""
        rates = np.broadcast_to(self.seen / self.seen.sum(axis=1, keepdims=True), (len(share), *self.seen.shape))
        mix = _set_share(np.broadcast_to(self.start, (len(share), self.classes)), share, k)
        for _ in range(REFIT_STEPS):
            joint = (mix * self.accepted)[:, :, None] * rates  # (T, K, K)
            joint = joint * (self.counts / joint.sum(axis=1).clip(min=1e-300))[:, None, :]
            rates = self.seen + joint
            rates = rates / rates.sum(axis=2, keepdims=True)
            mix = _set_share(joint.sum(axis=2) / self.accepted, share, k)
        rates = rates * self.accepted[:, None]
        weights = _contrast_weights(self.solve, share, k)  # (T, K)
        return _share_variance(
            self,
            share,
            mix,
            weights,
            observed=weights @ (self.counts / self.cells),
            mean=np.einsum("tlj,tj->tl", rates, weights),
            square=np.einsum("tlj,tj->tl", rates, weights**2),
        )


class EmTest:
    """Test of the corrected EM, with the differences between donors.

    Args:
        probabilities: (N, K) of the accepted cells; at least one.
        reference: labelled cells.
        training_prior: as for `em`.
        level: coverage of the interval that the test is for.
    """

    def __init__(
        self,
        probabilities: np.ndarray,
        reference: ReferenceCells,
        training_prior: np.ndarray | None = None,
        level: float = CONFIDENCE_LEVEL,
    ):
        table = check_confusion(reference.confusion)
        self.classes, self.cells = len(table), len(probabilities)
        self.known = table.sum(axis=1)
        self.accepted = (table[:, :-1].sum(axis=1) + PSEUDO_COUNT / 2) / (self.known + PSEUDO_COUNT)
        scores, self.reference = em_scores(probabilities, reference, training_prior)
        self.member = np.eye(self.classes)[reference.truth]  # (N', K)
        rates, self.mean = mean_by_class(self.reference, reference.truth), scores.mean(axis=0)
        self.solve = np.linalg.inv(make_invertible(rates))
        self.start = solve_shares(rates, self.mean)
        every = -(-len(probabilities) // MAX_REFIT_CELLS)
        self.scores, self.stands_for = scores[::every], every
        prior = np.ones(self.classes) if training_prior is None else np.asarray(training_prior, dtype=np.float64)
        self.likelihood = probabilities[::every].clip(min=1e-12) / prior
        by_donor = reference.by_donor
        self.level = level
        self.donors = DonorVariation(
            by_donor,
            table - by_donor.sum(axis=0),
            reference.average_by_donor(self.reference),
            reference.average_by_call(self.reference),
        )

    def variance(self, share: np.ndarray, k: np.ndarray) -> ShareVariance:
        """Compute estimate and variance if classes k (T,) had shares (T,)."""
        mix = _set_share(np.broadcast_to(self.start, (len(share), self.classes)), share, k)
        weights = _contrast_weights(self.solve, share, k)  # (T, K)
        # Posteriors of the sample's cells at each t: likelihood[n, l] * prior[t, l] / evidence[n, t].
        prior = mix * self.accepted  # (T, K)
        per = self.stands_for / (self.likelihood @ prior.T)  # (N, T)
        sampled, measured = self.scores @ weights.T, self.reference @ weights.T  # (N, T), (N', T)
        cells = self.known + prior * (per.T @ self.likelihood) / self.accepted + PSEUDO_COUNT  # (T, K)
        mean, square = (
            (
                measured.T**power @ self.member
                + prior * ((sampled**power * per).T @ self.likelihood)
                + PSEUDO_COUNT * np.mean(weights**power, axis=1, keepdims=True)
            )
            / cells
            for power in (1, 2)
        )
        return _share_variance(self, share, mix, weights, observed=weights @ self.mean, mean=mean, square=square)


def adjusted_interval(
    counts: np.ndarray,
    confusion: np.ndarray,
    by_donor: np.ndarray | None = None,
    *,
    level: float = CONFIDENCE_LEVEL,
) -> np.ndarray:
    """Compute intervals of the adjusted count.

    Args:
        counts: (K,) accepted cells by predicted class.
        confusion: (K, K + 1) calibration cells by class and predicted class, the last column rejected.
        by_donor: (D, K, K + 1) those of them whose donor is known, by donor. Without it, the sample is taken to come
            from the calibration's donors.
        level: coverage of the intervals.

    Returns:
        (K, 2) lowest and highest share of each class; 0 and 1 if no cell was accepted.

    Raises:
        CellsError: as `check_confusion`.
    """
    if not np.sum(counts):
        check_confusion(confusion)
        return np.tile([0.0, 1.0], (len(counts), 1))
    test = CountTest(counts, confusion, by_donor, level)
    return invert_test(test, test.start, level)


def em_interval(
    probabilities: np.ndarray,
    reference: ReferenceCells,
    training_prior: np.ndarray | None = None,
    *,
    level: float = CONFIDENCE_LEVEL,
) -> np.ndarray:
    """Compute intervals of the corrected EM.

    Args:
        probabilities: (N, K) of the accepted cells.
        reference: labelled cells.
        training_prior: as for `em`.
        level: coverage of the intervals.

    Returns:
        (K, 2) lowest and highest share of each class; 0 and 1 without cells.

    Raises:
        CellsError: as `check_confusion`.
    """
    if not len(probabilities):
        return np.tile([0.0, 1.0], (len(check_confusion(reference.confusion)), 1))
    test = EmTest(probabilities, reference, training_prior, level)
    return invert_test(test, test.start, level)


def invert_test(test: ShareTest, estimate: np.ndarray, level: float = CONFIDENCE_LEVEL) -> np.ndarray:
    """Compute the ends (K, 2) of the shares that a test does not reject; the estimate (K,) always lies between them.

    A test can reject all shares, if no composition explains the sample. The interval then reaches from the estimate to
    the unbounded share, and by their chance beyond, so that it does not look certain.
    """
    classes = test.classes
    every = np.arange(classes)
    # The points are closer near 0 and 1, where a share varies less.
    grid = np.tile(np.sin(np.linspace(0, np.pi / 2, GRID_POINTS)) ** 2, (classes, 1))
    grid = np.sort(np.hstack([grid, estimate[:, None].clip(0, 1)]), axis=1)  # (K, G)
    accepted = _is_accepted(test, grid, level) | (grid == estimate[:, None])
    first, last = accepted.argmax(axis=1), grid.shape[1] - 1 - accepted[:, ::-1].argmax(axis=1)
    low = np.stack([grid[every, (first - 1).clip(min=0)], grid[every, first]], axis=1)  # (K, 2) rejected, accepted
    high = np.stack([grid[every, (last + 1).clip(max=grid.shape[1] - 1)], grid[every, last]], axis=1)
    for _ in range(2):
        finer = np.linspace(
            np.vstack([low[:, 0], high[:, 0]]), np.vstack([low[:, 1], high[:, 1]]), REFINED_POINTS, axis=-1
        )
        accepted = _is_accepted(test, np.hstack([finer[0], finer[1]]), level).reshape(classes, 2, REFINED_POINTS)
        accepted[:, :, -1] = True
        at = accepted.argmax(axis=2)  # (K, 2) first accepted, from the rejected side
        low, high = (
            np.stack([finer[side][every, (at[:, side] - 1).clip(min=0)], finer[side][every, at[:, side]]], axis=1)
            for side in (0, 1)
        )
    ends = np.stack([low[:, 1], high[:, 1]], axis=1)
    rejected = ~_is_accepted(test, estimate[:, None].clip(0, 1), level)[:, 0]
    if rejected.any():
        parts = test.variance(estimate.clip(0, 1), every)
        reach = ndtri(0.5 + level / 2) * parts.deviation
        least, most = (at(estimate, parts.estimate) for at in (np.minimum, np.maximum))
        wide = np.stack([np.minimum(ends[:, 0], least - reach), np.maximum(ends[:, 1], most + reach)], axis=1)
        ends = np.where(rejected[:, None], wide.clip(0, 1), ends)
    return ends


def acceptance_region(
    share: np.ndarray, spread: np.ndarray, level: float = CONFIDENCE_LEVEL
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the estimates between which a share in [0, 1] is not rejected.

    The method is that of Feldman and Cousins (1998, section IV.B) with two bounds.

    Args:
        share: (…) hypothesised shares.
        spread: (…) standard deviations of the estimate, > 0.
        level: coverage of the intervals.

    Returns:
        Lowest and highest (…) estimate; the estimate is normal and unbounded.
    """
    below, above = np.zeros(np.shape(share)), np.full(np.shape(share), ndtri(0.5 + level / 2))
    for _ in range(BISECTIONS):
        critical = (below + above) / 2
        low, high = _acceptance_bounds(share, spread, critical)
        short = ndtr((high - share) / spread) - ndtr((low - share) / spread) < level
        below, above = np.where(short, critical, below), np.where(short, above, critical)
    return _acceptance_bounds(share, spread, above)


def _acceptance_bounds(share: np.ndarray, spread: np.ndarray, critical: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the estimates with a likelihood ratio of critical²; beyond 0 and 1 the best share is 0 or 1."""
    reach = spread * critical
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        below = np.where(share > 0, (share**2 - reach**2) / (2 * share), -np.inf)
        above = np.where(share < 1, (1 - share**2 + reach**2) / (2 * (1 - share)), np.inf)
    return np.where(share >= reach, share - reach, below), np.where(share + reach <= 1, share + reach, above)


def _is_accepted(test: ShareTest, share: np.ndarray, level: float) -> np.ndarray:
    """Find the shares (K, G) that the test does not reject."""
    flat = share.ravel()
    parts = test.variance(flat, np.repeat(np.arange(len(share)), share.shape[1]))
    spread = parts.deviation.clip(min=1e-9)
    estimate = flat + spread * remove_skewness((parts.estimate - flat) / spread, parts.skewness)
    low, high = acceptance_region(flat, spread, level)
    return ((estimate >= low) & (estimate <= high)).reshape(share.shape)


def _set_share(mix: np.ndarray, share: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Set class k to its share in compositions (T, K); the others keep their proportions."""
    rows = np.arange(len(share))
    mix = mix + MIN_OTHER_SHARE * mix.sum(axis=1, keepdims=True) + 1e-300
    mix[rows, k] = 0
    mix = mix * ((1 - share) / mix.sum(axis=1))[:, None]
    mix[rows, k] = share
    return mix


def _contrast_weights(solve: np.ndarray, share: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Compute a(t), the weight of each predicted class in h(t), (T, K)."""
    contrast = np.repeat(-share[:, None], len(solve), axis=1)
    contrast[np.arange(len(share)), k] += 1
    return contrast @ solve.T


def _share_variance(
    test: "CountTest | EmTest",
    share: np.ndarray,
    mix: np.ndarray,
    weights: np.ndarray,
    *,
    observed: np.ndarray,
    mean: np.ndarray,
    square: np.ndarray,
) -> ShareVariance:
    """Compute estimate and variances from moments of the scores (T, K), with rejected cells as 0."""
    through = mix @ test.accepted  # (T,) share of all cells that is accepted
    among = mix / through[:, None]
    scatter = (square - mean**2).clip(min=0)
    counting = ((among * square).sum(axis=1) - (among * mean).sum(axis=1) ** 2) / test.cells
    counting = counting.clip(min=0) * through**2
    calibration = (mix**2 * scatter / test.known).sum(axis=1)
    donors = skewness = np.zeros(len(share))
    if test.donors is not None:
        within = counting + calibration
        whole, skewness = test.donors.widen(mix, weights, scatter, within, test.level)
        donors = (whole - within).clip(min=0)
    return ShareVariance(share + observed * through, counting, calibration, donors, skewness)

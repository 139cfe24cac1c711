"""How far a corrected share can be from the truth: intervals with the counting error and the confusion's own.

A share t of a class is in its interval if a test at level 1 - 95 % does not refuse it (score test):

1. Let u solve q = C^T u, q being the shares of the predicted classes among the accepted cells. Without chance,
   h(t) = u_k - t · sum(u) = a(t) · q is zero where t is the share of class k (Fieller's linear form, so that it stays
   sound where the classes can hardly be told apart: J. R. Statist. Soc. B 16, 1954).
2. Its variance has two parts, from drawing the sample's cells and from drawing the calibration's. Both are taken as
   they would be if t were true: the confusion is refitted to calibration and sample together with that share held at t
   (restricted maximum likelihood, a few steps of EM). With the measured confusion instead, a calibration that happened
   to have few false monocytes would also claim to know their rate well: with 40 or 80 calibration cells a class, 95 %
   intervals of 1 to 2 % monocytes then covered 79 to 93 %.
3. Shares lie between 0 and 1, and a rare class's estimate often sits at 0. Which deviations are refused there follows
   Feldman and Cousins (Phys. Rev. D 57, 1998, section IV.B): the likelihood ratio against the best share in [0, 1],
   with the critical value that makes its coverage exact for a normal x. Clipping a plain interval would cover 97.5 %.

For `corrected_em` the same holds with EM's posteriors in the place of "predicted as"; the refit then lets the sample's
cells stand in for those of a class by their posteriors at t.

Coverage was measured with `benchmarks/differential.py`; what it found is in docs/results. Two limits were seen in
simulation: with 40 calibration cells a class and a classifier that hardly errs, intervals are too wide (up to 99.8 %
covered); with 80 and samples of 20,000 cells or more, where all hangs on the confusion, somewhat too narrow (91 to
96 %). The intervals assume that the sample's cells look like the calibration's cells of their class; another stain,
microscope or donor is not in them.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.special import ndtr, ndtri

from urnet.calibration.confusion import ReferenceCells
from urnet.counting.estimate import (
    adjusted_count,
    check_confusion,
    em_scores,
    make_invertible,
    mean_by_class,
    solve_shares,
)

CONFIDENCE_LEVEL = 0.95
PSEUDO_COUNT = 0.5  # of a cell, spread over all answers, so that what no calibration cell did is not thought impossible
REFIT_STEPS = 25  # steps of the restricted fit; up to 1,000 cells more move no end by over 0.2 points
GRID_POINTS = 25
REFINED_POINTS = 17
BISECTIONS = 22  # of the critical value: to a millionth
MAX_REFIT_CELLS = 4_000  # cells of a sample that refit EM's moments; an even selection of a larger one will do
MIN_OTHER_SHARE = 1e-3  # share of a class that scales the others' in a restricted fit


@dataclass(frozen=True)
class ShareVariance:
    """A test of shares t: where the estimate lies, and the two parts of its variance if t were true; all (T,)."""

    estimate: np.ndarray
    counting: np.ndarray
    calibration: np.ndarray


class ShareTest(Protocol):
    """Tests whether class k of a sample can have share t."""

    classes: int
    cells: int

    def variance(self, share: np.ndarray, k: np.ndarray) -> ShareVariance:
        """Of shares (T,) of classes k (T,)."""
        ...


class CountTest:
    """Tests of the adjusted count.

    Args:
        counts: (K,) accepted cells by predicted class; at least one.
        confusion: (K, K + 1) calibration cells, the last column rejected.
    """

    def __init__(self, counts: np.ndarray, confusion: np.ndarray):
        table = check_confusion(confusion)
        self.classes, self.cells = len(table), int(np.sum(counts))
        self.counts = np.asarray(counts, dtype=np.float64)
        self.known = table.sum(axis=1)
        self.solve = np.linalg.inv(make_invertible(table[:, :-1] / self.known[:, None]))
        self.seen = table[:, :-1] + PSEUDO_COUNT / (self.classes + 1)
        self.accepted = self.seen.sum(axis=1) / (self.known + PSEUDO_COUNT)
        self.start = adjusted_count(counts, confusion)

    def variance(self, share: np.ndarray, k: np.ndarray) -> ShareVariance:
        """Of shares (T,) of classes k (T,)."""
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
            share,
            mix,
            self.accepted,
            observed=weights @ (self.counts / self.cells),
            mean=np.einsum("tlj,tj->tl", rates, weights),
            square=np.einsum("tlj,tj->tl", rates, weights**2),
            cells=self.cells,
            known=self.known,
        )


class EmTest:
    """Tests of the corrected EM.

    Args:
        probabilities: (N, K) of the accepted cells; at least one.
        reference: cells of known class.
        training_prior: as for `em`.
    """

    def __init__(self, probabilities: np.ndarray, reference: ReferenceCells, training_prior: np.ndarray | None = None):
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

    def variance(self, share: np.ndarray, k: np.ndarray) -> ShareVariance:
        """Of shares (T,) of classes k (T,)."""
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
        return _share_variance(
            share,
            mix,
            self.accepted,
            observed=weights @ self.mean,
            mean=mean,
            square=square,
            cells=self.cells,
            known=self.known,
        )


def adjusted_interval(counts: np.ndarray, confusion: np.ndarray, *, level: float = CONFIDENCE_LEVEL) -> np.ndarray:
    """Intervals of the adjusted count.

    Args:
        counts: (K,) accepted cells by predicted class.
        confusion: (K, K + 1) calibration cells by class and predicted class, the last column rejected.
        level: their coverage.

    Returns:
        (K, 2) lowest and highest share of each class; 0 and 1 where no cell was accepted.

    Raises:
        CellsError: a class has no calibration cell, or none that was accepted.
    """
    if not np.sum(counts):
        check_confusion(confusion)
        return np.tile([0.0, 1.0], (len(counts), 1))
    test = CountTest(counts, confusion)
    return invert_test(test, test.start, level)


def em_interval(
    probabilities: np.ndarray,
    reference: ReferenceCells,
    training_prior: np.ndarray | None = None,
    *,
    level: float = CONFIDENCE_LEVEL,
) -> np.ndarray:
    """Intervals of the corrected EM.

    Args:
        probabilities: (N, K) of the accepted cells.
        reference: cells of known class.
        training_prior: as for `em`.
        level: their coverage.

    Returns:
        (K, 2) lowest and highest share of each class; 0 and 1 where there are no cells.

    Raises:
        CellsError: a class has no calibration cell, or none that was accepted.
    """
    if not len(probabilities):
        return np.tile([0.0, 1.0], (len(check_confusion(reference.confusion)), 1))
    test = EmTest(probabilities, reference, training_prior)
    return invert_test(test, test.start, level)


def invert_test(test: ShareTest, estimate: np.ndarray, level: float = CONFIDENCE_LEVEL) -> np.ndarray:
    """(K, 2) ends of the shares that a test does not refuse; the estimate (K,) is always between them.

    A test can refuse all shares, the estimate too: no composition explains the sample. What it leaves would then look
    like certainty, so the interval reaches from the estimate to the share without bounds, and by the chance of both
    beyond.
    """
    classes = test.classes
    every = np.arange(classes)
    # Closer together near 0 and 1, as the spread of a share is smaller there.
    grid = np.tile(np.sin(np.linspace(0, np.pi / 2, GRID_POINTS)) ** 2, (classes, 1))
    grid = np.sort(np.hstack([grid, estimate[:, None].clip(0, 1)]), axis=1)  # (K, G)
    kept = _is_accepted(test, grid, level) | (grid == estimate[:, None])
    first, last = kept.argmax(axis=1), grid.shape[1] - 1 - kept[:, ::-1].argmax(axis=1)
    low = np.stack([grid[every, (first - 1).clip(min=0)], grid[every, first]], axis=1)  # (K, 2) refused, kept
    high = np.stack([grid[every, (last + 1).clip(max=grid.shape[1] - 1)], grid[every, last]], axis=1)
    for _ in range(2):
        finer = np.linspace(
            np.vstack([low[:, 0], high[:, 0]]), np.vstack([low[:, 1], high[:, 1]]), REFINED_POINTS, axis=-1
        )
        kept = _is_accepted(test, np.hstack([finer[0], finer[1]]), level).reshape(classes, 2, REFINED_POINTS)
        kept[:, :, -1] = True
        at = kept.argmax(axis=2)  # (K, 2) first kept, from the refused side
        low, high = (
            np.stack([finer[side][every, (at[:, side] - 1).clip(min=0)], finer[side][every, at[:, side]]], axis=1)
            for side in (0, 1)
        )
    ends = np.stack([low[:, 1], high[:, 1]], axis=1)
    refused = ~_is_accepted(test, estimate[:, None].clip(0, 1), level)[:, 0]
    if refused.any():
        parts = test.variance(estimate.clip(0, 1), every)
        reach = ndtri(0.5 + level / 2) * np.sqrt(parts.counting + parts.calibration)
        least, most = (at(estimate, parts.estimate) for at in (np.minimum, np.maximum))
        wide = np.stack([np.minimum(ends[:, 0], least - reach), np.maximum(ends[:, 1], most + reach)], axis=1)
        ends = np.where(refused[:, None], wide.clip(0, 1), ends)
    return ends


def acceptance_region(
    share: np.ndarray, spread: np.ndarray, level: float = CONFIDENCE_LEVEL
) -> tuple[np.ndarray, np.ndarray]:
    """Between which estimates a share in [0, 1] is not refused (Feldman and Cousins 1998, section IV.B, two bounds).

    Args:
        share: (…) hypothesised shares.
        spread: (…) standard deviations of the estimate, > 0.
        level: coverage.

    Returns:
        Lowest and highest (…) of a normal estimate that is not bounded itself.
    """
    below, above = np.zeros(np.shape(share)), np.full(np.shape(share), ndtri(0.5 + level / 2))
    for _ in range(BISECTIONS):
        critical = (below + above) / 2
        low, high = _acceptance_bounds(share, spread, critical)
        short = ndtr((high - share) / spread) - ndtr((low - share) / spread) < level
        below, above = np.where(short, critical, below), np.where(short, above, critical)
    return _acceptance_bounds(share, spread, above)


def _acceptance_bounds(share: np.ndarray, spread: np.ndarray, critical: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Estimates at which the likelihood ratio reaches critical²; beyond 0 and 1 the best share is 0 or 1."""
    reach = spread * critical
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        below = np.where(share > 0, (share**2 - reach**2) / (2 * share), -np.inf)
        above = np.where(share < 1, (1 - share**2 + reach**2) / (2 * (1 - share)), np.inf)
    return np.where(share >= reach, share - reach, below), np.where(share + reach <= 1, share + reach, above)


def _is_accepted(test: ShareTest, share: np.ndarray, level: float) -> np.ndarray:
    """Which of the shares (K, G) the test does not refuse."""
    flat = share.ravel()
    parts = test.variance(flat, np.repeat(np.arange(len(share)), share.shape[1]))
    spread = np.sqrt(parts.counting + parts.calibration).clip(min=1e-9)
    low, high = acceptance_region(flat, spread, level)
    return ((parts.estimate >= low) & (parts.estimate <= high)).reshape(share.shape)


def _set_share(mix: np.ndarray, share: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Compositions (T, K) with class k at its share; the others keep their proportions."""
    rows = np.arange(len(share))
    mix = mix + MIN_OTHER_SHARE * mix.sum(axis=1, keepdims=True) + 1e-300
    mix[rows, k] = 0
    mix = mix * ((1 - share) / mix.sum(axis=1))[:, None]
    mix[rows, k] = share
    return mix


def _contrast_weights(solve: np.ndarray, share: np.ndarray, k: np.ndarray) -> np.ndarray:
    """a(t): (T, K) what each predicted class adds to h(t)."""
    contrast = np.repeat(-share[:, None], len(solve), axis=1)
    contrast[np.arange(len(share)), k] += 1
    return contrast @ solve.T


def _share_variance(
    share: np.ndarray,
    mix: np.ndarray,
    accepted: np.ndarray,
    *,
    observed: np.ndarray,
    mean: np.ndarray,
    square: np.ndarray,
    cells: int,
    known: np.ndarray,
) -> ShareVariance:
    """Estimate and variances from moments of the scores: (T, K), over all cells of a class, rejected ones as 0."""
    through = mix @ accepted  # (T,) share of all cells that is accepted
    among = mix / through[:, None]
    counting = ((among * square).sum(axis=1) - (among * mean).sum(axis=1) ** 2) / cells
    calibration = (among**2 * (square - mean**2) / known).sum(axis=1)
    return ShareVariance(
        estimate=share + observed * through,
        counting=counting.clip(min=0) * through**2,
        calibration=calibration.clip(min=0) * through**2,
    )

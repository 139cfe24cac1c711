"""Intervals of proportions and means over donors: exactness, properties, and coverage in simulations."""

import numpy as np
import pytest
from scipy import special, stats

from urnet.evaluation.metrics import calibration_error_interval, class_and_mean_intervals
from urnet.statistics.donors import interval_of_mean
from urnet.statistics.proportions import limit_of_certainty, mid_p_limits


def one(right, cells, **options) -> tuple[float, float]:
    """Compute the interval of one proportion from counts per donor."""
    low, high = interval_of_mean(np.array(right)[:, None], np.array(cells)[:, None], **options)
    return float(low), float(high)


@pytest.mark.parametrize(("right", "cells"), [(1, 7), (3, 40), (25, 50), (196, 200)])
def test_limits_have_the_mid_p_value_of_the_exact_test(right, cells):
    low, high = mid_p_limits(right, cells, 0.95)
    above, below = stats.binom(cells, low), stats.binom(cells, high)
    assert above.sf(right) + above.pmf(right) / 2 == pytest.approx(0.025)
    assert below.cdf(right - 1) + below.pmf(right) / 2 == pytest.approx(0.025)
    exact = stats.binomtest(right, cells).proportion_ci(0.95)
    assert exact.low < low < right / cells < high < exact.high


@pytest.mark.parametrize("cells", [1, 3, 20, 5000])
def test_without_an_error_single_cells_have_the_limit_of_clopper_and_pearson(cells):
    exact = stats.binomtest(cells, cells).proportion_ci(0.95)
    assert mid_p_limits(cells, cells, 0.95)[0] == pytest.approx(exact.low)
    assert limit_of_certainty(np.ones(cells), 0.95) == pytest.approx(exact.low)
    assert one([1] * cells, [1] * cells) == pytest.approx((exact.low, 1))
    assert one([0] * cells, [1] * cells) == pytest.approx((0, 1 - exact.low))


def test_without_an_error_many_cells_of_few_donors_are_neither_certain_nor_worthless():
    low, high = one([250] * 8, [250] * 8)
    single = stats.binomtest(2000, 2000).proportion_ci(0.95).low
    donors = stats.binomtest(8, 8).proportion_ci(0.95).low
    assert donors < 0.99 < low < single
    assert high == 1


def test_equal_donors_that_differ_much_have_a_t_interval_in_logits():
    right, cells = np.array([520, 610, 480, 700, 390, 580, 640, 450]) * 10, np.full(8, 10_000)
    share = right / cells
    mean, error = share.mean(), stats.sem(share)
    low, high = one(right, cells)
    step = stats.t.ppf(0.975, 7) * error / (mean * (1 - mean))
    expected = special.expit(special.logit(mean) + np.array([-step, step]))
    assert low == pytest.approx(expected[0], abs=0.002)
    assert high == pytest.approx(expected[1], abs=0.004)


@pytest.mark.parametrize("seed", range(20))
def test_an_interval_holds_its_value_within_0_and_1_whatever_the_donors(seed):
    rng = np.random.default_rng(seed)
    G, K = rng.integers(2, 15), rng.integers(1, 5)
    cells = rng.integers(0, rng.integers(2, 200), size=(G, K))
    cells[0] += 1
    right = rng.binomial(cells, rng.choice([0, 0.02, 0.5, 0.97, 1], size=(G, K)))
    for dice in (False, True):
        low, high = interval_of_mean(right, cells, dice=dice)
        share = right.sum(axis=0) / cells.sum(axis=0)
        value = (2 * share / (1 + share) if dice else share).mean()
        assert 0 <= low <= value <= high <= 1
        assert low < high
        order = rng.permutation(G)
        assert interval_of_mean(right[order], cells[order], dice=dice) == pytest.approx((low, high))
    wrong = interval_of_mean(cells - right, cells)
    low, high = interval_of_mean(right, cells)
    assert (1 - wrong[1], 1 - wrong[0]) == pytest.approx((low, high))


def test_more_cells_of_alike_donors_and_more_donors_give_shorter_intervals():
    def length(right: list[int], cells: int) -> float:
        low, high = one(right, [cells] * len(right))
        return high - low

    assert length([8] * 8, 10) > length([16] * 8, 20) > length([80] * 8, 100)
    different = [8, 9, 7, 10, 8, 6, 9, 10]
    assert length(different, 10) > length(different * 2, 10) > length(different * 4, 10)


def test_a_class_in_one_donor_widens_the_mean():
    right, cells = np.array([[90, 900]] + [[90, 0]] * 7), np.array([[100, 1000]] + [[100, 0]] * 7)
    spread_out = np.array([[90, 90]] * 8 + [[0, 180]]), np.array([[100, 100]] * 8 + [[0, 200]])
    low, high = interval_of_mean(right, cells)
    other = interval_of_mean(*spread_out)
    assert high - low > 2 * (other[1] - other[0])


def test_the_f1_of_two_classes_that_are_only_confused_with_each_other_move_together():
    confusion = np.array([[900, 100], [100, 900]])
    counts = np.tile(confusion, (8, 1, 1))
    right = np.einsum("gkk->gk", counts)
    either = counts.sum(axis=2) + counts.sum(axis=1) - right
    (low, high), mean = class_and_mean_intervals(right, either, confusion=confusion * 8)
    assert mean[1] - mean[0] == pytest.approx(high[0] - low[0], rel=0.06)


def simulate(rng, donors, cells, spread, recalls, sizes) -> tuple[np.ndarray, np.ndarray]:
    """Draw right cells and cells of 400 tests with donors whose logits of recall are normal."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = weights / weights.sum()
    shape = (400, donors, len(recalls))
    share = rng.gamma(2, size=shape[:2]) if sizes == "unequal" else np.ones(shape[:2])
    counts = rng.poisson(cells * (share / share.sum(axis=1, keepdims=True))[..., None], size=shape)
    if sizes == "absent":
        counts[..., 0] *= rng.random(shape[:2]) < 0.7
    counts[:, :2, :] += 1
    grid = np.linspace(-5, 8, 4001)
    means = special.expit(grid[:, None] + spread * nodes) @ weights
    centre = np.interp(recalls, means, grid)
    return rng.binomial(counts, special.expit(centre + spread * rng.normal(size=shape))), counts


@pytest.mark.parametrize(
    ("donors", "cells", "spread", "recalls", "sizes", "longest"),
    [
        (8, 600, 0.0, (0.8, 0.9, 0.95), "equal", 1.3),
        (8, 6000, 0.6, (0.8, 0.9, 0.95), "equal", 1.3),
        (20, 600, 0.3, (0.7, 0.9, 0.8), "equal", 1.2),
        (12, 2000, 0.3, (0.7, 0.9, 0.8), "absent", 1.4),
        (12, 2000, 0.6, (0.7, 0.9, 0.8), "unequal", 1.7),
        (5, 2000, 0.3, (0.7, 0.9, 0.8), "equal", 1.5),
    ],
)
def test_intervals_of_recalls_and_their_mean_cover_and_are_not_too_long(donors, cells, spread, recalls, sizes, longest):
    right, counts = simulate(np.random.default_rng(0), donors, cells, spread, recalls, sizes)
    (low, high), mean = class_and_mean_intervals(right, counts)
    values = right.sum(axis=1) / counts.sum(axis=1)
    covered = ((low <= recalls) & (recalls <= high)).mean()
    assert 0.925 <= covered <= 0.985  # three classes of 400 tests: a standard error of 0.6 points
    oracle = 2 * 1.96 * values.std(axis=0)
    assert ((high - low).mean(axis=0) / oracle).mean() <= longest
    covered = ((mean[0] <= np.mean(recalls)) & (np.mean(recalls) <= mean[1])).mean()
    assert 0.91 <= covered <= 0.99
    assert (mean[1] - mean[0]).mean() / (2 * 1.96 * values.mean(axis=1).std()) <= longest


@pytest.mark.parametrize(("bias", "spread"), [(0.0, 0.0), (0.5, 0.3)])
def test_the_interval_of_the_calibration_error_covers(bias, spread):
    rng = np.random.default_rng(0)
    confidence = (np.arange(6, 15) + 0.5) / 15
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    centre = special.logit(confidence) - bias
    truth = np.abs(special.expit(centre[:, None] + spread * nodes) @ (weights / weights.sum()) - confidence).mean()
    hits = 0
    for _ in range(200):
        right = rng.binomial(25, special.expit(centre + spread * rng.normal(size=(8, 1))))
        low, high = calibration_error_interval(right - 25 * confidence, np.full(8, 25 * 9))
        hits += low <= truth <= high
    assert hits >= 0.92 * 200

"""Differences on one split: values by hand, and coverage over donors and over trainings."""

import numpy as np
import pytest

from urnet.statistics.one_split import add_trainings, estimate_over_groups


def test_equal_groups_are_a_t_interval_of_their_means():
    change = np.array([[2.0], [5.0], [3.0], [-1.0]])
    found = estimate_over_groups(change, np.full((4, 1), 10.0))
    means = change[:, 0] / 10
    assert found.value == pytest.approx(means.mean())
    assert found.error == pytest.approx(means.std(ddof=1) / 2)
    assert found.freedom == pytest.approx(3)


def test_a_mean_over_classes_leaves_out_empty_ones():
    change, cells = np.array([[2.0, 1, 0], [4.0, 0, 0]]), np.array([[10.0, 5, 0], [10.0, 5, 0]])
    assert estimate_over_groups(change, cells).value == pytest.approx((0.3 + 0.1) / 2)
    assert np.isnan(estimate_over_groups(change[:, 2:], cells[:, 2:]).value)


@pytest.mark.parametrize(
    ("change", "cells"), [([[1.0]], [[5.0]]), ([[1.0], [1.0]], [[5.0], [5.0]]), ([[1.0], [0]], [[5.0], [0]])]
)
def test_no_spread_no_interval(change, cells):
    found = estimate_over_groups(np.array(change), np.array(cells))
    assert np.isfinite(found.value)
    assert np.isnan(found.error)


@pytest.mark.parametrize("donors", [8, 20])
@pytest.mark.parametrize("trainings", [1, 5])
def test_coverage_over_donors_and_trainings(donors, trainings):
    rng, covered = np.random.default_rng(donors), 0
    for _ in range(800):
        cells = rng.poisson(200 * rng.gamma(4, size=(donors, 1)) / 4 * np.array([0.6, 0.3, 0.1])) + 1
        share = 0.1 + rng.normal(0, 0.03, (2, donors, 1))
        counts = rng.binomial(cells, np.clip(share, 0, 1))
        luck = rng.normal(0, 0.03, trainings) if trainings > 1 else np.zeros(1)
        found = estimate_over_groups(counts[1] - counts[0] + luck.mean() * cells, cells)
        if trainings > 1:
            found = add_trainings(found, luck)
        low, high = found.interval(0.95)
        covered += low <= 0 <= high
    assert covered / 800 >= 0.93

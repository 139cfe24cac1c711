"""Estimates: t intervals and p values agree, and the detectable difference is found as often as it says."""

import numpy as np
import pytest
from scipy import stats

from urnet.statistics.estimate import Estimate


def test_interval_and_p_value_are_those_of_a_t_test():
    values = np.random.default_rng(0).normal(0.5, 1, 12)
    estimate = Estimate(values.mean(), values.std(ddof=1) / np.sqrt(12), np.array(11.0))
    known = stats.ttest_1samp(values, 0)
    assert estimate.p_value() == pytest.approx(known.pvalue)
    assert estimate.interval(0.9) == pytest.approx(tuple(known.confidence_interval(0.9)))


def test_without_a_standard_error_nothing_is_said():
    estimate = Estimate(np.array([1.0, 2.0]), np.array([np.nan, 0.5]), np.array([np.nan, 4.0]))
    for part in (*estimate.interval(0.95), estimate.p_value(), estimate.detectable(0.05)):
        assert np.isnan(part).tolist() == [True, False]


@pytest.mark.parametrize(("freedom", "alpha"), [(4, 0.05), (4, 0.005), (14, 0.01), (100, 0.05)])
def test_the_detectable_difference_is_found_with_a_probability_of_80_percent(freedom, alpha):
    rng = np.random.default_rng(1)
    truth = float(Estimate(np.array(0.0), np.array(1.0), np.array(float(freedom))).detectable(alpha))
    n = 40_000
    spread = np.sqrt(rng.chisquare(freedom, n) / freedom)
    p = Estimate(rng.normal(truth, 1, n), spread, np.full(n, float(freedom))).p_value()
    assert (p <= alpha).mean() == pytest.approx(0.8, abs=0.01)

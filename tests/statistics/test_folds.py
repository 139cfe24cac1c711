"""Differences over folds: values by hand, and error rates in small simulations of equal recipes."""

import numpy as np
import pytest
from scipy import stats

from urnet.statistics.folds import describe_folds, estimate_over_folds
from urnet.statistics.multiple import adjust_holm


def test_five_equal_folds_are_nadeau_and_bengio_by_hand():
    d = np.array([0.01, 0.03, 0.02, 0.05, 0.04])
    found = estimate_over_folds(d, np.full(5, 20), 100, np.zeros(5), 100)
    assert found.value == pytest.approx(0.03)
    assert found.error == pytest.approx(d.std(ddof=1) * np.sqrt(1 / 5 + 20 / 80))
    assert found.freedom == 4
    low, high = found.interval(0.95)
    assert high - low == pytest.approx(2 * stats.t.ppf(0.975, 4) * d.std(ddof=1) * np.sqrt(0.45))


def test_unequal_folds_have_the_mean_correction():
    d, tested = np.array([0.01, 0.03, 0.05]), np.array([50, 30, 20])
    found = estimate_over_folds(d, tested, 100, np.zeros(3), 100)
    ratio = np.mean([50 / 50, 30 / 70, 0.25])
    assert found.error == pytest.approx(d.std(ddof=1) * np.sqrt(1 / 3 + ratio))


def test_many_folds_allow_for_a_quarter_of_the_variance_from_training_cells():
    d = np.random.default_rng(0).normal(size=20)
    found = estimate_over_folds(d, np.full(20, 5), 100, np.zeros(20), 20)
    correlation = 0.25 * 0.95
    assert found.error == pytest.approx(d.std(ddof=1) * np.sqrt(1 / 20 + correlation / (1 - correlation)))


def test_repeats_regroup_the_same_donors():
    d = np.random.default_rng(0).normal(size=15)
    repeats = np.repeat([0, 1, 2], 5)
    many, few = (estimate_over_folds(d, np.full(15, 20), 100, repeats, groups).freedom for groups in (10**6, 8))
    assert many == pytest.approx(12, abs=0.01)
    assert few == pytest.approx(12 / (1 + 8 / 7))
    assert estimate_over_folds(d, np.full(15, 20), 100, np.arange(15), 10**6).freedom == pytest.approx(14, abs=0.01)


def test_a_fold_without_cells_of_the_class_contributes_nothing():
    d = np.array([[0.1, np.nan, 0.3], [np.nan, np.nan, 0.3], [0.2, 0.2, 0.2], [np.nan] * 3])
    found = estimate_over_folds(d, np.full(3, 10), 30, np.zeros(3), 30)
    assert found.value == pytest.approx([0.2, 0.3, 0.2, np.nan], nan_ok=True)
    assert np.isfinite(found.error).tolist() == [True, False, False, False]
    assert found.freedom[0] == 1


def test_one_donor_gives_no_interval():
    assert np.isnan(estimate_over_folds(np.array([0.1, 0.2]), np.full(2, 10), 20, np.zeros(2), 1).error)


def test_the_method_in_words():
    assert describe_folds(5, 1, None) == "t over 5 folds, corrected for shared training cells"
    assert describe_folds(15, 3, None) == "t over 15 folds (3 × 5), corrected for shared training cells"
    assert describe_folds(12, 1, 12) == "t over 12 donors left out one by one, corrected for shared training cells"


def simulate(folds: int, repeats: int, donors: int, trainings: float, shared: float, m: int = 5) -> tuple[float, float]:
    """Measure family-wise error and coverage for recipes that are equal, with donors that suit some of them better.

    `shared` is the share of the variance between trainings that comes from the donors in the training part.
    """
    rng, R = np.random.default_rng(folds + donors), 1500
    suits, influence = rng.normal(0, 0.03, (R, m, donors)), rng.normal(size=(R, m, donors))
    order = rng.permuted(np.broadcast_to(np.arange(donors), (R, repeats, donors)), axis=-1)
    test = (order % folds)[:, :, None] == np.arange(folds)[:, None]
    test = test.reshape(R, 1, repeats * folds, donors)
    size = test.sum(axis=-1)
    common = (~test * influence[:, :, None]).sum(axis=-1) / np.sqrt(donors - size)
    alone = rng.normal(size=common.shape)
    d = (test * suits[:, :, None]).sum(axis=-1) / size
    d += trainings * (np.sqrt(shared) * common + np.sqrt(1 - shared) * alone)
    found = estimate_over_folds(d, size, donors, np.repeat(np.arange(repeats), folds), donors)
    low, high = found.interval(0.95)
    return (adjust_holm(found.p_value()) <= 0.05).any(axis=-1).mean(), ((low <= 0) & (high >= 0)).mean()


@pytest.mark.parametrize(("folds", "repeats", "donors"), [(5, 1, 8), (5, 3, 8), (5, 3, 20), (12, 1, 12), (2, 5, 12)])
@pytest.mark.parametrize("trainings", [0.0, 0.04, 0.5])
@pytest.mark.parametrize("shared", [0.0, 0.2])
def test_equal_recipes_rarely_get_a_verdict(folds, repeats, donors, trainings, shared):
    wrong, coverage = simulate(folds, repeats, donors, trainings, shared)
    assert wrong <= 0.065  # 0.05 and two standard errors of 1,500 experiments, rounded up
    assert coverage >= 0.94

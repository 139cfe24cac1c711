"""Holm's adjustment against a literal step-down procedure, and the gate of secondary comparisons."""

import numpy as np
import pytest

from urnet.statistics.multiple import adjust_holm, adjust_secondary, strictest_level


def step_down(p: np.ndarray, alpha: float) -> np.ndarray:
    """Reject by the words of Holm (1979): the smallest p at alpha/m, the next at alpha/(m - 1), … until one fails."""
    rejected = np.zeros(len(p), dtype=bool)
    for step, index in enumerate(np.argsort(p, kind="stable")):
        if not p[index] <= alpha / (len(p) - step):
            break
        rejected[index] = True
    return rejected


def test_adjusted_p_values_reject_what_the_procedure_rejects():
    rng = np.random.default_rng(0)
    for count in (1, 2, 5, 20):
        for _ in range(200):
            p = rng.random(count) ** 4
            for alpha in (0.01, 0.05, 0.2):
                assert ((adjust_holm(p) <= alpha) == step_down(p, alpha)).all()


def test_by_hand_with_ties_and_unknown_values():
    assert adjust_holm(np.array([0.04, 0.01, 0.03])) == pytest.approx([0.06, 0.03, 0.06])
    assert adjust_holm(np.array([np.nan, 0.01])) == pytest.approx([np.nan, 0.02], nan_ok=True)
    assert adjust_holm(np.array([[0.02, 0.02], [0.9, 0.6]])) == pytest.approx(np.array([[0.04, 0.04], [1.0, 1.0]]))


def test_secondary_rows_are_one_family_and_never_below_the_primary_one():
    p = np.array([[0.001, 0.04], [0.001, 0.9]])
    found = adjust_secondary(p, np.array([0.02, 0.3]))
    assert found == pytest.approx(np.array([[0.02, 0.08], [0.3, 0.9]]))
    assert np.isnan(adjust_secondary(p, np.array([np.nan, 0.3]))[0]).all()


def test_the_strictest_level_is_that_of_the_smallest_p_value():
    assert strictest_level(5) == pytest.approx(0.01)
    assert strictest_level(0) == pytest.approx(0.05)

"""Rejection: the stated share of good cells, and other objects with a reason."""

import numpy as np
import pytest

from urnet.calibration.rejection import CHECKS, Rejection, fit_rejection

SIZES = (4, 4)


def good(count: int, seed: int) -> tuple[list[dict[str, float]], np.ndarray]:
    rng = np.random.default_rng(seed)
    columns = {
        "brightness": rng.normal(0.5, 0.05, count),
        "contrast": rng.lognormal(-3, 0.3, count),
        "ramp": rng.gamma(2, 0.02, count),
        "saturation": np.zeros(count),
        "noise": rng.lognormal(-4, 0.2, count),
        "focus": rng.normal(-1.5, 0.2, count),
    }
    rows = [dict(zip(columns, map(float, values), strict=True)) for values in zip(*columns.values(), strict=True)]
    return rows, rng.standard_normal((count, 8)).astype(np.float32)


def fitted(count: int = 1000, held: int = 200, rate: float = 0.02, seed: int = 0) -> Rejection:
    rows, features = good(count + held, seed)
    return fit_rejection(rows[:count], features[:count], rows[count:], features[count:], SIZES, rate)


@pytest.fixture(scope="module")
def rejection() -> Rejection:
    return fitted()


@pytest.mark.parametrize(
    ("count", "rate", "least", "most"), [(1000, 0.02, 0.015, 0.025), (1000, 0.1, 0.085, 0.115), (60, 0.02, 0.001, 0.03)]
)
def test_all_checks_together_reject_the_stated_share(count, rate, least, most):
    shares = []
    for seed in range(12):
        rejection = fitted(count, count // 5, rate, seed)
        shares.append(np.mean([reason != "" for reason in rejection.reject(*good(2000, 100 + seed))]))
    assert least < np.mean(shares) < most


@pytest.mark.parametrize(
    ("measure", "value", "reason"),
    [
        ("brightness", 0.1, "too dark"),
        ("brightness", 0.9, "too bright"),
        ("ramp", 0.6, "unevenly lit"),
        ("saturation", 0.3, "saturated"),
        ("contrast", 0.003, "hardly any contrast"),
        ("contrast", 0.5, "too much contrast"),
        ("noise", 0.2, "too noisy"),
        ("focus", -4.0, "out of focus"),
    ],
)
def test_a_badly_taken_crop_is_rejected_with_its_reason(rejection, measure, value, reason):
    rows, features = good(1, 7)
    assert rejection.reject(rows, 0.3 * features) == [""]
    assert rejection.reject([rows[0] | {measure: value}], 0.3 * features) == [reason]


def test_a_cell_far_from_the_training_cells_is_rejected(rejection):
    rows, features = good(1, 7)
    assert rejection.reject(rows, features + 6) == ["unlike the training cells"]


def test_edge_and_touching_count_where_they_are_known():
    rows, features = good(600, 0)
    measures = [row | {"edge": 0.0, "touching": 0.1 * (i % 3 == 0)} for i, row in enumerate(rows)]
    rejection = fit_rejection(measures[:500], features[:500], measures[500:], features[500:], SIZES)
    one, at = good(1, 7)
    assert rejection.reject([one[0] | {"edge": 0.4}], 0.3 * at) == ["cut by the field's border"]
    assert rejection.reject([one[0] | {"touching": 0.8}], 0.3 * at) == ["touches another cell"]
    assert rejection.reject(one, 0.3 * at) == [""]
    unaware = fit_rejection(rows[:500], features[:500], rows[500:], features[500:], SIZES)
    assert unaware.reject([one[0] | {"edge": 0.4}], 0.3 * at) == [""]


def test_differences_below_the_resolution_reject_no_cell(rejection):
    rows, features = good(1, 7)
    assert rejection.reject([rows[0] | {"saturation": 0.002}], 0.3 * features) == [""]


def test_the_score_agrees_with_the_decision_and_grows_with_the_distance(rejection):
    rows, features = good(500, 3)
    decided = np.array(rejection.reject(rows, features)) != ""
    assert ((rejection.score(rows, features) >= -np.log10(rejection.level)) == decided).all()
    row, at = good(1, 7)
    scores = [rejection.score([row[0] | {"brightness": b}], 0.3 * at)[0] for b in (0.5, 0.65, 0.75, 0.85)]
    assert scores == sorted(scores)


def test_limits_are_the_values_where_the_decision_changes(rejection):
    row, at = good(1, 7)
    limits = rejection.limits()
    assert set(limits) <= {check.reason for check in CHECKS}
    for measure, reason, step in (("brightness", "too bright", 0.01), ("noise", "too noisy", 0.001)):
        inside, beyond = ({measure: limits[reason] + sign * step} for sign in (-1, 1))
        assert rejection.reject([row[0] | inside], 0.3 * at) == [""]
        assert rejection.reject([row[0] | beyond], 0.3 * at) == [reason]


def test_optimistic_training_features_do_not_reject_new_cells():
    """Features of training cells lie closer together than those of new cells."""
    rows, features = good(1000, 0)
    features[:800] *= 0.6
    rejection = fit_rejection(rows[:800], features[:800], rows[800:], features[800:], SIZES)
    new_rows, new = good(2000, 5)
    assert np.mean([reason == "unlike the training cells" for reason in rejection.reject(new_rows, new)]) < 0.03


def test_three_cells_are_enough_to_fit():
    rows, features = good(3, 0)
    rejection = fit_rejection(rows[:2], features[:2], rows[2:], features[2:], SIZES)
    assert rejection.p_values(rows, features).shape == (3, len(CHECKS) - 2)
    assert rejection.reject([rows[0] | {"brightness": 3.0}], features[:1]) != [""]


@pytest.mark.slow
def test_a_new_donor_is_rejected_about_as_often_as_stated_where_donors_are_known():
    """Donors differ more than the cells of one donor, and nine donors do not show by how much."""

    def slides(seed: int, count: int) -> tuple[list[dict[str, float]], np.ndarray, list[str]]:
        rows, features = good(60 * count, seed)
        shifts = np.random.default_rng(seed + 1).normal(0, 0.15, count)
        moved = [row | {"brightness": row["brightness"] + shifts[i // 60]} for i, row in enumerate(rows)]
        return moved, 0.3 * features, [f"d{i // 60}" for i in range(len(rows))]

    by_donor, by_cell = [], []
    for seed in range(10):
        rows, features, donors = slides(seed, 12)
        new = slides(1000 + seed, 20)[:2]
        for shares, known in ((by_donor, donors), (by_cell, ())):
            rejection = fit_rejection(rows[:600], features[:600], rows[600:], features[600:], SIZES, 0.02, known)
            shares.append(np.mean([reason != "" for reason in rejection.reject(*new)]))
    assert 0.005 < np.mean(by_donor) < 0.04
    assert np.mean(by_cell) > 1.4 * np.mean(by_donor)

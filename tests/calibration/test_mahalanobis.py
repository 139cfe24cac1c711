"""Distances from the training cells: small for such cells, large in any direction away from them, at any depth."""

import numpy as np
import pytest

from urnet.calibration.mahalanobis import fit_mahalanobis

SIZES = (6, 10)


def drawn(count: int, seed: int) -> np.ndarray:
    """Correlated features at two depths, of very different scales."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(size=(16, 16)) * np.logspace(-2, 2, 16)
    return (rng.standard_normal((count, 16)) @ mix + 7).astype(np.float32)


@pytest.fixture(scope="module")
def distance():
    return fit_mahalanobis(drawn(800, 0), SIZES)


def test_new_cells_of_the_same_kind_have_the_same_distances(distance):
    near, new = distance.measure(drawn(800, 0)), distance.measure(drawn(800, 1))
    assert np.median(new) == pytest.approx(np.median(near), abs=0.1)
    assert np.quantile(new, 0.95) == pytest.approx(np.quantile(near, 0.95), abs=0.3)


@pytest.mark.parametrize("depth", [slice(0, 6), slice(6, 16)])
def test_a_large_distance_at_one_depth_is_enough(distance, depth):
    strange = drawn(200, 2)
    strange[:, depth] = strange[:, depth].mean(axis=0) + 4 * (strange[:, depth] - strange[:, depth].mean(axis=0))
    assert (distance.measure(strange) > np.quantile(distance.measure(drawn(800, 0)), 0.95)).mean() > 0.9


def test_constant_features_and_few_cells_give_finite_distances():
    features = drawn(20, 0)
    features[:, 3] = 5
    found = fit_mahalanobis(features, SIZES)
    assert np.isfinite(found.measure(drawn(50, 1))).all()
    constant = fit_mahalanobis(np.ones((20, 16), np.float32), SIZES)
    assert np.isfinite(constant.measure(drawn(5, 1))).all()

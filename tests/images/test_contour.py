"""Closed paths by dynamic programming, compared with all possible paths."""

from itertools import product

import numpy as np
import pytest

from urnet.images.contour import BENDING_PENALTY, find_closed_paths


def path_gain(gain: np.ndarray, ring: tuple[int, ...]) -> float:
    """Gain along a ring minus its bending penalty; minus infinity for a jump."""
    steps = np.abs(np.diff([*ring, ring[0]]))
    return -np.inf if steps.max() > 1 else gain[np.arange(len(ring)), list(ring)].sum() - BENDING_PENALTY * steps.sum()


def test_finds_the_best_of_all_closed_paths():
    gains = np.random.default_rng(0).random((12, 6, 3))
    rings, means = find_closed_paths(gains)
    for gain, ring, mean in zip(gains, rings, means, strict=True):
        assert path_gain(gain, tuple(ring)) == max(path_gain(gain, other) for other in product(range(3), repeat=6))
        assert mean == pytest.approx(gain[np.arange(6), ring].mean())


def test_follows_a_wavy_ring_through_noise():
    turn = np.arange(64) * 2 * np.pi / 64
    true = np.rint(20 + 5 * np.sin(2 * turn)).astype(int)
    gain = np.random.default_rng(1).uniform(0, 0.5, (1, 64, 40))
    gain[0, np.arange(64), true] = 1
    np.testing.assert_array_equal(find_closed_paths(gain)[0][0], true)


def test_finds_one_path_per_centre():
    gains = np.random.default_rng(2).random((5, 32, 20))
    rings, means = find_closed_paths(gains)
    for gain, ring, mean in zip(gains, rings, means, strict=True):
        alone, value = find_closed_paths(gain[None])
        np.testing.assert_array_equal(alone[0], ring)
        assert value[0] == pytest.approx(mean)

"""Pairs of detected and true cells, and precision and recall."""

import numpy as np
import pytest

from urnet.fields.detection.matching import Agreement, match_positions, wilson


def test_each_cell_is_used_once():
    found = np.array([[0.0, 0.0], [1.0, 0.0]])
    assert match_positions(found, np.array([[0.4, 0.0]]), 5).tolist() == [[0, 0]]


def test_the_number_of_pairs_is_largest():
    # The nearest pair first would leave the outer two without a partner.
    found, truth = np.array([[0.0, 0.0], [3.0, 0.0]]), np.array([[2.0, 0.0], [-2.5, 0.0]])
    assert match_positions(found, truth, 3).tolist() == [[0, 1], [1, 0]]


def test_more_pairs_come_before_shorter_ones():
    found, truth = np.array([[0.0, 0.0], [2.0, 0.0]]), np.array([[1.9, 0.0], [4.0, 0.0]])
    assert match_positions(found, truth, 2).tolist() == [[0, 0], [1, 1]]


def test_reach_is_inclusive():
    found, truth = np.array([[0.0, 0.0]]), np.array([[3.0, 4.0]])
    assert len(match_positions(found, truth, 5.0)) == 1
    assert len(match_positions(found, truth, 4.99)) == 0


def test_the_same_place_pairs():
    places = np.array([[5.0, 5.0], [50.0, 5.0]])
    assert match_positions(places, places[::-1], 1).tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("empty", [np.zeros((0, 2)), np.zeros(0), []])
def test_no_positions_give_no_pairs(empty):
    some = np.array([[1.0, 2.0]])
    for pairs in (match_positions(empty, some, 3), match_positions(some, empty, 3), match_positions(empty, empty, 3)):
        assert pairs.shape == (0, 2)


def test_positions_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(N, 2\)"):
        match_positions(np.zeros((3, 3)), np.zeros((3, 2)), 1)


def test_agrees_with_one_assignment_over_all():
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    rng = np.random.default_rng(0)
    for _ in range(20):
        found, truth, reach = rng.uniform(0, 50, (40, 2)), rng.uniform(0, 50, (30, 2)), 6.0
        distance = cdist(found, truth)
        cost = np.where(distance <= reach, distance, 1e4)
        i, j = linear_sum_assignment(cost)
        close = cost[i, j] < 1e4
        pairs = match_positions(found, truth, reach)
        assert len(pairs) == close.sum()
        assert distance[tuple(pairs.T)].sum() == pytest.approx(distance[i[close], j[close]].sum())


@pytest.mark.slow
def test_many_cells_need_no_large_matrix():
    rng = np.random.default_rng(1)
    truth = np.stack(np.meshgrid(np.arange(200), np.arange(200)), -1).reshape(-1, 2) * 40.0
    found = rng.permutation(truth) + rng.normal(0, 1, truth.shape)
    assert len(match_positions(found, truth, 10)) == len(truth)


def test_precision_and_recall():
    agreement = Agreement(detected=50, truth=40, matched=30)
    assert (agreement.precision, agreement.recall) == (0.6, 0.75)
    low, high = agreement.recall_interval
    assert low < 0.75 < high
    assert agreement + agreement == Agreement(100, 80, 60)


def test_intervals_are_wilsons():
    # Newcombe, Statist. Med. 17, 857, 1998, Table I: 81 of 263 and 0 of 20, method 3.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0, 0.1611), abs=5e-5)


def test_measures_without_cells_are_nan():
    agreement = Agreement(0, 0, 0)
    assert np.isnan(agreement.precision)
    assert np.isnan(agreement.recall)
    assert agreement.precision_interval == (0, 1)


def test_impossible_counts_are_refused():
    with pytest.raises(ValueError, match="4 pairs"):
        Agreement(detected=3, truth=5, matched=4)

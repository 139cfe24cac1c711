"""Intervals: their coverage, and their width without information."""

import time

import numpy as np
import pytest

from urnet.calibration.confusion import ReferenceCells
from urnet.counting.estimate import adjusted_count, corrected_em
from urnet.counting.interval import acceptance_region, adjusted_interval, em_interval

RATES = np.array([[0.65, 0.25, 0.08, 0.02], [0.22, 0.74, 0.02, 0.02], [0.09, 0.01, 0.88, 0.02]])


def draw(rng, rates, shares, cells, known):
    """Draw the counts of `cells` cells, without rejected ones, and a confusion of `known` cells per class."""
    classes = len(rates)
    drawn = rng.multinomial(cells, shares)
    counts = sum(rng.multinomial(n, row) for n, row in zip(drawn, rates, strict=True))[:classes]
    return counts, np.stack([rng.multinomial(n, row) for n, row in zip(known, rates, strict=True)])


@pytest.mark.slow
@pytest.mark.parametrize(("cells", "monocytes"), [(200, 0.01), (1000, 0.01), (200, 0.2)])
def test_intervals_cover_what_they_say(monocytes, cells):
    rng = np.random.default_rng((cells, int(100 * monocytes)))
    shares = np.array([0.8 - monocytes, monocytes, 0.2])
    runs = 250
    covered = np.zeros(3)
    for _ in range(runs):
        ends = adjusted_interval(*draw(rng, RATES, shares, cells, (200, 80, 80)))
        covered += (ends[:, 0] <= shares) & (shares <= ends[:, 1])
    # Four standard errors about 95 %; `benchmarks/differential.py` looks closer.
    assert (np.abs(covered / runs - 0.95) < 4 * np.sqrt(0.95 * 0.05 / runs)).all()


@pytest.mark.slow
def test_intervals_cover_where_classes_are_rejected_unequally():
    rng = np.random.default_rng(5)
    rates = np.array([[0.9, 0.06, 0.02, 0.02], [0.1, 0.55, 0.05, 0.3], [0.03, 0.02, 0.9, 0.05]])
    shares = np.array([0.6, 0.1, 0.3])
    runs = 250
    covered = np.zeros(3)
    for _ in range(runs):
        ends = adjusted_interval(*draw(rng, rates, shares, 500, (150, 100, 100)))
        covered += (ends[:, 0] <= shares) & (shares <= ends[:, 1])
    assert (np.abs(covered / runs - 0.95) < 4 * np.sqrt(0.95 * 0.05 / runs)).all()


@pytest.mark.slow
def test_em_intervals_cover_what_they_say_with_overconfident_probabilities():
    rng = np.random.default_rng(1)
    shares, runs = np.array([0.77, 0.03, 0.2]), 200

    def cells(truth):
        measured = rng.normal(2.0 * truth, 1)
        likelihood = np.exp(-0.5 * (measured[:, None] - 2.0 * np.array([0, 1, 2])) ** 2) ** 1.5
        return likelihood / likelihood.sum(axis=1, keepdims=True)

    covered = np.zeros(3)
    for _ in range(runs):
        known = np.repeat([0, 1, 2], [150, 80, 80])
        reference = ReferenceCells(cells(known), known, np.zeros(len(known), dtype=bool))
        ends = em_interval(cells(rng.choice(3, 300, p=shares)), reference)
        covered += (ends[:, 0] <= shares) & (shares <= ends[:, 1])
    assert (np.abs(covered / runs - 0.95) < 4 * np.sqrt(0.95 * 0.05 / runs)).all()


@pytest.mark.parametrize("share", [0, 0.001, 0.02, 0.5, 0.97, 1])
@pytest.mark.parametrize("spread", [0.001, 0.03, 0.3, 3])
def test_the_acceptance_region_is_exact_for_a_normal_estimate(share, spread):
    from scipy.special import ndtr

    low, high = acceptance_region(np.array([share]), np.array([spread]))
    assert ndtr((high - share) / spread) - ndtr((low - share) / spread) == pytest.approx(0.95, abs=1e-4)


def test_far_from_the_bounds_the_interval_is_the_usual_one():
    low, high = acceptance_region(np.array([0.5]), np.array([0.01]))
    assert (low[0], high[0]) == pytest.approx((0.5 - 0.0196, 0.5 + 0.0196), abs=1e-5)


def test_intervals_hold_the_estimate():
    rng = np.random.default_rng(0)
    for _ in range(50):
        counts, table = draw(rng, RATES, rng.dirichlet([1, 1, 1]), 100, (60, 60, 60))
        ends, estimate = adjusted_interval(counts, table), adjusted_count(counts, table)
        assert ((ends[:, 0] <= estimate) & (estimate <= ends[:, 1])).all()
        assert ((ends >= 0) & (ends <= 1)).all()


def test_more_cells_narrow_the_interval_until_the_confusion_dominates():
    shares = np.array([0.75, 0.05, 0.2])
    table = np.rint(1000 * RATES)

    def length(cells, table):
        ends = adjusted_interval(np.rint(cells * shares @ RATES[:, :3]), table)
        return (ends[:, 1] - ends[:, 0]).max()

    assert length(200, table) > 1.8 * length(1000, table)
    assert length(100_000, table) > 0.9 * length(1_000_000, table)
    assert length(1_000_000, table) > 3 * length(1_000_000, 100 * table)


def test_a_perfect_classifier_leaves_the_counting_error():
    table = np.c_[1_000_000 * np.eye(2), [0, 0]]
    ends = adjusted_interval(np.array([900, 100]), table)
    assert ends[1] == pytest.approx([0.083, 0.120], abs=0.002)  # Wilson's interval of 100 in 1,000


def test_a_class_that_the_sample_lacks_starts_at_zero():
    ends = adjusted_interval(np.rint(1000 * np.array([0.8, 0, 0.2]) @ RATES[:, :3]), np.rint(1000 * RATES))
    assert ends[1, 0] == 0
    assert 0 < ends[1, 1] < 0.1


@pytest.mark.parametrize(
    "table",
    [
        np.full((3, 4), 25),
        np.array([[180, 0, 18, 2], [79, 0, 1, 1], [7, 0, 72, 0]]),
        np.array([[32, 27, 31, 1], [22, 29, 39, 1], [36, 28, 26, 1]]),
    ],
    ids=["chance exactly", "a class is never predicted", "chance"],
)
def test_indistinguishable_classes_have_wide_intervals(table):
    counts = np.array([70, 65, 65]) if table[:, 1].any() else np.array([150, 0, 50])
    ends = adjusted_interval(counts, table)
    assert (ends[:, 1] - ends[:, 0] > 0.7).sum() >= 2


@pytest.mark.parametrize(
    ("counts", "table"),
    [
        ([4995, 5, 0, 0], [[4, 1, 0, 0, 0], [1, 11, 1, 2, 1], [1, 1, 10, 0, 2], [3, 1, 0, 7, 2]]),
        (
            [12, 0, 3375, 1613],
            [[1114, 29, 31, 26, 29], [58, 2425, 78, 62, 68], [19, 18, 616, 14, 19], [21, 11, 19, 644, 10]],
        ),
    ],
)
def test_counts_that_no_composition_explains_are_not_known_exactly(counts, table):
    ends, estimate = adjusted_interval(np.array(counts), np.array(table)), adjusted_count(counts, table)
    assert (ends[:, 1] - ends[:, 0] > 1e-4).all()
    assert ((ends[:, 0] <= estimate) & (estimate <= ends[:, 1])).all()
    assert ((ends >= 0) & (ends <= 1)).all()


def test_three_cells_have_wide_intervals_and_none_the_widest():
    few = adjusted_interval(np.array([2, 0, 1]), np.rint(200 * RATES))
    assert (few[:, 1] - few[:, 0] > 0.4).all()
    assert adjusted_interval(np.zeros(3), np.rint(200 * RATES)).tolist() == [[0, 1]] * 3


@pytest.mark.parametrize("classes", [2, 4, 10])
def test_any_number_of_classes_and_quickly(classes):
    rng = np.random.default_rng(classes)
    rates = np.c_[0.68 * np.eye(classes) + 0.3 * rng.dirichlet(np.ones(classes), classes), np.full(classes, 0.02)]
    rates, runs, covered = rates / rates.sum(axis=1, keepdims=True), 20, []
    started = time.process_time()
    for _ in range(runs):
        shares = rng.dirichlet(np.ones(classes))
        ends = adjusted_interval(*draw(rng, rates, shares, 2000, [300] * classes))
        covered.append((ends[:, 0] <= shares) & (shares <= ends[:, 1]))
    assert (time.process_time() - started) / runs < 0.5
    assert np.mean(covered) >= 0.8


def test_em_intervals_hold_their_estimate_and_take_rejected_cells():
    rng = np.random.default_rng(2)
    truth = np.repeat([0, 1], 100)
    probabilities = rng.dirichlet([1, 1], 200) * 0.3 + 0.7 * np.eye(2)[truth]
    reference = ReferenceCells(probabilities, truth, rng.random(200) < 0.1)
    sample = probabilities[60:130]
    ends, estimate = em_interval(sample, reference), corrected_em(sample, reference)
    assert ((ends[:, 0] <= estimate) & (estimate <= ends[:, 1])).all()
    assert em_interval(sample[:0], reference).tolist() == [[0, 1], [0, 1]]


def test_a_class_without_calibration_cells_is_an_error_also_for_an_empty_sample(raises_code):
    table = np.rint(200 * RATES)
    table[2] = 0
    for counts in (np.array([5, 5, 5]), np.zeros(3)):
        with raises_code("counting.class_missing"):
            adjusted_interval(counts, table)

"""Intervals of a new donor's sample cover where donors differ, and are no longer than they have to be."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from urnet.calibration.confusion import ReferenceCells
from urnet.counting.interval import adjusted_interval, em_interval

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from interval_studies.differential import COMMON, Line, draw, simulate


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "longest"),
    [
        (Line(8, 100, 1000, 0.6, "class", 0.85, COMMON), 1.6),
        (Line(12, 100, 5000, 0.3, "call", 0.9, COMMON), 1.4),
        (Line(12, 1000, 500, 0.0, "class", 0.85, COMMON), 1.3),
        (Line(4, 60, 700, 0.5, "class", 0.75, (0.5, 0.3, 0.15, 0.05), unequal=True), 1.9),
    ],
)
def test_intervals_cover_the_shares_of_a_new_donor(line, longest):
    measured = simulate((line, 150, np.random.default_rng(0)))
    # 150 replicates of 93 % in the lowest of three classes rarely give less than 87 %.
    assert measured["lowest"] >= 87
    assert measured["ratio"] <= longest


def test_without_differences_between_donors_intervals_cover_too_little():
    """The positive control: the simulation finds the error that the donors' part mends."""
    line = Line(12, 100, 5000, 0.6, "class", 0.85, COMMON)
    measured = simulate((line, 60, np.random.default_rng(0)))
    assert measured["without"] < 70 < 85 < measured["coverage"]


def test_more_calibration_donors_narrow_the_interval():
    rng = np.random.default_rng(0)
    lengths = []
    for donors in (2, 5, 20, 80):
        ends = [
            adjusted_interval(counts, by_donor.sum(axis=0), by_donor)
            for by_donor, counts in (draw(Line(donors, 100, 2000, 0.0, "class", 0.9, COMMON), rng) for _ in range(5))
        ]
        lengths.append(np.diff(ends, axis=2).mean())
    assert lengths == sorted(lengths, reverse=True)


def test_em_and_adjusted_count_agree_where_probabilities_only_repeat_the_class():
    rng = np.random.default_rng(0)
    by_donor, counts = draw(Line(8, 150, 1000, 0.4, "class", 0.9, COMMON), rng)
    donors, truth, called = (np.repeat(index.ravel(), by_donor.ravel()) for index in np.indices(by_donor.shape))
    sharp = 0.001 + 0.997 * np.eye(4)[:, :3]
    reference = ReferenceCells(sharp[called % 3], truth, called == 3, donors)
    ends = em_interval(sharp[np.repeat([0, 1, 2], counts)], reference)
    assert ends == pytest.approx(adjusted_interval(counts, reference.confusion, reference.by_donor), abs=0.03)


def test_cells_of_unknown_donors_count_but_do_not_narrow():
    by_donor, counts = draw(Line(8, 100, 1000, 0.0, "class", 0.9, COMMON), np.random.default_rng(0))
    total = by_donor.sum(axis=0)
    known, none = (adjusted_interval(counts, total, part) for part in (by_donor, by_donor[:0]))
    some = adjusted_interval(counts, total, by_donor[:4])
    without = adjusted_interval(counts, total)
    for shorter, longer in ((without, known), (known, some), (some, none)):
        assert np.diff(shorter).sum() < np.diff(longer).sum()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_calibration_gives_ends_around_the_estimate(data):
    from urnet.counting.estimate import adjusted_count

    K, D = data.draw(st.integers(2, 4)), data.draw(st.integers(0, 5))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    by_donor = rng.integers(0, data.draw(st.integers(2, 40)), (D, K, K + 1)) * (rng.random((D, K, 1)) < 0.7)
    total = by_donor.sum(axis=0) + 1
    counts = rng.integers(0, data.draw(st.integers(2, 300)), K) + np.eye(K, dtype=int)[0]
    ends = adjusted_interval(counts, total, by_donor)
    estimate = adjusted_count(counts, total)
    assert np.isfinite(ends).all()
    assert ((ends[:, 0] <= estimate + 1e-9) & (estimate <= ends[:, 1] + 1e-9)).all()
    assert ((ends >= 0) & (ends <= 1)).all()

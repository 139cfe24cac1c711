"""Corrected shares: equal to known ones and to QuaPy's, with errors for what cannot be corrected."""

import numpy as np
import pytest

from urnet.calibration.confusion import ReferenceCells
from urnet.counting.estimate import adjusted_count, check_confusion, classify_and_count, corrected_em, em

RATES = np.array([[0.66, 0.25, 0.09], [0.22, 0.765, 0.015], [0.087, 0.012, 0.901]])


def confusion(rates: np.ndarray, known: int = 1000, rejected: float | np.ndarray = 0.0) -> np.ndarray:
    rejection = np.broadcast_to(rejected, len(rates))
    return known * np.c_[rates * (1 - rejection)[:, None], rejection]


def gaussian_cells(rng, shares, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw cells with one overlapping measurement: classes, and exact posteriors at equal shares."""
    truth = rng.choice(len(shares), cells, p=shares)
    measured = rng.normal(1.5 * truth, 1)
    likelihood = np.exp(-0.5 * (measured[:, None] - 1.5 * np.arange(len(shares))) ** 2)
    return truth, likelihood / likelihood.sum(axis=1, keepdims=True)


def test_counting_predictions_is_biased_and_the_adjusted_count_is_not():
    shares = np.array([0.75, 0.05, 0.2])
    counts = 1e6 * shares @ RATES
    assert classify_and_count(counts)[1] > 0.2
    assert adjusted_count(counts, confusion(RATES)) == pytest.approx(shares, abs=1e-9)


def test_the_adjusted_count_corrects_for_unequal_rejection():
    shares, rejected = np.array([0.6, 0.1, 0.3]), np.array([0.02, 0.4, 0.1])
    table = confusion(RATES, rejected=rejected)
    counts = 1e6 * shares @ table[:, :-1]
    assert adjusted_count(counts, table) == pytest.approx(shares, abs=1e-9)
    without = np.c_[table[:, :-1], np.zeros(3)]
    assert adjusted_count(counts, without)[1] < 0.08


def test_shares_are_never_below_zero_and_sum_to_one():
    shares = adjusted_count(np.array([180, 10, 10]), confusion(RATES))
    assert (shares >= 0).all()
    assert shares.sum() == pytest.approx(1)
    assert shares[1] == pytest.approx(0, abs=1e-3)


def test_at_the_edge_the_adjusted_count_is_the_likeliest_composition():
    counts, table = np.array([130, 20, 50]), confusion(RATES)
    best = adjusted_count(counts, table)
    rng = np.random.default_rng(0)
    others = rng.dirichlet([1, 1, 1], 5000)

    def likelihood(shares):
        return np.log(shares @ RATES) @ counts

    assert likelihood(best) >= likelihood(others).max() - 1e-6


@pytest.mark.parametrize("classes", [2, 3, 5, 10])
def test_any_number_of_classes(classes):
    rng = np.random.default_rng(classes)
    rates = 0.7 * np.eye(classes) + 0.3 * rng.dirichlet(np.ones(classes), classes)
    shares = rng.dirichlet(np.ones(classes))
    assert adjusted_count(1e6 * shares @ rates, confusion(rates)) == pytest.approx(shares, abs=1e-8)


def test_indistinguishable_classes_have_equal_shares():
    assert adjusted_count(np.array([40, 30, 30]), np.full((3, 4), 10)) == pytest.approx(np.full(3, 1 / 3), abs=1e-3)


def test_no_cells_have_no_shares():
    assert np.isnan(classify_and_count(np.zeros(3))).all()
    assert np.isnan(adjusted_count(np.zeros(3), confusion(RATES))).all()
    assert np.isnan(em(np.zeros((0, 3)))).all()


def test_em_finds_the_composition_from_calibrated_probabilities():
    shares = np.array([0.8, 0.05, 0.15])
    _, probabilities = gaussian_cells(np.random.default_rng(0), shares, 40_000)
    assert np.bincount(probabilities.argmax(axis=1)) / 40_000 != pytest.approx(shares, abs=0.05)
    assert em(probabilities) == pytest.approx(shares, abs=0.015)


def test_em_undoes_the_prior_that_the_probabilities_assume():
    shares, prior = np.array([0.6, 0.1, 0.3]), np.array([0.5, 0.3, 0.2])
    _, probabilities = gaussian_cells(np.random.default_rng(1), shares, 40_000)
    learned = probabilities * prior
    learned /= learned.sum(axis=1, keepdims=True)
    assert em(learned, prior) == pytest.approx(em(probabilities), abs=1e-4)


def test_em_corrects_for_rejection():
    rng = np.random.default_rng(2)
    truth, probabilities = gaussian_cells(rng, [0.6, 0.1, 0.3], 60_000)
    acceptance = np.array([0.95, 0.5, 0.9])
    accepted = rng.random(len(truth)) < acceptance[truth]
    assert em(probabilities[accepted], None, acceptance) == pytest.approx([0.6, 0.1, 0.3], abs=0.02)


def test_labelled_cells_remove_the_bias_of_em_from_overconfident_probabilities():
    rng = np.random.default_rng(3)
    shares = np.array([0.8, 0.05, 0.15])

    def overconfident(of):
        truth, probabilities = gaussian_cells(rng, of, 10_000)
        sharp = (probabilities * [1, 1.5, 1]) ** 2
        return truth, sharp / sharp.sum(axis=1, keepdims=True)

    truth, known = overconfident(np.full(3, 1 / 3))
    _, sample = overconfident(shares)
    reference = ReferenceCells(known, truth, np.zeros(len(truth), dtype=bool))
    assert abs(em(sample) - shares).max() > 0.15
    assert corrected_em(sample, reference) == pytest.approx(shares, abs=0.05)


def test_a_reference_counts_its_rejected_cells_in_the_last_column():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    reference = ReferenceCells(probabilities, np.array([0, 0, 1, 1]), np.array([False, False, True, False]))
    assert reference.confusion.tolist() == [[1, 1, 0], [0, 1, 1]]


def test_an_error_names_a_class_that_cannot_be_corrected(raises_code):
    table = confusion(RATES)
    table[1] = 0
    with raises_code("counting.class_missing") as caught:
        check_confusion(table, ["granulocyte", "monocyte", "lymphocyte"])
    assert "monocyte" in str(caught.value)
    table[1, -1] = 7
    with raises_code("counting.class_rejected"):
        adjusted_count(np.array([1, 2, 3]), table)


def test_a_confusion_without_its_rejection_column_is_refused():
    with pytest.raises(ValueError, match=r"\(K, K \+ 1\)"):
        adjusted_count(np.array([1, 2, 3]), 100 * RATES)


class TestQuapy:
    """QuaPy's adjusted count and expectation maximisation on the same cells."""

    @pytest.fixture
    def quapy(self):
        return pytest.importorskip("quapy", reason="QuaPy, the oracle, is not installed (extra `dev`)")

    def test_adjusted_count(self, quapy):
        from quapy.method.aggregative import ACC

        for seed in range(20):
            rng = np.random.default_rng(seed)
            table = np.stack([rng.multinomial(300, rates) for rates in RATES])
            counts = rng.multinomial(2000, rng.dirichlet([4, 4, 4]) @ RATES)
            theirs = ACC.solve_adjustment(
                class_conditional_rates=(table / table.sum(axis=1, keepdims=True)).T,
                unadjusted_counts=counts / counts.sum(),
                method="inversion",
                solver="exact-raise",
            )
            ours = adjusted_count(counts, np.c_[table, np.zeros(3)])
            if (theirs >= 0).all():
                assert ours == pytest.approx(theirs, abs=1e-7)
            else:
                assert ours[theirs.argmin()] == pytest.approx(0, abs=1e-2)

    @pytest.mark.parametrize("shares", [[0.6, 0.1, 0.3], [0.9, 0.02, 0.08], [0.2, 0.2, 0.6]])
    def test_em(self, quapy, shares):
        from quapy.method.aggregative import EMQ

        _, probabilities = gaussian_cells(np.random.default_rng(4), shares, 3000)
        prior = np.array([0.5, 0.3, 0.2])
        theirs, _ = EMQ.EM(prior, probabilities, epsilon=1e-10)
        assert em(probabilities, prior) == pytest.approx(theirs, abs=2e-3)

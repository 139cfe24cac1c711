"""The differential of a sample: its values and its warnings."""

import json

import numpy as np
import pytest

from urnet.calibration.confusion import ReferenceCells
from urnet.counting.interval import adjusted_interval
from urnet.counting.sample import CellsNeeded, cells_needed, count_sample

CLASSES = ["granulocyte", "monocyte", "lymphocyte"]
RATES = np.array([[0.93, 0.04, 0.02, 0.01], [0.12, 0.84, 0.03, 0.01], [0.03, 0.01, 0.95, 0.01]])
KNOWN = np.rint(1000 * RATES)
SHARES = np.array([0.65, 0.05, 0.3])


def cells(called: list[int]) -> np.ndarray:
    """Build probabilities of given numbers of cells called each class."""
    return 0.02 + 0.94 * np.eye(3)[np.repeat([0, 1, 2], called)]


def expected(number: int) -> list[int]:
    return np.rint(number * SHARES @ RATES[:, :3]).astype(int).tolist()


def donors(confusion: np.ndarray, number: int = 12) -> ReferenceCells:
    """Calibration cells with this confusion, dealt to donors that are alike."""
    table = np.asarray(confusion).astype(int)
    truth, called = (np.repeat(index.ravel(), table.ravel()) for index in np.indices(table.shape))
    probabilities = np.where((called == 3)[:, None], 1 / 3, 0.02 + 0.94 * np.eye(4)[called][:, :3])
    return ReferenceCells(probabilities, truth, called == 3, np.arange(len(truth)) % number)


def count(called, rejected=(), confusion=KNOWN, **more):
    probabilities = np.vstack([cells(called), np.full((len(rejected), 3), 1 / 3)])
    more = {"reference": donors(confusion)} | more
    return count_sample("d1", probabilities, [""] * sum(called) + list(rejected), confusion, CLASSES, **more)


def test_a_sample_has_counts_and_corrected_shares():
    sample = count(expected(2000), ["blurred"] * 3 + ["debris"] * 5)
    assert (sample.name, sample.classes) == ("d1", tuple(CLASSES))
    assert sample.accepted + 8 == sample.cells
    assert sample.rejected == {"debris": 5, "blurred": 3}
    assert list(sample.rejected) == ["debris", "blurred"]
    assert sample.counts.tolist() == expected(2000)
    assert sample.raw[1] > 0.065
    assert sample.adjusted == pytest.approx(SHARES, abs=0.002)
    assert (sample.adjusted_interval[:, 0] < SHARES).all()
    assert (sample.adjusted_interval[:, 1] > SHARES).all()
    assert sample.em.sum() == pytest.approx(1)
    assert "12 donors" in sample.interval_method
    assert sample.warnings == ()


def test_unknown_donors_widen_the_intervals_and_give_a_warning():
    known, unknown = count(expected(2000)), count(expected(2000), reference=None)
    assert unknown.em_interval is None
    assert (np.ptp(unknown.adjusted_interval, axis=1) > 1.5 * np.ptp(known.adjusted_interval, axis=1)).all()
    assert any("donors of the calibration are not known" in warning for warning in unknown.warnings)
    few = count(expected(2000), reference=donors(KNOWN, 3))
    assert any("only 3 donors" in warning for warning in few.warnings)
    assert (np.ptp(few.adjusted_interval, axis=1) > np.ptp(known.adjusted_interval, axis=1)).all()


def test_rejected_cells_are_counted_as_no_class():
    alone, with_debris = count(expected(2000)), count(expected(2000), ["debris"] * 10)
    assert with_debris.counts.tolist() == alone.counts.tolist()
    assert with_debris.adjusted.tolist() == alone.adjusted.tolist()


def test_calibration_cells_correct_em_and_give_its_interval():
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1, 2], 300)
    called = np.array([rng.choice(3, p=RATES[k, :3] / RATES[k, :3].sum()) for k in truth])
    reference = ReferenceCells(0.02 + 0.94 * np.eye(3)[called], truth, np.zeros(900, dtype=bool))
    sample = count(expected(1000), confusion=reference.confusion, reference=reference)
    assert ((sample.em_interval[:, 0] <= sample.em) & (sample.em <= sample.em_interval[:, 1])).all()
    # With probabilities that only repeat the winning class there is no more in them than in the counts.
    assert sample.em == pytest.approx(sample.adjusted, abs=0.01)
    assert sample.em_interval == pytest.approx(sample.adjusted_interval, abs=0.04)


def test_a_sample_of_three_cells_has_wide_intervals_and_a_warning():
    sample = count([2, 0, 1])
    assert (sample.adjusted_interval[:, 1] - sample.adjusted_interval[:, 0]).max() > 0.6
    assert any("too wide" in warning and "more cells" in warning for warning in sample.warnings)


@pytest.mark.parametrize("rejected", [[], ["debris"] * 7])
def test_a_sample_without_countable_cells_has_no_figures(rejected):
    sample = count([0, 0, 0], rejected)
    assert sample.accepted == 0
    assert np.isnan(sample.adjusted).all()
    assert sample.adjusted_interval.tolist() == [[0, 1]] * 3
    assert sample.cells_needed is None
    assert any("nothing to count" in warning for warning in sample.warnings)
    json.dumps(sample.to_json(), allow_nan=False)


def test_cells_that_no_composition_explains_give_a_warning():
    # A twentieth of the granulocytes would be called monocytes; here none of a thousand.
    sample = count([1000, 0, 0], confusion=np.rint(1000 * RATES) + np.array([[-60, 60, 0, 0], [0] * 4, [0] * 4]))
    assert any("called monocyte more rarely" in warning for warning in sample.warnings)


def test_many_rejected_cells_give_a_warning():
    assert not any("rejected" in warning for warning in count(expected(1000), ["debris"] * 12).warnings)
    assert any("35 % of the cells were rejected" in w for w in count(expected(650), ["debris"] * 350).warnings)


def test_few_calibration_cells_give_a_warning():
    few = KNOWN.copy()
    few[1] = np.rint(20 * RATES[1])
    assert any(
        "only 20 cell(s) of class monocyte" in warning for warning in count(expected(500), confusion=few).warnings
    )


def test_estimates_that_disagree_give_a_warning():
    probabilities = cells(expected(2000))
    probabilities[probabilities.argmax(axis=1) == 0] = [0.5, 0.48, 0.02]
    sample = count_sample("d1", probabilities, [""] * len(probabilities), KNOWN, CLASSES, reference=donors(KNOWN))
    assert any("disagree" in warning for warning in sample.warnings)


def test_an_error_names_a_class_without_calibration_cells(raises_code):
    table = KNOWN.copy()
    table[1] = 0
    with raises_code("counting.class_missing") as caught:
        count(expected(500), confusion=table)
    assert "monocyte" in str(caught.value)


def test_probabilities_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        count_sample("d1", cells([3, 3, 3]), [""] * 8, KNOWN, CLASSES)
    with pytest.raises(ValueError, match="not finite"):
        count_sample("d1", np.full((2, 3), np.nan), ["", ""], KNOWN, CLASSES)


class TestCellsNeeded:
    def test_the_estimated_number_of_cells_narrows_the_intervals(self):
        table, by_donor = 50 * KNOWN, donors(50 * KNOWN).by_donor
        needed = cells_needed(np.array(expected(500)), table, by_donor)
        assert needed.calibration == 0
        ends = adjusted_interval(np.array(expected(500 + needed.cells)), table, by_donor)
        assert (ends[:, 1] - ends[:, 0]).max() / 2 == pytest.approx(0.02, abs=0.002)

    def test_no_cells_are_needed_if_the_intervals_are_narrow(self):
        needed = cells_needed(np.array(expected(50_000)), 50 * KNOWN, donors(50 * KNOWN).by_donor)
        assert needed == CellsNeeded(0, 0)
        assert "or narrower" in needed.sentence

    def test_more_calibration_cells_are_needed_where_the_confusion_dominates(self):
        table = np.rint(KNOWN / 10)
        needed = cells_needed(np.array(expected(500)), table, donors(table).by_donor, goal=0.05)
        assert needed.calibration > 0
        assert "More cells of this sample alone would not" in needed.sentence
        more = (table.sum() + needed.calibration) / table.sum()
        ends = adjusted_interval(np.array(expected(500 + needed.cells)), table * more, donors(table * more).by_donor)
        assert 0.03 < (ends[:, 1] - ends[:, 0]).max() / 2 < 0.055  # more cells narrow the part of the donors as well

    def test_a_classifier_at_chance_needs_a_better_model(self):
        table = np.array([[32, 27, 31, 1], [22, 29, 39, 1], [36, 28, 26, 1]])
        needed = cells_needed(np.array([70, 65, 65]), table, donors(table).by_donor)
        assert needed.calibration is None
        assert "rain a better model" in needed.sentence

    def test_more_donors_are_needed_where_donors_may_differ(self):
        needed = cells_needed(np.array(expected(5000)), KNOWN, donors(KNOWN, 1).by_donor)
        assert needed == CellsNeeded(None, None, donors=True)
        assert "more donors" in needed.sentence


def test_a_class_that_no_calibration_cell_was_called_gives_a_warning():
    """No calibration cell was called a granulocyte or a monocyte."""
    never = np.array([[0, 0, 26, 46], [0, 0, 13, 23], [0, 0, 40, 6]])
    sample = count([5, 3, 0], confusion=never)
    assert sample.adjusted.sum() == pytest.approx(1)
    assert np.isfinite(sample.adjusted_interval).all()
    assert any(
        "8 cell(s) were called granulocyte and monocyte, which no cell" in warning for warning in sample.warnings
    )
    assert any("The intervals of " in warning and " are too wide" in warning for warning in sample.warnings)
    json.dumps(sample.to_json(), allow_nan=False)

"""Metrics compared with scikit-learn, undefined metrics, and the coverage of intervals."""

import json

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, precision_recall_fscore_support

from urnet.evaluation.metrics import score
from urnet.html_pages import describe_intervals
from urnet.statistics.donors import choose_groups

CLASSES = ["granulocyte", "lymphocyte", "monocyte"]
FIGURES = ("recall", "precision", "f1")


def cells(n: int, seed: int = 0, signal: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.choice(3, n, p=[0.6, 0.3, 0.1])
    logits = rng.normal(size=(n, 3))
    logits[np.arange(n), truth] += signal
    return truth, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def certain(predicted: list[int], classes: int = 3) -> np.ndarray:
    return np.eye(classes)[predicted]


def holds(figure: dict, value: float) -> bool:
    return figure["interval"][0] <= value <= figure["interval"][1]


def test_agrees_with_scikit_learn():
    truth, probabilities = cells(500)
    predicted = probabilities.argmax(axis=1)
    found = score(truth, probabilities, CLASSES, np.arange(500))
    precision, recall, f1, support = precision_recall_fscore_support(truth, predicted)
    assert found["accuracy"]["value"] == pytest.approx(accuracy_score(truth, predicted))
    assert found["macro_recall"]["value"] == pytest.approx(balanced_accuracy_score(truth, predicted))
    assert found["macro_precision"]["value"] == pytest.approx(precision.mean())
    assert found["macro_f1"]["value"] == pytest.approx(f1.mean())
    assert found["confusion_matrix"] == confusion_matrix(truth, predicted).tolist()
    for k, name in enumerate(CLASSES):
        row = found["per_class"][name]
        assert [row[figure]["value"] for figure in FIGURES] == pytest.approx([recall[k], precision[k], f1[k]])
        assert row["support"] == support[k]
        assert found["differential"][name]["true_percent"] == pytest.approx(100 * np.mean(truth == k))
        assert found["differential"][name]["predicted_percent"]["value"] == pytest.approx(100 * np.mean(predicted == k))


def test_calibration_error_of_two_bins_by_hand():
    probabilities = np.array([[0.7, 0.3]] * 4 + [[0.1, 0.9]] * 6)
    truth = np.array([0, 0, 0, 1, 1, 1, 1, 0, 0, 0])
    found = score(truth, probabilities, ["a", "b"], np.arange(10))
    expected = 0.4 * abs(0.75 - 0.7) + 0.6 * abs(0.5 - 0.9)
    assert found["expected_calibration_error"]["value"] == pytest.approx(expected)


def test_result_is_json_of_plain_numbers():
    found = score(*cells(60), CLASSES, ["d1", "d2", "d3"] * 20)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert type(found["n"]) is int
    assert type(found["per_class"]["monocyte"]["support"]) is int
    assert type(found["confusion_matrix"][0][0]) is int


def test_intervals_hold_the_value_and_are_the_same_every_time():
    truth, probabilities = cells(400)
    first, again = (score(truth, probabilities, CLASSES, np.arange(400) // 4) for _ in range(2))
    assert first == again
    for name in ("accuracy", "macro_recall", "macro_precision", "macro_f1", "expected_calibration_error"):
        assert holds(first[name], first[name]["value"])


def test_cells_that_are_tested_several_times_count_once():
    truth, probabilities = cells(200)
    paths = [f"{k}.png" for k in range(200)]
    once = score(truth, probabilities, CLASSES, np.arange(200))
    thrice = score(
        np.tile(truth, 3),
        np.tile(probabilities, (3, 1)),
        CLASSES,
        np.tile(np.arange(200), 3),
        cells=paths * 3,
    )
    for name in ("accuracy", "macro_recall", "macro_precision", "macro_f1"):
        assert thrice[name]["interval"] == pytest.approx(once[name]["interval"])
    perfect = score(np.zeros(90, int), np.eye(2)[[0] * 90], ["a", "b"], np.arange(90) % 30, cells=np.arange(90) % 30)
    assert perfect["accuracy"]["interval"] == pytest.approx([0.025 ** (1 / 30), 1])


def test_alike_cells_of_one_group_widen_the_interval():
    right = np.repeat(np.random.default_rng(0).random(40) < 0.7, 25)
    probabilities = certain(np.where(right, 0, 1).tolist(), 2)
    truth = np.zeros(1000, int)
    truth[::50] = 1
    widths = []
    for groups in (np.arange(1000), np.arange(1000) // 25):
        low, high = score(truth, probabilities, ["a", "b"], groups)["accuracy"]["interval"]
        widths.append(high - low)
    assert widths[1] > 3 * widths[0]


def test_intervals_cover_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(100):
        chance = rng.beta(8, 2, size=40)  # accuracy 0.8 on average, different in every donor
        right = rng.random((40, 10)) < chance[:, None]
        truth = rng.integers(2, size=400)
        predicted = np.where(right.ravel(), truth, 1 - truth)
        found = score(truth, np.eye(2)[predicted], ["a", "b"], np.arange(400) // 10)
        hits += holds(found["accuracy"], 0.8)
    assert hits >= 90


def test_class_without_true_cells_is_undefined_and_left_out():
    truth, predicted = [0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 2]
    found = score(np.array(truth), certain(predicted), CLASSES, np.arange(6))
    absent = found["per_class"]["monocyte"]
    assert absent == {figure: {"value": None, "interval": None} for figure in FIGURES} | {"support": 0}
    assert found["macro_recall"]["value"] == pytest.approx(2 / 3)
    assert any("monocyte" in note and "no true cells" in note for note in found["notes"])
    json.dumps(found, allow_nan=False)


def test_class_never_predicted_has_precision_zero_without_interval():
    found = score(np.array([0, 1, 2] * 4), certain([0, 1, 1] * 4), CLASSES, np.arange(12))
    assert found["per_class"]["monocyte"]["precision"] == {"value": 0.0, "interval": None}
    assert found["per_class"]["monocyte"]["f1"]["value"] == 0
    assert found["macro_precision"]["value"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert any("never predicted" in note for note in found["notes"])


def test_a_perfect_score_has_an_interval_below_one():
    truth = np.array([0] * 30 + [1] * 10)
    found = score(truth, certain(truth.tolist(), 2), ["a", "b"], np.arange(40))
    assert found["accuracy"]["interval"] == pytest.approx([0.025 ** (1 / 40), 1])
    a, b = (1 - 0.025 ** (1 / n) for n in (30, 10))
    assert found["per_class"]["b"]["recall"]["interval"] == pytest.approx([1 - b, 1])
    assert found["macro_recall"]["interval"] == pytest.approx([1 - np.hypot(a, b) / 2, 1])


def test_a_class_with_three_right_cells_is_not_certain_in_the_mean():
    truth = np.array([0] * 500 + [1] * 500 + [2] * 3)
    predicted = truth.copy()
    predicted[:1000:20] = 1 - truth[:1000:20]
    found = score(truth, certain(predicted.tolist()), CLASSES, np.arange(1003) % 8)
    assert found["per_class"]["monocyte"]["recall"]["value"] == 1
    assert found["macro_recall"]["interval"][0] < found["macro_recall"]["value"] - 0.2


def test_one_group_has_no_intervals():
    found = score(*cells(50), CLASSES, ["only"] * 50)
    assert found["accuracy"]["interval"] is None
    assert found["macro_f1"]["interval"] is None
    assert found["expected_calibration_error"]["interval"] is None


@pytest.mark.parametrize("donors", [None, ["d1"] * 9])
def test_the_note_says_that_one_group_gives_no_intervals(donors):
    _, description = choose_groups(donors, ["a.png"] * 9)
    assert description["note"].startswith("No value has an interval: all cells come from one source image")
    assert describe_intervals(description) == "no intervals: all cells come from one source image"
    assert describe_intervals(choose_groups(None, list("ab"))[1]) == "95 % t interval over 2 source images"


def test_a_calibration_error_that_is_the_same_in_every_group_has_no_interval():
    truth, probabilities = np.array([0, 1] * 10), np.tile([[0.75, 0.25], [0.25, 0.75]], (10, 1))
    found = score(truth, probabilities, ["a", "b"], np.arange(20) // 2)
    assert found["expected_calibration_error"] == {"value": pytest.approx(0.25), "interval": None}


def test_class_of_one_donor_has_no_interval_of_its_recall():
    truth = np.array([0, 0, 1, 1] * 5)
    groups = np.where(truth == 1, 0, np.arange(20))
    found = score(truth, certain([0, 1, 1, 0] * 5, 2), ["a", "b"], groups)
    assert found["per_class"]["b"]["recall"] == {"value": 0.5, "interval": None}
    assert found["per_class"]["a"]["recall"]["interval"] is not None
    assert found["notes"] == ["b: all its cells belong to one group, so its recall has no interval."]


def test_an_empty_part_is_a_cells_error(raises_code):
    with raises_code("evaluation.part_empty"):
        score(np.zeros(0, int), np.zeros((0, 3)), CLASSES, [])


@pytest.mark.parametrize(
    ("truth", "probabilities", "groups", "message"),
    [
        ([0, 1], np.eye(2), [0, 1], "do not fit 3 classes"),
        ([0, 1], np.eye(3)[:2], [0], "do not fit"),
        ([0, 3], np.eye(3)[:2], [0, 1], "indices 0 to 3"),
        ([0, 1], np.full((2, 3), np.nan), [0, 1], "2 of 2 cells"),
    ],
)
def test_arrays_that_do_not_fit(truth, probabilities, groups, message):
    with pytest.raises(ValueError, match=message):
        score(np.array(truth), probabilities, CLASSES, groups)


def test_intervals_are_over_donors_where_there_are_five():
    donors = [f"donor {i % 5}" for i in range(40)]
    groups, description = choose_groups(donors, [f"{i}.png" for i in range(40)])
    assert description == {
        "method": "t interval over 5 donors",
        "unit": "donor",
        "groups": 5,
        "level": 0.95,
        "note": "The intervals are over donors, so they hold for new donors.",
    }
    assert len(set(zip(groups.tolist(), donors, strict=True))) == 5


def test_intervals_of_an_earlier_version_are_marked():
    earlier = {"unit": "donor", "groups": 9, "replicates": 2000, "level": 0.95, "note": ""}
    assert "bootstrap of 9 donors by an earlier version" in describe_intervals(earlier)


@pytest.mark.parametrize(
    ("donors", "why"),
    [
        (None, "not known"),
        ([None] * 40, "not known"),
        ([f"donor {i % 4}" for i in range(40)], "4 donors, fewer than the 5"),
        (["only"] * 40, "1 donor,"),
        ([f"donor {i}" for i in range(38)] + ["", float("nan")], "2 of 40 cells"),
    ],
)
def test_intervals_are_over_source_images_without_enough_donors_and_the_note_says_so(donors, why):
    groups, description = choose_groups(donors, [f"{i // 2}.png" for i in range(40)])
    assert (description["unit"], description["groups"]) == ("source image", 20)
    assert why in description["note"]
    assert "the intervals are over source images" in description["note"]
    assert groups.tolist() == [i // 2 for i in range(40)]


def test_donors_without_differences_have_the_interval_of_independent_cells():
    truth = np.array([0, 0, 0, *[1] * 7] * 12)
    found = score(truth, certain([0] * 120, 2), ["a", "b"], np.arange(120) // 10)
    assert found["accuracy"]["value"] == pytest.approx(0.3)
    half = 1.96 * np.sqrt(0.3 * 0.7 / 120)
    assert found["accuracy"]["interval"] == pytest.approx([0.3 - half, 0.3 + half], abs=0.01)

"""The judgement: accuracy, chance level, and the reasons why it is reliable or not."""

import numpy as np
import pytest

from urnet.evaluation.judgement import judge
from urnet.evaluation.metrics import score
from urnet.statistics.donors import choose_groups

CLASSES = ["granulocyte", "lymphocyte", "monocyte"]


def judged(matrix: list[list[int]], donors: int | None = 12, **circumstances):
    """Judge a confusion matrix whose cells belong to a number of donors in turn."""
    truth, predicted = np.nonzero(matrix)
    counts = np.array(matrix)[truth, predicted]
    truth, predicted = truth.repeat(counts), predicted.repeat(counts)
    names = None if donors is None else [f"d{k % donors}" for k in range(len(truth))]
    groups, intervals = choose_groups(names, [f"{k}.png" for k in range(len(truth))])
    metrics = score(truth, np.eye(3)[predicted], CLASSES, groups)
    return judge(metrics, intervals, donors, **circumstances)


GOOD = [[55, 5, 0], [2, 28, 0], [0, 4, 26]]


def test_a_good_model_on_enough_cells_and_donors_is_reliable():
    found = judged(GOOD)
    assert found.accuracy.startswith("The model is right for 109 of 120 cells: 90.8 % (95 % interval ")
    assert "Always naming granulocyte, the most common class, would be right for 50.0 %." in found.accuracy
    assert found.confusion == ("The most frequent confusion: 5 of 60 granulocyte cells (8.3 %) are called lymphocyte.")
    assert found.data == "The test has 120 cells of 12 donors."
    assert found.reliable
    assert found.verdict == "These figures are reliable for new cells of the same kind."


@pytest.mark.parametrize(
    ("matrix", "circumstances", "reason"),
    [
        (GOOD, {"donors": None}, "the donors are not known"),
        (GOOD, {"donors": 3}, "only 3 donors (at least 5 are needed)"),
        (GOOD, {"optimistic": True}, "the epoch was chosen on these cells"),
        (GOOD, {"overlap": True}, "cells or donors of the training are among them"),
        (GOOD, {"overlap": None}, "it is not known whether the training saw these cells"),
        (GOOD, {"simulated": "phantom"}, "the images are simulated (phantom)"),
        ([[55, 5, 0], [2, 28, 0], [0, 2, 8]], {}, "monocyte has only 10 cells (at least 20 are needed)"),
        ([[58, 2, 0], [28, 2, 0], [28, 0, 2]], {}, "always naming granulocyte could be right as often"),
        ([[5, 55, 0], [28, 2, 0], [28, 0, 2]], {}, "always naming granulocyte is right more often"),
    ],
)
def test_every_reason_against_reliability_is_named(matrix, circumstances, reason):
    found = judged(matrix, **circumstances)
    assert found.reasons == [reason]
    assert not found.reliable
    assert found.verdict == f"These figures are not reliable yet: {reason}."


def test_without_a_mistake_there_is_no_confusion():
    assert judged([[30, 0, 0], [0, 30, 0], [0, 0, 30]]).confusion == "No cell is confused with another class."

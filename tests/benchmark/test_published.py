"""The paper's values are consistent, and fit the names of the rows."""

import pytest

from urnet.benchmark.plans import plan_rows
from urnet.benchmark.published import CLASSES, PUBLISHED, TEST_IMAGES, find_published, published_accuracies

ROWS = [(table, name) for table in ("table3", "table4") for name in PUBLISHED[table]]


@pytest.mark.parametrize(("table", "name"), ROWS)
def test_averages_and_f1_follow_from_the_classes(table, name):
    row = PUBLISHED[table][name]
    for figure in ("recall", "precision", "f1"):
        values = getattr(row, figure)
        assert tuple(values) == CLASSES
        assert getattr(row, f"macro_{figure}") == pytest.approx(sum(values.values()) / 3, abs=1.2e-4)
    for name in CLASSES:
        recall, precision = row.recall[name], row.precision[name]
        assert row.f1[name] == pytest.approx(2 * recall * precision / (recall + precision), abs=1.5e-4)


@pytest.mark.parametrize(("table", "name"), ROWS)
def test_accuracy_is_correct_over_total_of_the_balanced_test_part(table, name):
    row = PUBLISHED[table][name]
    right = sum(round(row.recall[name] * count) for name, count in TEST_IMAGES.items())
    assert row.accuracy == pytest.approx(right / sum(TEST_IMAGES.values()), abs=1e-4)


def test_figures_that_the_text_quotes():
    assert published_accuracies("table2")["resunet-resnet101"] == 0.8178
    assert published_accuracies("table2")["resunet-densenet121"] == 0.8177
    assert PUBLISHED["table3"]["net4"].accuracy == 0.8334
    assert PUBLISHED["table3"]["net4"].macro_f1 == 0.8319
    gain = PUBLISHED["table3"]["net4"].recall["monocyte"] - PUBLISHED["table3"]["net1"].recall["monocyte"]
    assert gain == pytest.approx(0.088, abs=5e-4)
    assert PUBLISHED["table3"]["net2"].accuracy == published_accuracies("table2")["resunet-resnet101"]
    assert PUBLISHED["table4"]["net4"] == PUBLISHED["table3"]["net4"]
    assert [name for table, name in ROWS if PUBLISHED[table][name].recomputed] == [
        "jeon2021",
        "shahzad2022",
        "huang2018",
        "sharma2018",
    ]


@pytest.mark.parametrize("table", ["table2", "table3", "table4"])
def test_every_published_row_is_trained(table):
    assert set(published_accuracies(table)) <= {row.name for row in plan_rows(table)}


def test_there_are_no_published_values_for_other_classes():
    assert find_published("table3", "net1", ("Monocytes", "lymphocyte", "Granulocyte")) is not None
    assert find_published("table3", "net1", ("G1", "S", "G2", "M")) is None
    assert find_published("ablation", "net1") is None
    assert published_accuracies("compare") == {}

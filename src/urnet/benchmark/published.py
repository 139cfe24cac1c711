"""The values in Tables 2, 3 and 4 of Zheng et al., Sensors 2023, 23, 7605, as fractions.

They are consistent: every average is the mean over the classes and every F1 follows from its recall and precision,
within 0.01 points. The recalls fit 2,005 granulocytes, 2,009 monocytes and 2,008 lymphocytes, so the test part was
augmented and balanced. With these counts the accuracies are correct over total, not the paper's Eq. 6.

In the copy of the paper that was used, Table 4 ends within the F1 of lymphocytes. For the four other works, that F1,
the mean F1 and the accuracy are computed from the printed recalls and precisions, to within 0.01 points. They are
marked `recomputed`. The values of Net4 are in Table 3.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

CLASSES = ("granulocyte", "monocyte", "lymphocyte")
TEST_IMAGES = {"granulocyte": 2005, "monocyte": 2009, "lymphocyte": 2008}

Figure = Literal["recall", "precision", "f1"]


@dataclass(frozen=True)
class Published:
    """The paper's values of one model; Table 2 has only accuracies.

    Attributes:
        accuracy: accuracy on the paper's test part, on which the epoch was chosen as well.
        recall, precision, f1: values of each class.
        macro_recall, macro_precision, macro_f1: averages; None in Table 2.
        recomputed: whether accuracy, F1 of lymphocytes and mean F1 are computed here.
    """

    accuracy: float
    recall: Mapping[str, float] = field(default_factory=dict)
    precision: Mapping[str, float] = field(default_factory=dict)
    f1: Mapping[str, float] = field(default_factory=dict)
    macro_recall: float | None = None
    macro_precision: float | None = None
    macro_f1: float | None = None
    recomputed: bool = False


def find_published(table: str, name: str, classes: tuple[str, ...] | None = None) -> Published | None:
    """Look up the paper's values of one row; None if the paper has none.

    Args:
        table: name of the table.
        name: name of the row: `resunet-vgg16`, `net4`, `huang2018`.
        classes: if given, they must be the paper's three, in any order, singular or plural.
    """
    if classes is not None and {normalize_class(name) for name in classes} != set(CLASSES):
        return None
    return PUBLISHED.get(table, {}).get(name)


def published_accuracies(table: str) -> dict[str, float]:
    """Look up the paper's accuracy of each row of a table; empty for other tables."""
    return {name: row.accuracy for name, row in PUBLISHED.get(table, {}).items()}


def normalize_class(name: str) -> str:
    """Convert a class name to the paper's spelling: lower case, singular."""
    return name.lower().removesuffix("s")


def _row(recall: list[float], precision: list[float], f1: list[float], accuracy: float | None) -> Published:
    """Convert a column of Table 3 or 4, in per cent: three classes and the average, as far as printed."""
    recomputed = accuracy is None
    if accuracy is None:
        f1 = [*f1, 2 * recall[2] * precision[2] / (recall[2] + precision[2])]
        f1 = [*f1, sum(f1) / 3]
        right = sum(round(share * TEST_IMAGES[name] / 100) for name, share in zip(CLASSES, recall, strict=False))
        accuracy = 100 * right / sum(TEST_IMAGES.values())
    by_class = [{name: _fraction(v) for name, v in zip(CLASSES, row, strict=False)} for row in (recall, precision, f1)]
    means = [_fraction(row[3]) for row in (recall, precision, f1)]
    return Published(_fraction(accuracy), *by_class, *means, recomputed=recomputed)


def _fraction(percent: float) -> float:
    return round(percent / 100, 4)


_NET4 = _row([91.52, 65.90, 92.63, 83.35], [92.40, 92.39, 71.46, 85.42], [91.96, 76.93, 80.68, 83.19], 83.34)

PUBLISHED: Mapping[str, Mapping[str, Published]] = {
    "table2": {
        name: Published(_fraction(accuracy))
        for name, accuracy in {
            "unet-vgg16": 78.01,
            "unet-mobilenetv2_100": 78.14,
            "unet-densenet121": 79.96,
            "unet-resnet101": 80.60,
            "unetpp-vgg16": 79.42,
            "unetpp-mobilenetv2_100": 79.32,
            "unetpp-densenet121": 81.62,
            "unetpp-resnet101": 81.43,
            "resunet-vgg16": 79.46,
            "resunet-mobilenetv2_100": 79.28,
            "resunet-densenet121": 81.77,
            "resunet-resnet101": 81.78,
        }.items()
    },
    "table3": {
        "net1": _row([91.27, 57.09, 92.63, 80.33], [91.32, 92.65, 66.91, 83.63], [91.29, 70.65, 77.70, 79.88], 80.32),
        "net2": _row([91.87, 61.13, 92.38, 81.79], [91.37, 92.75, 69.17, 84.43], [91.62, 73.69, 79.10, 81.47], 81.78),
        "net3": _row([90.97, 65.01, 92.23, 82.74], [91.75, 92.30, 70.71, 84.92], [91.36, 76.29, 80.05, 82.57], 82.73),
        "net4": _NET4,
    },
    "table4": {
        "jeon2021": _row([92.77, 59.48, 92.08, 81.44], [91.99, 90.05, 69.17, 83.74], [92.38, 71.64], None),
        "shahzad2022": _row([93.57, 56.10, 93.28, 80.98], [91.92, 91.03, 68.28, 83.74], [92.73, 69.42], None),
        "huang2018": _row([93.77, 63.07, 88.60, 81.81], [91.44, 88.54, 70.18, 83.39], [92.59, 73.66], None),
        "sharma2018": _row([91.72, 64.56, 90.54, 82.27], [91.13, 88.90, 71.43, 83.82], [91.42, 74.80], None),
        "net4": _NET4,
    },
}

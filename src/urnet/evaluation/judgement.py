"""The judgement that opens a report: how often the model is right, and whether that figure can be relied on."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from urnet.statistics.donors import MIN_DONORS

MIN_CLASS_CELLS = 20
"""True cells of a class below which its recall is called uncertain."""


@dataclass(frozen=True)
class Judgement:
    """Judgement of an evaluation in a few sentences.

    Attributes:
        accuracy: how many cells are right, and the accuracy of always naming the most common class.
        confusion: the most frequent confusion, or that there is none.
        data: how many cells, of how many donors or images.
        reliable: whether the figures hold for new cells of the same kind.
        reasons: why they do not, or not for all cells; empty if they do.
    """

    accuracy: str
    confusion: str
    data: str
    reliable: bool
    reasons: list[str]

    @property
    def verdict(self) -> str:
        """Whether the figures are reliable, in one sentence."""
        if self.reliable:
            return "These figures are reliable for new cells of the same kind."
        return f"These figures are not reliable yet: {'; '.join(self.reasons)}."

    @property
    def text(self) -> str:
        """All sentences."""
        return " ".join((self.accuracy, self.confusion, self.data, self.verdict))

    def to_json(self) -> dict[str, Any]:
        """Return the content of `metrics.json` under `judgement`."""
        return asdict(self) | {"verdict": self.verdict}


def judge(
    metrics: Mapping[str, Any],
    intervals: Mapping[str, Any],
    donors: int | None,
    *,
    simulated: str = "",
    optimistic: bool = False,
    overlap: bool | None = False,
) -> Judgement:
    """Judge an evaluation.

    Args:
        metrics: from `urnet.evaluation.metrics.score`.
        intervals: from `urnet.statistics.donors.choose_groups`.
        donors: number of donors; None if they are not known.
        simulated: how the images were simulated; "" for real ones.
        optimistic: whether the epoch was chosen on these cells.
        overlap: whether some of these cells, or other cells of their donors, took part in training; None if that is
            not known.
    """
    classes, matrix = list(metrics["classes"]), np.asarray(metrics["confusion_matrix"])
    support, n = matrix.sum(axis=1), int(metrics["n"])
    right, common = int(np.trace(matrix)), int(support.argmax())
    chance = support[common] / n
    reasons = []
    if optimistic:
        reasons.append("the epoch was chosen on these cells")
    if overlap is None:
        reasons.append("it is not known whether the training saw these cells")
    elif overlap:
        reasons.append("cells or donors of the training are among them")
    interval = metrics["accuracy"]["interval"]
    if interval is None:
        reasons.append(f"all cells come from one {intervals['unit']}")
    elif interval[0] <= chance:
        often = "is right more often" if right / n < chance else "could be right as often"
        reasons.append(f"always naming {classes[common]} {often}")
    if donors is None:
        reasons.append("the donors are not known")
    elif donors < MIN_DONORS:
        reasons.append(f"only {donors} donor{'s' * (donors != 1)} (at least {MIN_DONORS} are needed)")
    few = [(int(count), name) for name, count in zip(classes, support, strict=True) if 0 < count < MIN_CLASS_CELLS]
    if few:
        count, name = min(few)
        reasons.append(f"{name} has only {count} cell{'s' * (count > 1)} (at least {MIN_CLASS_CELLS} are needed)")
    if simulated:
        reasons.append(f"the images are simulated ({simulated})")
    return Judgement(
        accuracy=(
            f"The model is right for {right:,} of {n:,} cells: {100 * right / n:.1f} %{_describe_interval(interval)}. "
            f"Always naming {classes[common]}, the most common class, would be right for {100 * chance:.1f} %."
        ),
        confusion=_describe_confusion(matrix, classes),
        data=_describe_data(n, donors, intervals),
        reliable=not reasons,
        reasons=reasons,
    )


def _describe_interval(interval: Sequence[float] | None) -> str:
    return f" (95 % interval {100 * interval[0]:.1f}–{100 * interval[1]:.1f})" if interval else ""


def _describe_confusion(matrix: np.ndarray, classes: Sequence[str]) -> str:
    wrong = matrix * ~np.eye(len(classes), dtype=bool)
    true, predicted = np.unravel_index(wrong.argmax(), wrong.shape)
    count = int(wrong[true, predicted])
    if not count:
        return "No cell is confused with another class."
    of = int(matrix[true].sum())
    return (
        f"The most frequent confusion: {count:,} of {of:,} {classes[true]} cells ({100 * count / of:.1f} %) are called "
        f"{classes[predicted]}."
    )


def _describe_data(n: int, donors: int | None, intervals: Mapping[str, Any]) -> str:
    cells = f"{n:,} cell{'s' * (n != 1)}"
    if donors is not None:
        return f"The test has {cells} of {donors:,} donor{'s' * (donors != 1)}."
    groups = intervals["groups"]
    return f"The test has {cells} of {groups:,} {intervals['unit']}{'s' * (groups != 1)}."

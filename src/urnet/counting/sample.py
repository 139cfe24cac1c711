"""One sample's differential: counts, corrected percentages with intervals, and what to know before believing them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtri

from urnet.calibration.confusion import ReferenceCells
from urnet.counting.estimate import adjusted_count, check_confusion, classify_and_count, corrected_em, em
from urnet.counting.interval import CONFIDENCE_LEVEL, CountTest, adjusted_interval, em_interval

TARGET_HALF_WIDTH = 0.02  # the intervals that `cells_needed` asks for reach this far to either side
MAX_HALF_WIDTH = 0.05  # reach from which an interval is of little use for a differential
MAX_CALIBRATION_FACTOR = 50  # times the calibration's cells beyond which more of them are no advice
MISFIT_DEVIATIONS = 4.0  # standard deviations below none, or above all, that no composition explains
MIN_CALIBRATION_CELLS = 30  # calibration cells of a class
REJECTION_P_VALUE = 0.001  # p value of more rejections than the calibration's


@dataclass(frozen=True)
class CellsNeeded:
    """What would narrow every interval to ± 2 points.

    Args:
        cells: further accepted cells of the sample; None where no number would do.
        calibration: further calibration cells, in the present proportions, that it takes beside them: 0 where the
            present ones do, None where even `MAX_CALIBRATION_FACTOR` times as many would not.
    """

    cells: int | None
    calibration: int | None

    @property
    def sentence(self) -> str:
        """In words."""
        goal = f"±\u00a0{100 * TARGET_HALF_WIDTH:g} points"
        if self.calibration is None:
            return (
                f"Neither more cells of this sample nor any sensible number of calibration cells would narrow every "
                f"interval to {goal}: the classifier confuses the classes too much and has to become better."
            )
        if self.calibration:
            sample = f" and {self.cells:,} more cells of this sample" if self.cells else ""
            return (
                f"No number of further cells of this sample alone would narrow every interval to {goal}: too little is "
                f"known of the classifier's confusion. About {self.calibration:,} more calibration cells{sample} would."
            )
        if self.cells:
            return f"About {self.cells:,} more cells of this sample would narrow every interval to {goal}."
        return f"Every interval is about as narrow as {goal}."


@dataclass(frozen=True)
class Sample:
    """The differential of one sample. Shares are fractions; all arrays (K,) or, of intervals, (K, 2).

    Args:
        name: of the donor or sample.
        classes: the class names.
        cells: cells looked at, rejected ones included.
        rejected: how many were rejected, by reason, the most frequent first.
        counts: accepted cells by predicted class.
        raw: their shares (classify and count); NaN without accepted cells, as all estimates.
        adjusted: the stated shares: the adjusted count.
        adjusted_interval: 95 % intervals of those.
        em: shares by EM; corrected by the calibration's cells where those were given.
        em_interval: 95 % intervals of those, or None where the calibration's cells were not given.
        warnings: in plain words.
        cells_needed: what would narrow every interval to ± 2 points; None without accepted cells.
    """

    name: str
    classes: tuple[str, ...]
    cells: int
    rejected: dict[str, int]
    counts: np.ndarray
    raw: np.ndarray
    adjusted: np.ndarray
    adjusted_interval: np.ndarray
    em: np.ndarray
    em_interval: np.ndarray | None
    warnings: tuple[str, ...]
    cells_needed: CellsNeeded | None

    @property
    def accepted(self) -> int:
        """Cells that were counted."""
        return int(self.counts.sum())

    @property
    def rejected_share(self) -> float:
        """Share of all cells that was rejected; 0 without cells."""
        return 1 - self.accepted / self.cells if self.cells else 0.0

    @property
    def too_wide(self) -> np.ndarray:
        """(K,) whether a class's interval is too wide to be of much use."""
        return self.adjusted_interval[:, 1] - self.adjusted_interval[:, 0] > 2 * MAX_HALF_WIDTH

    def to_json(self) -> dict[str, Any]:
        """What `differential.json` holds of it, in per cent; null where there is no figure."""
        ends = np.full((len(self.classes), 2), np.nan) if self.em_interval is None else self.em_interval
        return {
            "sample": self.name,
            "cells": self.cells,
            "accepted": self.accepted,
            "rejected": self.rejected,
            "rejected_percent": 100 * self.rejected_share,
            "classes": {
                name: {
                    "count": int(self.counts[k]),
                    "raw_percent": _percent(self.raw[k]),
                    "percent": _percent(self.adjusted[k]),
                    "interval": [_percent(end) for end in self.adjusted_interval[k]],
                    "em_percent": _percent(self.em[k]),
                    "em_interval": None if self.em_interval is None else [_percent(end) for end in ends[k]],
                }
                for k, name in enumerate(self.classes)
            },
            "warnings": list(self.warnings),
            "more_cells_needed": None if self.cells_needed is None else self.cells_needed.cells,
            "more_calibration_cells_needed": None if self.cells_needed is None else self.cells_needed.calibration,
        }


def count_sample(
    name: str,
    probabilities: np.ndarray,
    rejected: Sequence[str],
    confusion: np.ndarray,
    classes: Sequence[str],
    *,
    reference: ReferenceCells | None = None,
    training_prior: np.ndarray | None = None,
) -> Sample:
    """Count the cells of one sample.

    Args:
        name: of the donor or sample.
        probabilities: (N, K) predicted probabilities, of rejected cells too.
        rejected: (N,) why each cell was rejected; "" where it counts.
        confusion: (K, K + 1) calibration cells by class and predicted class, the last column rejected.
        classes: the class names.
        reference: the calibration's cells themselves, with which EM is corrected and gets an interval.
        training_prior: (K,) shares that the probabilities assume; equal where not given, as balanced training has it.

    Returns:
        The sample.

    Raises:
        CellsError: the calibration has no (accepted) cell of a class.
        ValueError: shapes do not fit each other, or a probability is not finite.
    """
    classes = tuple(classes)
    table = check_confusion(confusion, classes)
    reasons = np.asarray(list(rejected), dtype=object)
    probabilities = np.asarray(probabilities, dtype=np.float64).reshape(-1, len(classes))
    if len(table) != len(classes) or len(probabilities) != len(reasons) or not np.isfinite(probabilities).all():
        raise ValueError(
            f"{len(classes)} classes, confusion {table.shape}, {len(probabilities)} probabilities and {len(reasons)} "
            "rejections do not fit each other, or a probability is not finite"
        )
    counted = probabilities[reasons == ""]
    counts = np.bincount(counted.argmax(axis=1), minlength=len(classes))
    acceptance = table[:, :-1].sum(axis=1) / table.sum(axis=1)
    if reference is None:
        by_em, em_ends = em(counted, training_prior, acceptance), None
    else:
        by_em = corrected_em(counted, reference, training_prior)
        em_ends = em_interval(counted, reference, training_prior)
    sample = Sample(
        name=name,
        classes=classes,
        cells=len(reasons),
        rejected=dict(Counter(reasons[reasons != ""].tolist()).most_common()),
        counts=counts,
        raw=classify_and_count(counts),
        adjusted=adjusted_count(counts, table),
        adjusted_interval=adjusted_interval(counts, table),
        em=by_em,
        em_interval=em_ends,
        warnings=(),
        cells_needed=cells_needed(counts, table) if len(counted) else None,
    )
    return Sample(**{**vars(sample), "warnings": tuple(_warnings(sample, table))})


def cells_needed(counts: np.ndarray, confusion: np.ndarray, goal: float = TARGET_HALF_WIDTH) -> CellsNeeded:
    """How many more cells would narrow every interval of the adjusted count to ± `goal`, about.

    Args:
        counts: (K,) accepted cells by predicted class; at least one.
        confusion: (K, K + 1) calibration cells, the last column rejected.
        goal: half the length asked for, as a share.

    Returns:
        Numbers of accepted cells and of calibration cells, from the two parts of the variance at the estimate, to two
        digits.
    """
    test = CountTest(counts, confusion)
    parts = test.variance(test.start, np.arange(test.classes))
    counting, calibration = parts.counting * test.cells, parts.calibration * np.sum(confusion)
    allowed = (goal / ndtri(0.5 + CONFIDENCE_LEVEL / 2)) ** 2
    left = allowed - parts.calibration
    if (left > 0).all():
        return CellsNeeded(_round_up((counting / left).max() - test.cells), 0)
    known = 2 * calibration.max() / allowed  # so that the confusion takes half of what is allowed
    if known > MAX_CALIBRATION_FACTOR * np.sum(confusion):
        return CellsNeeded(None, None)
    cells = (counting / (allowed - calibration / known)).max()
    return CellsNeeded(_round_up(cells - test.cells), _round_up(known - np.sum(confusion)))


def _warnings(sample: Sample, table: np.ndarray) -> list[str]:
    """What a reader has to know before believing the figures."""
    found = []
    for name, known in zip(sample.classes, table.sum(axis=1), strict=True):
        if known < MIN_CALIBRATION_CELLS:
            found.append(
                f"The calibration has only {known:.0f} cell(s) of class {name}; its confusion is hardly known. Its "
                f"interval allows for that, but {MIN_CALIBRATION_CELLS} or more are advisable."
            )
    found += _rejection_warnings(sample, table)
    if not sample.accepted:
        looked = "has no cells" if not sample.cells else f"has {sample.cells} cell(s), and all were rejected"
        return [*found, f"This sample {looked}: there is nothing to count."]
    unheard = (sample.counts > 0) & ~table[:, :-1].any(axis=0)
    if unheard.any():
        found.append(
            f"{sample.counts[unheard].sum():.0f} cell(s) were called {_join_names(sample.classes, unheard)}, which no "
            "cell of the calibration was: nothing is known of such calls, and the percentages do without them."
        )
    test = CountTest(sample.counts, table)
    for k, name in enumerate(sample.classes):
        for bound, sign, words in ((0.0, -1, "more rarely"), (1.0, 1, "more often")):
            parts = test.variance(np.array([bound]), np.array([k]))
            spread = np.sqrt(parts.counting + parts.calibration).clip(min=1e-9)
            if sign * (parts.estimate - bound)[0] > MISFIT_DEVIATIONS * spread[0]:
                found.append(
                    f"Cells were called {name} {words} than any composition explains. These cells look unlike the "
                    "calibration's (stain, focus, microscope, donor, unknown cells?), and the percentages cannot be "
                    "trusted."
                )
    if sample.em_interval is None:
        apart = (sample.em < sample.adjusted_interval[:, 0]) | (sample.em > sample.adjusted_interval[:, 1])
    else:
        apart = (sample.em_interval[:, 0] > sample.adjusted_interval[:, 1]) | (
            sample.em_interval[:, 1] < sample.adjusted_interval[:, 0]
        )
    if apart.any():
        found.append(
            f"The two corrections disagree on {_join_names(sample.classes, apart)} by more than chance explains: the "
            "probabilities are badly calibrated for these cells, or the cells look unlike the calibration's."
        )
    if sample.too_wide.any():
        assert sample.cells_needed is not None
        which = _join_names(sample.classes, sample.too_wide)
        many = sample.too_wide.sum() > 1
        found.append(
            f"The interval{'s' if many else ''} of {which} {'are' if many else 'is'} too wide to be of much use. "
            + sample.cells_needed.sentence
        )
    return found


def _rejection_warnings(sample: Sample, table: np.ndarray) -> list[str]:
    """Whether more cells were rejected than the class that is rejected most would explain."""
    from scipy.stats import fisher_exact

    lost = table[:, -1] / table.sum(axis=1)
    most = int(lost.argmax())
    out = sample.cells - sample.accepted
    if not out or out / sample.cells <= lost[most]:
        return []
    known = np.array([table[most, -1], table[most, :-1].sum()])
    p = fisher_exact(np.rint([[out, sample.accepted], known]).astype(int), alternative="greater").pvalue  # type: ignore[arg-type]
    if p >= REJECTION_P_VALUE:
        return []
    return [
        f"{100 * sample.rejected_share:.0f} % of the cells were rejected, in the calibration at most "
        f"{100 * lost[most]:.0f} % of any class: look at the rejected cells. If they are debris or red cells, the "
        "percentages stand; if they are white blood cells, the picture quality or the cells differ from the training."
    ]


def _join_names(names: Sequence[str], chosen: np.ndarray) -> str:
    listed = [name for name, here in zip(names, chosen, strict=True) if here]
    return " and ".join(filter(None, [", ".join(listed[:-1]), listed[-1]]))


def _percent(share: float) -> float | None:
    return None if np.isnan(share) else round(100 * float(share), 3)


def _round_up(number: float) -> int:
    """Two digits, upwards: more would promise a precision that is not there."""
    if number <= 0:
        return 0
    step = 10 ** max(0, int(np.floor(np.log10(number))) - 1)
    return int(np.ceil(number / step) * step)

"""The differential of one sample: counts, corrected shares with intervals, and warnings."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtri

from urnet.calibration.confusion import ReferenceCells
from urnet.counting.estimate import adjusted_count, check_confusion, classify_and_count, corrected_em, em
from urnet.counting.interval import CONFIDENCE_LEVEL, CountTest, adjusted_interval, em_interval
from urnet.statistics.donors import MIN_DONORS
from urnet.statistics.spread import describe_differences

TARGET_HALF_WIDTH = 0.02
"""Half width of the intervals that `cells_needed` aims at."""
MAX_HALF_WIDTH = 0.05
"""Half width above which an interval is too wide for a differential."""
MAX_CALIBRATION_FACTOR = 50
"""Multiple of the present calibration cells above which more of them are not advised."""
MISFIT_DEVIATIONS = 4.0
"""Standard deviations beyond 0 or 100 % that no composition explains."""
MIN_CALIBRATION_CELLS = 30
"""Advised minimum number of calibration cells of a class."""
INTERVAL_METHOD = (
    "The 95 % interval comes from a score test. It accounts for the chance of which cells were counted, the number of "
    "calibration cells, and {}."
)
"""Description of the intervals of the corrected shares."""
REJECTION_P_VALUE = 0.001
"""P value below which a sample has too many rejected cells."""


@dataclass(frozen=True)
class CellsNeeded:
    """Number of cells that would narrow every interval to ± 2 points.

    Attributes:
        cells: further accepted cells of the sample; none if no number suffices.
        calibration: further calibration cells, in the present proportions: 0 if the present ones suffice, none if even
            `MAX_CALIBRATION_FACTOR` times as many do not.
        donors: whether no number of cells suffices because donors differ too much, or too few were calibrated to
            exclude that.
    """

    cells: int | None
    calibration: int | None
    donors: bool = False

    @property
    def sentence(self) -> str:
        """A sentence for reports."""
        goal = f"±\u00a0{100 * TARGET_HALF_WIDTH:g} points"
        if self.donors:
            return (
                f"More cells would not narrow every interval to {goal}, because donors may differ in how the "
                "classifier confuses their cells. Calibrate on cells of more donors, or train a better model."
            )
        if self.calibration is None:
            return (
                f"Neither more cells of this sample nor more calibration cells would narrow every interval to {goal}: "
                "the classifier confuses the classes too much. Train a better model."
            )
        if self.calibration:
            sample = f" and {self.cells:,} more cells of this sample" if self.cells else ""
            return (
                f"More cells of this sample alone would not narrow every interval to {goal}, because too little is "
                f"known of the classifier's confusion. About {self.calibration:,} more calibration cells{sample} would."
            )
        if self.cells:
            return f"About {self.cells:,} more cells of this sample would narrow every interval to {goal}."
        return f"Every interval is {goal} or narrower, approximately."


@dataclass(frozen=True)
class Sample:
    """The differential of one sample. Shares are fractions; arrays are (K,), intervals (K, 2).

    Attributes:
        name: name of the donor or sample.
        classes: the class names.
        cells: number of cells, with rejected ones.
        rejected: number of rejected cells by reason, the most frequent first.
        counts: accepted cells by predicted class.
        raw: their shares, not corrected (classify and count); NaN without accepted cells, as all estimates.
        adjusted: the corrected shares, by the adjusted count. Reports and pages show these.
        adjusted_interval: 95 % intervals of the corrected shares.
        em: shares by EM, a check; corrected by the calibration's cells if those were given.
        em_interval: 95 % intervals of the shares by EM; none if the calibration's cells were not given.
        warnings: sentences for reports.
        cells_needed: number of cells for intervals of ± 2 points; none without accepted cells.
        interval_method: what the intervals account for, as a sentence.
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
    interval_method: str

    @property
    def accepted(self) -> int:
        """Number of accepted cells."""
        return int(self.counts.sum())

    @property
    def rejected_share(self) -> float:
        """Share of rejected cells; 0 without cells."""
        return 1 - self.accepted / self.cells if self.cells else 0.0

    @property
    def too_wide(self) -> np.ndarray:
        """Whether the interval of each class is too wide to be useful, (K,)."""
        return self.adjusted_interval[:, 1] - self.adjusted_interval[:, 0] > 2 * MAX_HALF_WIDTH

    def to_json(self) -> dict[str, Any]:
        """Make the entry of `differential.json`, in per cent; null where a figure is not known."""
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
            "interval_method": self.interval_method,
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
        name: name of the donor or sample.
        probabilities: (N, K) predicted probabilities, of rejected cells too.
        rejected: (N,) reason why each cell was rejected; "" for accepted cells.
        confusion: (K, K + 1) calibration cells by class and predicted class, the last column rejected.
        classes: the class names.
        reference: the calibration's cells, which correct EM and give its interval, and whose donors tell how much
            donors differ. Without them, usual differences are assumed.
        training_prior: (K,) shares that the probabilities assume; equal if not given, as after balanced training.

    Raises:
        CellsError: as `check_confusion`.
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
    by_donor = np.zeros((0, *table.shape)) if reference is None else reference.by_donor
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
        adjusted_interval=adjusted_interval(counts, table, by_donor),
        em=by_em,
        em_interval=em_ends,
        warnings=(),
        cells_needed=cells_needed(counts, table, by_donor) if len(counted) else None,
        interval_method=INTERVAL_METHOD.format(describe_differences(len(by_donor))),
    )
    return Sample(**{**vars(sample), "warnings": tuple(_warnings(sample, table, by_donor))})


def cells_needed(
    counts: np.ndarray, confusion: np.ndarray, by_donor: np.ndarray, goal: float = TARGET_HALF_WIDTH
) -> CellsNeeded:
    """Estimate how many more cells would narrow every interval of the adjusted count to ± `goal`.

    Args:
        counts: (K,) accepted cells by predicted class; at least one.
        confusion: (K, K + 1) calibration cells, the last column rejected.
        by_donor: (D, K, K + 1) those of them whose donor is known, by donor.
        goal: half width of the intervals, as a share.

    Returns:
        Numbers of accepted cells and of calibration cells to two digits, from the parts of the variance.
    """
    test = CountTest(counts, confusion, by_donor)
    parts = test.variance(test.start, np.arange(test.classes))
    counting, calibration = parts.counting * test.cells, parts.calibration * np.sum(confusion)
    allowed = (goal / ndtri(0.5 + CONFIDENCE_LEVEL / 2)) ** 2 - parts.donors
    if (allowed <= 0).any():
        return CellsNeeded(None, None, donors=True)
    left = allowed - parts.calibration
    if (left > 0).all():
        return CellsNeeded(_round_up((counting / left).max() - test.cells), 0)
    known = (2 * calibration / allowed).max()  # the confusion then takes half of the allowed variance
    if known > MAX_CALIBRATION_FACTOR * np.sum(confusion):
        return CellsNeeded(None, None)
    cells = (counting / (allowed - calibration / known)).max()
    return CellsNeeded(_round_up(cells - test.cells), _round_up(known - np.sum(confusion)))


def _warnings(sample: Sample, table: np.ndarray, by_donor: np.ndarray) -> list[str]:
    """List the warnings of a report."""
    warnings = []
    if len(by_donor) < MIN_DONORS:
        warnings.append(
            (
                "The donors of the calibration are not known"
                if not len(by_donor)
                else f"The calibration has cells of only {len(by_donor)} donor{'s' * (len(by_donor) > 1)}"
            )
            + ", so the intervals assume that donors differ as much as is usual. Calibrate on labelled cells of "
            f"{MIN_DONORS} or more donors, named in the table, to estimate the differences."
        )
    for name, known in zip(sample.classes, table.sum(axis=1), strict=True):
        if known < MIN_CALIBRATION_CELLS:
            warnings.append(
                f"The calibration has only {known:.0f} cell(s) of class {name}, so its confusion is hardly known. "
                f"The interval includes this, but {MIN_CALIBRATION_CELLS} or more cells are advised."
            )
    warnings += _rejection_warnings(sample, table)
    if not sample.accepted:
        state = "has no cells" if not sample.cells else f"has {sample.cells} cell(s), and all were rejected"
        return [*warnings, f"This sample {state}: there is nothing to count."]
    unknown_calls = (sample.counts > 0) & ~table[:, :-1].any(axis=0)
    if unknown_calls.any():
        warnings.append(
            f"{sample.counts[unknown_calls].sum():.0f} cell(s) were called "
            f"{_join_names(sample.classes, unknown_calls)}, which no "
            "cell of the calibration was. Nothing is known of such calls, and the percentages ignore them."
        )
    test = CountTest(sample.counts, table, by_donor)
    for k, name in enumerate(sample.classes):
        for bound, sign, words in ((0.0, -1, "more rarely"), (1.0, 1, "more often")):
            parts = test.variance(np.array([bound]), np.array([k]))
            if sign * (parts.estimate - bound)[0] > MISFIT_DEVIATIONS * parts.deviation[0].clip(min=1e-9):
                warnings.append(
                    f"Cells were called {name} {words} than any composition explains. They look unlike the cells of "
                    "the calibration (stain, focus, microscope, donor, unknown cells?). Do not use the percentages."
                )
    if sample.em_interval is None:
        disagree = (sample.em < sample.adjusted_interval[:, 0]) | (sample.em > sample.adjusted_interval[:, 1])
    else:
        disagree = (sample.em_interval[:, 0] > sample.adjusted_interval[:, 1]) | (
            sample.em_interval[:, 1] < sample.adjusted_interval[:, 0]
        )
    if disagree.any():
        warnings.append(
            f"The two estimates (adjusted count and EM) disagree on {_join_names(sample.classes, disagree)} by more "
            f"than chance explains: "
            "the probabilities are badly calibrated for these cells, or the cells look unlike those of the calibration."
        )
    if sample.too_wide.any():
        assert sample.cells_needed is not None
        which = _join_names(sample.classes, sample.too_wide)
        many = sample.too_wide.sum() > 1
        warnings.append(
            f"The interval{'s' if many else ''} of {which} {'are' if many else 'is'} too wide to be useful. "
            + sample.cells_needed.sentence
        )
    return warnings


def _rejection_warnings(sample: Sample, table: np.ndarray) -> list[str]:
    """Warn if more cells were rejected than in the class of the calibration with the most rejected cells."""
    from scipy.stats import fisher_exact

    rates = table[:, -1] / table.sum(axis=1)
    worst = int(rates.argmax())
    out = sample.cells - sample.accepted
    if not out or out / sample.cells <= rates[worst]:
        return []
    counts = np.array([[out, sample.accepted], [table[worst, -1], table[worst, :-1].sum()]])
    p = fisher_exact(np.rint(counts).astype(int), alternative="greater").pvalue
    if p >= REJECTION_P_VALUE:
        return []
    return [
        f"{100 * sample.rejected_share:.0f} % of the cells were rejected, but at most "
        f"{100 * rates[worst]:.0f} % of any class of the calibration. Check the rejected cells. If they are debris or "
        "red cells, the percentages are valid. If they are white blood cells, image quality or cells differ from the "
        "training."
    ]


def _join_names(names: Sequence[str], chosen: np.ndarray) -> str:
    listed = [name for name, here in zip(names, chosen, strict=True) if here]
    return " and ".join(filter(None, [", ".join(listed[:-1]), listed[-1]]))


def _percent(share: float) -> float | None:
    return None if np.isnan(share) else round(100 * float(share), 3)


def _round_up(number: float) -> int:
    """Round up to two digits, which is all that the estimate supports."""
    if number <= 0:
        return 0
    step = 10 ** max(0, int(np.floor(np.log10(number))) - 1)
    return int(np.ceil(number / step) * step)

"""Measure how well a model rejects unknown cells: other classes, debris, anything in a cells table."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from urnet.bundle.model import Model
from urnet.cells.read import read_cells
from urnet.cells.table import Cells
from urnet.errors import CellsError, RunError
from urnet.evaluation.calibration_metrics import mean_with_interval
from urnet.evaluation.predictions import Progress
from urnet.names import donor_key
from urnet.run_folder import Run
from urnet.statistics.donors import LEVEL, choose_groups, combine_limits, excess_over_cells
from urnet.statistics.proportions import limit_of_certainty, mid_p_limits
from urnet.training.calibrate import collect_outputs

COLUMNS = ("label", "cells", "auroc", "auroc_low", "auroc_high", "rejected", "rejected_low", "rejected_high")


def measure_rejection(
    run: Run,
    unknown: Cells | Path | str,
    *,
    level: float = LEVEL,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Compare unknown cells with the run's own test part.

    The area under the receiver operating characteristic (AUROC) is the probability that an unknown cell has a higher
    rejection score than a known one. It is 0.5 for a model that cannot distinguish them.

    Args:
        run: a calibrated run.
        unknown: cells with any labels. Cells with a class of the run are left out. Cells of the training's donors are
            left out as well, unless there are no others: cells of new donors have higher scores, as in the test part.
        level: coverage of the intervals, which are over donors or source images.
        progress: called with the name of a step and the share of it that is done.

    Returns:
        One row per label with the columns `COLUMNS`: the AUROC and the share rejected, each with its interval (NaN if
        there is none). The last row, with the label "", is the run's own test part, without an AUROC.

    Raises:
        RunError: the model is not calibrated.
        CellsError: no unknown cells, or no test part to compare with.
        ImageError: a cell cannot be read, or has another depth than the training's.
    """
    model, recipe = run.load_model(), run.recipe()
    if model.calibration is None:
        raise RunError(
            f"{run.folder}: the model is not calibrated. Run `urnet calibrate {run.folder}`",
            code="evaluation.not_calibrated",
        )
    if not isinstance(unknown, Cells):
        unknown = read_cells(Path(unknown), tile=recipe.tile, image=recipe.image)
    merged = {label for members in (recipe.classes or {}).values() for label in members}
    unknown = unknown.where(~unknown.table["label"].isin({*model.classes, *merged}))
    if not len(unknown):
        raise CellsError(
            f"all labels are classes of {run.folder}. Give cells of other classes", code="evaluation.no_unknown_cells"
        )
    if "donor" in unknown.table:
        known_donors = {donor_key(donor) for donor in (*run.donors("train"), *run.donors("validation"))}
        of_new_donors = ~unknown.table["donor"].map(donor_key).isin(known_donors)
        unknown = unknown.where(of_new_donors) if of_new_donors.any() else unknown
    known = run.cells().part("test")
    if not len(known):
        raise CellsError(f"{run.folder}: this run has no cells in its test part", code="evaluation.part_empty")
    known_scores, known_groups = _rejection_scores(model, known, progress), _choose_groups(known)
    level_score = -np.log10(model.calibration.rejection.level)
    rows = []
    for label in sorted(set(unknown.table["label"])):
        members = unknown.where(unknown.table["label"] == label)
        unknown_scores, groups = _rejection_scores(model, members, progress), _choose_groups(members)
        value, low, high = _compute_auroc(known_scores, known_groups, unknown_scores, groups, level)
        rows.append(
            (
                label,
                len(members),
                value,
                low,
                high,
                *_rejected_share(unknown_scores >= level_score, groups, level),
            )
        )
    none = (np.nan, np.nan, np.nan)
    rows.append(("", len(known), *none, *_rejected_share(known_scores >= level_score, known_groups, level)))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _rejection_scores(model: Model, cells: Cells, progress: Progress | None) -> np.ndarray:
    report = None if progress is None else lambda done: progress("read cells", done / len(cells))
    outputs = collect_outputs(model, replace(cells, classes=tuple(sorted(set(cells.table["label"])))), report)
    return model.calibration.rejection.score(outputs.rows, outputs.features)


def _choose_groups(cells: Cells) -> np.ndarray:
    table = cells.table
    return choose_groups(table["donor"].tolist() if "donor" in table else None, table["source"].tolist())[0]


def _rejected_share(hits: np.ndarray, groups: np.ndarray, level: float) -> tuple[float, float, float]:
    share = mean_with_interval(hits, np.ones(len(hits), dtype=bool), groups, level)
    return (share["value"], *(share["interval"] or (np.nan, np.nan)))


def _compute_auroc(
    known: np.ndarray, known_groups: np.ndarray, unknown: np.ndarray, unknown_groups: np.ndarray, level: float
) -> tuple[float, float, float]:
    """Compute the Mann-Whitney statistic over the number of pairs (ties count half), and its interval.

    Its variance is the sum of two jackknife variances, over the groups of each sample. That of independent cells is
    DeLong's (Biometrics 44, 1988). If no pair is in the wrong order, the cells of the smaller sample are the trials.
    """
    wins = (unknown[:, None] > known) + 0.5 * (unknown[:, None] == known)  # (U, N)
    value = float(wins.mean())
    samples = (wins.mean(axis=1), unknown_groups), (wins.mean(axis=0), known_groups)
    if any(len(np.unique(groups)) < 2 for _, groups in samples):
        return value, np.nan, np.nan
    variances, freedoms, alone = [], [], []
    for shares, groups in samples:
        groups = np.unique(groups, return_inverse=True)[1]
        G, n = groups.max() + 1, len(shares)
        sums, sizes = np.bincount(groups, shares - value), np.bincount(groups)
        variances.append((G - 1) / G * np.sum((sums / (n - sizes)) ** 2))
        freedoms.append(G - 1)
        alone.append(shares.var(ddof=1) / n)
    variance, of_cells = sum(variances), sum(alone)
    if of_cells > 0:
        freedom = variance**2 / sum(v**2 / f for v, f in zip(variances, freedoms, strict=True)) if variance else 1
        excess = excess_over_cells(variance, freedom, of_cells, level)
        n = value * (1 - value) / of_cells
        limits = np.array(mid_p_limits(value * n, n, level))
    else:
        excess, limit = 0.0, 0.0
        if value in (0, 1):
            smaller = min((groups for _, groups in samples), key=len)
            limit = limit_of_certainty(np.bincount(smaller), level)
        limits = np.array({1.0: (limit, 1.0), 0.0: (0.0, 1 - limit)}.get(value, (value, value)))
    low, high = combine_limits(np.array(value), (limits - value) ** 2, np.array(excess))
    return value, float(low), float(high)

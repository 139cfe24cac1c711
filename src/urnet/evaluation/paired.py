"""Paired differences between runs: differences on the same cells, with intervals that allow for chance.

Two runs that were tested on the same cells are compared cell by cell, so that the difficulty of a cell cancels out.
Chance remains in the cells and in the training: other donors or images, or another fold or seed, would give another
difference. The bootstrap resamples both jointly. It draws whole donors or source images, as in `metrics`. Independently
of them, it draws folds and seeds. All draws are with replacement, and the same for both runs. The weight of a cell is
the product of how often its group, its fold and its seed were drawn. This is the product, or pigeonhole, bootstrap
(Owen, "The pigeonhole bootstrap", Ann. Appl. Stat. 1, 2007, section 3; Owen and Eckles, "Bootstrapping data arrays of
arbitrary order", Ann. Appl. Stat. 6, 2012). Intervals are percentile intervals. With m comparisons each has a
Bonferroni interval at level 1 - (1 - level)/m, and p values are adjusted by Holm's method (Scand. J. Stat. 6, 1979),
per metric.

The table gives the coverage of the true difference, zero, in per cent of 400 simulated pairs of runs per line. Each
pair has 2,000 cells, each its own source, in classes of 60, 30 and 10 %. Only one of the two runs is right for a fifth
of the cells. In each fold and seed one run has a random advantage, with this standard deviation in points in each class
and correlation 0.75 between classes. The 99 % intervals are the simultaneous ones of five comparisons.

    folds  seeds  advantage   accuracy, macro recall: 95 % intervals   99 % intervals
      5      1       0                               100, 100            100, 100
      5      1       2                                98,  99            100, 100
      5      1       4                                97,  97             99, 100
      5      1       8                                91,  92             97,  98
      3      1       4                                88,  93             96,  97
      5      3       4                               100, 100            100, 100
      1      5       3                                90,  93             96,  98
      1      1       0                                96,  97            100, 100
      1      1       3                                52,  61             63,  74

Five folds give conservative intervals: up to 1.6 times as wide as needed if trainings agree. The product counts the
noise of the cells more than once, and more often with several seeds. The intervals are somewhat too narrow if the noise
of training is much larger than that of the cells, since five draws cannot show the tails. One training of each run says
nothing about other trainings: its intervals are far too narrow to tell which recipe is better.

A difference that rests on a single donor or source image has no interval, however many folds and seeds there are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from urnet.errors import CellsError
from urnet.evaluation.metrics import LEVEL, REPLICATES, choose_groups, resample

COLUMNS = (
    "first", "second", "metric", "difference", "low", "high", "low_simultaneous", "high_simultaneous",
    "p", "p_holm", "chance", "note", "cells", "groups", "folds", "seeds", "resampled",
)  # fmt: skip
CELL = ["path", "fold", "copy"]
ROUNDING = 1e-12
"""Draws that differ by less are equal."""

NO_INTERVAL = "no interval"
ONE_GROUP, ALIKE, NO_CELLS = f"{NO_INTERVAL}: one group", f"{NO_INTERVAL}: all groups alike", "no cells"
"""Reasons why a difference has no interval."""


def paired_differences(
    predictions: Mapping[str, pd.DataFrame],
    pairs: Sequence[tuple[str, str]],
    classes: Sequence[str],
    *,
    replicates: int = REPLICATES,
    level: float = LEVEL,
    seed: int = 0,
) -> pd.DataFrame:
    """Compute the second minus the first run of each pair: accuracy, macro recall, and the recall of each class.

    Runs are compared over the seeds and folds that both have. If they share no seed, the cells of each run are averaged
    over its own seeds first. Pairs without a common fold are left out.

    Args:
        predictions: of each run, one row per test cell and seed: `path`, `label`, `predicted`, `source`, `seed`,
            `fold`, and `donor` if known. A cell that was tested in several augmented copies has several rows.
        pairs: names of runs, (first, second).
        classes: the class names.
        replicates: number of bootstrap replicates. Simultaneous intervals of m pairs rest on about
            replicates·(1 - level)/2m draws at each end.
        level: coverage of each interval; for `*_simultaneous`, of all intervals together.
        seed: seed of the bootstrap; all pairs over the same cells get the same draws.

    Returns:
        One row per pair and metric (`accuracy`, `macro_recall`, `recall_<class>`). `difference` and interval ends are
        fractions. `p` is two-sided: twice (1 + draws on the far side of zero)/(1 + draws). `chance` is true if the
        simultaneous interval contains zero. Without an interval (NaN) it is missing, and `note` says why: `ONE_GROUP`
        if all cells (of the class) belong to one group, `ALIKE` if every draw gives the same difference, `NO_CELLS` if
        the class has no cells. `resampled` says what was drawn: "sources", "donors and folds", ….

    Raises:
        CellsError: the two runs of a pair were tested on different cells, or a label is not in `classes`.
        ValueError: a pair names an unknown run.
    """
    compared = []
    for first, second in pairs:
        missing = [name for name in (first, second) if name not in predictions]
        if missing:
            raise ValueError(f"no predictions of {missing[0]!r}; there are {', '.join(predictions)}")
        matched = _match_runs(predictions[first], predictions[second], (first, second), classes)
        if matched is not None:
            compared.append((first, second, matched))
    rows = []
    simultaneous = 1 - (1 - level) / max(1, len(compared))
    for first, second, matched in compared:
        value, draws = _compute_differences(matched, len(classes), replicates, seed)
        rests_on = [matched.groups, matched.groups, *matched.groups_of(len(classes))]
        for k, metric in enumerate(("accuracy", "macro_recall", *(f"recall_{name}" for name in classes))):
            drawn = draws[:, k] if rests_on[k] > 1 else draws[:0, k]
            low, high, p = _interval(value[k], drawn, level)
            wide_low, wide_high, _ = _interval(value[k], drawn, simultaneous)
            unknown = bool(np.isnan(low))
            rows.append(
                {
                    "first": first,
                    "second": second,
                    "metric": metric,
                    "difference": value[k],
                    "low": low,
                    "high": high,
                    "low_simultaneous": wide_low,
                    "high_simultaneous": wide_high,
                    "p": p,
                    "chance": pd.NA if unknown else not (wide_low > 0 or wide_high < 0),
                    "note": _missing_interval_reason(value[k], rests_on[k]) if unknown else "",
                    "cells": matched.cells,
                    "groups": matched.groups,
                    "folds": matched.folds,
                    "seeds": matched.seeds,
                    "resampled": matched.resampled,
                }
            )
    table = pd.DataFrame(rows, columns=[column for column in COLUMNS if column != "p_holm"])
    table["p_holm"] = table.groupby("metric", sort=False)["p"].transform(_holm_adjust)
    return table[list(COLUMNS)].astype({"chance": "boolean"})


@dataclass(frozen=True)
class _MatchedRuns:
    """Two runs on the same cells, one entry per cell and seed.

    Attributes:
        change: (N,) right of the second run minus right of the first.
        truth: (N,) class indices.
        group, fold, seed: (N,) indices of what each entry is drawn with.
        cells: number of distinct cells.
        groups, folds, seeds: number of each.
        resampled: what is drawn, in words.
    """

    change: np.ndarray
    truth: np.ndarray
    group: np.ndarray
    fold: np.ndarray
    seed: np.ndarray
    cells: int
    groups: int
    folds: int
    seeds: int
    resampled: str

    def groups_of(self, K: int) -> list[int]:
        """Count the groups of each of the K classes."""
        return [len(np.unique(self.group[self.truth == k])) for k in range(K)]


def _match_runs(
    first: pd.DataFrame, second: pd.DataFrame, names: tuple[str, str], classes: Sequence[str]
) -> _MatchedRuns | None:
    """Join the rows of two runs; return None if they have no fold in common."""
    frames = [_number_copies(frame, name, classes) for frame, name in zip((first, second), names, strict=True)]
    if any(frame.empty for frame in frames):
        return None
    a, b = frames
    if set(a["seed"]) & set(b["seed"]):
        on = ["seed", *CELL]
    else:
        on = CELL
        a, b = (frame.groupby(CELL, as_index=False).agg(_average_right(frame)) for frame in (a, b))
    rounds = [column for column in on if column in ("seed", "fold")]
    shared = a[rounds].drop_duplicates().merge(b[rounds].drop_duplicates())
    if shared.empty:
        return None
    a, b = (frame.merge(shared, on=rounds) for frame in (a, b))
    both = a.merge(b[[*on, "label", "right"]], on=on, how="outer", suffixes=("", "_b"), indicator=True)
    alone = both[both["_merge"] != "both"]
    if len(alone):
        one = alone.iloc[0]
        which = names[0] if one["_merge"] == "left_only" else names[1]
        raise CellsError(
            f"{names[0]} and {names[1]} were tested on different cells: {len(alone)} of {len(both)} are in one of them "
            f"only (the first: {one['path']}, only in {which}). Compare runs over the same cells, split.seed and folds",
            code="evaluation.cells_differ",
        )
    other = both[both["label"] != both["label_b"]]
    if len(other):
        one = other.iloc[0]
        raise CellsError(
            f"{names[0]} and {names[1]} were tested on cells of different labels: {one['path']} is {one['label']} "
            f"in one, {one['label_b']} in the other. Compare runs with the same classes",
            code="evaluation.labels_differ",
        )
    donors = both["donor"].tolist() if "donor" in both else None
    group, description = choose_groups(donors, both["source"].tolist())
    fold = pd.factorize(both["fold"])[0]
    seed = pd.factorize(both["seed"])[0] if "seed" in on else np.zeros(len(both), dtype=int)
    groups, folds, seeds = description["groups"], int(fold.max()) + 1, int(seed.max()) + 1
    drawn = ["donors" if description["unit"] == "donor" else "sources"]
    drawn += [what for what, count in (("folds", folds), ("seeds", seeds)) if count > 1]
    return _MatchedRuns(
        change=(both["right_b"] - both["right"]).to_numpy(float),
        truth=both["label"].map({name: k for k, name in enumerate(classes)}).to_numpy(int),
        group=group,
        fold=fold,
        seed=seed,
        cells=len(both[CELL].drop_duplicates()),
        groups=groups,
        folds=folds,
        seeds=seeds,
        resampled=" and ".join(drawn),
    )


def _number_copies(frame: pd.DataFrame, name: str, classes: Sequence[str]) -> pd.DataFrame:
    """Select the columns for a comparison, and number the augmented copies of each cell."""
    if frame.empty:
        return pd.DataFrame(columns=["seed", *CELL])
    unknown = sorted(set(frame["label"]) - set(classes))
    if unknown:
        raise CellsError(
            f"{name}: label {unknown[0]!r} is none of the classes {', '.join(classes)}. Add it to the classes",
            code="evaluation.label_unknown",
        )
    selected = frame[["path", "label", "source", *(["donor"] if "donor" in frame else [])]].copy()
    for column in ("seed", "fold"):  # absent in a run that was trained once, on one split
        selected[column] = frame[column].fillna(-1) if column in frame else -1
    selected["copy"] = selected.groupby(["seed", "fold", "path"]).cumcount()
    selected["right"] = (frame["label"] == frame["predicted"]).astype(float)
    return selected


def _average_right(frame: pd.DataFrame) -> dict[str, Any]:
    return {column: "mean" if column == "right" else "first" for column in frame if column not in (*CELL, "seed")}


def _compute_differences(matched: _MatchedRuns, K: int, replicates: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute differences of accuracy, macro recall and the K recalls, (2 + K,), and their draws, (R, 2 + K)."""
    F, S, G = matched.folds, matched.seeds, matched.groups
    width = F * S * K
    column = (matched.fold * S + matched.seed) * K + matched.truth
    entry = np.concatenate([matched.change, np.ones(len(column))])
    where = np.tile(matched.group, 2), np.concatenate([column, width + column])
    table = sparse.csr_array((entry, where), shape=(G, 2 * width))  # change, then count
    total = np.asarray(table.sum(axis=0)).reshape(1, 2, F, S, K).sum(axis=(2, 3))
    sums = resample(table, replicates, seed).reshape(-1, 2, F, S, K)
    rng = np.random.default_rng([seed, 1])
    folds, seeds = (rng.multinomial(n, [1 / n] * n, size=replicates) for n in (F, S))  # (R, F), (R, S)
    return _compute_metrics(total)[0], _compute_metrics(
        np.einsum("rxfsk,rf,rs->rxk", sums, folds, seeds, optimize=True)
    )


def _compute_metrics(sums: np.ndarray) -> np.ndarray:
    """Compute differences (R, 2 + K) from sums of change and count (R, 2, K); NaN without cells."""
    change, count = sums[:, 0], sums[:, 1]
    recall = np.divide(change, count, out=np.full_like(change, np.nan), where=count > 0)
    with np.errstate(invalid="ignore"):
        accuracy = change.sum(axis=1) / count.sum(axis=1)
        macro = np.nansum(recall, axis=1) / (count > 0).sum(axis=1)
    return np.column_stack([accuracy, macro, recall])


def _interval(value: float, draws: np.ndarray, level: float) -> tuple[float, float, float]:
    """Compute the percentile interval and the two-sided p value; NaN if the draws are undefined or all equal."""
    draws = draws[np.isfinite(draws)]
    if np.isnan(value) or not len(draws) or (np.ptp(draws) < ROUNDING and value != 0):
        return np.nan, np.nan, np.nan
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    far = min((draws <= 0).sum(), (draws >= 0).sum())
    return float(low), float(high), min(1.0, 2 * (1 + far) / (1 + len(draws)))


def _missing_interval_reason(value: float, groups: int) -> str:
    """Name the reason why a difference has no interval."""
    return NO_CELLS if np.isnan(value) else ONE_GROUP if groups < 2 else ALIKE


def _holm_adjust(p: pd.Series) -> np.ndarray:
    """Adjust p values by Holm's method; undefined ones count as comparisons."""
    known = p.to_numpy(float)
    order = np.argsort(known)  # NaN last
    stepped = np.maximum.accumulate(known[order] * (len(known) - np.arange(len(known))))
    adjusted = np.empty(len(known))
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted

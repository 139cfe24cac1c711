"""Paired differences between runs on the same cells: intervals and verdicts that allow for chance.

Two runs that were tested on the same cells are compared cell by cell, so that the difficulty of a cell cancels out.
Chance remains in the test cells and in the training. What can be said depends on what was trained:

- Folds: each fold gives one difference, averaged over its trainings, and the interval is the corrected resampled t of
  `urnet.statistics.folds`. Folds weigh alike. A fold without cells of a class says nothing about its recall, and its
  macro recall is the mean over the classes that it has.
- One split: the interval is over donors or source images (`urnet.statistics.one_split`), for these trained models, or
  for trainings on this split. There is no verdict on the recipes.

The verdict of a table is on macro recall: p values are adjusted by Holm's method over all pairs. Accuracy and the
recalls are secondary: Holm's method over all of them, and never below the pair's adjusted p value of macro recall. So,
if all recipes are equal, a table has a wrong verdict with a probability of at most 5 %.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from urnet.errors import CellsError
from urnet.statistics.donors import LEVEL, choose_groups
from urnet.statistics.estimate import Estimate
from urnet.statistics.folds import describe_folds, estimate_over_folds
from urnet.statistics.multiple import FAMILY_ERROR, adjust_holm, adjust_secondary, strictest_level
from urnet.statistics.one_split import add_trainings, estimate_over_groups

COLUMNS = (
    "first", "second", "metric", "difference", "low", "high", "p", "p_holm", "chance", "detectable", "note", "method",
    "cells", "groups", "unit", "repeats", "folds", "seeds",
)  # fmt: skip
CELL = ["path", "repeat", "fold", "copy"]
PRIMARY = "macro_recall"

NO_INTERVAL, NO_VERDICT = "no interval", "no verdict"
NO_CELLS = "no cells"
ONE_GROUP, ONE_FOLD, ALIKE = (f"{NO_INTERVAL}: {why}" for why in ("one group", "one fold", "all alike"))
ONE_TRAINING, ONE_SPLIT = (f"{NO_VERDICT}: {why}" for why in ("one training each", "one split"))
NO_PRIMARY = f"{NO_VERDICT}: none on macro recall"
"""Reasons why a difference has no interval or no verdict."""


def paired_differences(
    predictions: Mapping[str, pd.DataFrame],
    pairs: Sequence[tuple[str, str]],
    classes: Sequence[str],
    *,
    level: float = LEVEL,
) -> pd.DataFrame:
    """Compute the second minus the first run of each pair: accuracy, macro recall, and the recall of each class.

    Runs are compared over the seeds and folds that both have. If they share no seed, the cells of each run are averaged
    over its own seeds first. Pairs without a common fold are left out. Folds that test the same cells, such as those of
    repeats with a given fold column, count as one with more trainings.

    Args:
        predictions: of each run, one row per test cell and training: `path`, `label`, `predicted`, `source`, `seed`,
            `fold`, `repeat` where folds were repeated, and `donor` if known. A cell that was tested in several
            augmented copies has several rows.
        pairs: names of runs, (first, second).
        classes: the class names.
        level: coverage of each interval.

    Returns:
        One row per pair and metric (`accuracy`, `macro_recall`, `recall_<class>`). `difference`, interval ends and
        `detectable` are fractions. `p_holm` is the p value adjusted for all pairs, and `chance` is true if it is above
        0.05. `detectable` is the smallest difference that would have been found with a probability of 80 % at the
        strictest level of Holm's method. Without an interval or a verdict these are missing, and `note` says why.
        `method` names the interval in words.

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
    metrics = ("accuracy", PRIMARY, *(f"recall_{name}" for name in classes))
    secondary = [k for k, metric in enumerate(metrics) if metric != PRIMARY]
    alphas = [strictest_level(len(compared) * (1 if name == PRIMARY else len(secondary))) for name in metrics]
    tables = []
    for first, second, matched in compared:
        estimate, facts = _compare_folds(matched) if matched.folds > 1 else _compare_on_one_split(matched)
        low, high = estimate.interval(level)
        verdict = ~np.isin(facts["note"], (ONE_TRAINING, ONE_SPLIT))
        detectable = [estimate.detectable(alpha)[k] for k, alpha in enumerate(alphas)]
        tables.append(
            pd.DataFrame(
                {
                    "first": first,
                    "second": second,
                    "metric": metrics,
                    "difference": estimate.value,
                    "low": low,
                    "high": high,
                    "p": np.where(verdict, estimate.p_value(), np.nan),
                    "detectable": np.where(verdict, detectable, np.nan),
                    **facts,
                    "cells": matched.cells,
                    "repeats": matched.repeats,
                    "seeds": matched.seeds,
                }
            )
        )
    if not tables:
        return pd.DataFrame(columns=list(COLUMNS)).astype({"chance": "boolean"})
    table = pd.concat(tables, ignore_index=True)
    p = table["p"].to_numpy(float).reshape(len(tables), len(metrics))
    adjusted = np.empty_like(p)
    primary = metrics.index(PRIMARY)
    adjusted[:, primary] = adjust_holm(p[:, primary])
    adjusted[:, secondary] = adjust_secondary(p[:, secondary], adjusted[:, primary])
    table["p_holm"] = np.where(np.isnan(p), np.nan, adjusted).ravel()
    table["note"] = table["note"].mask((table["note"] == "") & table["p_holm"].isna(), NO_PRIMARY)
    table["chance"] = (table["p_holm"] > FAMILY_ERROR).astype("boolean").mask(table["p_holm"].isna())
    return table[list(COLUMNS)]


@dataclass(frozen=True)
class _MatchedRuns:
    """Two runs on the same cells.

    Attributes:
        rows: one row per cell and training: `change`, right of the second run minus right of the first; `truth`, class
            index; `training` and `part`, its number and that of its test part; `source` and, if known, `donor`.
        K: number of classes.
        tested: (P,) number of distinct cells in each test part.
        total: number of distinct cells of all parts, also those that only one run has.
        repeat: (P,) the repeat of each part.
        seeds: number of trainings of each part; the largest if parts differ.
        repeats: number of repeats.
    """

    rows: pd.DataFrame
    K: int
    tested: np.ndarray
    total: int
    repeat: np.ndarray
    seeds: int
    repeats: int

    @property
    def folds(self) -> int:
        return len(self.tested)

    @property
    def cells(self) -> int:
        return len(self.rows[["path", "copy"]].drop_duplicates())

    def by_training(self) -> tuple[np.ndarray, np.ndarray]:
        """Compute the differences of each training, (T, 2 + K), and the part that it was tested on, (T,)."""
        training, truth = self.rows["training"].to_numpy(), self.rows["truth"].to_numpy()
        T = training.max() + 1
        where, size = training * self.K + truth, T * self.K
        change, count = (
            np.bincount(where, weights, minlength=size).reshape(T, self.K) for weights in (self.rows["change"], None)
        )
        recall = np.divide(change, count, out=np.full((T, self.K), np.nan), where=count > 0)
        accuracy = change.sum(axis=1) / count.sum(axis=1)
        part = np.empty(T, dtype=np.int64)
        part[training] = self.rows["part"]
        return np.column_stack([accuracy, np.nanmean(recall, axis=1), recall]), part


def _compare_folds(matched: _MatchedRuns) -> tuple[Estimate, dict[str, Any]]:
    """Estimate differences over folds; arrays have one entry per metric."""
    each, part = matched.by_training()
    differences = pd.DataFrame(each).groupby(part).mean().to_numpy().T  # (2 + K, P)
    unit, groups, donors = _count_groups(matched.rows)
    estimate = estimate_over_folds(differences, matched.tested, matched.total, matched.repeat, groups)
    used = np.isfinite(differences).sum(axis=1)
    one_by_one = unit == "donor" and len(donors) == donors["donor"].nunique() == matched.folds
    conditions = [used == 0, groups < 2, used < 2, np.isnan(estimate.error)]
    note = np.select(conditions, [NO_CELLS, ONE_GROUP, ONE_FOLD, ALIKE], "")
    repeats = [len(np.unique(matched.repeat[np.isfinite(row)])) for row in differences]
    method = [
        describe_folds(n, r, n if one_by_one else None) if not why else ""
        for n, r, why in zip(used, repeats, note, strict=True)
    ]
    return estimate, {"note": note, "method": method, "groups": groups, "unit": unit, "folds": used}


def _compare_on_one_split(matched: _MatchedRuns) -> tuple[Estimate, dict[str, Any]]:
    """Estimate differences of models that were trained on one split; arrays have one entry per metric."""
    rows, K = matched.rows, matched.K
    group, described = choose_groups(rows["donor"].tolist() if "donor" in rows else None, rows["source"].tolist())
    G, unit = described["groups"], described["unit"]
    where = group * K + rows["truth"].to_numpy()
    change, cells = (np.bincount(where, weights, minlength=G * K).reshape(G, K) for weights in (rows["change"], None))
    over = [(change.sum(axis=1, keepdims=True), cells.sum(axis=1, keepdims=True)), (change, cells)]
    over += [(change[:, [k]], cells[:, [k]]) for k in range(K)]
    parts = [estimate_over_groups(*one) for one in over]
    method = f"t over {G:,} {unit}s"
    each, _ = matched.by_training()
    trainings = len(each)
    if trainings > 1:
        parts = [add_trainings(one, differences) for one, differences in zip(parts, each.T, strict=True)]
        method = f"t over {trainings} trainings on one split, and over {G:,} {unit}s"
    estimate = Estimate(
        np.array([one.value for one in parts]),
        np.array([one.error for one in parts]),
        np.array([one.freedom for one in parts]),
    )
    rests_on = np.array([G, (cells > 0).sum(axis=0).min(where=cells.any(axis=0), initial=G), *(cells > 0).sum(axis=0)])
    conditions = [rests_on == 0, rests_on < 2, np.isnan(estimate.error)]
    note = np.select(conditions, [NO_CELLS, ONE_GROUP, ALIKE], ONE_SPLIT if trainings > 1 else ONE_TRAINING)
    words = np.where(np.isnan(estimate.error), "", method)
    return estimate, {"note": note, "method": words, "groups": G, "unit": unit, "folds": 1}


def _count_groups(rows: pd.DataFrame) -> tuple[str, int, pd.DataFrame]:
    """Count donors, or source images where donors are not known.

    Returns:
        `donor` or `source image`, their number, and the distinct pairs of part and donor.
    """
    if "donor" not in rows:
        return "source image", rows["source"].nunique(), pd.DataFrame()
    known = rows["donor"].notna() & (rows["donor"] != "")
    units = ("source " + rows["source"].astype(str)).where(~known, "donor " + rows["donor"].astype(str))
    unit = "donor" if known.all() else "source image"
    return unit, units.nunique(), rows[["part", "donor"]].drop_duplicates()


def _match_runs(
    first: pd.DataFrame, second: pd.DataFrame, names: tuple[str, str], classes: Sequence[str]
) -> _MatchedRuns | None:
    """Join the rows of two runs; return None if they have no fold in common."""
    frames = [_number_copies(frame, name, classes) for frame, name in zip((first, second), names, strict=True)]
    if any(frame.empty for frame in frames):
        return None
    a, b = frames
    total = len(set(a["path"]) | set(b["path"]))
    if set(a["seed"]) & set(b["seed"]):
        on = ["seed", *CELL]
    else:
        on = CELL
        a, b = (frame.groupby(CELL, as_index=False).agg(_average_right(frame)) for frame in (a, b))
    rounds = [column for column in on if column in ("seed", "repeat", "fold")]
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
    both = both.sort_values([*rounds, "path", "copy"], kind="stable").reset_index(drop=True)
    training = both.groupby(rounds, sort=True).ngroup().to_numpy()
    tested = both.groupby(training)["path"].unique()
    parts: dict[tuple[str, ...], int] = {}
    part = np.array([parts.setdefault(tuple(paths), len(parts)) for paths in tested])  # paths are sorted
    first_of = np.unique(part, return_index=True)[1]
    repeat = both.groupby(training)["repeat"].first().to_numpy()
    rows = both.assign(
        change=(both["right_b"] - both["right"]).astype(float),
        truth=both["label"].map({name: k for k, name in enumerate(classes)}).astype(int),
        training=training,
        part=part[training],
    )
    return _MatchedRuns(
        rows=rows,
        K=len(classes),
        tested=np.array([len(tested.iloc[k]) for k in first_of]),
        total=total,
        repeat=repeat[first_of],
        seeds=int(np.bincount(part).max()),
        repeats=len(np.unique(repeat[first_of])),
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
    selected["repeat"] = frame["repeat"].fillna(0) if "repeat" in frame else 0
    selected["copy"] = selected.groupby(["seed", "repeat", "fold", "path"]).cumcount()
    selected["right"] = (frame["label"] == frame["predicted"]).astype(float)
    return selected


def _average_right(frame: pd.DataFrame) -> dict[str, str]:
    return {column: "mean" if column == "right" else "first" for column in frame if column not in (*CELL, "seed")}

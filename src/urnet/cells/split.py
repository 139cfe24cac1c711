"""Divide cells into training, validation and test parts, stratified by label and grouped by donor or source image.

Everything that could show the same cell twice, or carry one donor's habits, stays on one side: cells of one donor
where donors are known, else of one source image, and in either case copies of one another.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from urnet.cells.audit import Audit
from urnet.cells.table import Cells
from urnet.errors import CellsError
from urnet.recipe import Recipe

MAX_ATTEMPTS = 200
"""Orders of the groups that are tried before a division is called impossible."""

EXTRA_ATTEMPTS = 20
"""Orders tried after a good one where there are few groups, so that one order can miss the shares by much."""


def split_cells(cells: Cells, recipe: Recipe, audit: Audit, *, allow_leaks: bool = False) -> Cells:
    """Give each cell its part.

    Args:
        cells: labelled cells.
        recipe: says how to split.
        audit: of these cells.
        allow_leaks: go on where a given split has one cell or donor in two parts.

    Returns:
        All cells with the column `split`, or `fold` where folds are asked for and none is chosen; empty for cells
        that are left out.

    Raises:
        CellsError: fewer than two classes, too few cells, one cell under two labels.
        LeakError: leaks in a given split.
    """
    if len(cells.classes) < 2:
        raise CellsError(
            f"{cells.root}: only one class ({', '.join(cells.classes)}); "
            "a classifier needs at least two folders or labels"
        )
    unreadable = [f for f in audit.findings if f.kind == "unreadable"]
    if unreadable:
        named = "; ".join(f.detail for f in unreadable[:5]) + ("; …" if len(unreadable) > 5 else "")
        raise CellsError(f"{len(unreadable)} image(s) cannot be read, mend them or take them out of the table: {named}")
    paper = recipe.protocol == "paper"
    audit.raise_leaks(allow_leaks=allow_leaks or paper)
    counted = cells.where(audit.distinct)
    keys = [key for key, kept in zip(audit.copy_keys, audit.distinct, strict=True) if kept]
    missing = sorted(set(cells.classes) - set(counted.table["label"]))
    if missing:
        raise CellsError(f"class(es) {', '.join(missing)} have no usable cells; see `urnet audit`")
    split, column = recipe.split, "split"
    if split.folds is not None and split.fold is None:
        column, values = "fold", assign_folds(counted, split.folds, split.seed, by_donor=not paper, copies=keys)
    else:
        values = assign_parts(
            counted,
            test=split.test,
            validation=0 if paper else split.validation,
            seed=split.seed,
            fold=split.fold,
            folds=split.folds,
            by_donor=not paper,
            copies=keys,
        ).table["split"]
    filled = np.full(len(cells), "", dtype=object)
    filled[audit.distinct] = np.asarray(values).astype(str)
    return cells.with_columns(**{column: filled, "left_out": audit.exclusions})


def assign_parts(
    cells: Cells,
    *,
    test: float = 0.2,
    validation: float = 0.1,
    seed: int = 0,
    fold: int | None = None,
    folds: int | None = None,
    by_donor: bool = True,
    copies: Sequence[str] | None = None,
) -> Cells:
    """Fill the `split` column with `train`, `validation` and `test`.

    Args:
        cells: labelled cells; a `split` column that is there already is respected, unless `folds` are asked for, and
            only a validation part that it lacks is cut from its training part.
        test: share of the cells in the test part, unless `folds` are asked for.
        validation: share of what is not tested that becomes the validation part; 0 for none.
        seed: fixes the division.
        fold: which of the `folds` is the test part, from 0.
        folds: number of equal folds; a `fold` column that is there already is respected.
        by_donor: keep donors together where they are known.
        copies: a key for each cell; cells with equal keys stay together.

    Raises:
        CellsError: a class has too few cells or donors to stand in every part.
    """
    groups, unit = find_groups(cells, by_donor=by_donor, copies=copies)
    labels = cells.labels
    given = cells.has_split and folds is None
    if given:
        part = cells.table["split"].to_numpy(dtype=object).copy()
    else:
        part = np.full(len(cells), "train", dtype=object)
        if folds is not None:
            part[assign_folds(cells, folds, seed, by_donor=by_donor, copies=copies) == fold] = "test"
        else:
            part[_allocate_groups(labels, groups, [1 - test, test], seed) == 1] = "test"
    if validation > 0 and not (part == "validation").any():
        rest = np.flatnonzero(part == "train")
        held = _allocate_groups(labels[rest], groups[rest], [1 - validation, validation], seed + 1 + (fold or 0)) == 1
        part[rest[held]] = "validation"
    needed = ["train", *(["validation"] if validation > 0 else []), *(["test"] if not given else [])]
    _check_parts(cells, groups, part, needed, unit)
    return cells.with_columns(split=part)


def assign_folds(
    cells: Cells, folds: int, seed: int, *, by_donor: bool = True, copies: Sequence[str] | None = None
) -> np.ndarray:
    """Number of the fold that tests each cell, (N,) int64, the same for every run over these cells.

    Raises:
        CellsError: a class has fewer cells or donors than folds, or a given column has other folds.
    """
    if cells.is_complete("fold"):
        number = cells.table["fold"].to_numpy().astype(np.int64)
        if set(number) != set(range(folds)):
            found = ", ".join(map(str, sorted(set(number))))
            raise CellsError(
                f"the column 'fold' holds {found}, but split.folds={folds} needs 0 to {folds - 1}; mend one of them"
            )
        return number
    groups, unit = find_groups(cells, by_donor=by_donor, copies=copies)
    number = _allocate_groups(cells.labels, groups, [1 / folds] * folds, seed)
    _check_parts(cells, groups, number, range(folds), unit)
    return number


def find_groups(cells: Cells, *, by_donor: bool = True, copies: Sequence[str] | None = None) -> tuple[np.ndarray, str]:
    """What must not be torn apart: an integer a cell, and the word for it (`donor` or `source image`).

    A cell whose donor is not known is grouped by its source image.
    """
    names = "source image " + cells.table["source"]
    unit = "source image"
    if by_donor and "donor" in cells.table and (cells.table["donor"] != "").any():
        names = names.where(cells.table["donor"] == "", "donor " + cells.table["donor"])
        unit = "donor"
    codes = pd.factorize(names)[0]
    if copies is not None:
        codes = _merge_groups(codes, pd.factorize(np.asarray(copies))[0])
    return codes, unit


def _merge_groups(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Connected components of "equal in one or the other"."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    cells = np.arange(len(first))
    nodes = np.concatenate([len(first) + first, len(first) + first.max(initial=0) + 1 + second])
    size = int(nodes.max(initial=0)) + 1
    graph = coo_matrix((np.ones(len(nodes)), (np.concatenate([cells, cells]), nodes)), shape=(size, size))
    return pd.factorize(connected_components(graph, directed=False)[1][: len(first)])[0]


def _allocate_groups(labels: np.ndarray, groups: np.ndarray, shares: Sequence[float], seed: int) -> np.ndarray:
    """Give every group to one of the parts so that each part comes near its share of each class.

    Groups are taken in random order, large ones first; each goes where its classes are relatively most wanting. With
    few groups a class may miss a part in one order and not in another, so several orders are tried and the one that
    leaves the fewest (part, class) pairs empty, then the one nearest to the shares, is kept.
    """
    labels = np.unique(labels, return_inverse=True)[1]
    codes, groups = np.unique(groups, return_inverse=True)
    counts = np.zeros((len(codes), labels.max(initial=-1) + 1))
    np.add.at(counts, (groups, labels), 1)
    totals = counts.sum(axis=0)
    wanted = np.asarray(shares)[:, None] * totals  # (parts, classes)
    unavoidable = int(np.maximum(0, len(shares) - (counts > 0).sum(axis=0)).sum())
    enough = 0 if len(codes) > 10 * len(shares) else EXTRA_ATTEMPTS
    best: tuple[tuple[int, float], np.ndarray] | None = None
    for attempt in range(MAX_ATTEMPTS):
        order = np.random.default_rng((seed, attempt)).permutation(len(codes))
        order = order[np.argsort(-counts[order].sum(axis=1), kind="stable")]
        given = np.zeros_like(wanted)
        part_of = np.empty(len(codes), dtype=np.int64)
        for group in order:
            need = ((wanted - given) / wanted) @ (counts[group] / totals)
            part = int(np.lexsort((-wanted.sum(axis=1), -need))[0])
            part_of[group] = part
            given[part] += counts[group]
        score = (int((given == 0).sum()), float(np.abs(given - wanted).sum()))
        if best is None or score < best[0]:
            best = (score, part_of)
        if best[0][0] <= unavoidable and attempt >= enough:
            break
    assert best is not None
    return best[1][groups]


def _check_parts(cells: Cells, groups: np.ndarray, part: np.ndarray, needed: Sequence[object], unit: str) -> None:
    """Every class in every part, else an error with the counts."""
    labels = cells.labels
    for index, name in enumerate(cells.classes):
        mine = labels == index
        missing = [str(p) for p in needed if not (mine & (part == p)).any()]
        if missing:
            have = len(np.unique(groups[mine]))
            raise CellsError(
                f"class {name!r} has {int(mine.sum())} cell(s) from {have} {unit}(s), and none could be given to: "
                f"{', '.join(missing)}; at least {len(needed)} {unit}s are needed for {len(needed)} parts: "
                "add cells, merge classes, or change the split column"
            )

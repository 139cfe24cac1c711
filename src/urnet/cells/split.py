"""Split cells into training, validation and test parts, stratified by label and grouped by donor or source image.

`split_cells` is the one place where a split is decided. Cells that could leak from one part into another stay in one
part: the cells of one donor, or of one source image if donors are not known, and copies of one cell.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from urnet.cells.audit import Audit
from urnet.cells.table import Cells
from urnet.errors import CellsError
from urnet.recipe import Recipe

MAX_ATTEMPTS = 200
"""Number of random orders of the groups that are tried before a split is impossible."""

EXTRA_ATTEMPTS = 20
"""Number of orders that are tried after a valid one if there are few groups, to come nearer to the shares."""


def split_cells(cells: Cells, recipe: Recipe, audit: Audit, *, allow_leaks: bool = False) -> Cells:
    """Split the usable cells of an audited table as a recipe says.

    Args:
        cells: labelled cells.
        recipe: its section `split` and its protocol.
        audit: audit of these cells.
        allow_leaks: whether a given split may have one cell or donor in two parts.

    Returns:
        All cells with the column `split`, or `fold` if the recipe has folds but no chosen fold. Both are "" for
        excluded cells, whose reason is in `left_out`.

    Raises:
        CellsError: fewer than two classes (`cells.one_class`), unreadable images (`cells.unreadable`), a class without
            usable cells (`cells.class_unusable`), too few cells (`cells.too_few`), or one cell with two labels
            (`cells.label_conflict`).
        LeakError: leaks in a given split.
    """
    if len(cells.classes) < 2:
        raise CellsError(
            f"{cells.root}: only one class ({', '.join(cells.classes)}); a classifier needs at least two. Add a folder "
            "or label for another class",
            code="cells.one_class",
        )
    unreadable = [finding for finding in audit.findings if finding.kind == "unreadable"]
    if unreadable:
        details = "; ".join(finding.detail for finding in unreadable[:5]) + ("; …" if len(unreadable) > 5 else "")
        raise CellsError(
            f"{len(unreadable)} image(s) cannot be read. Repair them or remove them from the table: {details}",
            code="cells.unreadable",
        )
    is_paper = recipe.protocol == "paper"
    audit.raise_leaks(allow_leaks=allow_leaks or is_paper)
    usable = cells.where(audit.distinct)
    copy_keys = [key for key, is_usable in zip(audit.copy_keys, audit.distinct, strict=True) if is_usable]
    missing = sorted(set(cells.classes) - set(usable.table["label"]))
    if missing:
        raise CellsError(
            f"the class(es) {', '.join(missing)} have no usable cells. `urnet audit` lists why",
            code="cells.class_unusable",
        )
    split, column = recipe.split, "split"
    if split.folds is not None and split.fold is None:
        column, values = "fold", assign_folds(usable, split.folds, split.seed, by_donor=not is_paper, copies=copy_keys)
    else:
        values = assign_parts(
            usable,
            test=split.test,
            validation=0 if is_paper else split.validation,
            seed=split.seed,
            fold=split.fold,
            folds=split.folds,
            by_donor=not is_paper,
            copies=copy_keys,
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
    """Fill the column `split` with `train`, `validation` and `test`.

    A given column `split` is kept if there are no folds. A missing validation part is then taken from its training
    part.

    Args:
        cells: labelled cells.
        test: share of the test part among all cells. Folds replace it.
        validation: share of the validation part among the other cells; 0 for none.
        seed: seed of the split.
        fold: number of the fold that is the test part, from 0.
        folds: number of equal folds.
        by_donor: whether the cells of a known donor stay together.
        copies: one key per cell; cells with equal keys stay together.

    Raises:
        CellsError: a class has too few cells or donors for all parts (`cells.too_few`).
    """
    groups, unit = find_groups(cells, by_donor=by_donor, copies=copies)
    labels = cells.labels
    is_given = cells.has_split and folds is None
    if is_given:
        part = cells.table["split"].to_numpy(dtype=object).copy()
    else:
        part = np.full(len(cells), "train", dtype=object)
        if folds is not None:
            part[assign_folds(cells, folds, seed, by_donor=by_donor, copies=copies) == fold] = "test"
        else:
            part[_allocate_groups(labels, groups, [1 - test, test], seed) == 1] = "test"
    if validation > 0 and not (part == "validation").any():
        rest = np.flatnonzero(part == "train")
        allocated = _allocate_groups(labels[rest], groups[rest], [1 - validation, validation], seed + 1 + (fold or 0))
        part[rest[allocated == 1]] = "validation"
    needed = ["train", *(["validation"] if validation > 0 else []), *(["test"] if not is_given else [])]
    _check_parts(cells, groups, part, needed, unit)
    return cells.with_columns(split=part)


def assign_folds(
    cells: Cells, folds: int, seed: int, *, by_donor: bool = True, copies: Sequence[str] | None = None
) -> np.ndarray:
    """Assign each cell to the fold that tests it, (N,) int64. A given column `fold` is kept.

    Raises:
        CellsError: a class has fewer cells or donors than folds (`cells.too_few`), or the given column has other folds
            (`cells.folds_differ`).
    """
    if cells.is_complete("fold"):
        number = cells.table["fold"].to_numpy().astype(np.int64)
        if set(number) != set(range(folds)):
            numbers = ", ".join(map(str, sorted(set(number))))
            raise CellsError(
                f"the column 'fold' holds {numbers}, but split.folds={folds} needs 0 to {folds - 1}. Change one of "
                "them",
                code="cells.folds_differ",
            )
        return number
    groups, unit = find_groups(cells, by_donor=by_donor, copies=copies)
    number = _allocate_groups(cells.labels, groups, [1 / folds] * folds, seed)
    _check_parts(cells, groups, number, range(folds), unit)
    return number


def find_groups(cells: Cells, *, by_donor: bool = True, copies: Sequence[str] | None = None) -> tuple[np.ndarray, str]:
    """Group the cells that must stay in one part.

    A cell of an unknown donor is grouped by its source image.

    Returns:
        The number of each cell's group, (N,), and what groups are: `donor` or `source image`.
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
    """Merge two groupings: cells that share a group in one of them share a group in the result."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    cells = np.arange(len(first))
    nodes = np.concatenate([len(first) + first, len(first) + first.max(initial=0) + 1 + second])
    size = int(nodes.max(initial=0)) + 1
    graph = coo_matrix((np.ones(len(nodes)), (np.concatenate([cells, cells]), nodes)), shape=(size, size))
    return pd.factorize(connected_components(graph, directed=False)[1][: len(first)])[0]


def _allocate_groups(labels: np.ndarray, groups: np.ndarray, shares: Sequence[float], seed: int) -> np.ndarray:
    """Allocate every group to a part, so that each part comes near its share of each class.

    Groups are taken in random order, large ones first. Each goes to the part that lacks its classes most. Several
    orders are tried. The best one leaves the fewest (part, class) pairs empty, and then comes nearest to the shares.

    Returns:
        The part of each cell, (N,).
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
        allocated = np.zeros_like(wanted)
        part_of = np.empty(len(codes), dtype=np.int64)
        for group in order:
            need = ((wanted - allocated) / wanted) @ (counts[group] / totals)
            part = int(np.lexsort((-wanted.sum(axis=1), -need))[0])
            part_of[group] = part
            allocated[part] += counts[group]
        score = (int((allocated == 0).sum()), float(np.abs(allocated - wanted).sum()))
        if best is None or score < best[0]:
            best = (score, part_of)
        if best[0][0] <= unavoidable and attempt >= enough:
            break
    assert best is not None
    return best[1][groups]


def _check_parts(cells: Cells, groups: np.ndarray, part: np.ndarray, needed: Sequence[object], unit: str) -> None:
    """Check that every class is in every part.

    Raises:
        CellsError: a class is not (`cells.too_few`).
    """
    labels = cells.labels
    for index, name in enumerate(cells.classes):
        is_member = labels == index
        missing = [str(p) for p in needed if not (is_member & (part == p)).any()]
        if missing:
            count = len(np.unique(groups[is_member]))
            fixes = [f"Add cells of more {unit}s", "merge classes"]
            fixes += ["change the column 'split'"] if cells.has_split else []
            fixes += ["ignore donors with --set protocol=paper (optimistic)"] if unit == "donor" else []
            raise CellsError(
                f"class {name!r} has {int(is_member.sum())} cell(s) from {count} {unit}(s), and none for the part(s) "
                f"{', '.join(missing)}; {len(needed)} parts need at least {len(needed)} {unit}s. "
                f"{', '.join(fixes[:-1])}, or {fixes[-1]}",
                code="cells.too_few",
            )


def empty_part_error(part: str, purpose: str) -> CellsError:
    """Make the error about a part without cells.

    Args:
        part: name of the part.
        purpose: what needs the part: "training", "calibration".
    """
    return CellsError(
        f"no cells in the {part} part, which {purpose} needs. Write {part} into the column 'split' of some rows, or "
        "remove that column to split the cells again",
        code="cells.empty_part",
    )

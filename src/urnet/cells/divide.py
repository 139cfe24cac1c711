"""From an audited table and a recipe to the part of each cell: what may be trained on, and what must not leak."""

import numpy as np

from urnet.cells.audit import Audit
from urnet.cells.split import fold_numbers, split_cells
from urnet.cells.table import Cells
from urnet.errors import CellsError
from urnet.recipe import Recipe


def divide(cells: Cells, recipe: Recipe, audit: Audit, *, allow_leaks: bool = False) -> Cells:
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
        column, values = "fold", fold_numbers(counted, split.folds, split.seed, by_donor=not paper, copies=keys)
    else:
        values = split_cells(
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

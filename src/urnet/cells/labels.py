"""Labels and classes: checks of their names, and the merging of labels into classes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from urnet.errors import CellsError
from urnet.names import find_lookalikes, is_missing, normalize_name, quote_name


def check_labels(path: Path, labels: pd.Series, where: str = "row {}") -> None:
    """Refuse labels that mean "not known", and classes that differ only in case, width or invisible letters.

    Args:
        path: the table or folder, for the errors.
        labels: labels, with their line in the file as index; "" for no label.
        where: format of a line in the errors.

    Raises:
        CellsError: `cells.label_missing` or `cells.label_twins`.
    """
    missing = [name for name in labels.unique() if name and is_missing(name)]
    if missing:
        rows = labels.index[labels.isin(missing)]
        label = labels[rows[0]]
        count = f" ({len(rows)} cells)" if len(rows) > 1 else ""
        raise CellsError(
            f"{path}: {where.format(rows[0])} has the label {label!r}, which means that the class is not known{count}. "
            f"Fill in the class or remove the cell. If {label!r} is a class, name it in the recipe: "
            f"classes={{NAME: ['{label}'], …}}",
            code="cells.label_missing",
        )
    if groups := find_lookalikes(set(labels) - {""}):
        raise CellsError(
            f"{path}: the classes {' and '.join(map(quote_name, groups[0]))} differ only in their spelling. Use one "
            f"spelling, or merge them in the recipe: classes={{NAME: [{', '.join(map(repr, groups[0]))}], …}}",
            code="cells.label_twins",
        )


def check_class_names(classes: Mapping[str, Sequence[str]]) -> None:
    """Refuse classes of a recipe that differ only in case, width or invisible letters.

    Raises:
        CellsError: `cells.label_twins`.
    """
    if groups := find_lookalikes(classes):
        raise CellsError(
            f"the classes {' and '.join(map(quote_name, groups[0]))} of the recipe differ only in their spelling. Give "
            "them different names",
            code="cells.label_twins",
        )


def merge_labels(
    path: Path, labels: pd.Series, classes: Mapping[str, Sequence[str]] | None
) -> tuple[pd.Series, tuple[str, ...]]:
    """Merge labels into the classes of a recipe.

    Args:
        path: the table or folder, for the errors.
        labels: labels of the table.
        classes: labels of each class; None makes each label a class, in alphabetical order.

    Returns:
        The class of each cell, and all classes in order.

    Raises:
        CellsError: a label belongs to no class (`cells.label_unknown`).
    """
    if not classes:
        return labels, tuple(sorted(set(labels)))
    to_class = {normalize_name(label): name for name, members in classes.items() for label in members}
    to_class |= {normalize_name(name): name for name in classes if normalize_name(name) not in to_class}
    unknown = sorted(set(labels) - set(to_class))
    if unknown:
        raise CellsError(
            f"{path}: the label(s) {', '.join(unknown)} belong to no class; the classes are {', '.join(classes)}. Add "
            "each label to one of them (classes.NAME=[…])",
            code="cells.label_unknown",
        )
    return labels.map(to_class), tuple(classes)

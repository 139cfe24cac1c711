"""Checks of a cells table: values, files and class names."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from urnet.cells.class_folders import PART_FOLDERS
from urnet.cells.table import PARTS, PATH_COLUMNS, MissingFilesError
from urnet.errors import CellsError, list_first
from urnet.images.montage import resolve_address
from urnet.images.read import MIN_EDGE
from urnet.names import find_lookalikes, is_missing, normalize_name, quote_name


def check_rows(path: Path, table: pd.DataFrame, labelled: bool) -> None:
    """Check the values of paths, labels, parts and tiles.

    Args:
        path: the table's file, for the errors.
        table: rows, with their line in the file as index.
        labelled: whether every row needs a label.

    Raises:
        CellsError: a value is missing (`cells.value_missing`), a part is unknown (`cells.split_unknown`), a tile is too
            small (`cells.tile_too_small`).
    """
    for column in ("path", "label") if labelled else ("path",):
        empty = table.index[table[column].str.strip() == ""]
        if len(empty):
            raise CellsError(
                f"{path}: line {empty[0]} has no {column} ({len(empty)} such lines). Fill them in",
                code="cells.value_missing",
            )
    if "split" in table:
        unknown = table["split"][~table["split"].isin([*PARTS, ""])]
        if len(unknown):
            part = PART_FOLDERS.get(unknown.iloc[0])
            raise CellsError(
                f"{path}: split is {unknown.iloc[0]!r} in row {unknown.index[0]} ({len(unknown)} such rows); it must "
                f"be {', '.join(PARTS)}, or empty for an excluded cell. {f'Write {part}' if part else 'Correct it'}",
                code="cells.split_unknown",
            )
    if "tile" in table:
        small = [edge for edge in table["tile"] if edge and int(edge) < MIN_EDGE]
        if small:
            raise CellsError(
                f"{path}: tile is {small[0]} px; it must be at least {MIN_EDGE} px", code="cells.tile_too_small"
            )


def check_files(root: Path, table: pd.DataFrame) -> None:
    """Check that all files of a table exist.

    Raises:
        MissingFilesError: some do not (`cells.files_missing`).
    """
    for column in PATH_COLUMNS:
        if column not in table:
            continue
        files = {resolve_address(root, path).file for path in table[column] if path}
        missing = sorted(file for file in files if not (root / file).is_file())
        if missing:
            raise MissingFilesError(
                f"{root}: {len(missing)} file(s) in the column '{column}' do not exist: {list_first(missing)}. Paths "
                "are relative to the table",
                missing,
            )


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

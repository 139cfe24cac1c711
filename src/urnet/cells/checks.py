"""Checks of a cells table: its values and files. `labels` checks the labels."""

from pathlib import Path

import pandas as pd

from urnet.cells.class_folders import PART_FOLDERS
from urnet.cells.table import PARTS, PATH_COLUMNS, MissingFilesError
from urnet.errors import CellsError, list_first
from urnet.images.montage import resolve_address
from urnet.images.read import MIN_EDGE


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

"""Tables as people save them: CSV with commas, semicolons or tabs, in UTF-8 with or without a mark at its start."""

import csv
from collections.abc import Collection
from difflib import get_close_matches
from pathlib import Path

import pandas as pd

from urnet.errors import CellsError


def read_table(
    path: Path,
    columns: Collection[str],
    *,
    needed: Collection[str] = (),
    paths: Collection[str] = (),
    rows: str = "rows",
    confusable: Collection[str] | None = None,
) -> pd.DataFrame:
    """Read the columns that are known, as text; others are passed over.

    Args:
        path: the CSV.
        columns: those that are known.
        needed: those that must be there.
        paths: those that name files: blanks round a name are kept, backslashes become slashes.
        rows: what a row is, for the errors: "cells", "fields".
        confusable: columns for which a similar name is taken as a slip; all when not given.

    Returns:
        A row a line, "" where nothing stands; the index holds the line's number in the file.

    Raises:
        CellsError: no such table, not UTF-8, no header or nothing below it, a needed column missing, one that is there
            twice or misspelt, a line with more values than columns.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = next((line for line in file if line.strip()), "")
            file.seek(0)
            reader = csv.reader(file, delimiter=max(",;\t", key=header.count), strict=True)
            lines = [(reader.line_num, fields) for fields in reader if any(field.strip() for field in fields)]
    except FileNotFoundError:
        raise CellsError(f"{path}: no such table") from None
    except UnicodeDecodeError:
        raise CellsError(f"{path}: the table is not UTF-8; save it as 'CSV UTF-8'") from None
    except csv.Error as error:
        raise CellsError(f"{path}: not a table with a header line ({error})") from None
    names = [name.strip() for name in lines[0][1]] if lines else []
    for column in columns:
        if names.count(column) > 1:
            raise CellsError(f"{path}: {names.count(column)} columns are called {column!r}; keep one")
    _refuse_misspelt(path, names, columns, columns if confusable is None else confusable)
    for column in needed:
        if column not in names:
            found = ", ".join(names) or "none"
            raise CellsError(f"{path}: the table has no column {column!r}; its columns are {found}")
    if len(lines) <= 1:
        raise CellsError(f"{path}: the table has a header but no {rows}")
    for number, fields in lines[1:]:
        if len(fields) > len(names) and any(fields[len(names) :]):
            raise CellsError(
                f"{path}: line {number} has {len(fields)} values for {len(names)} columns; "
                "put values that hold the separator in quotes"
            )
    filled = [(fields + [""] * len(names))[: len(names)] for _, fields in lines[1:]]
    table = pd.DataFrame(filled, columns=names, index=[number for number, _ in lines[1:]])
    table = table[[column for column in columns if column in names]].copy()
    for column in table:
        text = table[column].str
        table[column] = text.replace("\\", "/", regex=False) if column in paths else text.strip()
    return table


def _refuse_misspelt(path: Path, names: list[str], columns: Collection[str], confusable: Collection[str]) -> None:
    """A `donr` that is passed over in silence would let donors leak."""
    for name in names:
        ours = sorted(c for c in confusable if len(c) > 3 and c not in names)
        near = get_close_matches(name.casefold(), ours, 1, 0.8)
        if near and name not in columns:
            raise CellsError(
                f"{path}: column {name!r} looks like {near[0]!r} misspelt; rename it (to x_{name} if it is not)"
            )

"""Tables as people save them: CSV with commas, semicolons or tabs, in UTF-8 with or without a mark at its start."""

import csv
import logging
import re
from collections.abc import Collection
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path

import pandas as pd

from urnet.errors import CellsError

logger = logging.getLogger(__name__)

OTHER_NAMES = {
    "donor": re.compile(
        "(donor|patient|subject|person|participant|individual|volunteer|case)s?(id|no|nr|number|code|name)?"
    ),
    "path": re.compile("file|filename|filepath|image|imagefile|imagename|imagepath|imgpath|img|crop"),
    "label": re.compile("class|classname|celltype|cellclass|type|category|annotation"),
}
"""What a column is usually called elsewhere, in lower case and without blanks and signs."""

_SPREADSHEETS = (b"PK\3\4", b"\xd0\xcf\x11\xe0")
_SPREADSHEET_SUFFIXES = (".xlsx", ".xlsm", ".xls", ".ods", ".numbers")


def read_table(
    path: Path,
    columns: Collection[str],
    *,
    needed: Collection[str] = (),
    paths: Collection[str] = (),
    rows: str = "rows",
    confusable: Collection[str] | None = None,
    leaks: bool = True,
    passed_over: Collection[str] | None = None,
) -> pd.DataFrame:
    """Read the columns that are known, as text; others are passed over.

    Where donors are known by a column, one that names them otherwise (`patient_id`) must not be passed over: their
    cells would leak from one part into another.

    Args:
        path: the CSV.
        columns: those that are known.
        needed: those that must be there.
        paths: those that name files: blanks round a name are kept, backslashes become slashes.
        rows: what a row is, for the errors: "cells", "fields".
        confusable: columns for which a similar name is taken as a slip; all when not given.
        leaks: whether donors under another name are an error; where nothing is divided, a note is enough.
        passed_over: other columns (patterns, as `p_*`) that need no word; those that are neither are then named in a
            note. None is named when not given.

    Returns:
        A row a line, "" where nothing stands; the index holds the line's number in the file.

    Raises:
        CellsError: no such table, a spreadsheet or another file that is no text, not UTF-8, no header or nothing below
            it, a needed column missing, one that is there twice, misspelt or names donors otherwise, a line with more
            values than columns.
    """
    _refuse_binary(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = next((line for line in file if line.strip()), "")
            file.seek(0)
            reader = csv.reader(file, delimiter=max(",;\t", key=header.count), strict=True)
            lines = [(reader.line_num, fields) for fields in reader if any(field.strip() for field in fields)]
    except FileNotFoundError:
        raise CellsError(f"{path}: no such table") from None
    except UnicodeDecodeError:
        if path.suffix.lower() in _SPREADSHEET_SUFFIXES:
            raise CellsError(_NO_SPREADSHEET.format(path)) from None
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
            other = _other_name(names, columns, column)
            advice = f"; rename {other!r} to {column}" if other else ""
            raise CellsError(f"{path}: the table has no column {column!r}; its columns are {found}{advice}")
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
    _look_at_others(path, table, columns, leaks, passed_over)
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
                f"{path}: column {name!r} looks like {near[0]!r} misspelt; rename it to {near[0]} (to x_{name} if it "
                "is something else)"
            )


def _look_at_others(
    path: Path, table: pd.DataFrame, columns: Collection[str], leaks: bool, passed_over: Collection[str] | None
) -> None:
    """What is not read: donors under another name are refused, or named; other columns are named."""
    others = [name for name in dict.fromkeys(table) if name and name not in columns]
    others = [name for name in others if table[[name]].map(str.strip).any(axis=None)]
    named = "donor" in table and table[["donor"]].map(str.strip).any(axis=None)
    donor = _other_name(others, columns, "donor") if "donor" in columns and not named else None
    if donor is not None and leaks:
        raise CellsError(
            f"{path}: column {donor!r} seems to name donors, but the column 'donor', by which the cells of one person "
            f"are kept in one part, is {'empty' if 'donor' in table else 'missing'}; rename it to donor"
            f"{', in place of the empty one' * ('donor' in table)}, or remove it (rename it to x_{donor} if it is "
            "something else)"
        )
    if donor is not None:
        logger.warning("%s: column %r is not used; rename it to donor if it says whose cells these are", path, donor)
    silent = ("*",) if passed_over is None else passed_over
    unused = [name for name in others if not any(fnmatchcase(name, pattern) for pattern in silent)]
    if unused:
        logger.warning("%s: columns not used: %s", path, ", ".join(unused))


def _other_name(names: Collection[str], columns: Collection[str], meant: str) -> str | None:
    """The first of some names that is no column of its own, and usually means one that is."""
    if meant not in OTHER_NAMES:
        return None
    others = (name for name in names if name not in columns)
    return next((name for name in others if OTHER_NAMES[meant].fullmatch(re.sub(r"[\W_]", "", name.casefold()))), None)


_NO_SPREADSHEET = "{}: a spreadsheet, no CSV, or a damaged one; open it and save the table as 'CSV UTF-8'"


def _refuse_binary(path: Path) -> None:
    """Say what a file is that is no text, before its bytes are taken for badly encoded letters."""
    try:
        with path.open("rb") as file:
            start = file.read(1024)
    except OSError:  # it is said where it is read
        return
    if start.startswith(_SPREADSHEETS):
        raise CellsError(_NO_SPREADSHEET.format(path))
    if b"\0" in start and not start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise CellsError(f"{path}: no table but a file of another kind (its content is no text); give a CSV in UTF-8")

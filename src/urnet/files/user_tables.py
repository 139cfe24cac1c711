"""Read tables that people made: any separator, encoding mistakes and misspelt columns named."""

import csv
import logging
import re
import unicodedata
from collections.abc import Collection
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TextIO

import pandas as pd

from urnet.errors import CellsError, list_first
from urnet.files.csv_tables import NUMBER, unescape_formula
from urnet.names import is_missing, normalize_name, unify_donor_names

logger = logging.getLogger(__name__)

_NAMES_SEPARATOR = re.compile('"?sep=([,;\\t])"?\\s*', re.IGNORECASE)


COLUMN_SYNONYMS = {
    "donor": re.compile(
        "(donor|patient|subject|person|participant|individual|volunteer|case)s?(id|no|nr|number|code|name)?"
    ),
    "path": re.compile("file|filename|filepath|image|imagefile|imagename|imagepath|imgpath|img|crop"),
    "label": re.compile("class|classname|celltype|cellclass|type|category|annotation"),
}
"""What a column is usually called elsewhere, in lower case and without blanks and signs."""


NUMERIC_COLUMNS = {
    **dict.fromkeys(("x", "y"), "a number of pixels"),
    **dict.fromkeys(("confidence", "touching", "edge"), "a number from 0 to 1"),
    **{"scale": "a number of µm per pixel", "pixel_size_um": "a number of µm per pixel"},
    **{"diameter": "a number", "focus": "a number"},
    **{"tile": "a whole number of pixels", "fold": "a whole number"},
}
"""Columns of all tables that hold numbers, with what the number is."""


NAME_COLUMNS = ("label", "donor", "proposed")
"""Columns that hold names of classes and donors."""


INTEGER_COLUMNS = ("tile", "fold")
"""Columns that hold whole numbers from 0."""


_SPREADSHEETS = (b"PK\3\4", b"\xd0\xcf\x11\xe0")


_SPREADSHEET_SUFFIXES = (".xlsx", ".xlsm", ".xls", ".ods", ".numbers")


def read_table(
    path: Path,
    columns: Collection[str],
    *,
    required: Collection[str] = (),
    path_columns: Collection[str] = (),
    row_noun: str = "rows",
    check_spelling: Collection[str] | None = None,
    refuse_donor_synonyms: bool = True,
    ignored: Collection[str] | None = None,
    verbatim: bool = False,
) -> pd.DataFrame:
    """Read the columns that are known, as text; others are passed over.

    Where donors are known by a column, one that names them otherwise (`patient_id`) must not be passed over: their
    cells would leak from one part into another.

    Args:
        path: the CSV.
        columns: those that are known.
        required: those that must be there.
        path_columns: those that name files: blanks round a name are kept, backslashes become slashes.
        row_noun: what a row is, for the errors: "cells", "fields".
        check_spelling: columns for which a similar name is taken as a slip; all when not given.
        refuse_donor_synonyms: raise an error, instead of a warning, where another column seems to name donors.
        ignored: other columns (patterns, as `p_*`) that need no word; those that are neither are then named in a
            note. None is named when not given.
        verbatim: keep the names as they are; for the table of a run, whose names were settled when it was begun.

    Returns:
        A row a line, "" where nothing stands; the index holds the line's number in the file. Text other than paths is
        in Unicode form NFC, donors have one spelling each (`urnet.names`), and the cells of
        `NUMERIC_COLUMNS` are numbers.

    Raises:
        CellsError: no such table, a spreadsheet or another file that is no text, not UTF-8, no header or nothing below
            it, a required column missing, one that is there twice, misspelt or names donors otherwise, a line with more
            values than columns, or a value that should be a number (`tables.not_a_number`).
    """
    _refuse_binary(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            separator, above = _separator(file, columns)
            reader = csv.reader(file, delimiter=separator, strict=True)
            lines = [
                (above + reader.line_num, [unescape_formula(field) for field in fields])
                for fields in reader
                if any(field.strip() for field in fields)
            ]
    except FileNotFoundError:
        raise CellsError(f"{path}: no such table") from None
    except UnicodeDecodeError:
        if path.suffix.lower() in _SPREADSHEET_SUFFIXES:
            raise CellsError(_NO_SPREADSHEET.format(path)) from None
        raise CellsError(f"{path}: the table is not UTF-8; save it as 'CSV UTF-8'") from None
    except csv.Error as error:
        raise CellsError(
            f"{path}: not a table: line {above + reader.line_num} cannot be divided into cells ({error}); close each "
            "quotation mark that is opened, and double those within a cell",
            code="tables.unreadable",
        ) from None
    names = [name.strip("\ufeff\u200b").strip() for name in lines[0][1]] if lines else []
    for column in columns:
        if names.count(column) > 1:
            raise CellsError(f"{path}: {names.count(column)} columns are called {column!r}; keep one")
    _refuse_misspelt(path, names, columns, columns if check_spelling is None else check_spelling)
    for column in required:
        if column not in names:
            found = ", ".join(names) or "none"
            other = _find_synonym(names, columns, column)
            advice = f"; rename {other!r} to {column}" if other else ""
            raise CellsError(f"{path}: the table has no column {column!r}; its columns are {found}{advice}")
    if len(lines) <= 1:
        raise CellsError(f"{path}: the table has a header but no {row_noun}")
    for number, fields in lines[1:]:
        if len(fields) > len(names) and any(fields[len(names) :]):
            raise CellsError(
                f"{path}: line {number} has {len(fields)} values for {len(names)} columns; "
                "put values that hold the separator in quotes"
            )
    filled = [(fields + [""] * len(names))[: len(names)] for _, fields in lines[1:]]
    table = pd.DataFrame(filled, columns=names, index=[number for number, _ in lines[1:]])
    _check_other_columns(path, table, columns, refuse_donor_synonyms, ignored)
    table = table[[column for column in columns if column in names]].copy()
    for column in table:
        text = table[column].str
        table[column] = text.replace("\\", "/", regex=False) if column in path_columns else text.strip()
        if column not in path_columns and not verbatim:
            table[column] = table[column].map(normalize_name if column in NAME_COLUMNS else _composed)
        if column in NUMERIC_COLUMNS and not verbatim:
            _check_numbers(path, table[column])
    if "donor" in table and not verbatim:
        table["donor"] = unify_donors(path, table["donor"].tolist(), row_noun)
    return table


def _composed(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _check_numbers(path: Path, column: "pd.Series[str]") -> None:
    allowed = r"[0-9]{1,9}" if column.name in INTEGER_COLUMNS else NUMBER
    bad = column.index[(column != "") & ~column.str.fullmatch(allowed)]
    if len(bad):
        raise number_error(path, bad[0], str(column.name), column[bad[0]], len(bad))


def number_error(path: Path, line: int, column: str, value: str, count: int = 1) -> CellsError:
    """The error about a value that should be a number: what it is, where, and how to write it.

    Args:
        path: the table.
        line: number of the line in the file.
        column: one of `NUMERIC_COLUMNS`.
        value: what stands there.
        count: number of such rows.
    """
    others = f" ({count} such rows)" if count > 1 else ""
    advice = _suggest_number(value, whole=column in INTEGER_COLUMNS)
    return CellsError(
        f"{column} must be {NUMERIC_COLUMNS[column]}, found {value!r} in row {line} of {path}{others}. {advice}",
        code="tables.not_a_number",
    )


def _suggest_number(value: str, *, whole: bool) -> str:
    """How to write a value that is meant as a number."""
    if not value:
        return "Fill it in"
    if whole and (number := re.fullmatch(r"([0-9]+)(?:[.,]([0-9]*))?", value)):
        return f"Use a whole number{'' if (number[2] or '').strip('0') else f': {number[1][:9]}'}"
    if re.fullmatch(r"[+-]?[1-9][0-9]{0,2},[0-9]{3}", value):
        return f"Write {value.replace(',', '.')} if the comma is a decimal one, {value.replace(',', '')} if it is not"
    if re.fullmatch(r"[+-]?[0-9]+,[0-9]+", value):
        return f"Use a decimal point: {value.replace(',', '.')}"
    if re.fullmatch(r"[+-]?[0-9]{1,3}(?:[ .,'’\u00a0\u202f][0-9]{3})+(?:[.,][0-9]+)?", value):
        return "Leave out thousands separators, and use a decimal point"
    if is_missing(value) or value.casefold().lstrip("+-") in ("inf", "infinity"):
        return "Leave the cell empty where the value is not known"
    if number := re.fullmatch(r"([+-]?[0-9]+(?:[.,][0-9]+)?)\s*[^\W0-9_]+", value):
        return f"Leave out the unit: {number[1].replace(',', '.')}"
    return "Write digits only: 12" if whole else "Write digits, and a decimal point where one is needed: 12.5"


def unify_donors(path: Path, donors: list[str], rows: str) -> list[str]:
    """Give each donor one spelling, and warn of spellings that were merged and of names that say nothing.

    Args:
        path: the table or folder.
        donors: one a row, "" where not known.
        rows: what a row is, for the warning: "cells", "fields".
    """
    settled, merged, unknown = unify_donor_names(donors)
    if merged:
        told = list_first([" = ".join(map(repr, group)) for group in merged])
        logger.warning("%s: spellings of one donor, taken as one so that its cells stay in one part: %s", path, told)
    if unknown:
        told = list_first([f"{name!r} ({count})" for name, count in unknown.most_common()])
        logger.warning("%s: the donor of %d %s is taken as not known: %s", path, unknown.total(), rows, told)
    return settled


def _separator(file: TextIO, columns: Collection[str]) -> tuple[str, int]:
    """Find what separates the cells of a table; afterwards the file stands at its header line.

    Spreadsheets may name the separator in a first line `sep=;`. Otherwise it is the one that gives the most column
    names that are known, then the most columns: signs within a quoted name do not count.

    Returns:
        The separator, and the number of lines before the header line.
    """
    first = _NAMES_SEPARATOR.fullmatch(file.readline())
    if first:
        return first[1], 1

    def fits(separator: str) -> tuple[int, int]:
        file.seek(0)
        try:
            names = next((row for row in csv.reader(file, delimiter=separator) if any(map(str.strip, row))), [])
        except csv.Error:
            return -1, 0
        return sum(name.strip() in columns for name in names), len(names)

    best = max(",;\t", key=fits)
    file.seek(0)
    return best, 0


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


def _check_other_columns(
    path: Path, table: pd.DataFrame, columns: Collection[str], leaks: bool, passed_over: Collection[str] | None
) -> None:
    """What is not read: donors under another name are refused, or named; other columns are named."""
    others = [name for name in dict.fromkeys(table) if name and name not in columns]
    others = [name for name in others if table[[name]].map(str.strip).any(axis=None)]
    named = "donor" in table and table[["donor"]].map(str.strip).any(axis=None)
    donor = _find_synonym(others, columns, "donor") if "donor" in columns and not named else None
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


def _find_synonym(names: Collection[str], columns: Collection[str], meant: str) -> str | None:
    """The first of some names that is no column of its own, and usually means one that is."""
    if meant not in COLUMN_SYNONYMS:
        return None
    others = (name for name in names if name not in columns)
    return next(
        (name for name in others if COLUMN_SYNONYMS[meant].fullmatch(re.sub(r"[\W_]", "", name.casefold()))), None
    )


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

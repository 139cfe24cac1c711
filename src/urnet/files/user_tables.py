"""Tables of users: read a CSV with any separator, and name errors in it with their fix."""

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

_SEPARATOR_LINE = re.compile('"?sep=([,;\\t])"?\\s*', re.IGNORECASE)

COLUMN_SYNONYMS = {
    "donor": re.compile(
        "(donor|patient|subject|person|participant|individual|volunteer|case)s?(id|no|nr|number|code|name)?"
    ),
    "path": re.compile("file|filename|filepath|image|imagefile|imagename|imagepath|imgpath|img|crop"),
    "label": re.compile("class|classname|celltype|cellclass|type|category|annotation"),
}
"""Other usual names of columns, in lower case, without blanks and signs."""

NUMERIC_COLUMNS = {
    **dict.fromkeys(("x", "y"), "a number of pixels"),
    **dict.fromkeys(("confidence", "touching", "edge"), "a number from 0 to 1"),
    **{"scale": "a number of µm per pixel", "pixel_size_um": "a number of µm per pixel"},
    **{"diameter": "a number", "focus": "a number"},
    **{"tile": "a whole number of pixels", "fold": "a whole number"},
}
"""Columns with numbers in any table, and the kind of number."""

NAME_COLUMNS = ("label", "donor", "proposed")
"""Columns with names of classes and donors."""

INTEGER_COLUMNS = ("tile", "fold")
"""Columns with whole numbers from 0."""

_SPREADSHEET_STARTS = (b"PK\3\4", b"\xd0\xcf\x11\xe0")
_SPREADSHEET_SUFFIXES = (".xlsx", ".xlsm", ".xls", ".ods", ".numbers")
_UTF16_STARTS = (b"\xff\xfe", b"\xfe\xff")


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
    """Read the known columns of a CSV as text.

    A column that names donors by another name (`patient_id`) is an error by default: without donors, cells of one
    person could come into two parts.

    Args:
        path: the CSV.
        columns: names of the known columns.
        required: columns that must exist.
        path_columns: columns with file names. Their blanks stay, and backslashes become slashes.
        row_noun: what a row is, for messages: "cells", "fields".
        check_spelling: columns that a similar name is taken to misspell; all when not given.
        refuse_donor_synonyms: raise an error, instead of a warning, where another column seems to name donors.
        ignored: patterns of other columns, such as `p_*`, that need no warning; all when not given.
        verbatim: leave names and numbers unchanged, as in the table of a run.

    Returns:
        One row for each line, "" for an empty cell; the index is the line number in the file. Text other than paths is
        in Unicode form NFC, each donor has one spelling (`urnet.names`), and numeric columns hold numbers.

    Raises:
        CellsError: the file is missing, is not a CSV in UTF-8 or has no rows; a column is missing, doubled, misspelt or
            names donors otherwise; a line has too many values, or a value is not a number.
    """
    _refuse_binary(path)
    lines = _read_lines(path, columns)
    names = [name.strip("\ufeff\u200b").strip() for name in lines[0][1]] if lines else []
    _check_header(path, names, columns, required, columns if check_spelling is None else check_spelling)
    if len(lines) <= 1:
        raise CellsError(f"{path}: the table has a header but no {row_noun}. Add them below it", code="tables.empty")
    for number, values in lines[1:]:
        if len(values) > len(names) and any(values[len(names) :]):
            raise CellsError(
                f"{path}: line {number} has {len(values)} values for {len(names)} columns. Put values that contain the "
                "separator in quotation marks",
                code="tables.too_many_values",
            )
    rows = [(values + [""] * len(names))[: len(names)] for _, values in lines[1:]]
    table = pd.DataFrame(rows, columns=names, index=[number for number, _ in lines[1:]])
    _check_other_columns(path, table, columns, refuse_donor_synonyms, ignored)
    table = table[[column for column in columns if column in names]].copy()
    for column in table:
        text = table[column].str
        table[column] = text.replace("\\", "/", regex=False) if column in path_columns else text.strip()
        if column not in path_columns and not verbatim:
            table[column] = table[column].map(normalize_name if column in NAME_COLUMNS else _compose)
        if column in NUMERIC_COLUMNS and not verbatim:
            _check_numbers(path, table[column])
    if "donor" in table and not verbatim:
        table["donor"] = unify_donors(path, table["donor"].tolist(), row_noun)
    return table


def _read_lines(path: Path, columns: Collection[str]) -> list[tuple[int, list[str]]]:
    """Read the lines of a CSV that are not empty, with their numbers in the file."""
    skipped, reader = 0, None
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            separator, skipped = _find_separator(file, columns)
            reader = csv.reader(file, delimiter=separator, strict=True)
            return [
                (skipped + reader.line_num, [unescape_formula(value) for value in values])
                for values in reader
                if any(value.strip() for value in values)
            ]
    except FileNotFoundError:
        raise CellsError(f"{path}: no such table. Check the path", code="tables.not_found") from None
    except UnicodeDecodeError:
        if path.suffix.lower() in _SPREADSHEET_SUFFIXES:
            raise CellsError(_SPREADSHEET.format(path), code="tables.spreadsheet") from None
        raise CellsError(f"{path}: the table is not in UTF-8. Save it as 'CSV UTF-8'", code="tables.encoding") from None
    except csv.Error as error:
        line = skipped + (reader.line_num if reader is not None else 1)
        raise CellsError(
            f"{path}: line {line} cannot be divided into cells ({error}). Close each quotation mark, and double those "
            "within a cell",
            code="tables.unreadable",
        ) from None


def _check_header(
    path: Path,
    names: list[str],
    columns: Collection[str],
    required: Collection[str],
    check_spelling: Collection[str],
) -> None:
    """Refuse doubled, misspelt and missing columns."""
    for column in columns:
        if names.count(column) > 1:
            raise CellsError(
                f"{path}: {names.count(column)} columns are called {column!r}. Remove all but one",
                code="tables.duplicate_column",
            )
    for name in names:
        absent = sorted(column for column in check_spelling if len(column) > 3 and column not in names)
        similar = get_close_matches(name.casefold(), absent, 1, 0.8)
        if similar and name not in columns:
            raise CellsError(
                f"{path}: column {name!r} looks like a misspelt {similar[0]!r}. Rename it to {similar[0]} (to x_{name} "
                "if it is something else)",
                code="tables.misspelt_column",
            )
    for column in required:
        if column not in names:
            synonym = _find_synonym(names, columns, column)
            fix = f"Rename {synonym!r} to {column}" if synonym else "Add it"
            raise CellsError(
                f"{path}: the table has no column {column!r}; its columns are {', '.join(names) or 'none'}. {fix}",
                code="tables.missing_column",
            )


def _compose(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _check_numbers(path: Path, column: "pd.Series[str]") -> None:
    allowed = r"[0-9]{1,9}" if column.name in INTEGER_COLUMNS else NUMBER
    bad = column.index[(column != "") & ~column.str.fullmatch(allowed)]
    if len(bad):
        raise number_error(path, bad[0], str(column.name), column[bad[0]], len(bad))


def number_error(path: Path, line: int, column: str, value: str, count: int = 1) -> CellsError:
    """Make the error about a value that is not a number.

    Args:
        path: the table.
        line: line number in the file.
        column: one of `NUMERIC_COLUMNS`.
        value: the wrong value.
        count: number of rows with wrong values.
    """
    others = f" ({count} such rows)" if count > 1 else ""
    advice = _suggest_number(value, whole=column in INTEGER_COLUMNS)
    return CellsError(
        f"{column} must be {NUMERIC_COLUMNS[column]}, found {value!r} in row {line} of {path}{others}. {advice}",
        code="tables.not_a_number",
    )


def _suggest_number(value: str, *, whole: bool) -> str:
    """Suggest how to write a value as a number."""
    if not value:
        return "Fill it in"
    if whole and (number := re.fullmatch(r"([0-9]+)(?:[.,]([0-9]*))?", value)):
        return f"Use a whole number{'' if (number[2] or '').strip('0') else f': {number[1][:9]}'}"
    if re.fullmatch(r"[+-]?[1-9][0-9]{0,2},[0-9]{3}", value):
        return f"Write {value.replace(',', '.')} if the comma is a decimal point, {value.replace(',', '')} if it is not"
    if re.fullmatch(r"[+-]?[0-9]+,[0-9]+", value):
        return f"Use a decimal point: {value.replace(',', '.')}"
    if re.fullmatch(r"[+-]?[0-9]{1,3}(?:[ .,'’\u00a0\u202f][0-9]{3})+(?:[.,][0-9]+)?", value):
        return "Remove thousands separators, and use a decimal point"
    if is_missing(value) or value.casefold().lstrip("+-") in ("inf", "infinity"):
        return "Leave the cell empty if the value is unknown"
    if number := re.fullmatch(r"([+-]?[0-9]+(?:[.,][0-9]+)?)\s*[^\W0-9_]+", value):
        return f"Remove the unit: {number[1].replace(',', '.')}"
    return "Write digits only: 12" if whole else "Write digits, with a decimal point if needed: 12.5"


def unify_donors(path: Path, donors: list[str], row_noun: str) -> list[str]:
    """Give each donor one spelling. Warn about merged spellings, and about names that mean a missing value.

    Args:
        path: the table or folder, for the warnings.
        donors: donor of each row, "" where unknown.
        row_noun: what a row is, for the warnings: "cells", "fields".
    """
    unified, merged, missing = unify_donor_names(donors)
    if merged:
        spellings = list_first([" = ".join(map(repr, group)) for group in merged])
        logger.warning("%s: spellings of one donor are merged, so that its cells stay in one part: %s", path, spellings)
    if missing:
        counts = list_first([f"{name!r} ({count})" for name, count in missing.most_common()])
        logger.warning("%s: the donor of %d %s is unknown: %s", path, missing.total(), row_noun, counts)
    return unified


def _find_separator(file: TextIO, columns: Collection[str]) -> tuple[str, int]:
    """Find the separator of a table, and leave the file at the header line.

    A spreadsheet may name the separator in a first line `sep=;`. Otherwise the separator with the most known columns
    is chosen, then the one with the most columns. Signs within quotation marks do not count.

    Returns:
        The separator, and the number of lines before the header line.
    """
    first = _SEPARATOR_LINE.fullmatch(file.readline())
    if first:
        return first[1], 1

    def count_columns(separator: str) -> tuple[int, int]:
        file.seek(0)
        try:
            names = next((row for row in csv.reader(file, delimiter=separator) if any(map(str.strip, row))), [])
        except csv.Error:
            return -1, 0
        return sum(name.strip() in columns for name in names), len(names)

    best = max(",;\t", key=count_columns)
    file.seek(0)
    return best, 0


def _check_other_columns(
    path: Path, table: pd.DataFrame, columns: Collection[str], refuse_synonyms: bool, ignored: Collection[str] | None
) -> None:
    """Refuse donors under another name, or warn about them; warn about other columns that are not used."""
    others = [name for name in dict.fromkeys(table) if name and name not in columns]
    others = [name for name in others if table[[name]].map(str.strip).any(axis=None)]
    has_donors = "donor" in table and table[["donor"]].map(str.strip).any(axis=None)
    synonym = _find_synonym(others, columns, "donor") if "donor" in columns and not has_donors else None
    if synonym is not None and refuse_synonyms:
        state, place = ("empty", ", in place of the empty column") if "donor" in table else ("missing", "")
        raise CellsError(
            f"{path}: column {synonym!r} seems to name donors, but the column 'donor' is {state}. The split needs it, "
            f"so that the cells of one person stay in one part. Rename {synonym!r} to donor{place}, or remove "
            f"it (rename it to x_{synonym} if it is something else)",
            code="tables.donor_synonym",
        )
    if synonym is not None:
        logger.warning("%s: column %r is not used. Rename it to donor if it names the donors", path, synonym)
    patterns = ("*",) if ignored is None else ignored
    unused = [name for name in others if not any(fnmatchcase(name, pattern) for pattern in patterns)]
    if unused:
        logger.warning("%s: columns not used: %s", path, ", ".join(unused))


def _find_synonym(names: Collection[str], columns: Collection[str], column: str) -> str | None:
    """Find the first name that is no known column, and is a usual synonym of a column."""
    if column not in COLUMN_SYNONYMS:
        return None
    synonyms = COLUMN_SYNONYMS[column]
    others = (name for name in names if name not in columns)
    return next((name for name in others if synonyms.fullmatch(re.sub(r"[\W_]", "", name.casefold()))), None)


_SPREADSHEET = "{}: a spreadsheet or a damaged table, not a CSV. Open it, and save the table as 'CSV UTF-8'"


def _refuse_binary(path: Path) -> None:
    """Refuse spreadsheets and other binary files, before their bytes are read as text."""
    try:
        with path.open("rb") as file:
            start = file.read(1024)
    except OSError:  # reported by the reader
        return
    if start.startswith(_SPREADSHEET_STARTS):
        raise CellsError(_SPREADSHEET.format(path), code="tables.spreadsheet")
    if b"\0" in start and not start.startswith(_UTF16_STARTS):
        raise CellsError(f"{path}: a binary file, not a table. Give a CSV in UTF-8", code="tables.not_text")

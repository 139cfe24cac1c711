"""Write CSV tables, and read those that this program wrote.

Tables are opened in spreadsheets, so a text that a spreadsheet would run as a formula is written with an apostrophe
before it. Every reader takes that apostrophe away.
"""

import csv
import gzip
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from urnet.errors import CellsError
from urnet.files.atomic import atomic_file

_FORMULA = re.compile(r"'*(?:[\t\r\n]|\s*[=+\-@\uff1d\uff0b\uff0d\uff20\ufe66\ufe62\ufe63\ufe6b])")
"""Start of a text that a spreadsheet runs as a formula, also with full-width or small signs (OWASP, CSV injection).

The apostrophes before it make the rule reversible: a text that looks escaped already is escaped once more.
"""


NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


_QUOTED = re.compile(r'[",;\t\r\n]|^\s|\s$')


def escape_formula(text: str) -> str:
    """Escape a text that a spreadsheet would run as a formula, with an apostrophe; `unescape_formula` undoes it.

    Args:
        text: any text. Numbers such as `-0.5` are no formulas and stay as they are.
    """
    return f"'{text}" if _is_formula(text) else text


def unescape_formula(text: str) -> str:
    """Undo `escape_formula`: remove one apostrophe, where it stands before what would be a formula."""
    return text[1:] if text.startswith("'") and _is_formula(text[1:]) else text


def _is_formula(text: str) -> bool:
    return _FORMULA.match(text) is not None and NUMBER.fullmatch(text) is None


def format_csv_line(values: Iterable[object]) -> str:
    """One line of a CSV, with its end: texts are escaped for spreadsheets, None and NaN become empty cells."""
    cells = [_cell(value) for value in values]
    return (",".join(cells) or '""' * len(cells)) + "\n"


def _cell(value: object) -> str:
    if isinstance(value, str) and value.isalnum():
        return value
    if value is None or value is pd.NA or value != value:
        return ""
    text = escape_formula(value) if isinstance(value, str) else str(value)
    return '"' + text.replace('"', '""') + '"' if _QUOTED.search(text) else text


def format_csv(columns: Sequence[str], rows: Iterable[Sequence[object] | Mapping[str, object]]) -> str:
    """A whole table as CSV.

    Args:
        columns: names of the columns.
        rows: the values of each row, in order or by column; a column that a row lacks is empty.
    """
    values = ([row.get(name) for name in columns] if isinstance(row, Mapping) else row for row in rows)
    return "".join(map(format_csv_line, (columns, *values)))


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object] | Mapping[str, object]]) -> None:
    """Write a CSV whole or not at all; one that ends in `.gz` is compressed.

    Letters that are no Unicode, as Linux allows them in file names, are written as `\\udc..`.

    Args:
        path: the file; replaced where it exists.
        columns: names of the columns.
        rows: as for `format_csv`.

    Raises:
        OSError: the file cannot be written; an older one is unchanged.
    """
    content = format_csv(columns, rows).encode("utf-8", errors="backslashreplace")
    with atomic_file(path) as file:
        file.write(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def write_frame(path: Path, table: pd.DataFrame) -> None:
    """Write a data frame, without its index, as `write_csv` does."""
    write_csv(path, list(table), table.itertuples(index=False, name=None))


_DAMAGED = "{}: not a whole table that urnet wrote ({}); restore the file, or make it again"


def read_own_table(path: Path, text: Collection[str] | None = None) -> pd.DataFrame:
    """Read a CSV that this program wrote, compressed or not.

    Args:
        path: the file.
        text: columns that hold text; all when not given. The others become numbers, NaN where a cell is empty, if all
            their cells are numbers.

    Raises:
        OSError: the file cannot be read.
        CellsError: no table of ours: no header, or a line of another length.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        try:
            lines = [[unescape_formula(cell) for cell in fields] for fields in csv.reader(file, strict=True) if fields]
        except (csv.Error, EOFError) as error:
            raise CellsError(_DAMAGED.format(path, error), code="tables.damaged") from None
    if not lines or any(len(fields) != len(lines[0]) for fields in lines):
        raise CellsError(_DAMAGED.format(path, "lines of different length"), code="tables.damaged")
    table = pd.DataFrame(lines[1:], columns=lines[0], dtype=object)
    for column in () if text is None else [name for name in table if name not in text]:
        try:
            table[column] = pd.to_numeric(table[column].replace("", None))
        except (ValueError, TypeError):  # text, such as the column `set`
            continue
    return table

"""CSV tables of this program: write and read them.

Users open tables in spreadsheets. A text that a spreadsheet would run as a formula is written with an apostrophe before
it, and every reader removes that apostrophe.
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

Apostrophes before it are part of the pattern, so that a text that looks escaped is escaped once more.
"""


NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


_QUOTED = re.compile(r'[",;\t\r\n]|^\s|\s$')


def escape_formula(text: str) -> str:
    """Put an apostrophe before a text that a spreadsheet would run as a formula; `unescape_formula` removes it.

    Args:
        text: any text. Numbers such as `-0.5` are not formulas.
    """
    return f"'{text}" if _is_formula(text) else text


def unescape_formula(text: str) -> str:
    """Remove the apostrophe that `escape_formula` added."""
    return text[1:] if text.startswith("'") and _is_formula(text[1:]) else text


def _is_formula(text: str) -> bool:
    return _FORMULA.match(text) is not None and NUMBER.fullmatch(text) is None


def format_csv_line(values: Iterable[object]) -> str:
    """Format one line of a CSV with its end. Formulas are escaped; None and NaN become empty cells."""
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
    """Format a table as CSV.

    Args:
        columns: names of the columns.
        rows: values of each row, in the order of the columns or by column name; missing columns are empty.
    """
    values = ([row.get(name) for name in columns] if isinstance(row, Mapping) else row for row in rows)
    return "".join(map(format_csv_line, (columns, *values)))


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object] | Mapping[str, object]]) -> None:
    r"""Write a CSV file, complete or not at all. A file that ends in `.gz` is compressed.

    Bytes of Linux file names that are not Unicode are written as `\udc..`.

    Args:
        path: the file; an existing one is replaced.
        columns: names of the columns.
        rows: as for `format_csv`.

    Raises:
        OSError: the file cannot be written; an existing one is unchanged.
    """
    content = format_csv(columns, rows).encode("utf-8", errors="backslashreplace")
    with atomic_file(path) as file:
        file.write(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def write_frame(path: Path, table: pd.DataFrame) -> None:
    """Write a data frame with `write_csv`, without its index."""
    write_csv(path, list(table), table.itertuples(index=False, name=None))


_DAMAGED = "{}: not a complete table of urnet ({}). Restore the file, or write it again with the same command"


def read_own_table(path: Path, text: Collection[str] | None = None) -> pd.DataFrame:
    """Read a CSV file of this program, compressed or not.

    Args:
        path: the file.
        text: columns of text; all when not given. Other columns become numbers, NaN where a cell is empty, unless a
            cell is not a number.

    Raises:
        OSError: the file cannot be read.
        CellsError: the table has no header, or a line of another length.
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

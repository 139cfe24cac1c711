"""What all that is kept has in common: names of people, times, labels that are no classes, tables that come out."""

import csv
import io
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from urnet.errors import StoreError
from urnet.files import whole_file

NOT_A_CELL, SKIPPED = "not a cell", ""
"""Labels that are no classes."""


def named(who: str) -> str:
    """A name as it is kept.

    Raises:
        StoreError: nothing is left of it.
    """
    name = " ".join(who.split())[:100]
    if not name:
        raise StoreError("a label names who gave it; give a name")
    return name


def now() -> str:
    """The time in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a table whole or not at all."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    with whole_file(path) as file:
        file.write(text.getvalue().encode())

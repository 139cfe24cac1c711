"""A CSV that is written row by row, and completed by the same command after an interruption.

Until it is complete, `TABLE.csv` has the name `TABLE.csv.part`. `TABLE.csv.part.json` beside it holds the settings that
the rows depend on.
"""

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from urnet.errors import RunError, attribute_errors
from urnet.files.atomic import atomic_file, move
from urnet.files.csv_tables import format_csv_line, unescape_formula
from urnet.files.outputs import TABLE_SIDECAR, lock_output

Row = Mapping[str, str]


class ResumableTable:
    """A CSV that is being written, with its rows in a given order.

    Attributes:
        done: number of written rows.

    Args:
        file: the open file.
        columns: names of the columns.
        done: number of rows that the file already has.
        on_row: called with each written row.
    """

    def __init__(self, file: TextIO, columns: Sequence[str], done: int, on_row: Callable[[Row], None]):
        self.file, self.columns, self.done, self.on_row = file, columns, done, on_row

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows and flush the file."""
        self.file.writelines(format_csv_line(row.get(name) for name in self.columns) for row in rows)
        self.file.flush()
        self.done += len(rows)
        for row in rows:
            self.on_row(row)


@contextmanager
def open_resumable_table(
    out: Path,
    columns: Sequence[str],
    paths: Sequence[str],
    settings: Mapping[str, str],
    on_row: Callable[[Row], None],
    folders: Iterable[Path] = (),
) -> Iterator[ResumableTable]:
    """Open a new table, or resume an interrupted one; it gets its name if the context ends without an error.

    Args:
        out: the CSV.
        columns: names of the columns; one is `path`.
        paths: value of each row in that column, in order.
        settings: what the rows depend on, by its name in messages; a table with other settings is not resumed.
        on_row: called with each row, first with those that the file already has.
        folders: folders of files that the rows name. An interrupted table without rows is removed, unless a folder has
            files.

    Raises:
        RunError: the table exists (code `run.exists`), another process writes it, or the interrupted table has other
            settings or rows (code `predict.other_rows`).
    """
    part, sidecar = out.with_name(f"{out.name}.part"), out.with_name(out.name + TABLE_SIDECAR)
    with lock_output(out):
        if out.exists():
            raise RunError(f"{out}: exists already; choose another --out, or remove it", code="run.exists")
        if part.exists():
            _check_same(part, sidecar, settings)
            done = _truncate_partial_row(part, columns, paths, on_row)
        else:
            done = -1
            with attribute_errors(out), atomic_file(sidecar) as file:
                file.write(json.dumps(dict(settings), indent=2).encode())
        table = None
        try:
            with part.open("a", encoding="utf-8", errors="surrogateescape", newline="") as file:
                table = ResumableTable(file, columns, max(done, 0), on_row)
                if done < 0:
                    file.write(format_csv_line(columns))
                yield table
        except BaseException:
            empty = (table.done if table else max(done, 0)) == 0
            if empty and not any(folder.is_dir() and any(folder.iterdir()) for folder in folders):
                part.unlink(missing_ok=True)
                sidecar.unlink(missing_ok=True)
            raise
        move(part, out)
        sidecar.unlink(missing_ok=True)


def is_interrupted(out: Path) -> bool:
    """Return whether a table was begun and not completed."""
    return out.with_name(f"{out.name}.part").is_file()


def _check_same(part: Path, sidecar: Path, settings: Mapping[str, str]) -> None:
    """Check that an interrupted table has the same settings."""
    try:
        before = json.loads(sidecar.read_text(encoding="utf-8"))
        other = [name for name in settings if before[name] != settings[name]]
    except (OSError, ValueError, KeyError, TypeError):
        raise RunError(
            f"{part}: rows of an interrupted prediction, but {sidecar.name} does not hold its settings; move or remove "
            f"{part.name}, and run the command again",
            code="predict.other_rows",
        ) from None
    if other:
        raise RunError(
            f"{part}: rows of an interrupted prediction with other {' and '.join(other)}; repeat the interrupted "
            "command, or move or remove the file, and run this command again",
            code="predict.other_rows",
        )


def _truncate_partial_row(
    part: Path, columns: Sequence[str], paths: Sequence[str], on_row: Callable[[Row], None]
) -> int:
    """Remove an incomplete last row; return the number of rows before it, or -1 without a complete header."""
    rows, end = -1, 0
    with part.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        lines = _LineCounter(file)
        for fields in csv.reader(lines):
            if not lines.whole or len(fields) != len(columns):
                break
            fields = [unescape_formula(field) for field in fields]
            row = dict(zip(columns, fields, strict=True))
            if fields != list(columns) if rows < 0 else rows >= len(paths) or row["path"] != paths[rows]:
                raise RunError(
                    f"{part}: line {lines.count} belongs to another prediction; move or remove the file",
                    code="predict.other_rows",
                )
            if rows >= 0:
                on_row(row)
            rows, end = rows + 1, lines.bytes
    os.truncate(part, end)
    return rows


class _LineCounter:
    """Lines of a file, with their number, their bytes, and whether the last one is complete."""

    def __init__(self, lines: Iterable[str]):
        self.lines, self.count, self.bytes, self.whole = lines, 0, 0, True

    def __iter__(self) -> Iterator[str]:
        for line in self.lines:
            self.count += 1
            self.bytes += len(line.encode("utf-8", "surrogateescape"))
            self.whole = line.endswith("\n")
            yield line

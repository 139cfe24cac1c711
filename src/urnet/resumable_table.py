"""A table that grows row by row: what is written survives an interruption, and the same command goes on from there.

Until it is complete, `TABLE.csv` is `TABLE.csv.part`, with `TABLE.csv.part.json` beside it, which says what the rows
belong to.
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
    """Rows of a CSV, in the order of the addresses that they are about.

    Attributes:
        done: number of rows that are written.

    Args:
        file: where they go.
        columns: their names.
        done: rows that are there already.
        on_row: called with each row that is written.
    """

    def __init__(self, file: TextIO, columns: Sequence[str], done: int, on_row: Callable[[Row], None]):
        self.file, self.columns, self.done, self.on_row = file, columns, done, on_row

    def write(self, rows: Sequence[Row]) -> None:
        """Add rows; they are on their way to the disk when this returns."""
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
    about: Mapping[str, str],
    on_row: Callable[[Row], None],
    folders: Iterable[Path] = (),
) -> Iterator[ResumableTable]:
    """Open a table to be filled, or go on with one that was interrupted; it gets its name when the context ends well.

    Args:
        out: the CSV.
        columns: their names; one is `path`.
        paths: what each row will have in that column, in order.
        about: what the rows depend on, by what it is called to the user; a table of anything else is not gone on with.
        on_row: called with each row, at first with those that are there already.
        folders: filled before the rows that name their files. An interrupted table without rows is kept where they hold
            something, so that the same command continues; else it is removed.

    Raises:
        RunError: the table exists, another process is writing it, or what was interrupted was about something else.
    """
    part, sidecar = out.with_name(f"{out.name}.part"), out.with_name(out.name + TABLE_SIDECAR)
    with lock_output(out):
        if out.exists():
            raise RunError(f"{out}: exists already; choose another --out, or remove it yourself", code="run.exists")
        if part.exists():
            _check_same(part, sidecar, about)
            done = _truncate_partial_row(part, columns, paths, on_row)
        else:
            done = -1
            with attribute_errors(out), atomic_file(sidecar) as file:
                file.write(json.dumps(dict(about), indent=2).encode())
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
    """Whether rows of a table are there that was not completed."""
    return out.with_name(f"{out.name}.part").is_file()


def _check_same(part: Path, sidecar: Path, about: Mapping[str, str]) -> None:
    try:
        before = json.loads(sidecar.read_text(encoding="utf-8"))
        other = [name for name in about if before[name] != about[name]]
    except (OSError, ValueError, KeyError, TypeError):
        raise RunError(
            f"{part}: rows of an interrupted prediction, but {sidecar.name} does not say of what; move or remove it, "
            "and begin anew"
        ) from None
    if other:
        raise RunError(
            f"{part}: rows of an interrupted prediction with other {' and '.join(other)}; repeat the command that was "
            "interrupted, or move or remove the file, and begin anew"
        )


def _truncate_partial_row(
    part: Path, columns: Sequence[str], paths: Sequence[str], on_row: Callable[[Row], None]
) -> int:
    """Cut off what was not written to its end; the number of rows before it, -1 where not even the header is whole."""
    rows, end = -1, 0
    with part.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        lines = _LineCounter(file)
        for fields in csv.reader(lines):
            if not lines.whole or len(fields) != len(columns):
                break
            fields = [unescape_formula(field) for field in fields]
            row = dict(zip(columns, fields, strict=True))
            if fields != list(columns) if rows < 0 else rows >= len(paths) or row["path"] != paths[rows]:
                raise RunError(f"{part}: line {lines.count} is not of this prediction; move or remove the file")
            if rows >= 0:
                on_row(row)
            rows, end = rows + 1, lines.bytes
    os.truncate(part, end)
    return rows


class _LineCounter:
    """Lines of a file; how many went by, in how many bytes, and whether the last one was complete."""

    def __init__(self, lines: Iterable[str]):
        self.lines, self.count, self.bytes, self.whole = lines, 0, 0, True

    def __iter__(self) -> Iterator[str]:
        for line in self.lines:
            self.count += 1
            self.bytes += len(line.encode("utf-8", "surrogateescape"))
            self.whole = line.endswith("\n")
            yield line

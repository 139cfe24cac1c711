"""Labels from a table of positions: read, checked against the fields, and given to the cells that lie there."""

import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from urnet.cells.labels import check_labels
from urnet.errors import CellsError
from urnet.fields.detection.detect import Detection
from urnet.fields.detection.matching import Agreement, match_positions
from urnet.fields.io.read import FieldInfo
from urnet.fields.table import FieldRow
from urnet.files.user_tables import number_error, read_table


def read_labels(path: Path, rows: Sequence[FieldRow], infos: Sequence[FieldInfo]) -> pd.DataFrame:
    """Read a table of labelled positions; a cells table that `urnet crop` wrote is one.

    Args:
        path: CSV with `field,x,y,label`, and where known `donor` and `simulated`.
        rows: the fields.
        infos: what they are, in the same order.

    Returns:
        The positions that have a label; x and y as numbers.

    Raises:
        CellsError: no such table, no labels, no field that is known, a place outside its field, or two labels for one.
    """
    table = read_table(
        path,
        ("field", "x", "y", "label", "donor", "simulated"),
        required=("field", "x", "y", "label"),
        path_columns=("field",),
        row_noun="labelled positions",
    )
    table = table[table["label"] != ""]
    if not len(table):
        raise CellsError(f"{path}: no position has a label; fill in the column 'label'")
    check_labels(path, table["label"])
    for column in ("x", "y"):
        empty = table.index[table[column] == ""]
        if len(empty):
            raise number_error(path, empty[0], column, "", len(empty))
        table = table.assign(**{column: table[column].astype(float)})
    table["field"] = table["field"].map(lambda name: unicodedata.normalize("NFC", name))
    names = {row.field for row in rows}
    strange = sorted(set(table["field"]) - names)
    if strange and not set(table["field"]) & names:
        raise CellsError(
            f"{path}: no field is called {strange[0]}; the fields are {', '.join(sorted(names)[:3])}…; "
            "write paths relative to the folder of the fields"
        )
    places = table.groupby(["field", "x", "y"], sort=False)["label"]
    for (name, x, y), found in places.unique().items():
        if len(found) > 1:
            raise CellsError(
                f"{path}: {name}: the cell at x {x:g}, y {y:g} is labelled {found[0]} and {found[1]}; keep one"
            )
    for row, info in zip(rows, infos, strict=True):
        mine = table[table["field"] == row.field]
        inside = mine["x"].between(0, info.width) & mine["y"].between(0, info.height)
        if not inside.all():
            line = inside.index[~inside][0]
            raise CellsError(
                f"{path}: line {line}: x {mine['x'][line]:g}, y {mine['y'][line]:g} lies outside {row.field}, which is "
                f"{info.width} x {info.height} px; x is the column and y the row, in px of the original field"
            )
    return table


def match_labels(
    found: list[Detection], truth: pd.DataFrame | None
) -> tuple[dict[int, dict[str, str]], Agreement | None]:
    """What a table of labelled positions says of the cells of a field.

    Args:
        found: the cells.
        truth: the positions in this field, from `read_labels`; none without a table.

    Returns:
        Columns by the cell's number, and how well the two agree; none without a table.
    """
    if truth is None:
        return {}, None
    places = np.array([(cell.x, cell.y) for cell in found]).reshape(-1, 2)
    reach = 0.5 * float(np.median([cell.diameter for cell in found])) if found else 0.0
    pairs = match_positions(places, truth[["x", "y"]].to_numpy(float), reach)
    known = {}
    for cell, position in pairs:
        entry = truth.iloc[int(position)]
        columns = [column for column in ("label", "donor", "simulated") if entry.get(column, "")]
        known[int(cell)] = {column: str(entry[column]) for column in columns}
    return known, Agreement(len(found), len(truth), len(pairs))


def note_unmatched_labels(truth: pd.DataFrame, agreements: Sequence[Agreement]) -> list[str]:
    """Which labels no cell took.

    Args:
        truth: all positions, from `read_labels`.
        agreements: field by field, from `match_labels`.
    """
    here, matched = sum(one.truth for one in agreements), sum(one.matched for one in agreements)
    notes = []
    if here > matched:
        notes.append(f"{here - matched} of {here} labelled positions lie on no cell that was found.")
    if len(truth) > here:
        notes.append(f"{len(truth) - here} labelled positions are in fields that are not here.")
    return notes

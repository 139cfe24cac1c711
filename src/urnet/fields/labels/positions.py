"""Read a table of labelled positions, and give the labels to the cells at these positions."""

import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from urnet.cells.labels import check_labels
from urnet.errors import CellsError, list_first
from urnet.fields.detection.detect import Detection
from urnet.fields.detection.matching import Agreement, match_positions
from urnet.fields.io.read import FieldInfo
from urnet.fields.table import FieldRow
from urnet.files.user_tables import number_error, read_table


def read_labels(path: Path, rows: Sequence[FieldRow], infos: Sequence[FieldInfo]) -> pd.DataFrame:
    """Read a table of labelled positions; a cells table that `urnet crop` wrote is one.

    Args:
        path: CSV with `field,x,y,label`, and optionally `donor` and `simulated`.
        rows: the fields.
        infos: size of each field, in the same order.

    Returns:
        The positions with a label; x and y as numbers.

    Raises:
        CellsError: no table, no labels, unknown fields, a position outside its field, or two labels at one position.
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
        raise CellsError(f"{path}: no position has a label; fill in the column 'label'", code="fields.no_labels")
    check_labels(path, table["label"])
    for column in ("x", "y"):
        empty = table.index[table[column] == ""]
        if len(empty):
            raise number_error(path, empty[0], column, "", len(empty))
        table = table.assign(**{column: table[column].astype(float)})
    table["field"] = table["field"].map(lambda name: unicodedata.normalize("NFC", name))
    names = {row.field for row in rows}
    unknown = sorted(set(table["field"]) - names)
    if unknown and not set(table["field"]) & names:
        raise CellsError(
            f"{path}: no field has the name {unknown[0]}; the fields are {list_first(sorted(names))}. Write paths "
            "relative to the folder of the fields",
            code="fields.label_field_unknown",
        )
    places = table.groupby(["field", "x", "y"], sort=False)["label"]
    for (name, x, y), labels in places.unique().items():
        if len(labels) > 1:
            raise CellsError(
                f"{path}: {name}: the position x {x:g}, y {y:g} has the labels {labels[0]} and {labels[1]}; keep one",
                code="fields.label_twice",
            )
    for row, info in zip(rows, infos, strict=True):
        own = table[table["field"] == row.field]
        inside = own["x"].between(0, info.width) & own["y"].between(0, info.height)
        if not inside.all():
            line = inside.index[~inside][0]
            raise CellsError(
                f"{path}: line {line}: x {own['x'][line]:g}, y {own['y'][line]:g} lies outside {row.field}, which is "
                f"{info.width} x {info.height} px. x is the column and y the row, in px of the original field",
                code="fields.label_outside",
            )
    return table


def match_labels(
    detections: list[Detection], truth: pd.DataFrame | None
) -> tuple[dict[int, dict[str, str]], Agreement | None]:
    """Match the cells of a field with labelled positions.

    Args:
        detections: the cells.
        truth: the positions in this field, from `read_labels`; none without a table.

    Returns:
        Columns of each matched cell, by its number, and the agreement; none without a table.
    """
    if truth is None:
        return {}, None
    places = np.array([(cell.x, cell.y) for cell in detections]).reshape(-1, 2)
    reach = 0.5 * float(np.median([cell.diameter for cell in detections])) if detections else 0.0
    pairs = match_positions(places, truth[["x", "y"]].to_numpy(float), reach)
    known = {}
    for cell, position in pairs:
        entry = truth.iloc[int(position)]
        columns = [column for column in ("label", "donor", "simulated") if entry.get(column, "")]
        known[int(cell)] = {column: str(entry[column]) for column in columns}
    return known, Agreement(len(detections), len(truth), len(pairs))


def note_unmatched_labels(truth: pd.DataFrame, agreements: Sequence[Agreement]) -> list[str]:
    """Write notes on labels that no cell took.

    Args:
        truth: all positions, from `read_labels`.
        agreements: field by field, from `match_labels`.
    """
    present, matched = sum(one.truth for one in agreements), sum(one.matched for one in agreements)
    notes = []
    if present > matched:
        notes.append(f"{present - matched} of {present} labelled positions lie on no detected cell.")
    if len(truth) > present:
        notes.append(f"{len(truth) - present} labelled positions are in fields that were not cropped.")
    return notes

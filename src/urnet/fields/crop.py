"""Cut fields of view into crops of single cells: `urnet crop`, and the same again in front of a trained model.

Read top to bottom: find the fields, agree on one pixel size, even out the light, put the nuclei in their place, find
the cells, cut them out, say what is known of each, and write a folder that training and prediction take as it is.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from urnet.cells.table import TABLE_NAME
from urnet.errors import CellsError, ImageError
from urnet.fields.cropping import SETTINGS_NAME, Cropping, settle_pixel_size
from urnet.fields.cut import cut, grey, preview, write_image
from urnet.fields.detect import Found, detect
from urnet.fields.illumination import Illumination, estimate_flat, given_flat
from urnet.fields.matching import Agreement, match
from urnet.fields.nuclei import nuclear_features
from urnet.fields.propose import feature_table, fit_proposer, propose
from urnet.fields.read import Field, FieldInfo, describe_field, open_field
from urnet.fields.registration import Shift, register
from urnet.fields.table import FieldRow, find_fields
from urnet.fields.view import View
from urnet.files import whole_folder
from urnet.images.quality import quality
from urnet.tables import read_table

BATCH = 5
"""Fields from which new light is estimated in front of a trained model; with fewer, the training's is used."""

MOST_SHIFT = 0.05
"""How far nuclei may lie from the brightfield, as a share of the field's shorter edge."""

WINDOW = 2048
"""Edge of the middle part of a field from which the shift of its nuclei is measured, px."""

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class CroppedField:
    """What came of one field.

    Args:
        row: where it is.
        info: its size and pixels.
        found: the cells in it.
        shift: by how much the nuclei were moved; none without nuclei.
        preview: the evenly lit field, reduced, with `reduction` field pixels to one of its own.
        reduction: see there.
        agreement: with the positions in a table of labels; none without.
    """

    row: FieldRow
    info: FieldInfo
    found: list[Found]
    shift: Shift | None
    preview: np.ndarray
    reduction: float
    agreement: Agreement | None


@dataclass(frozen=True)
class Cropped:
    """What `crop_fields` wrote.

    Args:
        folder: the cells folder.
        table: its cells.
        fields: field by field.
        cropping: as it was settled.
        notes: what the user should know.
    """

    folder: Path
    table: pd.DataFrame
    fields: list[CroppedField]
    cropping: Cropping
    notes: list[str] = field(default_factory=list)


def crop_fields(
    fields: Path,
    out: Path,
    cropping: Cropping | None = None,
    *,
    labels: Path | None = None,
    folder_names: Literal["label", "donor"] | None = None,
    flat: Path | None = None,
    dark: Path | None = None,
    again: bool = False,
    progress: Progress | None = None,
) -> Cropped:
    """Cut fields into cells.

    Args:
        fields: an image, a folder of images, or a field table.
        out: new cells folder: `cells.csv`, `cells/`, `masks/`, `nuclei/`, `crop.json`, `report.html`.
        cropping: how; the default when not given.
        labels: table with `field,x,y,label` (and `donor`); a cell takes the label of the position that it covers.
        folder_names: what the name of the folder that a field lies in says.
        flat: image of an empty spot, for the light.
        dark: image without light.
        again: the settings are those of a training's crops and stand as they are: the same pixel size is asked for,
            and the light of few fields is corrected as it was then.
        progress: called with what is done and the share of it.

    Raises:
        CellsError: no fields, settings that contradict the files, or `out` holds something.
        ImageError: a field cannot be read, or its nuclei do not belong to it.
    """
    say = progress or (lambda what, share: None)
    asked = cropping or Cropping()
    if dark is not None and flat is None:
        raise CellsError(f"--dark {dark} without --flat; a dark image corrects nothing by itself")
    root, rows = find_fields(
        fields,
        nuclei=asked.nuclei,
        nuclei_channel=asked.nuclei_channel,
        channel=asked.channel,
        z=asked.z,
        scene=asked.scene,
    )
    rows = [_named_by_folder(row, root, folder_names) for row in rows]
    infos = [describe_field(row.brightfield) for row in rows]
    pixels = [row.pixel_um or info.pixel_um for row, info in zip(rows, infos, strict=True)]
    how, notes = settle_pixel_size(asked, rows, pixels, again)
    truth = _read_labels(labels, rows) if labels is not None else None
    if flat is not None:
        how = replace(how, light="given", illumination=given_flat(flat, dark))
    elif how.light == "estimated" and not (again and len(rows) < BATCH and how.illumination is not None):
        say("estimate light", 0.0)
        how = replace(how, illumination=estimate_flat(_opened(rows)))
    if how.illumination is not None:  # as it will be stored, so that the same fields give the same crops again
        how = replace(how, illumination=Illumination.from_json(how.illumination.to_json()))
    with whole_folder(out) as folder:
        table, nuclear, done, stems = [], [], [], set()
        for number, (row, pixel) in enumerate(zip(rows, pixels, strict=True)):
            stem = _free_stem(row.field, stems)
            cells, features, result = _crop_field(folder, stem, row, pixel, how, truth)
            table += cells
            nuclear += features
            done.append(result)
            say("crop fields", (number + 1) / len(rows))
        notes += _propose(table, nuclear)
        frame = pd.DataFrame(table, columns=list(_COLUMNS))
        kept = [column for column in _COLUMNS if column in ("path", "label") or (frame[column] != "").any()]
        frame[kept].to_csv(folder / TABLE_NAME, index=False, encoding="utf-8", lineterminator="\n")
        how.save(folder / SETTINGS_NAME)
        notes += _notes(frame, done)
        cropped = Cropped(Path(out), frame, done, how, notes)
        from urnet.fields.report import write_crop_report

        write_crop_report(folder / "report.html", cropped)
    return cropped


_COLUMNS = (
    *("path", "label", "proposed", "confidence", "donor", "field", "x", "y", "source", "target_nuclei", "mask"),
    *("scale", "diameter", "focus", "touching", "edge", "simulated"),
)


def _named_by_folder(row: FieldRow, root: Path, what: str | None) -> FieldRow:
    if what is None:
        return row
    above = Path(row.field).parent.name
    if not above:
        raise CellsError(
            f"{root / row.field}: lies in no folder of its own below {root}, so no folder's name can be its {what}; "
            f"sort the fields into one folder a {what}, or name it in a field table"
        )
    return replace(row, **{what: getattr(row, what) or above})


def _free_stem(field: str, taken: set[str]) -> str:
    """A field's folder below `cells/`: its name, safe as one anywhere, and no other field's in any case of letters."""
    stem = re.sub(r"[^\w.-]", "_", str(Path(field).with_suffix("")).replace("/", "__")).strip(".") or "_"
    while stem.casefold() in taken:
        stem += "_"
    taken.add(stem.casefold())
    return stem


def _opened(rows: Iterable[FieldRow]) -> Iterator[Field]:
    for row in rows:
        with open_field(row.brightfield, channel=row.channel, z=row.z, scene=row.scene) as opened:
            yield opened


def _read_labels(path: Path, rows: Sequence[FieldRow]) -> pd.DataFrame:
    """Labelled positions: field, x, y (px of the field), label, donor, simulated; a cells table of `crop` is one."""
    table = read_table(
        path,
        ("field", "x", "y", "label", "donor", "simulated"),
        needed=("field", "x", "y", "label"),
        paths=("field",),
        rows="labelled positions",
    )
    table = table[table["label"] != ""]
    if not len(table):
        raise CellsError(f"{path}: no position has a label; fill in the column 'label'")
    for column in ("x", "y"):
        numbers = pd.to_numeric(table[column], errors="coerce")
        bad = table.index[~np.isfinite(numbers)]
        if len(bad):
            raise CellsError(
                f"{path}: line {bad[0]}: {column} is {table[column][bad[0]]!r}; it must be a place in px of the field"
            )
        table = table.assign(**{column: numbers})
    names = {row.field for row in rows}
    strange = sorted(set(table["field"]) - names)
    if strange and not set(table["field"]) & names:
        raise CellsError(
            f"{path}: no field is called {strange[0]}; the fields are {', '.join(sorted(names)[:3])}…; "
            "write paths relative to the folder of the fields"
        )
    return table


def _crop_field(
    folder: Path, stem: str, row: FieldRow, pixel: float | None, how: Cropping, truth: pd.DataFrame | None
) -> tuple[list[dict[str, Any]], list[dict[str, float] | None], CroppedField]:
    """Find, cut and write the cells of one field: their rows, what their nuclei look like, and how it went."""
    with _views(row, how) as (bright, nuclei, shift):
        # With a known pixel size the limits are diameters on the specimen, whatever the objective.
        own = pixel or how.pixel_um
        least, most = (None, None) if how.diameter_um is None else (um / own for um in how.diameter_um)
        found = detect(
            bright.read,
            bright.shape,
            nuclei=None if nuclei is None else nuclei.read,
            least=least,
            most=most,
            roundness=how.roundness,
            border=how.border,
        )
        zoom = 1.0 if own is None or how.pixel_um is None else how.pixel_um / own  # field px to a px of the crop
        mine = truth[truth["field"] == row.field] if truth is not None else None
        known, agreement = _labels_of(found, mine)
        cells, features = [], []
        for number, cell in enumerate(found):
            name = f"{stem}/{number:05d}"
            crop, mask, edge = cut(bright, cell, how.size, zoom)
            suffix = write_image(folder / "cells" / name, crop)
            write_image(folder / "masks" / name, np.where(mask, np.uint8(255), np.uint8(0)))
            record = dict.fromkeys(_COLUMNS, "") | {
                "path": f"cells/{name}{suffix}",
                "label": row.label,
                "donor": row.donor,
                "field": row.field,
                "x": f"{cell.x:.1f}",
                "y": f"{cell.y:.1f}",
                "source": row.field,
                "mask": f"masks/{name}.png",
                "scale": "" if how.pixel_um is None else f"{how.pixel_um:.6g}",
                "diameter": f"{cell.diameter * (own or 1):.2f}",
                "focus": f"{_focus(crop):.3f}",
                "touching": f"{cell.touching:.3f}",
                "edge": f"{edge:.3f}",
                "simulated": row.simulated,
            }
            record |= known.get(number, {})
            measured = None
            if nuclei is not None:
                glow, _, _ = cut(nuclei, cell, how.size, zoom)
                record["target_nuclei"] = f"nuclei/{name}{write_image(folder / 'nuclei' / name, glow)}"
                measured = nuclear_features(glow, mask, how.pixel_um)
            features.append(measured)
            cells.append(record)
        return cells, features, CroppedField(row, bright.field.info, found, shift, *preview(bright), agreement)


@contextmanager
def _views(row: FieldRow, how: Cropping) -> Iterator[tuple[View, View | None, Shift | None]]:
    """The brightfield in even light, and the nuclei moved onto it."""
    with open_field(row.brightfield, channel=row.channel, z=row.z, scene=row.scene) as field:
        bright = View(field, how.illumination)
        if row.nuclei is None:
            yield bright, None, None
            return
        with open_field(row.nuclei, channel=row.nuclei_channel, z=row.z, scene=row.scene) as glowing:
            if bright.shape != (glowing.info.height, glowing.info.width):
                raise ImageError(
                    f"{row.brightfield} is {bright.shape[1]} x {bright.shape[0]} px and its nuclei {row.nuclei} are "
                    f"{glowing.info.width} x {glowing.info.height} px; both must show the same field at the same size"
                )
            top, left, height, width = _middle(bright.shape)
            try:
                shift = register(
                    grey(bright.read(top, left, height, width)),
                    grey(glowing.read(top, left, height, width)),
                    MOST_SHIFT * min(bright.shape),
                )
            except ImageError as error:
                raise ImageError(f"{row.brightfield} and {row.nuclei}: {error}") from None
            yield bright, View(glowing, shift=shift), shift


def _middle(shape: tuple[int, int]) -> tuple[int, int, int, int]:
    height, width = (min(WINDOW, edge) for edge in shape)
    return (shape[0] - height) // 2, (shape[1] - width) // 2, height, width


def _labels_of(found: list[Found], truth: pd.DataFrame | None) -> tuple[dict[int, dict[str, str]], Agreement | None]:
    """What a table of labelled positions says of the cells, by their number, and how well the two agree."""
    if truth is None:
        return {}, None
    places = np.array([(cell.x, cell.y) for cell in found]).reshape(-1, 2)
    reach = 0.5 * float(np.median([cell.diameter for cell in found])) if found else 0.0
    pairs = match(places, truth[["x", "y"]].to_numpy(float), reach)
    known = {}
    for cell, position in pairs:
        entry = truth.iloc[int(position)]
        columns = [column for column in ("label", "donor", "simulated") if entry.get(column, "")]
        known[int(cell)] = {column: str(entry[column]) for column in columns}
    return known, Agreement(len(found), len(truth), len(pairs))


def _propose(cells: list[dict[str, Any]], nuclear: list[dict[str, float] | None]) -> list[str]:
    """Fill in the proposals: by a classifier where enough cells are labelled to train one, else by the textbook."""
    if all(features is None for features in nuclear):
        return []
    features, labels = feature_table(nuclear), [record["label"] for record in cells]
    note, proposals = "Proposals follow the textbook's sizes and shapes of nuclei.", None
    if len(set(labels) - {""}) > 1:
        try:
            proposer = fit_proposer(features, labels)
            proposals = proposer.propose(features)
            share = f"{100 * proposer.agreement:.0f} %"
            note = f"Proposals come from the nuclei of the labelled cells (cross-validated macro recall {share})."
        except CellsError as error:
            note = f"{note} For a classifier of your own labels: {error}."
    if proposals is None:
        proposals = propose(features)
    for record, one in zip(cells, proposals.to_dict("records"), strict=True):
        if one["proposed"]:
            record |= {"proposed": one["proposed"], "confidence": f"{one['confidence']:.3f}"}
    return [note]


def _notes(table: pd.DataFrame, fields: Sequence[CroppedField]) -> list[str]:
    empty = [one.row.field for one in fields if not one.found]
    notes = []
    if not len(table):
        notes.append("No cells were found in any field.")
    elif empty:
        more = f" and {len(empty) - 3} more" if len(empty) > 3 else ""
        notes.append(f"No cells were found in {', '.join(empty[:3])}{more}.")
    labelled = int((table["label"] != "").sum())
    if labelled < len(table):
        proposed = int((table["proposed"] != "").sum())
        hint = f"; {proposed} have a proposal for a person to confirm" if proposed else ""
        notes.append(f"{len(table) - labelled} of {len(table)} cells have no label{hint}.")
    return notes


def _focus(crop: np.ndarray) -> float:
    """Focus at the crop's own contrast: before training nobody knows what will be black and white."""
    low, high = float(crop.min()), float(crop.max())
    return quality(crop, low, high if high > low else low + 1)["focus"]

"""Cut fields of view into crops of single cells: `urnet crop`, and the same again in front of a trained model.

Read top to bottom: find the fields, agree on one pixel size, even out the light, put the nuclei in their place, find
the cells, cut them out, say what is known of each, and write a folder that training and prediction take as it is.
"""

import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from urnet.cells.labels import check_labels
from urnet.cells.table import TABLE_NAME
from urnet.errors import CellsError, ImageError, list_first
from urnet.fields.cropping.extract import extract_crop, make_preview, to_grey, write_image
from urnet.fields.cropping.new_fields import drop_absent_choices, drop_absent_nuclei
from urnet.fields.cropping.settings import SETTINGS_NAME, CropSettings, choose_pixel_size
from urnet.fields.detection.detect import Detection, detect
from urnet.fields.detection.matching import Agreement
from urnet.fields.duplicates import FieldDescriber, drop_duplicate_planes
from urnet.fields.field_or_crop import check_not_crops
from urnet.fields.io.read import FieldInfo, open_field, partner_z
from urnet.fields.labels.nuclear_features import nuclear_features
from urnet.fields.labels.positions import match_labels, note_unmatched_labels, read_labels
from urnet.fields.labels.propose import feature_table, fit_proposer, propose
from urnet.fields.preprocessing.corrected_field import CorrectedField
from urnet.fields.preprocessing.illumination import (
    Illumination,
    estimate_illumination,
    measure_illumination,
    read_flat_field,
)
from urnet.fields.preprocessing.registration import Shift, register
from urnet.fields.table import FieldRow, check_options_agree, check_output_location, find_fields
from urnet.files.atomic import atomic_folder
from urnet.files.csv_tables import write_frame
from urnet.files.user_tables import unify_donors
from urnet.images.quality import measure_quality
from urnet.names import normalize_name
from urnet.progress import Progress

MIN_FIELDS_FOR_ILLUMINATION = 5
"""Fields from which new light is estimated in front of a trained model; with fewer, the training's is used."""

MAX_SHIFT_SHARE = 0.05
"""How far nuclei may lie from the brightfield, as a share of the field's shorter edge."""

MAX_ASPECT_DIFFERENCE = 0.05
"""How far the ratio of a field's edges may be from that of the image of an empty spot, as a logarithm."""

NOTHING_DETECTED_HINT = (
    "Look at the fields in the report: are they the brightfield (--channel), at a z where cells show a rim (--z), of "
    "the right pixel size, and do --diameter and --roundness allow these cells?"
)
"""What to look at where nothing was found."""

REGISTRATION_WINDOW_PX = 2048
"""Edge of the middle part of a field from which the shift of its nuclei is measured, px."""

FieldGuard = Callable[[FieldRow], AbstractContextManager[Any]]
"""Holds what is done with one field. Where it lets an error pass, that field is left out and the others go on."""


@dataclass(frozen=True)
class CroppedField:
    """What came of one field.

    Args:
        row: where it is.
        info: its size and pixels.
        detections: the cells in it.
        shift: by how much the nuclei were moved; none without nuclei.
        preview: the evenly lit field, reduced.
        preview_scale: field pixels per pixel of the preview.
        agreement: with the positions in a table of labels; none without.
    """

    row: FieldRow
    info: FieldInfo
    detections: list[Detection]
    shift: Shift | None
    preview: np.ndarray
    preview_scale: float
    agreement: Agreement | None


@dataclass(frozen=True)
class CropResult:
    """What `crop_fields` wrote.

    Args:
        folder: the cells folder.
        table: its cells.
        fields: field by field.
        settings: as used, with the chosen pixel size and illumination.
        notes: what the user should know.
    """

    folder: Path
    table: pd.DataFrame
    fields: list[CroppedField]
    settings: CropSettings
    notes: list[str] = field(default_factory=list)


def crop_fields(
    fields: Path,
    out: Path,
    settings: CropSettings | None = None,
    *,
    labels: Path | None = None,
    folder_names: Literal["label", "donor"] | None = None,
    flat: Path | None = None,
    dark: Path | None = None,
    for_prediction: bool = False,
    scene: str | None = None,
    guard: FieldGuard | None = None,
    progress: Progress | None = None,
) -> CropResult:
    """Cut fields into cells.

    Args:
        fields: an image, a folder of images, or a field table.
        out: new cells folder: `cells.csv`, `cells/`, `masks/`, `nuclei/`, `crop.json`, `report.html`.
        settings: how; the default when not given.
        labels: table with `field,x,y,label` (and `donor`); a cell takes the label of the position that it covers.
        folder_names: what the name of the folder that a field lies in says.
        flat: image of an empty spot, for the light.
        dark: image without light.
        for_prediction: use the settings of a trained model's crops unchanged: require the same pixel size, correct few
            fields with the model's illumination, and write no notes on labels.
        scene: of every field, instead of the one in `settings`.
        guard: is asked before each piece of work on one field, and may leave that field out; without it, the first
            that cannot be read ends it all.
        progress: called with what is done and the share of it.

    Raises:
        CellsError: no fields, settings that contradict the files, images that look like crops already, or `out` holds
            something.
        ImageError: a field cannot be read, or its nuclei do not belong to it; or `guard` left out all of them.
    """
    say = progress or (lambda what, share: None)
    guarded = guard or (lambda row: nullcontext())
    asked = settings or CropSettings()
    if dark is not None and flat is None:
        raise CellsError(f"--dark {dark} without --flat; a dark image corrects nothing by itself")
    if flat is not None and asked.light == "none":
        raise CellsError(f"--flat {flat} with --light none; leave one of them out")
    check_output_location(out, fields)
    notes: list[str] = []
    may_be_absent = asked
    if scene is not None:
        check_options_agree(fields, scene=scene)
        asked, may_be_absent = replace(asked, scene=scene), replace(asked, scene=None)
    if for_prediction:
        asked, notes = drop_absent_nuclei(asked, fields)
    else:
        names = ("nuclei", "nuclei_channel", "channel", "z", "scene")
        check_options_agree(fields, **{name: getattr(asked, name) for name in names})
    root, rows = find_fields(
        fields,
        nuclei=asked.nuclei,
        nuclei_channel=asked.nuclei_channel,
        channel=asked.channel,
        z=asked.z,
        scene=asked.scene,
    )
    if folder_names is not None:
        rows = _name_by_folder(rows, root, folder_names)
    infos: dict[FieldRow, FieldInfo] = {}
    fields_of = FieldDescriber()
    for row in rows:
        with guarded(row):
            known = drop_absent_choices(row, may_be_absent, fields_of) if for_prediction else row
            infos[known] = fields_of.describe(known)
    infos, told = drop_duplicate_planes(infos)
    notes += told
    rows = _left(list(infos), fields)
    pixels = {row: row.pixel_um or info.pixel_um for row, info in infos.items()}
    doubted = {row.field: info.implausible_um for row, info in infos.items() if info.implausible_um is not None}
    how, said = choose_pixel_size(asked, rows, list(pixels.values()), for_prediction, doubted)
    notes += said
    if not for_prediction:
        check_not_crops(fields, how, infos, pixels)
    truth = read_labels(labels, rows, list(infos.values())) if labels is not None else None

    def as_trained() -> bool:  # also where leaving fields out has made them few
        return for_prediction and len(rows) < MIN_FIELDS_FOR_ILLUMINATION and how.illumination is not None

    with atomic_folder(out) as folder:
        if flat is not None:
            how = replace(how, light="given", illumination=read_flat_field(flat, dark))
        elif how.light == "estimated" and not as_trained():
            say("estimate light", 0.0)
            measured = {}
            for row in rows:
                with guarded(row), open_field(row.brightfield, channel=row.channel, z=row.z, scene=row.scene) as one:
                    measured[row] = measure_illumination(one)
            rows = _left(list(measured), fields)
            if not as_trained():
                how = replace(how, illumination=estimate_illumination(list(measured.values())))
        if how.light == "given" and how.illumination is not None:
            _check_light(how.illumination, {row: infos[row] for row in rows})
        if how.illumination is not None:  # as it will be stored, so that the same fields give the same crops again
            how = replace(how, illumination=Illumination.from_json(how.illumination.to_json()))
        table, nuclear, done, stems = [], [], [], set()
        for number, row in enumerate(rows):
            stem, finished = _free_stem(row.field, stems), len(done)
            with guarded(row):
                cells, features, result = _crop_field(folder, stem, row, pixels[row], how, truth)
                table += cells
                nuclear += features
                done.append(result)
            if len(done) == finished:
                for kind in ("cells", "masks", "nuclei"):
                    shutil.rmtree(folder / kind / stem, ignore_errors=True)
            say("crop fields", (number + 1) / len(rows))
        _left(done, fields)
        proposed = _propose(table, nuclear)
        notes += [] if for_prediction else proposed
        frame = pd.DataFrame(table, columns=list(_COLUMNS))
        kept = [column for column in _COLUMNS if column in ("path", "label") or (frame[column] != "").any()]
        write_frame(folder / TABLE_NAME, frame[kept])
        how.save(folder / SETTINGS_NAME)
        if truth is not None:
            notes += note_unmatched_labels(truth, [one.agreement for one in done if one.agreement is not None])
        notes += _notes(frame, done, for_prediction)
        cropped = CropResult(Path(out), frame, done, how, notes)
        from urnet.fields.cropping.report import write_crop_report

        write_crop_report(folder / "report.html", cropped)
    return cropped


_COLUMNS = (
    *("path", "label", "proposed", "confidence", "donor", "field", "x", "y", "source", "target_nuclei", "mask"),
    *("scale", "diameter", "focus", "touching", "edge", "simulated"),
)


def _name_by_folder(rows: list[FieldRow], root: Path, what: Literal["label", "donor"]) -> list[FieldRow]:
    names = []
    for row in rows:
        above = normalize_name(Path(row.field).parent.name)
        if not above:
            raise CellsError(
                f"{root / row.field}: lies in no folder of its own below {root}, so no folder's name can be its "
                f"{what}; sort the fields into one folder a {what}, or name it in a field table"
            )
        names.append(getattr(row, what) or above)
    if what == "donor":
        names = unify_donors(root, names, "fields")
    else:
        check_labels(root, pd.Series(names, index=[row.field for row in rows]), "the field {}")
    return [replace(row, **{what: name}) for row, name in zip(rows, names, strict=True)]


def _free_stem(field: str, taken: set[str]) -> str:
    """A field's folder below `cells/`: its name, safe as one anywhere, and no other field's in any case of letters."""
    stem = re.sub(r"[^\w.-]", "_", str(Path(field).with_suffix("")).replace("/", "__")).strip(".") or "_"
    while stem.casefold() in taken:
        stem += "_"
    taken.add(stem.casefold())
    return stem


def _left(those: list[Any], fields: Path) -> list[Any]:
    """Fields that an guard did not leave out, or an error where it left out all of them."""
    if not those:
        raise ImageError(f"{fields}: none of the fields can be used")
    return those


def _check_light(light: Illumination, infos: Mapping[FieldRow, FieldInfo]) -> None:
    """Images of an empty spot are stretched over a field of another binning, but not over another camera area."""
    height, width = light.flat.shape
    for row, info in infos.items():
        if abs(math.log(info.width / info.height * height / width)) > MAX_ASPECT_DIFFERENCE:
            raise ImageError(
                f"{row.brightfield} is {info.width} x {info.height} px, and the image of an empty spot has another "
                f"shape ({width} to {height}); both must be taken with the same camera area"
            )


def _crop_field(
    folder: Path, stem: str, row: FieldRow, pixel: float | None, how: CropSettings, truth: pd.DataFrame | None
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
        known, agreement = match_labels(found, mine)
        cells, features = [], []
        for number, cell in enumerate(found):
            name = f"{stem}/{number:05d}"
            crop, mask, edge = extract_crop(bright, cell, how.size, zoom)
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
                glow, _, _ = extract_crop(nuclei, cell, how.size, zoom)
                record["target_nuclei"] = f"nuclei/{name}{write_image(folder / 'nuclei' / name, glow)}"
                measured = nuclear_features(glow, mask, how.pixel_um)
            features.append(measured)
            cells.append(record)
        return cells, features, CroppedField(row, bright.field.info, found, shift, *make_preview(bright), agreement)


@contextmanager
def _views(row: FieldRow, how: CropSettings) -> Iterator[tuple[CorrectedField, CorrectedField | None, Shift | None]]:
    """The brightfield in even light, and the nuclei moved onto it."""
    with open_field(row.brightfield, channel=row.channel, z=row.z, scene=row.scene) as field:
        bright = CorrectedField(field, how.illumination)
        if row.nuclei is None:
            yield bright, None, None
            return
        z = row.z if row.nuclei == row.brightfield else partner_z(row.nuclei, row.z, row.scene)
        with open_field(row.nuclei, channel=row.nuclei_channel, z=z, scene=row.scene) as glowing:
            if bright.shape != (glowing.info.height, glowing.info.width):
                raise ImageError(
                    f"{row.brightfield} is {bright.shape[1]} x {bright.shape[0]} px and its nuclei {row.nuclei} are "
                    f"{glowing.info.width} x {glowing.info.height} px; both must show the same field at the same size"
                )
            top, left, height, width = _middle(bright.shape)
            try:
                shift = register(
                    to_grey(bright.read(top, left, height, width)),
                    to_grey(glowing.read(top, left, height, width)),
                    MAX_SHIFT_SHARE * min(bright.shape),
                )
            except ImageError as error:
                raise ImageError(f"{row.brightfield} and {row.nuclei}: {error}") from None
            yield bright, CorrectedField(glowing, shift=shift), shift


def _middle(shape: tuple[int, int]) -> tuple[int, int, int, int]:
    height, width = (min(REGISTRATION_WINDOW_PX, edge) for edge in shape)
    return (shape[0] - height) // 2, (shape[1] - width) // 2, height, width


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


def _notes(table: pd.DataFrame, fields: Sequence[CroppedField], for_prediction: bool) -> list[str]:
    empty = [one.row.field for one in fields if not one.detections]
    notes = []
    depths = sorted({one.info.dtype for one in fields})
    if len(depths) > 1:
        notes.append(f"Fields are {' and '.join(depths)}: their counts do not compare, and crops keep them.")
    if not len(table):
        notes.append("No cells were found in any field." + ("" if for_prediction else f" {NOTHING_DETECTED_HINT}"))
    elif empty:
        notes.append(f"No cells were found in {list_first(empty)}.")
    labelled = int((table["label"] != "").sum())
    if labelled < len(table) and not for_prediction:
        proposed = int((table["proposed"] != "").sum())
        hint = f"; {proposed} have a proposal for a person to confirm" if proposed else ""
        notes.append(f"{len(table) - labelled} of {len(table)} cells have no label{hint}.")
    return notes


def _focus(crop: np.ndarray) -> float:
    """Focus at the crop's own contrast: before training nobody knows what will be black and white."""
    low, high = float(crop.min()), float(crop.max())
    return measure_quality(crop, low, high if high > low else low + 1)["focus"]

"""Crop single cells from fields of view: `urnet crop`, and the first step of `urnet differential`.

`crop_fields` reads from top to bottom:

1. List the fields, and describe their files.
2. Choose one pixel size for all crops.
3. Estimate the illumination.
4. For each field: align the nuclei, detect the cells, and write their crops (`one_field.py`).
5. Propose classes from the nuclei.
6. Write the cells table, the settings and the report.

Training and prediction read the resulting folder as it is.
"""

import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from urnet.cells.labels import check_labels
from urnet.cells.table import TABLE_NAME
from urnet.errors import CellsError, ImageError, list_first
from urnet.fields.cropping.checks import check_illumination_shape, check_not_crops
from urnet.fields.cropping.new_fields import drop_absent_choices, drop_absent_nuclei
from urnet.fields.cropping.one_field import COLUMNS, crop_field
from urnet.fields.cropping.pixel_size import choose_pixel_size
from urnet.fields.cropping.report import write_crop_report
from urnet.fields.cropping.result import CroppedField, CropResult
from urnet.fields.cropping.settings import SETTINGS_NAME, CropSettings
from urnet.fields.duplicates import drop_duplicate_planes
from urnet.fields.io.pool import FieldPool
from urnet.fields.io.read import FieldInfo
from urnet.fields.labels.positions import note_unmatched_labels, read_labels
from urnet.fields.labels.propose import feature_table, fit_proposer, propose
from urnet.fields.preprocessing.illumination import (
    Illumination,
    estimate_illumination,
    measure_illumination,
    read_flat_field,
)
from urnet.fields.table import (
    FieldRow,
    FieldSource,
    check_options_agree,
    check_output_location,
    find_fields,
    list_source,
)
from urnet.files.atomic import atomic_folder
from urnet.files.csv_tables import write_frame
from urnet.files.user_tables import unify_donors
from urnet.names import normalize_name
from urnet.progress import Progress

MIN_FIELDS_FOR_ILLUMINATION = 5
"""Number of new fields from which a prediction estimates their illumination. With fewer, the model's is used."""

NOTHING_DETECTED_HINT = (
    "Check the fields in the report: is the channel the brightfield (--channel)? Do cells show a rim at this z (--z)? "
    "Is the pixel size right? Do --diameter and --roundness allow these cells?"
)
"""What to check where no cell was detected."""

FieldGuard = Callable[[FieldRow], AbstractContextManager[Any]]
"""Context in which one field is processed. Where it suppresses an error, that field is left out."""


def crop_fields(
    fields: Path | FieldSource,
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
    pool: FieldPool | None = None,
    progress: Progress | None = None,
) -> CropResult:
    """Crop the cells of fields.

    Args:
        fields: an image, a folder of images, or a field table; or what `list_source` returned for it.
        out: new cells folder: `cells.csv`, `cells/`, `masks/`, `nuclei/`, `crop.json`, `report.html`.
        settings: how to crop; the defaults when not given.
        labels: table with `field,x,y,label` (and `donor`). A cell takes the label of the position that it covers.
        folder_names: meaning of the name of the folder that a field lies in.
        flat: flat-field image: an image of an empty spot.
        dark: image without light.
        for_prediction: use the settings of a trained model's crops unchanged: require the same pixel size, correct few
            fields with the model's illumination, and write no notes on labels.
        scene: scene of every field, in place of the one in `settings`.
        guard: context in which each step on one field runs, and which may leave out that field. Without it, the first
            field that cannot be read ends the command.
        pool: opens the files; a pool of its own when not given.
        progress: called with the current step and the finished share of it.

    Raises:
        CellsError: no fields, settings that contradict the files, images that look like crops, or `out` holds
            something.
        ImageError: a field cannot be read, or its nuclei do not belong to it; or `guard` left out all fields.
    """
    update = progress or (lambda step, share: None)
    guarded = guard or (lambda row: nullcontext())
    settings = settings or CropSettings()
    if dark is not None and flat is None:
        raise CellsError(
            f"--dark {dark} needs --flat: a dark image alone corrects nothing", code="fields.dark_without_flat"
        )
    if flat is not None and settings.light == "none":
        raise CellsError(
            f"--flat {flat} contradicts --light none; leave one of them out", code="fields.flat_without_light"
        )
    check_output_location(out, fields.path if isinstance(fields, FieldSource) else fields)
    source = fields if isinstance(fields, FieldSource) else list_source(fields)
    with ExitStack() as stack:
        pool = pool or stack.enter_context(FieldPool())

        # 1. Fields and files
        settings, optional, rows, notes = _list_rows(source, settings, scene, for_prediction)
        if folder_names is not None:
            rows = _name_by_folder(rows, source.root, folder_names)
        infos: dict[FieldRow, FieldInfo] = {}
        for row in rows:
            with guarded(row):
                usable = drop_absent_choices(row, optional, pool) if for_prediction else row
                infos[usable] = pool.describe(usable.brightfield, usable.scene)
        infos, duplicates = drop_duplicate_planes(infos)
        notes += duplicates
        rows = _require_some(list(infos), source)

        # 2. Pixel size
        pixels = {row: row.pixel_um or info.pixel_um for row, info in infos.items()}
        implausible = {row.field: info.implausible_um for row, info in infos.items() if info.implausible_um is not None}
        settings, pixel_notes = choose_pixel_size(settings, rows, list(pixels.values()), for_prediction, implausible)
        notes += pixel_notes
        if not for_prediction:
            check_not_crops(source, settings, infos, pixels)
        positions = read_labels(labels, rows, list(infos.values())) if labels is not None else None

        folder = stack.enter_context(atomic_folder(out))

        # 3. Illumination
        if flat is not None:
            settings = replace(settings, light="given", illumination=read_flat_field(flat, dark))
        elif settings.light == "estimated" and not _use_model_illumination(settings, rows, for_prediction):
            update("estimate light", 0.0)
            measured = {}
            for row in rows:
                with (
                    guarded(row),
                    pool.open(row.brightfield, channel=row.channel, z=row.z, scene=row.scene) as field,
                ):
                    measured[row] = measure_illumination(field)
            rows = _require_some(list(measured), source)
            if not _use_model_illumination(settings, rows, for_prediction):  # fewer fields, where some were left out
                settings = replace(settings, illumination=estimate_illumination(list(measured.values())))
        if settings.light == "given" and settings.illumination is not None:
            check_illumination_shape(settings.illumination, {row: infos[row] for row in rows})
        if settings.illumination is not None:  # rounded as in crop.json, so that a prediction gives the same crops
            settings = replace(settings, illumination=Illumination.from_json(settings.illumination.to_json()))

        # 4. Cells
        table: list[dict[str, Any]] = []
        features: list[dict[str, float] | None] = []
        cropped: list[CroppedField] = []
        stems: set[str] = set()
        for number, row in enumerate(rows):
            stem, finished = _free_stem(row.field, stems), len(cropped)
            with guarded(row):
                cells = crop_field(folder, stem, row, pixels[row], settings, positions, pool)
                table += cells.rows
                features += cells.features
                cropped.append(cells.field)
            if len(cropped) == finished:
                for kind in ("cells", "masks", "nuclei"):
                    shutil.rmtree(folder / kind / stem, ignore_errors=True)
            update("crop fields", (number + 1) / len(rows))
        _require_some(cropped, source)

        # 5. Proposals
        proposal_notes = _propose(table, features)
        notes += [] if for_prediction else proposal_notes

        # 6. Files
        frame = pd.DataFrame(table, columns=list(COLUMNS))
        used = [column for column in COLUMNS if column in ("path", "label") or (frame[column] != "").any()]
        write_frame(folder / TABLE_NAME, frame[used])
        settings.save(folder / SETTINGS_NAME)
        if positions is not None:
            notes += note_unmatched_labels(positions, [one.agreement for one in cropped if one.agreement is not None])
        notes += _notes(frame, cropped, for_prediction)
        result = CropResult(Path(out), frame, cropped, settings, notes)
        write_crop_report(folder / "report.html", result)
    return result


def _list_rows(
    source: FieldSource, settings: CropSettings, scene: str | None, for_prediction: bool
) -> tuple[CropSettings, CropSettings, list[FieldRow], list[str]]:
    """List the fields.

    Returns:
        The settings for these fields, the settings that a field may do without, the fields, and notes.
    """
    notes: list[str] = []
    optional = settings
    if scene is not None:
        check_options_agree(source, scene=scene)
        settings, optional = replace(settings, scene=scene), replace(settings, scene=None)
    if for_prediction:
        settings, notes = drop_absent_nuclei(settings, source)
    else:
        names = ("nuclei", "nuclei_channel", "channel", "z", "scene")
        check_options_agree(source, **{name: getattr(settings, name) for name in names})
    _, rows = find_fields(
        source,
        nuclei=settings.nuclei,
        nuclei_channel=settings.nuclei_channel,
        channel=settings.channel,
        z=settings.z,
        scene=settings.scene,
    )
    return settings, optional, rows, notes


def _use_model_illumination(settings: CropSettings, rows: list[FieldRow], for_prediction: bool) -> bool:
    return for_prediction and len(rows) < MIN_FIELDS_FOR_ILLUMINATION and settings.illumination is not None


def _name_by_folder(rows: list[FieldRow], root: Path, what: Literal["label", "donor"]) -> list[FieldRow]:
    """Take the label or donor of each field from the name of its folder, where its table does not state it."""
    names = []
    for row in rows:
        above = normalize_name(Path(row.field).parent.name)
        if not above:
            raise CellsError(
                f"{root / row.field}: this field lies in no folder below {root} whose name could be its {what}. Sort "
                f"the fields into one folder per {what}, or name the {what} in a field table",
                code="fields.folder_missing",
            )
        names.append(getattr(row, what) or above)
    if what == "donor":
        names = unify_donors(root, names, "fields")
    else:
        check_labels(root, pd.Series(names, index=[row.field for row in rows]), "the field {}")
    return [replace(row, **{what: name}) for row, name in zip(rows, names, strict=True)]


def _free_stem(field: str, taken: set[str]) -> str:
    """Name the folder of a field below `cells/`: valid on every system, and unique regardless of letter case."""
    stem = re.sub(r"[^\w.-]", "_", str(Path(field).with_suffix("")).replace("/", "__")).strip(".") or "_"
    while stem.casefold() in taken:
        stem += "_"
    taken.add(stem.casefold())
    return stem


def _require_some(fields: list[Any], source: FieldSource) -> list[Any]:
    """Return the fields that `guard` did not leave out, or raise an error where there are none."""
    if not fields:
        raise ImageError(f"{source.path}: none of the fields can be used", code="fields.none_usable")
    return fields


def _propose(cells: list[dict[str, Any]], nuclear: list[dict[str, float] | None]) -> list[str]:
    """Fill in proposed classes: from a classifier where enough cells have labels, else from the textbook rule."""
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
            note = f"{note} No classifier was trained on your labels: {error}."
    if proposals is None:
        proposals = propose(features)
    for record, one in zip(cells, proposals.to_dict("records"), strict=True):
        if one["proposed"]:
            record |= {"proposed": one["proposed"], "confidence": f"{one['confidence']:.3f}"}
    return [note]


def _notes(table: pd.DataFrame, fields: Sequence[CroppedField], for_prediction: bool) -> list[str]:
    empty = [one.row.field for one in fields if not one.detections]
    notes = []
    types = sorted({one.info.dtype for one in fields})
    if len(types) > 1:
        notes.append(
            f"Fields have pixels of types {' and '.join(types)}. Crops keep these values, which cannot be compared."
        )
    if not len(table):
        notes.append("No cell was detected in any field." + ("" if for_prediction else f" {NOTHING_DETECTED_HINT}"))
    elif empty:
        notes.append(f"No cell was detected in {list_first(empty)}.")
    labelled = int((table["label"] != "").sum())
    if labelled < len(table) and not for_prediction:
        proposed = int((table["proposed"] != "").sum())
        hint = f"; {proposed} have a proposed class for a person to confirm" if proposed else ""
        notes.append(f"{len(table) - labelled} of {len(table)} cells have no label{hint}.")
    return notes

"""Adapt the crop settings of a trained model to new fields.

The fields of the training may have had nuclear fluorescence, several channels or several scenes. New fields are
stain-free, and may hold nothing but the brightfield.
"""

import os
from dataclasses import replace
from pathlib import Path

from urnet.errors import CellsError
from urnet.fields.cropping.settings import CropSettings
from urnet.fields.io.pool import FieldPool
from urnet.fields.table import FieldRow, FieldSource, find_fields, partner_path
from urnet.files.paths import is_outside
from urnet.images.read import is_file


def drop_absent_nuclei(settings: CropSettings, source: FieldSource) -> tuple[CropSettings, list[str]]:
    """Drop the pattern of the nuclei where no new field has nuclei. A pattern that holds for some fields stays.

    A model may come from an unknown source, so its pattern is followed only within the given folder. A field table may
    name nuclei anywhere.

    Args:
        settings: how the fields of the training were cut.
        source: the new fields.

    Returns:
        How to cut the new fields, and notes for the user.

    Raises:
        CellsError: as `find_fields`; the pattern leads out of the folder through a link (`fields.nuclei_outside`).
    """
    if settings.nuclei is None:
        return settings, []
    root, rows = find_fields(source)
    partners = [partner_path(row.brightfield, settings.nuclei) for row in rows]
    outside = [(row, path) for row, path in zip(rows, partners, strict=True) if _is_outside(root, row, path)]
    linked = [path for _, path in outside if ".." not in Path(os.path.relpath(path, root)).parts]
    if linked:
        raise CellsError(
            f"{linked[0]}: this file has nuclei by the pattern of the model ({settings.nuclei}), but it is a link out "
            "of the folder of the fields. The pattern of a model is followed only within that folder. Put the nuclei "
            "there, or name them in a field table",
            code="fields.nuclei_outside",
        )
    if not outside and any(is_file(path) for path in partners):
        return settings, []
    without = replace(settings, nuclei=None, nuclei_channel=None)
    if any(row.nuclei is not None for row in rows):  # a field table names them
        return without, []
    note = (
        f"The cells of the training were detected with their nuclei ({settings.nuclei}). The folder of these fields "
        "has no nuclei, so cells are detected in brightfield alone, and more of them are red cells and debris that the "
        "model has to reject. A field table can name nuclei elsewhere."
    )
    return without, [note]


def _is_outside(root: Path, row: FieldRow, partner: Path) -> bool:
    """Return whether the nuclei of a field lie neither in the folder of the fields nor in that of the field."""
    folders = (root, row.brightfield.parent)
    return all(is_outside(folder, os.path.relpath(partner, folder)) for folder in folders)


def drop_absent_choices(row: FieldRow, settings: CropSettings, pool: FieldPool) -> FieldRow:
    """Drop the model's channel, scene and z plane for a field whose file has only one.

    Args:
        row: the field, with the settings of the model where its table leaves them open.
        settings: how the fields of the training were cut.
        pool: opens the file.

    Raises:
        ImageError: the file cannot be read.
    """
    info = pool.describe(row.brightfield)
    if row.scene == settings.scene and len(info.scenes) == 1:
        row = replace(row, scene=None)
    if row.channel == settings.channel and len(info.channels) == 1:
        row = replace(row, channel=None)
        if row.nuclei == row.brightfield:
            row = replace(row, nuclei=None, nuclei_channel=None)
    numbered = row.z is not None and row.z == settings.z and row.z.strip().isdigit()
    if numbered and pool.describe(row.brightfield, row.scene).planes == 1:
        row = replace(row, z=None)
    return row

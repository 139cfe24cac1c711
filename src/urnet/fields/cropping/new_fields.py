"""In front of a trained model: new fields may have less in them than the training's, and are cut all the same.

The training's fields came with nuclear fluorescence, in several channels or scenes; those to be counted are stain-free,
and may hold nothing but the brightfield.
"""

import os
from dataclasses import replace
from pathlib import Path

from urnet.errors import CellsError
from urnet.fields.cropping.settings import CropSettings
from urnet.fields.duplicates import FieldDescriber
from urnet.fields.table import FieldRow, find_fields, partner_path
from urnet.files.paths import is_outside
from urnet.images.read import is_file


def drop_absent_nuclei(asked: CropSettings, fields: Path) -> tuple[CropSettings, list[str]]:
    """Leave out the pattern of the nuclei where it names no file at all; one that is there for some fields is kept.

    The pattern comes with a model, perhaps from elsewhere, and is followed only within the folder that was given. A
    field table may name nuclei anywhere.

    Args:
        asked: how the training's fields were cut.
        fields: the new ones: an image, a folder, or a field table.

    Returns:
        How to cut these, and what there is to say about it.

    Raises:
        CellsError: as `find_fields`; the pattern leads out of the folder through a link (`fields.nuclei_outside`).
    """
    if asked.nuclei is None:
        return asked, []
    root, rows = find_fields(fields)
    partners = [partner_path(row.brightfield, asked.nuclei) for row in rows]
    outside = [(row, one) for row, one in zip(rows, partners, strict=True) if _leads_out(root, row, one)]
    linked = [one for _, one in outside if ".." not in Path(os.path.relpath(one, root)).parts]
    if linked:
        raise CellsError(
            f"{linked[0]}: nuclei by the model's pattern ({asked.nuclei}), and a link out of the folder of the fields; "
            "a model's pattern is followed only within it. Put the nuclei there, or name them in a field table",
            code="fields.nuclei_outside",
        )
    if not outside and any(is_file(one) for one in partners):
        return asked, []
    without = replace(asked, nuclei=None, nuclei_channel=None)
    if any(row.nuclei is not None for row in rows):  # their table names them
        return without, []
    note = (
        f"The training's cells were found by their nuclei ({asked.nuclei}), which are not in the folder of these "
        "fields: these are found in brightfield alone, among which are more red cells and debris to be rejected. A "
        "field table can name nuclei elsewhere."
    )
    return without, [note]


def _leads_out(root: Path, row: FieldRow, partner: Path) -> bool:
    """Whether a field's partner lies neither in the folder of the fields nor in the field's own, a link perhaps."""
    folders = (root, row.brightfield.parent)
    return all(is_outside(folder, os.path.relpath(partner, folder)) for folder in folders)


def drop_absent_choices(row: FieldRow, asked: CropSettings, fields: FieldDescriber) -> FieldRow:
    """A field whose file has a single channel, scene or z plane needs none of the training's names for them.

    Args:
        row: the field, with what its table leaves open filled from `asked`.
        asked: how the training's fields were cut.
        fields: describes the file.

    Raises:
        ImageError: the file cannot be read.
    """
    info = fields.describe(replace(row, scene=None))
    if row.scene == asked.scene and len(info.scenes) == 1:
        row = replace(row, scene=None)
    if row.channel == asked.channel and len(info.channels) == 1:
        row = replace(row, channel=None)
        if row.nuclei == row.brightfield:
            row = replace(row, nuclei=None, nuclei_channel=None)
    if row.z is not None and row.z == asked.z and row.z.strip().isdigit() and fields.describe(row).planes == 1:
        row = replace(row, z=None)
    return row

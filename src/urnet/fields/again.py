"""In front of a trained model: new fields may have less in them than the training's, and are cut all the same.

The training's fields came with nuclear fluorescence, in several channels or scenes; those to be counted are stain-free,
and may hold nothing but the brightfield.
"""

from dataclasses import replace
from pathlib import Path

from urnet.fields.cropping import Cropping
from urnet.fields.sets import Describer
from urnet.fields.table import FieldRow, find_fields, partner_of
from urnet.images.read import is_file


def without_absent_nuclei(asked: Cropping, fields: Path) -> tuple[Cropping, list[str]]:
    """Leave out the pattern of the nuclei where it names no file at all; one that is there for some fields is kept.

    Args:
        asked: how the training's fields were cut.
        fields: the new ones: an image, a folder, or a field table.

    Returns:
        How to cut these, and what there is to say about it.

    Raises:
        CellsError: as `find_fields`.
    """
    if asked.nuclei is None:
        return asked, []
    _, rows = find_fields(fields)
    partners = [partner_of(row.brightfield, asked.nuclei) for row in rows]
    if any(is_file(one) for one in partners):
        return asked, []
    without = replace(asked, nuclei=None, nuclei_channel=None)
    if any(row.nuclei is not None for row in rows):  # their table names them
        return without, []
    note = (
        f"The training's cells were found by their nuclei ({asked.nuclei}), which are not here: these are found in "
        "brightfield alone, among which are more red cells and debris to be rejected."
    )
    return without, [note]


def with_what_is_there(row: FieldRow, asked: Cropping, fields: Describer) -> FieldRow:
    """A field whose file has a single channel or scene needs none of the training's names for them.

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
    return row

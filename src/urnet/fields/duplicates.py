"""Keep each plane once, however many files and rows of a table lead to it.

All files of a multi-file image hold all of its scenes. In a folder, or among uploads, such a set is one field, named
after the first of its files.
"""

import os
from collections.abc import Mapping

from urnet.errors import CellsError, ImageError, list_first
from urnet.fields.io.projection import PROJECTIONS
from urnet.fields.io.read import FieldInfo, choose_by_name
from urnet.fields.table import FieldRow


def drop_duplicate_planes(infos: Mapping[FieldRow, FieldInfo]) -> tuple[dict[FieldRow, FieldInfo], list[str]]:
    """Leave out fields whose plane is that of an earlier field.

    Args:
        infos: fields, and what their files hold.

    Returns:
        The other fields, and a note for each set of files and each plane that several fields name.

    Raises:
        CellsError: `fields.plane_twice` where fields of one plane have different donors or labels.
    """
    originals: dict[tuple, FieldRow] = {}
    duplicates: dict[FieldRow, list[FieldRow]] = {}
    for row, info in infos.items():
        key = (os.path.realpath(info.files[0]), info.scene, _channel(row, info), _plane(row, info))
        original = originals.setdefault(key, row)
        if original is row:
            continue
        if (row.donor, row.label) != (original.donor, original.label):
            raise CellsError(
                f"{row.field}: shows the same plane as {original.field}, with another donor or label. Name each plane "
                "of a file, and each set of files, in one row",
                code="fields.plane_twice",
            )
        duplicates.setdefault(original, []).append(row)
    left_out = {row for rows in duplicates.values() for row in rows}
    notes = [
        f"{original.field} and {len(rows)} other file(s) hold one image, which is used once: "
        f"{list_first([row.field for row in rows])}."
        if len(infos[original].files) > 1
        else f"{list_first([row.field for row in rows])}: same plane as {original.field}; its cells count once."
        for original, rows in duplicates.items()
    ]
    return {row: info for row, info in infos.items() if row not in left_out}, notes


def _channel(row: FieldRow, info: FieldInfo) -> str:
    """Return the number of the channel as text, or the name as written where the file has no such channel."""
    try:
        return str(choose_by_name(row.brightfield, "channel", row.channel, info.channels))
    except ImageError:
        return (row.channel or "").strip()


def _plane(row: FieldRow, info: FieldInfo) -> str:
    """Return the z plane or projection in one spelling; "" where there is one plane, which every choice gives."""
    choice = (row.z or "").strip().lower()
    number = choice.isascii() and choice.isdigit()
    if info.planes == 1 and (not choice or choice in PROJECTIONS or (number and int(choice) == 0)):
        return ""
    return choice.lstrip("0") or "0" if number else choice

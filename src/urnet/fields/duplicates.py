"""Count every plane once, however many files and rows of a table lead to it.

All files of a multi-file image expose all scenes of it. In a folder, or among uploads, such a set is one field, which
goes by the first of its files.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from urnet.errors import CellsError, ImageError, list_first
from urnet.fields.io.read import PROJECTIONS, FieldInfo, choose_by_name, describe_field
from urnet.fields.table import FieldRow


class FieldDescriber:
    """Describes fields, and the files of one set only once."""

    def __init__(self) -> None:
        self._of_sets: dict[tuple[Path, str | None], FieldInfo] = {}

    def describe(self, row: FieldRow) -> FieldInfo:
        """What the file of a field holds.

        Raises:
            ImageError: as `describe_field`.
        """
        known = self._of_sets.get((row.brightfield, row.scene))
        if known is not None:
            return known
        info = describe_field(row.brightfield, row.scene)
        if len(info.files) > 1:
            self._of_sets |= {(file, row.scene): info for file in info.files}
        return info


def drop_duplicate_planes(infos: Mapping[FieldRow, FieldInfo]) -> tuple[dict[FieldRow, FieldInfo], list[str]]:
    """Leave out fields whose plane is that of an earlier one.

    Args:
        infos: fields, and what their files hold.

    Returns:
        Those that are left, and a note for each set of files and each plane that was named again.

    Raises:
        CellsError: `fields.plane_twice` where fields of one plane have different donors or labels.
    """
    first: dict[tuple, FieldRow] = {}
    again: dict[FieldRow, list[FieldRow]] = {}
    for row, info in infos.items():
        key = (os.path.realpath(info.files[0]), info.scene, _channel(row, info), _plane(row, info))
        original = first.setdefault(key, row)
        if original is row:
            continue
        if (row.donor, row.label) != (original.donor, original.label):
            raise CellsError(
                f"{row.field}: shows the same plane as {original.field}, with another donor or label; name each plane "
                "of a file, and each set of files, in one row",
                code="fields.plane_twice",
            )
        again.setdefault(original, []).append(row)
    left_out = {row for rows in again.values() for row in rows}
    notes = [
        f"{original.field} and {len(rows)} other file(s) hold one image and were read once: "
        f"{list_first([row.field for row in rows])}."
        if len(infos[original].files) > 1
        else f"{list_first([row.field for row in rows])}: the same plane as {original.field}; its cells count once."
        for original, rows in again.items()
    ]
    return {row: info for row, info in infos.items() if row not in left_out}, notes


def _channel(row: FieldRow, info: FieldInfo) -> str:
    """The channel's number, by whichever name it is called; as it is written where there is none of that name."""
    try:
        return str(choose_by_name(row.brightfield, "channel", row.channel, info.channels))
    except ImageError:
        return (row.channel or "").strip()


def _plane(row: FieldRow, info: FieldInfo) -> str:
    """The z plane or projection in one spelling; "" where there is one plane, which all of them give."""
    asked = (row.z or "").strip().lower()
    number = asked.isascii() and asked.isdigit()
    if info.planes == 1 and (not asked or asked in PROJECTIONS or (number and int(asked) == 0)):
        return ""
    return asked.lstrip("0") or "0" if number else asked

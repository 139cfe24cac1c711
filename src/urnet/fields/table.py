"""List the fields of an image, a folder of images or a field table, each with its nuclei where there are any.

A field table is a CSV with the columns `field, brightfield, nuclei, donor, pixel_size_um, channel, nuclei_channel, z,
scene, label, simulated`. Only `field` or `brightfield` is required. In a folder of fields it has the name `fields.csv`.
Paths are relative to the table. Rows that name several scenes of one file differ in `field`.
"""

import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from urnet.cells.labels import check_labels
from urnet.errors import CellsError
from urnet.fields.io.read import FIELD_SUFFIXES
from urnet.files.paths import DiskNames
from urnet.files.search import find_files
from urnet.files.user_tables import read_table
from urnet.images.read import is_file

TABLE_NAME = "fields.csv"

COLUMNS = (
    *("field", "brightfield", "nuclei", "donor", "pixel_size_um", "channel", "nuclei_channel", "z", "scene", "label"),
    "simulated",
)


@dataclass(frozen=True)
class FieldRow:
    """One field of view.

    Args:
        field: its name in all tables: its path relative to the root, with forward slashes, or the name in its table.
        brightfield: the file.
        nuclei: the file with its nuclear fluorescence, which may be the same file; none where there is none.
        donor: donor of its cells; "" where unknown.
        label: class of all its cells; "" where unknown.
        pixel_um: µm per px in the table; none where the table does not state it.
        channel: name or number of the brightfield channel; none where there is one channel.
        nuclei_channel: name or number of the channel with the nuclei.
        z: plane or projection, as for `urnet.fields.io.read.open_field`.
        scene: name or number of the scene.
        simulated: how the images were simulated; "" for real images.
    """

    field: str
    brightfield: Path
    nuclei: Path | None = None
    donor: str = ""
    label: str = ""
    pixel_um: float | None = None
    channel: str | None = None
    nuclei_channel: str | None = None
    z: str | None = None
    scene: str | None = None
    simulated: str = ""


@dataclass(frozen=True)
class FieldSource:
    """Fields as the user gave them, listed once.

    Args:
        path: an image, a folder of images, or a field table.
        root: the folder that the names of fields are relative to.
        files: the images; empty for a field table.
        table: the field table; none where there is none.
        rows: rows of the field table.
    """

    path: Path
    root: Path
    files: tuple[Path, ...] = ()
    table: Path | None = None
    rows: tuple[dict, ...] = ()


def list_source(path: Path) -> FieldSource:
    """List the images of a folder, or read a field table. No image is opened.

    Args:
        path: an image; a folder, which is searched with its subfolders but without hidden files; a folder with
            `fields.csv`; or a CSV.

    Raises:
        CellsError: no such path, no images, or a table with unknown columns, duplicate fields or invalid values.
    """
    path = Path(path)
    if path.is_dir():
        table = path / TABLE_NAME
        if is_file(table):
            return FieldSource(path, path, table=table, rows=tuple(_read_rows(table)))
        return FieldSource(path, path, files=tuple(find_files(path, FIELD_SUFFIXES)))
    if not is_file(path):
        raise CellsError(
            f"{path}: no such file or folder; give an image, a folder of images or a field table (CSV)",
            code="fields.missing",
        )
    if path.suffix.lower() == ".csv":
        return FieldSource(path, path.parent, table=path, rows=tuple(_read_rows(path)))
    return FieldSource(path, path.parent, files=(path,))


def find_fields(
    source: Path | FieldSource,
    *,
    nuclei: str | None = None,
    nuclei_channel: str | None = None,
    channel: str | None = None,
    z: str | None = None,
    scene: str | None = None,
) -> tuple[Path, list[FieldRow]]:
    """Return the fields of an image, a folder or a table, with their nuclei. No image is opened.

    Args:
        source: a path as for `list_source`, or what that function returned.
        nuclei: pattern of the files with the nuclei, relative to the folder of the brightfield. `*` stands for the name
            of the brightfield without its suffix: `*_nuclei.tif`, `../dapi/*.tif`. Such files are not fields.
        nuclei_channel: the channel with the nuclei, of the nuclei's file or, without one, of the brightfield's file.
        channel: the channel with the brightfield.
        z: plane or projection.
        scene: scene of every file. The last four fill in what a table leaves open.

    Returns:
        The folder that names are relative to, and the fields, sorted by name or in the order of the table.

    Raises:
        CellsError: as `list_source`, a missing file, or nuclei without a brightfield.
    """
    if nuclei is not None:
        _check_pattern(nuclei)
    if not isinstance(source, FieldSource):
        source = list_source(source)
    rows = []
    for row in source.rows if source.table is not None else _rows_of_files(source, nuclei):
        partner = row.get("nuclei") or (partner_path(row["brightfield"], nuclei) if nuclei is not None else None)
        partner_channel = row.get("nuclei_channel") or nuclei_channel
        if partner is None and partner_channel:
            partner = row["brightfield"]
        rows.append(
            FieldRow(
                field=row["field"],
                brightfield=row["brightfield"],
                nuclei=partner,
                donor=row.get("donor", ""),
                label=row.get("label", ""),
                pixel_um=row.get("pixel_um"),
                channel=row.get("channel") or channel,
                nuclei_channel=partner_channel if partner is not None else None,
                z=row.get("z") or z,
                scene=row.get("scene") or scene,
                simulated=row.get("simulated", ""),
            )
        )
    _check_there(source.path, [(row.field, row.brightfield) for row in rows], "field")
    _check_there(source.path, [(row.field, row.nuclei) for row in rows if row.nuclei is not None], "field's nuclei")
    return source.root, rows


def check_options_agree(source: FieldSource, **options: str | None) -> None:
    """Refuse an option that a field table contradicts in every row. Options only fill in what a table leaves open.

    Args:
        source: the fields.
        options: `nuclei` (a pattern), `nuclei_channel`, `channel`, `z` and `scene`, as they were given.

    Raises:
        CellsError: the table names another value for every field.
    """
    for name, given in options.items():
        if given is None or not source.rows or not all(row.get(name) for row in source.rows):
            continue
        if name == "nuclei":
            same = all(
                Path(os.path.normpath(row[name])) == partner_path(row["brightfield"], given) for row in source.rows
            )
        else:
            same = all(row[name].strip() == given.strip() for row in source.rows)
        if not same:
            option = f"--{name.replace('_', '-')} {given}"
            raise CellsError(
                f"{source.table}: the column {name!r} has a value for every field, and not always that of {option}. "
                "Leave the option out, or empty the column where the option is to apply",
                code="fields.option_contradicts_table",
            )


def check_output_location(out: Path, fields: Path) -> None:
    """Refuse an output folder among the fields, where the next command would take the crops for fields.

    Args:
        out: the output folder.
        fields: an image, a folder of images or a field table.

    Raises:
        CellsError: the fields are a folder that is searched, and `out` lies in it.
    """
    searched = fields.is_dir() and not is_file(fields / TABLE_NAME)
    if searched and out.resolve().is_relative_to(fields.resolve()):
        raise CellsError(
            f"{out}: this folder lies in the folder of the fields, {fields}, and the next command would take its crops "
            "for fields. Choose another --out",
            code="fields.output_among_fields",
        )


def _rows_of_files(source: FieldSource, nuclei: str | None) -> Iterator[dict]:
    files = source.files
    if not files:
        kinds = ", ".join(sorted(suffix[1:] for suffix in FIELD_SUFFIXES))
        raise CellsError(
            f"{source.path}: no image in this folder or below; fields are files that end in {kinds}",
            code="fields.none",
        )
    if nuclei is not None and len(files) > 1:
        place = {file: Path(os.path.normpath(file)) for file in files}
        partner = {file: partner_path(file, nuclei) for file in files}
        named = set(partner.values())  # nuclei in a folder of their own name themselves
        fields = tuple(file for file in files if place[file] not in named)
        claimed = {partner[file] for file in fields}
        alone = [
            file
            for file in files
            if place[file] not in claimed and (partner[file] == place[file] or _matches_pattern(file, nuclei))
        ]
        if alone:
            raise CellsError(
                f"{alone[0]}: the name matches the pattern of nuclei ({nuclei}), but there is no brightfield for it "
                f"({len(alone)} such file(s)). Add the brightfield, remove the file, or name the pairs in a field "
                "table",
                code="fields.brightfield_missing",
            )
        files = fields
    for file in files:
        yield {"field": _compose(file.relative_to(source.root).as_posix()), "brightfield": file}


def _compose(name: str) -> str:
    """Return a field's name in composed Unicode, as in tables; disks may use the decomposed form."""
    return unicodedata.normalize("NFC", name)


def _read_rows(path: Path) -> list[dict]:
    table = read_table(path, COLUMNS, path_columns=("field", "brightfield", "nuclei"), row_noun="fields")
    if "field" not in table and "brightfield" not in table:
        raise CellsError(
            f"{path}: the table has neither a column 'field' nor 'brightfield'; add one with the files",
            code="fields.column_missing",
        )
    if "label" in table:
        check_labels(path, table["label"])
    rows, on_disk = [], DiskNames(path.parent)
    for line, record in zip(table.index, table.to_dict("records"), strict=True):
        name = record.get("field", "").strip() or record.get("brightfield", "").strip()
        if not name:
            raise CellsError(
                f"{path}: line {line} names no field; fill in the column 'field'", code="fields.name_missing"
            )
        row = {key: value for key, value in record.items() if value}
        file = record.get("brightfield", "").strip() or name
        row |= {"field": _compose(name), "brightfield": path.parent / on_disk.spell(file)}
        if row.get("nuclei", "").strip():
            row["nuclei"] = path.parent / on_disk.spell(row["nuclei"].strip())
        row["pixel_um"] = _pixel(path, line, record.get("pixel_size_um", ""))
        rows.append(row)
    twice = [name for name, count in Counter(row["field"] for row in rows).items() if count > 1]
    if twice:
        raise CellsError(
            f"{path}: {sum(row['field'] == twice[0] for row in rows)} lines name the field {twice[0]!r}. Give "
            "each a name of its own in 'field'. For scenes of one file, put the file into 'brightfield' and the "
            "scene into 'scene'",
            code="fields.name_twice",
        )
    return rows


def _pixel(path: Path, line: int, text: str) -> float | None:
    if not text:
        return None
    if not 0 < float(text) < math.inf:
        raise CellsError(
            f"{path}: line {line}: pixel_size_um is {text!r}; it must be above 0, in µm per pixel",
            code="fields.pixel_size_invalid",
        )
    return float(text)


def _check_pattern(nuclei: str) -> None:
    if "*" not in nuclei or Path(nuclei).is_absolute() or Path(nuclei).suffix.lower() not in FIELD_SUFFIXES:
        raise CellsError(
            f"the pattern of nuclei is {nuclei!r}; it must be a path relative to the folder of the brightfield, with * "
            "for the name of the brightfield and the suffix of an image: '*_nuclei.tif', '../dapi/*.tif'",
            code="fields.pattern_invalid",
        )


def partner_path(brightfield: Path, nuclei: str) -> Path:
    """Return the path of a field's nuclei by a pattern; ".ome" counts as part of the suffix."""
    stem = re.sub(r"\.ome$", "", brightfield.stem, flags=re.IGNORECASE)
    return Path(os.path.normpath(brightfield.parent / nuclei.replace("*", stem)))


def _matches_pattern(file: Path, nuclei: str) -> bool:
    """Return whether a file matches a pattern of nuclei, by its name and its folder."""
    pattern = Path(nuclei)
    names = re.compile(re.escape(pattern.name).replace(r"\*", "(.+)"), re.IGNORECASE)
    folder = pattern.parent.name
    return names.fullmatch(file.name) is not None and (folder == "" or file.parent.name == folder)


def _check_there(root: Path, files: list[tuple[str, Path]], what: str) -> None:
    missing = [(name, file) for name, file in files if not is_file(file)]
    if missing:
        name, file = missing[0]
        more = f" ({len(missing)} such files)" if len(missing) > 1 else ""
        if what == "field" and file.is_symlink():
            raise CellsError(
                f"{root}: the field {name} is a broken link{more}. Repair or remove it", code="files.link_broken"
            )
        raise CellsError(
            f"{root}: the field {name} is missing at {file}{more}. Paths are relative to the table"
            if what == "field"
            else f"{root}: the {what} of {name}, {file}, is missing{more}. Add the file, or correct the table or the "
            "pattern",
            code="fields.missing",
        )

"""Which fields there are: an image, a folder of images, or a table of them, each with its nuclei where there are any.

A field table is a CSV, `fields.csv` in a folder of fields or of any name, with the columns `field, brightfield, nuclei,
donor, pixel_size_um, channel, nuclei_channel, z, scene, label, simulated`, of which only `field` or `brightfield` has
to be there. Paths are relative to the table. Rows that name several scenes of one file differ in `field`.
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
        field: its name in all tables: its path relative to the root, with forward slashes, or as its table names it.
        brightfield: the file.
        nuclei: the file with its nuclear fluorescence, which may be the same; none where there is none.
        donor: whose cells it shows; "" where not known.
        label: what all its cells are; "" where not known.
        pixel_um: µm per px as the table says; none where it does not.
        channel: name or number of the brightfield's channel; none where there is one.
        nuclei_channel: likewise of the nuclei.
        z: plane or projection, as `urnet.fields.io.read.open_field` takes it.
        scene: name or number of the scene.
        simulated: how the images were simulated; "" for real ones.
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


def find_fields(
    root: Path,
    *,
    nuclei: str | None = None,
    nuclei_channel: str | None = None,
    channel: str | None = None,
    z: str | None = None,
    scene: str | None = None,
) -> tuple[Path, list[FieldRow]]:
    """The fields of an image, a folder or a table. No image is opened.

    Args:
        root: an image; a folder, which is searched whole, hidden files passed over; a folder with `fields.csv`; or a
            CSV.
        nuclei: names the nuclei of a field by a pattern relative to its folder, in which `*` stands for the
            brightfield's name without its ending: `*_nuclei.tif`, `../dapi/*.tif`. Such files are no fields.
        nuclei_channel: the channel with the nuclei, of the partner or, without one, of the same file.
        channel: the brightfield's channel.
        z: plane or projection.
        scene: scene of every file. These four fill what a table leaves open.

    Returns:
        The folder that paths are relative to, and the fields, in order of their names or of the table.

    Raises:
        CellsError: nothing there, no images, a missing file or partner, nuclei without a brightfield, or a table with
            misspelt columns, doubled fields or values that cannot be.
    """
    root = Path(root)
    if nuclei is not None:
        _check_pattern(nuclei)
    if root.is_dir():
        table = root / TABLE_NAME
        folder = root
        rows = _from_table(table) if is_file(table) else _from_files(root, find_files(root, FIELD_SUFFIXES), nuclei)
    elif is_file(root):
        folder = root.parent
        rows = _from_table(root) if root.suffix.lower() == ".csv" else _from_files(folder, [root], nuclei)
    else:
        raise CellsError(f"{root}: no such file or folder; give an image, a folder of images or a field table (CSV)")
    settled = []
    for row in rows:
        glow = row.get("nuclei") or (partner_path(row["brightfield"], nuclei) if nuclei is not None else None)
        glow_channel = row.get("nuclei_channel") or nuclei_channel
        if glow is None and glow_channel:
            glow = row["brightfield"]
        settled.append(
            FieldRow(
                field=row["field"],
                brightfield=row["brightfield"],
                nuclei=glow,
                donor=row.get("donor", ""),
                label=row.get("label", ""),
                pixel_um=row.get("pixel_um"),
                channel=row.get("channel") or channel,
                nuclei_channel=glow_channel if glow is not None else None,
                z=row.get("z") or z,
                scene=row.get("scene") or scene,
                simulated=row.get("simulated", ""),
            )
        )
    _check_there(root, [(row.field, row.brightfield) for row in settled], "field")
    partners = [(row.field, row.nuclei) for row in settled if row.nuclei is not None]
    _check_there(root, partners, "field's nuclei")
    return folder, settled


def check_options_agree(root: Path, **options: str | None) -> None:
    """Options only fill what a field table leaves open: one that it contradicts in every row would do nothing.

    Args:
        root: as for `find_fields`.
        options: `nuclei` (a pattern), `nuclei_channel`, `channel`, `z` and `scene`, as they were given.

    Raises:
        CellsError: one of them is named otherwise by the table for every field.
    """
    table = root / TABLE_NAME if root.is_dir() else root
    if table.suffix.lower() != ".csv" or not is_file(table):
        return
    rows = _from_table(table)
    for name, given in options.items():
        if given is None or not rows or not all(row.get(name) for row in rows):
            continue
        if name == "nuclei":
            same = all(Path(os.path.normpath(row[name])) == partner_path(row["brightfield"], given) for row in rows)
        else:
            same = all(row[name].strip() == given.strip() for row in rows)
        if not same:
            raise CellsError(
                f"{table}: its column {name!r} names that of every field, and --{name.replace('_', '-')} {given} says "
                f"otherwise; leave the option out, or empty the column where the option is to hold"
            )


def check_output_location(out: Path, fields: Path) -> None:
    """Crops are not written among the fields, where they would be fields the next time.

    Args:
        out: what is to be written.
        fields: an image, a folder of images or a field table.

    Raises:
        CellsError: the fields are a folder that is searched, and `out` lies in it.
    """
    searched = fields.is_dir() and not is_file(fields / TABLE_NAME)
    if searched and out.resolve().is_relative_to(fields.resolve()):
        raise CellsError(
            f"{out}: lies in the folder of the fields {fields}, and its crops would be taken for fields the next time; "
            "choose another --out"
        )


def _from_files(root: Path, files: list[Path], nuclei: str | None) -> Iterator[dict]:
    if not files:
        kinds = ", ".join(sorted(suffix[1:] for suffix in FIELD_SUFFIXES))
        raise CellsError(f"{root}: no image in this folder or below; fields are files that end in {kinds}")
    if nuclei is not None and len(files) > 1:
        place = {file: Path(os.path.normpath(file)) for file in files}
        partner = {file: partner_path(file, nuclei) for file in files}
        named = set(partner.values())  # of which nuclei in a folder of their own name themselves
        fields = [file for file in files if place[file] not in named]
        claimed = {partner[file] for file in fields}
        alone = [
            file
            for file in files
            if place[file] not in claimed and (partner[file] == place[file] or _looks_like(file, nuclei))
        ]
        if alone:
            raise CellsError(
                f"{alone[0]}: named like nuclei ({nuclei}), but no brightfield belongs to it ({len(alone)} such "
                "file(s)); add the brightfield, remove the file, or name the pairs in a field table"
            )
        files = fields
    for file in files:
        yield {"field": _composed(file.relative_to(root).as_posix()), "brightfield": file}


def _composed(name: str) -> str:
    """A field's name as tables have it, whatever Unicode form the disk uses."""
    return unicodedata.normalize("NFC", name)


def _from_table(path: Path) -> list[dict]:
    table = read_table(path, COLUMNS, path_columns=("field", "brightfield", "nuclei"), row_noun="fields")
    if "field" not in table and "brightfield" not in table:
        raise CellsError(f"{path}: the table has neither a column 'field' nor 'brightfield'; add one with the files")
    if "label" in table:
        check_labels(path, table["label"])
    rows, on_disk = [], DiskNames(path.parent)
    for line, record in zip(table.index, table.to_dict("records"), strict=True):
        name = record.get("field", "").strip() or record.get("brightfield", "").strip()
        if not name:
            raise CellsError(f"{path}: line {line} names no field; fill in the column 'field'")
        row = {key: value for key, value in record.items() if value}
        file = record.get("brightfield", "").strip() or name
        row |= {"field": _composed(name), "brightfield": path.parent / on_disk.spell(file)}
        if row.get("nuclei", "").strip():
            row["nuclei"] = path.parent / on_disk.spell(row["nuclei"].strip())
        row["pixel_um"] = _pixel(path, line, record.get("pixel_size_um", ""))
        rows.append(row)
    twice = [name for name, count in Counter(row["field"] for row in rows).items() if count > 1]
    if twice:
        raise CellsError(
            f"{path}: field {twice[0]!r} stands in {sum(row['field'] == twice[0] for row in rows)} lines; name each "
            "differently in 'field' (for scenes of one file: the file in 'brightfield', the scene in 'scene')"
        )
    return rows


def _pixel(path: Path, line: int, text: str) -> float | None:
    if not text:
        return None
    if not 0 < float(text) < math.inf:
        raise CellsError(f"{path}: line {line}: pixel_size_um is {text!r}; it must be above 0: µm per pixel")
    return float(text)


def _check_pattern(nuclei: str) -> None:
    if "*" not in nuclei or Path(nuclei).is_absolute() or Path(nuclei).suffix.lower() not in FIELD_SUFFIXES:
        raise CellsError(
            f"the pattern for nuclei is {nuclei!r}; it names a file relative to the brightfield's folder, with * for "
            "the brightfield's name and an image's ending: '*_nuclei.tif', '../dapi/*.tif'"
        )


def partner_path(brightfield: Path, nuclei: str) -> Path:
    """Where a field's nuclei lie by a pattern; ".ome" counts as part of the ending."""
    stem = re.sub(r"\.ome$", "", brightfield.stem, flags=re.IGNORECASE)
    return Path(os.path.normpath(brightfield.parent / nuclei.replace("*", stem)))


def _looks_like(file: Path, nuclei: str) -> bool:
    """Whether a file could be what a pattern names, by its name and the folder that it lies in."""
    pattern = Path(nuclei)
    names = re.compile(re.escape(pattern.name).replace(r"\*", "(.+)"), re.IGNORECASE)
    folder = pattern.parent.name
    return names.fullmatch(file.name) is not None and (folder == "" or file.parent.name == folder)


def _check_there(root: Path, files: list[tuple[str, Path]], what: str) -> None:
    missing = [(name, file) for name, file in files if not is_file(file)]
    if missing:
        name, file = missing[0]
        more = f" ({len(missing)} such files)" if len(missing) > 1 else ""
        raise CellsError(
            f"{root}: the {what} of {name}, {file}, is missing{more}; add it, or correct the table or the pattern"
            if what != "field"
            else f"{root}: the field {name} is a broken link{more}. Repair or remove it"
            if file.is_symlink()
            else f"{root}: the field {name} is missing at {file}{more}; paths are relative to the table"
        )

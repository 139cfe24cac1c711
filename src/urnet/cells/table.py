"""The cells table: one row a cell, read from a CSV or from a folder per class.

Columns: `path` and `label`, and where known `donor`, `field`, `x`, `y`, `split`, `source`, `target`, `target_nuclei`,
`target_stain`, `target_clean`, `tile`, `fold`, `augmented`, `simulated`, `left_out`; of cells cut out of fields also
`mask`, `proposed`, `confidence`, `scale`, `diameter`, `focus`, `touching`, `edge`; of a run's cells `content` and
`target_content`, see `urnet.cells.pixel_hashes`. Paths are relative to the table,
with forward slashes. `source` says which original image a cell comes from; where the table does not give it, it is the
file's path (a tile's address).
"""

import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from urnet.errors import CellsError, ImageError, list_first
from urnet.files.csv_tables import write_frame
from urnet.files.paths import DiskNames, is_outside
from urnet.files.search import find_files, find_folders, refuse_broken_links
from urnet.files.user_tables import read_table
from urnet.images.montage import Address, list_images, read_crop, resolve_address
from urnet.images.read import MIN_EDGE, SUFFIXES, is_file
from urnet.names import find_lookalikes, is_missing, normalize_name, quote_name

if TYPE_CHECKING:
    from urnet.cells.cache.crops import CachedCrops

logger = logging.getLogger(__name__)

TARGET_COLUMNS = ("target", "target_nuclei", "target_stain", "target_clean")
"""Columns that name a paired image of the same cell."""

PATH_COLUMNS = ("path", *TARGET_COLUMNS, "mask")
"""Columns that name files."""

CROP_COLUMNS = ("proposed", "confidence", "scale", "diameter", "focus", "touching", "edge")
"""Columns that say what was seen of a cell when it was cut out of its field; nothing is trained on them."""

HASH_COLUMNS = {"path": "content", **{column: f"{column}_content" for column in TARGET_COLUMNS}}
"""Columns that say what the pixels of an image were when a run was begun, by the column that names the image."""

COLUMNS = (
    *("path", "label", "donor", "field", "x", "y", "split", "source", *TARGET_COLUMNS, "mask"),
    *("tile", "fold", "augmented", "simulated", "left_out", *CROP_COLUMNS, *HASH_COLUMNS.values()),
)

_IGNORED_COLUMNS = (
    *("x_*", "predicted", "p_*", "rejected", "set", "enhanced", "cam", "engine", "error"),
    *("labelled_by", "labelled_at", "corrected_by", "model", "kind", "finding", "detail"),
)
"""Other columns of the tables that commands and the bench write, and those that a user was told to call `x_…`."""

PARTS = ("train", "validation", "test")

PART_FOLDERS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Names of folders that hold a part of a given split, in lower case."""

_PART_NAMES = {*PART_FOLDERS, "dev", "holdout"}
_PART_PATTERN = "|".join(sorted(_PART_NAMES))
_PART_NAME_PATTERN = re.compile(
    rf"(?:{_PART_PATTERN})(?:[ _.-].*|[ _.-]?set|\d+)?|.*[ _.-](?:{_PART_PATTERN})|fold[ _.-]?\d+"
)
"""Other names of folders of parts, in lower case: `train_images`, `cells_test`, `dev`, `trainset`, `fold1`."""

TABLE_NAME = "cells.csv"


class MissingFilesError(CellsError):
    """Files that a table names are not where it says.

    Args:
        message: what is missing, in words.
        files: all of them, as the table names them.
    """

    def __init__(self, message: str, files: Sequence[str]):
        super().__init__(message)
        self.files = tuple(files)


@dataclass(frozen=True)
class Cells:
    """Labelled crops.

    Attributes:
        root: folder that the paths are relative to.
        table: one row a cell, columns as in the module's docstring; text columns hold "" where nothing is known.
        classes: the labels in the order of the network's outputs.
        cached_crops: the crops as the cache has them, which are then not decoded; see `urnet.cells.cache.crops`.
    """

    root: Path
    table: pd.DataFrame
    classes: tuple[str, ...] = ()
    cached_crops: "CachedCrops | None" = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def labels(self) -> np.ndarray:
        """Index of each cell's label in `classes`, (N,) int64."""
        order = {name: index for index, name in enumerate(self.classes)}
        return self.table["label"].map(order).to_numpy(np.int64)

    @property
    def has_split(self) -> bool:
        """Whether any cell names its part."""
        return "split" in self.table and bool((self.table["split"] != "").any())

    @property
    def simulated(self) -> str:
        """How the images were simulated; "" for real ones."""
        return ", ".join(sorted(set(self.table["simulated"]) - {""})) if "simulated" in self.table else ""

    def is_complete(self, column: str) -> bool:
        """Whether a column is there and filled for every cell."""
        return column in self.table and bool((self.table[column] != "").all())

    def part(self, name: str) -> "Cells":
        """The cells of one part: `train`, `validation` or `test`."""
        return self.where(self.table["split"] == name)

    def where(self, mask: "pd.Series | np.ndarray") -> "Cells":
        """The cells for which a mask holds, in order."""
        rows = np.asarray(mask)
        table = self.table.loc[rows].reset_index(drop=True)
        return replace(self, table=table, cached_crops=self.cached_crops and self.cached_crops.select(table, rows))

    def with_columns(self, **columns: object) -> "Cells":
        """A copy with columns added or replaced."""
        table = self.table.assign(**columns)
        same = columns.keys().isdisjoint(("path", "tile"))
        return replace(
            self, table=table, cached_crops=self.cached_crops.select(table) if self.cached_crops and same else None
        )

    def read(self, index: int, column: str = "path") -> np.ndarray:
        """One cell's image (`path`) or a paired image (one of `TARGET_COLUMNS`), in raw counts.

        Raises:
            ImageError: the file cannot be read.
        """
        cached = self.cached_crops.read(self, index) if self.cached_crops is not None and column == "path" else None
        if cached is not None:
            return cached
        # Value by value: a whole row takes several times as long as a small crop.
        tile = self.table["tile"].iat[index] if "tile" in self.table else ""
        return read_crop(self.root, self.table[column].iat[index], int(tile) if tile != "" else None)

    def write(self, path: Path) -> None:
        """Write the table to a CSV; paths stay relative to `root`, or become relative to the CSV's own folder."""
        table = self.table
        if path.parent.resolve() != self.root.resolve():
            moved = {c: [_rebase(self.root, path.parent, p) for p in table[c]] for c in PATH_COLUMNS if c in table}
            table = table.assign(**moved)
        kept = [c for c in table if c in ("path", "label") or (table[c] != "").any()]
        write_frame(path, table[kept])


_IMAGE_COLUMNS = ("tile", "donor", "field", "x", "y", "simulated", "touching", "edge")
"""What a table says of unlabelled cells."""


def read_cells(
    path: Path,
    *,
    tile: int | None = None,
    image: str | None = None,
    target: str | None = None,
    classes: Mapping[str, Sequence[str]] | None = None,
    labelled: bool = True,
    contained: bool = False,
    as_written: bool = False,
) -> Cells:
    """Read labelled cells.

    Args:
        path: a CSV, a folder that holds `cells.csv`, or a folder with one sub-folder a class.
        tile: images are montages of square tiles with this edge in pixels, each tile a cell.
        image: in the folder form, the file of each class folder that holds the cells; all images when not given.
        target: in the folder form, the file of each class folder that holds the paired images.
        classes: merges labels: `{"granulocyte": ["neutrophil", "eosinophil", "basophil"], …}`. Also gives the order.
        labelled: whether labels and files must all be there; prediction reports a missing file in its own row instead.
        contained: whether all files must lie in the table's folder; for tables that nobody here wrote.
        as_written: keep the names as they are; for the table of a run, whose names were settled when it was begun.

    Raises:
        CellsError: no such table, no cells, missing columns or files, links that lead nowhere (`files.link_broken`),
            labels that no class names, that mean "not known" (`cells.label_missing`) or look alike
            (`cells.label_twins`), folders that may be the parts of a split (`cells.split_folders`), class folders that
            are one by a link (`cells.folder_twice`), a file outside (`cells.path_outside`).
        ImageError: a file whose pages or tiles cannot be counted.
    """
    path = Path(path)
    if path.is_dir():
        table_path = path / TABLE_NAME
        there = table_path.is_file()
        root = path
        table = (
            _read_csv(table_path, labelled, as_written) if there else _scan_class_folders(path, image, target, classes)
        )
    elif path.is_file():
        if path.suffix.lower() in SUFFIXES:
            raise CellsError(
                f"{path}: an image, no table of cells; give a cells table (CSV), or a folder that holds a folder of "
                "images for each class"
            )
        there, root, table = True, path.parent, _read_csv(path, labelled, as_written)
    else:
        raise CellsError(
            f"{path}: no such file or folder; give a cells table (CSV) or a folder with a folder per class"
        )
    if labelled:
        table = _drop_unlabelled(path, table)
    _check_rows(path, table, labelled)
    if there:
        _normalise_paths(path, root, table, contained)
    names: tuple[str, ...] = ()
    if "label" in table:
        if labelled and not as_written:
            _check_class_names(path, table["label"], classes, "row {}" if there else "a class folder")
        table["label"], names = _merge_labels(path, table["label"], classes)
    table = _expand_files(root, table, tile, labelled)
    if labelled:
        _check_files(root, table)
    source = table.get("source", pd.Series("", index=table.index))
    table["source"] = source.where(source != "", _list_sources(root, table))
    return Cells(root, table.reset_index(drop=True), names)


def find_images(
    paths: Iterable[Path | str], tile: int | None = None, image: str | None = None, *, contained: bool = False
) -> Cells:
    """Unlabelled images for prediction: files, folders (searched whole) and tables, as they were named.

    Args:
        paths: image files, folders, tables or folders with a table.
        tile: montages of tiles with this edge are cut up; files whose edges it does not divide are single crops.
        image: the file of each folder that holds the cells, as in training; where a folder has none of that name, all
            its images are taken.
        contained: whether all files that a table names must lie in its folder.

    Returns:
        A row an image: `path`, and what a table says of it besides, "" where it does not: `tile`, `donor`, `field`,
        `x`, `y`, `simulated`, `touching`, `edge`.

    Raises:
        CellsError: a path that does not exist, or nothing found; a table as in `read_cells`.
    """
    rows: list[dict[str, str]] = []
    for path in map(Path, paths):
        if path.suffix.lower() == ".csv" or (path / TABLE_NAME).is_file():
            cells = read_cells(path, tile=tile, labelled=False, contained=contained)
            kept = cells.table[[column for column in ("path", *_IMAGE_COLUMNS) if column in cells.table]]
            rows += [row | {"path": (cells.root / row["path"]).as_posix()} for row in kept.to_dict("records")]
            continue
        files = find_files(path, SUFFIXES) if path.is_dir() else [path]
        if path.is_dir():
            files = [file for file in files if file.name == image] or files
        if not files:
            raise CellsError(f"{path}: no PNG, JPEG, BMP or TIFF image in this folder or below")
        if not path.exists():
            raise CellsError(f"{path}: no such file or folder")
        for file in files:
            for address in _list_addresses(Path(), file.as_posix(), tile):
                rows.append({"path": str(address), "tile": str(tile) if address.row is not None else ""})
    if not rows:
        raise CellsError("no images given; name image files, folders or a table with a column 'path'")
    return Cells(Path(), pd.DataFrame(rows, columns=["path", *_IMAGE_COLUMNS]).fillna(""))


def _read_csv(path: Path, labelled: bool, as_written: bool) -> pd.DataFrame:
    """All columns that we know, as text; the index holds the line of each cell in the file."""
    table = read_table(
        path,
        COLUMNS,
        required=("path", "label") if labelled else ("path",),
        path_columns=PATH_COLUMNS,
        row_noun="cells",
        check_spelling=set(COLUMNS) - {*CROP_COLUMNS, *HASH_COLUMNS.values()},
        refuse_donor_synonyms=labelled,
        ignored=_IGNORED_COLUMNS if labelled else None,
        verbatim=as_written,
    )
    if "split" in table:
        table["split"] = table["split"].str.casefold()
    return table


def _normalise_paths(path: Path, root: Path, table: pd.DataFrame, contained: bool) -> None:
    """Spell file names as the disk does; in a contained table refuse those that lead out of its folder."""
    on_disk = DiskNames(root)

    def settled(text: str) -> str:
        if text.isascii() or (found := on_disk.spell(text)) != text:
            return text if text.isascii() else found
        address = Address.parse(text)
        return text if address.file == text else str(replace(address, file=on_disk.spell(address.file)))

    for column in PATH_COLUMNS:
        if column not in table:
            continue
        table[column] = table[column].map(settled)
        outside = [
            text for text in table[column] if text and contained and is_outside(root, resolve_address(root, text).file)
        ]
        if outside:
            raise CellsError(
                f"{path}: the column {column!r} names {outside[0]!r}, which lies outside the table's folder; a table "
                "that was sent names only files beside it or below: put them there, and write paths without '..'",
                code="cells.path_outside",
            )


def _scan_class_folders(
    root: Path, image: str | None, target: str | None, classes: Mapping[str, Sequence[str]] | None
) -> pd.DataFrame:
    folders = find_folders(root, SUFFIXES)
    if not folders:
        loose = len(find_files(root, SUFFIXES))
        raise CellsError(
            f"{root}: no {TABLE_NAME} and no folders named after classes here ({loose} loose images); "
            "sort the images into one folder a class, or write a CSV with the columns path,label"
        )
    for key, name in (("image", image), ("target", target)):
        if name and (Path(name).is_absolute() or ".." in Path(name).parts):
            raise CellsError(f"{key} is {name!r}; it must name a file within each class folder")
    parts = _list_split_folders(root, folders, classes) or [("", folder) for folder in folders]
    _refuse_duplicate_folders([folder for _, folder in parts])
    rows = []
    for part, folder in parts:
        files = [folder / image] if image else find_files(folder, SUFFIXES)
        refuse_broken_links(files)
        if not image:
            _refuse_nested_parts(root, folder, files, is_only=len(folders) == 1)
        files = [file for file in files if file.is_file()]
        if target:
            files = [file for file in files if locate_paired_file(file.relative_to(folder), target) is not None]
        if not files:
            raise CellsError(f"{folder}: the class folder holds no {image or 'image'}; add images or remove the folder")
        for file in files:
            row = {"path": file.relative_to(root).as_posix(), "label": normalize_name(folder.name)}
            if part:
                row["split"] = part
            if any("\ud800" <= letter <= "\udfff" for letter in row["path"]):
                raise CellsError(
                    f"{root}: the name {row['path']!a} is no Unicode text and fits no table; rename the file"
                )
            if target:
                row["target"] = (
                    (folder / locate_paired_file(file.relative_to(folder), target)).relative_to(root).as_posix()
                )
            rows.append(row)
    return pd.DataFrame(rows)


def locate_paired_file(file: Path, target: str) -> Path | None:
    """Where the paired image of a cell lies that is read from a class folder; none for a paired image itself.

    Args:
        file: the cell's file.
        target: the name of paired images, which may begin with a folder, relative to the cell's own.
    """
    names = Path(target).parts
    return None if file.parts[-len(names) :] == names else file.parent / target


def _refuse_duplicate_folders(folders: list[Path]) -> None:
    """Refuse links by which the images of one class folder would be those of another, or of another part, too."""
    place = {folder: Path(os.path.realpath(folder)) for folder in folders}
    first: dict[Path, Path] = {}
    for folder, real in place.items():
        if real in first:
            raise CellsError(
                f"{folder}: the same folder as {first[real]}, by a link; each class of each part has a folder of its "
                "own: remove one of the two",
                code="cells.folder_twice",
            )
        first[real] = folder
    for folder, real in place.items():
        holder = next((first[one] for one in real.parents if one in first), None)
        if holder is not None:
            raise CellsError(
                f"{folder}: a link to a folder in {holder}, which is a class folder too; its images would be in both: "
                "remove one of the two",
                code="cells.folder_twice",
            )


_TABLE_ADVICE = "write a cells table (CSV) with the columns path,label,split (or fold)"


def _refuse_nested_parts(root: Path, folder: Path, files: list[Path], *, is_only: bool) -> None:
    """Refuse sub-folders of a class folder that are named like parts: their images would be split anew.

    One that is called `train` or the like is enough; of others (`fold1`, `train_images`) all beside each other.

    Args:
        root: folder of the class folders.
        folder: a class folder.
        files: its images.
        is_only: whether it is the only folder in `root`, which may then be one level too high.

    Raises:
        CellsError: there are such folders (`cells.split_folders`).
    """
    inside: dict[Path, dict[str, None]] = {}
    for file in files:
        for place in file.relative_to(folder).parents[:-1]:
            inside.setdefault(folder / place.parent, {})[place.name] = None
    for place in sorted(inside):
        names = list(inside[place])
        parts = [name for name in names if name.casefold() in _PART_NAMES]
        if not parts and len(names) > 1 and all(_PART_NAME_PATTERN.fullmatch(name.casefold()) for name in names):
            parts = names
        if parts:
            fix = f"give {place} if it holds the split; else " if is_only else ""
            raise CellsError(
                f"{place}: holds the folders {list_first(parts)}, named like parts of a split, within the class folder "
                f"{folder.name!r}; a given split would be lost: {fix}move the parts above the classes "
                f"(train/{folder.name}/…), rename the folders if they are none, or {_TABLE_ADVICE}",
                code="cells.split_folders",
            )


def _list_split_folders(
    root: Path, folders: list[Path], classes: Mapping[str, Sequence[str]] | None
) -> list[tuple[str, Path]] | None:
    """The class folders with their parts, where the first folders are `train`, `validation` and `test`; else None.

    Raises:
        CellsError: it is not clear whether they are (`cells.split_folders`).
    """
    part_of = {folder: PART_FOLDERS.get(folder.name.casefold()) for folder in folders}
    parts = [part for part in part_of.values() if part is not None]
    names = ", ".join(folder.name for folder in folders)
    advice = _TABLE_ADVICE
    if not parts:
        if all(_PART_NAME_PATTERN.fullmatch(folder.name.casefold()) for folder in folders):
            raise CellsError(
                f"{root}: holds the folders {names}: they are named like parts of a split, not like classes; rename "
                f"them to train, validation and test, each with one folder a class, or {advice}",
                code="cells.split_folders",
            )
        return None
    if len(parts) < len(folders):
        which = ", ".join(folder.name for folder, part in part_of.items() if part is not None)
        reason = f"{which} may be a part of a split or a class"
    elif len(set(parts)) < len(parts):
        reason = "two of them name the same part"
    elif len(parts) == 1 or "train" not in parts:
        reason = "a split needs a folder 'train' and at least one of 'validation' and 'test'"
        advice = f"name the folder above the classes ({folders[0]}), or {advice}"
    else:
        reason = ""
    if reason:
        raise CellsError(f"{root}: holds the folders {names}: {reason}; {advice}", code="cells.split_folders")
    below, known = [], {}
    for folder, part in part_of.items():
        loose = [file.name for file in sorted(folder.iterdir()) if file.suffix.lower() in SUFFIXES and file.is_file()]
        if loose:
            raise CellsError(
                f"{folder}: holds images that are in no class folder ({list_first(loose)}); where the first folders "
                f"are parts ({names}), each holds one folder a class: move the images, or {advice}",
                code="cells.split_folders",
            )
        inside = find_folders(folder, SUFFIXES)
        below += [(part, one) for one in inside]
        to_class = {normalize_name(label): name for name, members in (classes or {}).items() for label in members}
        labels = (normalize_name(one.name) for one in inside)
        known[folder.name] = {to_class.get(label, label) for label in labels}
    everywhere = set.intersection(*known.values())
    lacking = [
        f"{folder} lacks {', '.join(missing)}"
        for folder in known
        if (missing := sorted(set.union(*known.values()) - known[folder]))
    ]
    if lacking or not everywhere:
        raise CellsError(
            f"{root}: its folders {names} are the parts of a split, but not each of them holds every class: "
            f"{'; '.join(lacking) or 'none holds a class folder'}; add cells of these classes, or {advice}",
            code="cells.split_folders",
        )
    told = ", ".join(f"{folder.name} = {part}" for folder, part in part_of.items())
    rest = "" if "validation" in parts else "; validation cells are taken from the training part, as the recipe says"
    logger.warning("%s: its folders are taken as the given split (%s)%s", root, told, rest)
    return below


def _drop_unlabelled(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Cells that were cut out of fields and wait for their label are left out; anywhere else a gap is a slip."""
    waiting = table["label"] == ""
    if not waiting.any() or not set(CROP_COLUMNS) & set(table.columns):
        return table
    hint = "; the column 'proposed' waits for a person to confirm it" if "proposed" in table else ""
    if waiting.all():
        raise CellsError(f"{path}: none of the {len(table)} cells has a label; fill in the column 'label'{hint}")
    logger.warning("%s: %d of %d cells have no label and are left out%s", path, waiting.sum(), len(table), hint)
    return table[~waiting]


def _check_rows(path: Path, table: pd.DataFrame, labelled: bool) -> None:
    for column in ("path", "label") if labelled else ("path",):
        empty = table.index[table[column].str.strip() == ""]
        if len(empty):
            raise CellsError(f"{path}: line {empty[0]} has no {column} ({len(empty)} such lines); fill them in")
    if "split" in table:
        strange = table["split"][~table["split"].isin([*PARTS, ""])]
        if len(strange):
            part = PART_FOLDERS.get(strange.iloc[0])
            fix = f"write {part}" if part else "correct it"
            raise CellsError(
                f"{path}: split is {strange.iloc[0]!r}; allowed are {', '.join(PARTS)}, or empty to leave out; {fix} "
                f"in row {strange.index[0]} ({len(strange)} such rows)",
                code="cells.split_unknown",
            )
    if "tile" in table:
        small = [edge for edge in table["tile"] if edge and int(edge) < MIN_EDGE]
        if small:
            raise CellsError(f"{path}: tile is {small[0]}; the edge of a tile must be at least {MIN_EDGE} px")


def _expand_files(root: Path, table: pd.DataFrame, tile: int | None, strict: bool) -> pd.DataFrame:
    """Rows that name a montage or a stack become a row for each of its images."""
    rows = []
    for record in table.to_dict("records"):
        edge = record.get("tile", "") or (str(tile) if tile else "")
        place = resolve_address(root, record["path"])
        whole = place == Address(record["path"])
        stack = Path(place.file).suffix.lower() in (".tif", ".tiff")
        if whole and (edge or stack) and is_file(root / place.file):
            places = _list_addresses(root, place.file, int(edge) if edge else None, strict=strict)
        else:
            places = [place]
        for one in places:
            row = record | {"path": str(one), "tile": edge if one.row is not None else ""}
            for column in TARGET_COLUMNS:
                if whole and record.get(column):
                    row[column] = str(replace(one, file=record[column]))
            rows.append(row)
    expanded = pd.DataFrame(rows)
    return expanded if (expanded["tile"] != "").any() else expanded.drop(columns="tile")


def _list_addresses(root: Path, file: str, tile: int | None, *, strict: bool = False) -> list[Address]:
    """The images in a file; one that is no such montage is cut in pages, and a damaged file stays one image.

    A damaged file is reported when it is read, with all others.

    Args:
        root: folder that `file` is relative to.
        file: path of the file.
        tile: edge of a montage's tiles in pixels.
        strict: whether a file that is no montage of such tiles is an error.
    """
    for edge in dict.fromkeys((tile, None)):
        try:
            return list_images(root, file, edge)
        except ImageError:
            if edge and strict:
                raise
    return [Address(file)]


def _check_files(root: Path, table: pd.DataFrame) -> None:
    for column in PATH_COLUMNS:
        if column not in table:
            continue
        files = {resolve_address(root, path).file for path in table[column] if path}
        missing = sorted(f for f in files if not (root / f).is_file())
        if missing:
            raise MissingFilesError(
                f"{root}: {len(missing)} file(s) named in column '{column}' do not exist: "
                f"{list_first(missing)}; paths are relative to the table",
                missing,
            )


def _list_sources(root: Path, table: pd.DataFrame) -> list[str]:
    """Tiles are sources of their own; the pages of one stack may show the same cell and stay together."""
    places = [(path, resolve_address(root, path)) for path in table["path"]]
    return [place.file if place.page is not None else path for path, place in places]


def check_labels(path: Path, labels: pd.Series, where: str = "row {}") -> None:
    """Refuse labels that say that nothing is known, and classes that differ only in case, width or invisible letters.

    Args:
        path: the table or folder.
        labels: by their line in the file; "" where there is none.
        where: how a line is named.

    Raises:
        CellsError: `cells.label_missing` or `cells.label_twins`.
    """
    missing = [name for name in labels.unique() if name and is_missing(name)]
    if missing:
        rows = labels.index[labels.isin(missing)]
        others = f" ({len(rows)} cells)" if len(rows) > 1 else ""
        raise CellsError(
            f"{path}: {where.format(rows[0])} has the label {labels[rows[0]]!r}, which says that nothing is known"
            f"{others}; fill in the class or leave the cell out. If a class is called so, name it in the recipe: "
            f"classes={{NAME: ['{labels[rows[0]]}'], …}}",
            code="cells.label_missing",
        )
    if groups := find_lookalikes(set(labels) - {""}):
        raise CellsError(
            f"{path}: the classes {' and '.join(map(quote_name, groups[0]))} differ only in how they are written; "
            f"write both alike, or merge them in the recipe: classes={{NAME: [{', '.join(map(repr, groups[0]))}], …}}",
            code="cells.label_twins",
        )


def _check_class_names(path: Path, labels: pd.Series, classes: Mapping[str, Sequence[str]] | None, where: str) -> None:
    """Check the names that no class of the recipe settles."""
    if not classes:
        check_labels(path, labels, where)
    elif groups := find_lookalikes(classes):
        raise CellsError(
            f"the classes {' and '.join(map(quote_name, groups[0]))} of the recipe differ only in how they are "
            "written; give them different names",
            code="cells.label_twins",
        )


def _merge_labels(
    path: Path, labels: pd.Series, classes: Mapping[str, Sequence[str]] | None
) -> tuple[pd.Series, tuple[str, ...]]:
    if not classes:
        return labels, tuple(sorted(set(labels)))
    to_class = {normalize_name(label): name for name, members in classes.items() for label in members}
    to_class |= {normalize_name(name): name for name in classes if normalize_name(name) not in to_class}
    unknown = sorted(set(labels) - set(to_class))
    if unknown:
        raise CellsError(
            f"{path}: no class names the label(s) {', '.join(unknown)}; classes are "
            f"{', '.join(classes)}; add each label to one of them (classes.NAME=[…])"
        )
    return labels.map(to_class), tuple(classes)


def _rebase(old: Path, new: Path, path: str) -> str:
    """A path relative to `old`, made relative to `new`; absolute where the two share no drive."""
    if not path:
        return path
    full = old.resolve() / path
    try:
        return Path(os.path.relpath(full, new.resolve())).as_posix()
    except ValueError:
        return full.as_posix()

"""Read cells: from a CSV file, from a folder per class, or from image files without labels."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from urnet.cells.checks import check_files, check_rows
from urnet.cells.class_folders import scan_class_folders
from urnet.cells.labels import check_class_names, check_labels, merge_labels
from urnet.cells.table import COLUMNS, CROP_COLUMNS, HASH_COLUMNS, PATH_COLUMNS, TABLE_NAME, TARGET_COLUMNS, Cells
from urnet.errors import CellsError, ImageError
from urnet.files.paths import DiskNames, is_outside
from urnet.files.search import find_files
from urnet.files.user_tables import read_table
from urnet.images.montage import Address, list_images, resolve_address
from urnet.images.read import SUFFIXES, is_file
from urnet.recipe import Recipe

logger = logging.getLogger(__name__)

_IGNORED_COLUMNS = (
    *("x_*", "predicted", "p_*", "rejected", "set", "enhanced", "cam", "engine", "error"),
    *("labelled_by", "labelled_at", "corrected_by", "model", "kind", "finding", "detail"),
)
"""Columns that are ignored without a note: of our other tables, and `x_…` for the user's own."""

_IMAGE_COLUMNS = ("tile", "donor", "field", "x", "y", "simulated", "touching", "edge")
"""Columns of a table that prediction uses."""


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
        path: a CSV file, a folder with `cells.csv`, or a folder with one sub-folder per class.
        tile: edge of square tiles, in pixels, if the images are montages. Each tile is a cell.
        image: file in each class folder that holds the cells; None for all images.
        target: file in each class folder that holds the paired images.
        classes: labels of each class, in order: `{"granulocyte": ["neutrophil", "eosinophil", "basophil"], …}`.
        labelled: whether all labels and files must exist. Prediction reports a missing file in its own row instead.
        contained: whether all files must lie in the table's folder, as for an uploaded table.
        as_written: whether names are used without checks, as for the table of a run.

    Raises:
        CellsError: the table is missing or invalid. The codes: `cells.not_found`, `cells.not_a_table`,
            `cells.no_labels`, `cells.label_unknown`, `cells.label_missing`, `cells.label_twins`, `cells.value_missing`,
            `cells.files_missing`, `cells.path_outside`, `cells.no_class_folders`, `cells.class_folder_empty`,
            `cells.split_folders`, `cells.folder_twice`, `files.link_broken`.
        ImageError: the pages or tiles of a file cannot be counted.
    """
    path = Path(path)
    table_path = path / TABLE_NAME if path.is_dir() else path
    root = table_path.parent
    is_csv = table_path.is_file()
    if is_csv and table_path.suffix.lower() in SUFFIXES:
        raise CellsError(
            f"{path}: an image, not a table of cells. Give a cells table (CSV), or a folder with one folder of images "
            "per class",
            code="cells.not_a_table",
        )
    if is_csv:
        table = _read_csv(table_path, labelled, as_written)
    elif path.is_dir():
        table = scan_class_folders(path, image, target, classes)
    else:
        raise CellsError(
            f"{path}: no such file or folder. Give a cells table (CSV), or a folder with one folder of images per "
            "class",
            code="cells.not_found",
        )
    if labelled:
        table = _drop_unlabelled(path, table)
    check_rows(path, table, labelled)
    if is_csv:
        _normalise_paths(path, root, table, contained)
    names: tuple[str, ...] = ()
    if "label" in table:
        if labelled and not as_written:
            if classes:
                check_class_names(classes)
            else:
                check_labels(path, table["label"], "row {}" if is_csv else "a class folder")
        table["label"], names = merge_labels(path, table["label"], classes)
    table = _expand_files(root, table, tile, labelled)
    if labelled:
        check_files(root, table)
    source = table.get("source", pd.Series("", index=table.index))
    table["source"] = source.where(source != "", _list_sources(root, table))
    return Cells(root, table.reset_index(drop=True), names)


def read_recipe_cells(path: Path, recipe: Recipe) -> Cells:
    """Read labelled cells with the classes, the tile and the file names of a recipe, as `read_cells` does."""
    return read_cells(path, tile=recipe.tile, image=recipe.image, target=recipe.target, classes=recipe.classes)


def find_images(
    paths: Iterable[Path | str], tile: int | None = None, image: str | None = None, *, contained: bool = False
) -> Cells:
    """Find images without labels, for prediction.

    Args:
        paths: image files, folders (searched with their sub-folders), tables, or folders with a table.
        tile: edge of square tiles, in pixels, if the images are montages. A file whose edges are no multiples of it is
            one crop.
        image: file in each folder that holds the cells, as in training; all images of a folder without such a file.
        contained: whether all files of a table must lie in its folder.

    Returns:
        One row per image: `path`, and from a table `tile`, `donor`, `field`, `x`, `y`, `simulated`, `touching`, `edge`;
        "" if not known.

    Raises:
        CellsError: a path does not exist (`cells.not_found`), there are no images (`cells.no_images`), or a table is
            invalid as in `read_cells`.
    """
    rows: list[dict[str, str]] = []
    for path in map(Path, paths):
        if path.suffix.lower() == ".csv" or (path / TABLE_NAME).is_file():
            cells = read_cells(path, tile=tile, labelled=False, contained=contained)
            table = cells.table[[column for column in ("path", *_IMAGE_COLUMNS) if column in cells.table]]
            rows += [row | {"path": (cells.root / row["path"]).as_posix()} for row in table.to_dict("records")]
            continue
        files = find_files(path, SUFFIXES) if path.is_dir() else [path]
        if path.is_dir():
            files = [file for file in files if file.name == image] or files
        if not files:
            raise CellsError(
                f"{path}: no PNG, JPEG, BMP or TIFF image in this folder or its sub-folders", code="cells.no_images"
            )
        if not path.exists():
            raise CellsError(f"{path}: no such file or folder", code="cells.not_found")
        for file in files:
            for address in _list_addresses(Path(), file.as_posix(), tile):
                rows.append({"path": str(address), "tile": str(tile) if address.row is not None else ""})
    if not rows:
        raise CellsError(
            "no images given. Give image files, folders, or a table with a column 'path'", code="cells.no_images"
        )
    return Cells(Path(), pd.DataFrame(rows, columns=["path", *_IMAGE_COLUMNS]).fillna(""))


def _read_csv(path: Path, labelled: bool, as_written: bool) -> pd.DataFrame:
    """Read the known columns of a CSV file as text, with the line of each cell as index."""
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


def _drop_unlabelled(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Drop cells without a label from a table of cropped cells. In other tables, a missing label is an error."""
    unlabelled = table["label"] == ""
    if not unlabelled.any() or not set(CROP_COLUMNS) & set(table.columns):
        return table
    hint = ". The column 'proposed' holds proposals that a person must confirm" if "proposed" in table else ""
    if unlabelled.all():
        raise CellsError(
            f"{path}: none of the {len(table)} cells has a label. Fill in the column 'label'{hint}",
            code="cells.no_labels",
        )
    logger.warning("%s: %d of %d cells have no label and are not used%s", path, unlabelled.sum(), len(table), hint)
    return table[~unlabelled]


def _normalise_paths(path: Path, root: Path, table: pd.DataFrame, contained: bool) -> None:
    """Spell paths as the disk does. In a contained table, refuse paths out of its folder."""
    disk_names = DiskNames(root)

    def spell(text: str) -> str:
        if text.isascii():
            return text
        if (spelled := disk_names.spell(text)) != text:
            return spelled
        address = Address.parse(text)
        return text if address.file == text else str(replace(address, file=disk_names.spell(address.file)))

    for column in PATH_COLUMNS:
        if column not in table:
            continue
        table[column] = table[column].map(spell)
        outside = [
            text for text in table[column] if text and contained and is_outside(root, resolve_address(root, text).file)
        ]
        if outside:
            raise CellsError(
                f"{path}: the column {column!r} holds the path {outside[0]!r}, which is outside the table's folder. An "
                "uploaded table can only name files in its folder and below. Put the files there, and write paths "
                "without '..'",
                code="cells.path_outside",
            )


def _expand_files(root: Path, table: pd.DataFrame, tile: int | None, strict: bool) -> pd.DataFrame:
    """Replace each row of a montage or stack by one row for each of its images."""
    rows = []
    for row in table.to_dict("records"):
        edge = row.get("tile", "") or (str(tile) if tile else "")
        given = resolve_address(root, row["path"])
        is_whole_file = given == Address(row["path"])
        is_tiff = Path(given.file).suffix.lower() in (".tif", ".tiff")
        if is_whole_file and (edge or is_tiff) and is_file(root / given.file):
            addresses = _list_addresses(root, given.file, int(edge) if edge else None, strict=strict)
        else:
            addresses = [given]
        for address in addresses:
            expanded = row | {"path": str(address), "tile": edge if address.row is not None else ""}
            for column in TARGET_COLUMNS:
                if is_whole_file and row.get(column):
                    expanded[column] = str(replace(address, file=row[column]))
            rows.append(expanded)
    result = pd.DataFrame(rows)
    return result if (result["tile"] != "").any() else result.drop(columns="tile")


def _list_addresses(root: Path, file: str, tile: int | None, *, strict: bool = False) -> list[Address]:
    """List the images in a file: tiles, else pages, else the file itself.

    A damaged file is one image. Reading it raises the error, together with those of other files.

    Args:
        root: folder that `file` is relative to.
        file: path of the file.
        tile: edge of a montage's tiles, in pixels.
        strict: whether a file that is no montage of such tiles is an error.
    """
    for edge in dict.fromkeys((tile, None)):
        try:
            return list_images(root, file, edge)
        except ImageError:
            if edge and strict:
                raise
    return [Address(file)]


def _list_sources(root: Path, table: pd.DataFrame) -> list[str]:
    """List the source of each cell: its address, or for pages of a stack the file, since they may show one cell."""
    addresses = [(path, resolve_address(root, path)) for path in table["path"]]
    return [address.file if address.page is not None else path for path, address in addresses]

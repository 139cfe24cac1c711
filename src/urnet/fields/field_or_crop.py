"""Decide whether images are fields of view, or crops of single cells."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from urnet.cells.table import TABLE_NAME as CELLS_TABLE
from urnet.errors import CellsError, ImageError
from urnet.fields.cropping.settings import CropSettings
from urnet.fields.io.microscopy import SUFFIXES as MICROSCOPY_SUFFIXES
from urnet.fields.io.pool import FieldPool
from urnet.fields.io.read import FIELD_SUFFIXES, FieldInfo
from urnet.fields.table import TABLE_NAME as FIELD_TABLE
from urnet.fields.table import FieldSource, list_source
from urnet.files.search import find_files
from urnet.files.user_tables import read_table
from urnet.images.read import Header, is_file, read_header


def list_fields(source: Path, tile: int | None, settings: CropSettings | None, pool: FieldPool) -> FieldSource | None:
    """List the fields of a source.

    Args:
        source: an image, a folder or a table.
        tile: edge of the tiles of a montage, px, for a model that was trained on montages.
        settings: crop settings of the model; none where it was not trained on crops of fields.
        pool: opens the images.

    Returns:
        The fields; none where the source holds crops.

    Raises:
        CellsError: no images, or a table without the columns of either.
    """
    if source.suffix.lower() == ".csv":
        columns = read_table(source, ("path", "field", "brightfield")).columns
        if not len(columns):
            raise CellsError(
                f"{source}: the table has no column 'path', 'field' or 'brightfield'. Add 'path' for cells, or "
                "'field' for fields",
                code="fields.column_missing",
            )
        return None if "path" in columns else list_source(source)
    if source.is_dir() and is_file(source / CELLS_TABLE):
        return None
    if source.is_dir() and is_file(source / FIELD_TABLE):
        return list_source(source)
    files = tuple(find_files(source, FIELD_SUFFIXES)) if source.is_dir() else (source,)
    if not files:
        raise CellsError(
            f"{source}: no fields and no crops in this folder or below; give a folder that holds images",
            code="fields.none",
        )
    fields = FieldSource(source, source if source.is_dir() else source.parent, files=files)
    if is_file(files[0]) and files[0].suffix.lower() in MICROSCOPY_SUFFIXES:
        return fields
    if settings is None or tile is not None:
        return None
    return fields if are_larger_than_crops(files, settings, pool) else None


def are_larger_than_crops(files: Iterable[Path], settings: CropSettings, pool: FieldPool) -> bool:
    """Return whether images are too large to be crops, by the first of them that can be read.

    Args:
        files: the images.
        settings: how the crops of the model were cut.
        pool: opens the images.
    """
    for file in files:
        with suppress(ImageError):  # a damaged image decides nothing; the next reader reports it
            return is_larger_than_crops(file, settings, pool)
    return False


def is_larger_than_crops(file: Path, settings: CropSettings, pool: FieldPool) -> bool:
    """Return whether an image is too large to be a crop.

    An image that cannot be opened as a field, but opens as an image, is judged by its size as an image. If it is a
    field, opening it as one reports the error later. Otherwise a whole field would count as one cell.

    Args:
        file: the image.
        settings: how the crops of the model were cut.
        pool: opens the image.

    Raises:
        ImageError: the file opens as neither.
    """
    try:
        info: FieldInfo | Header = pool.describe(file)
    except ImageError:
        info = read_header(file)
    return settings.is_too_large(info.height, info.width)

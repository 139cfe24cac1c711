"""Whether images are fields of view, or crops that are cut out already."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from urnet.cells.table import TABLE_NAME as CELLS_TABLE
from urnet.errors import CellsError, ImageError
from urnet.fields.cropping import Cropping
from urnet.fields.microscopy import SUFFIXES as MICROSCOPY_SUFFIXES
from urnet.fields.read import FIELD_SUFFIXES, describe_field
from urnet.fields.table import TABLE_NAME as FIELD_TABLE
from urnet.files import files_below
from urnet.images.read import is_file
from urnet.tables import read_table

LARGER = 1.5
"""An image this many times larger than a model's crops is a field and no crop."""


def holds_fields(source: Path, tile: int | None, cropping: Cropping | None) -> bool:
    """Whether these are fields of view rather than crops.

    Args:
        source: an image, a folder or a table.
        tile: edge of a montage's tiles in pixels, where the model that is to look at them was trained on montages.
        cropping: how its crops were cut out of fields; none where they were not.

    Raises:
        CellsError: nothing to look at.
    """
    if source.suffix.lower() == ".csv":
        columns = read_table(source, ("path", "field", "brightfield")).columns
        if not len(columns):
            raise CellsError(
                f"{source}: the table has no column 'path', as cells have, nor 'field' or 'brightfield', as fields have"
            )
        return "path" not in columns
    if source.is_dir() and is_file(source / CELLS_TABLE):
        return False
    if source.is_dir() and is_file(source / FIELD_TABLE):
        return True
    files = files_below(source, FIELD_SUFFIXES) if source.is_dir() else [source]
    if not files:
        raise CellsError(f"{source}: neither fields nor crops in this folder or below; give one that holds images")
    if is_file(files[0]) and files[0].suffix.lower() in MICROSCOPY_SUFFIXES:
        return True
    if cropping is None or tile is not None:
        return False
    return larger_than_crops(files, cropping)


def larger_than_crops(files: Iterable[Path], cropping: Cropping) -> bool:
    """Whether images are too large to be crops, by the first of them that can be read.

    Args:
        files: the images.
        cropping: how the crops were cut.
    """
    for file in files:
        with suppress(ImageError):  # a damaged one says nothing; whoever reads it reports it
            info = describe_field(file)
            return max(info.height, info.width) > LARGER * cropping.size
    return False

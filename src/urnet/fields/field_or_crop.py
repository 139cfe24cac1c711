"""Whether images are fields of view, or crops that are cut out already."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from urnet.cells.table import TABLE_NAME as CELLS_TABLE
from urnet.errors import CellsError, ImageError
from urnet.fields.cropping.settings import MAX_CROP_RATIO, CropSettings
from urnet.fields.io.microscopy import SUFFIXES as MICROSCOPY_SUFFIXES
from urnet.fields.io.read import FIELD_SUFFIXES, FieldInfo, describe_field
from urnet.fields.table import TABLE_NAME as FIELD_TABLE
from urnet.fields.table import FieldRow
from urnet.files.search import find_files
from urnet.files.user_tables import read_table
from urnet.images.read import Header, is_file, read_header


def contains_fields(source: Path, tile: int | None, cropping: CropSettings | None) -> bool:
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
    files = find_files(source, FIELD_SUFFIXES) if source.is_dir() else [source]
    if not files:
        raise CellsError(f"{source}: neither fields nor crops in this folder or below; give one that holds images")
    if is_file(files[0]) and files[0].suffix.lower() in MICROSCOPY_SUFFIXES:
        return True
    if cropping is None or tile is not None:
        return False
    return are_larger_than_crops(files, cropping)


def are_larger_than_crops(files: Iterable[Path], cropping: CropSettings) -> bool:
    """Whether images are too large to be crops, by the first of them that can be read.

    Args:
        files: the images.
        cropping: how the crops were cut.
    """
    for file in files:
        with suppress(ImageError):  # a damaged one says nothing; whoever reads it reports it
            return is_larger_than_crops(file, cropping)
    return False


def is_larger_than_crops(file: Path, cropping: CropSettings) -> bool:
    """Whether an image is too large to be a crop.

    One that cannot be opened as a field, and opens as an image, is judged as an image: whoever then opens it as a field
    says why that fails, where otherwise a whole field would count as one cell.

    Raises:
        ImageError: it opens as neither.
    """
    try:
        info: FieldInfo | Header = describe_field(file)
    except ImageError:
        info = read_header(file)
    return cropping.is_too_large(info.height, info.width)


def _edge(info: FieldInfo) -> int:
    """The longer one, px."""
    return max(info.height, info.width)


def check_not_crops(
    fields: Path, how: CropSettings, infos: Mapping[FieldRow, FieldInfo], pixels: Mapping[FieldRow, float | None]
) -> None:
    """Images that are hardly larger than the crops to be cut out of them are no fields, unless a table says so.

    Args:
        fields: an image, a folder of images, or a field table.
        how: with which size they are to be cut.
        infos: what each file holds.
        pixels: µm a pixel, where it is known.

    Raises:
        CellsError: all of them are so small.
    """
    if fields.suffix.lower() == ".csv" or is_file(fields / FIELD_TABLE):
        return
    for row, info in infos.items():
        pixel = pixels[row]
        zoom = 1.0 if pixel is None or how.pixel_um is None else how.pixel_um / pixel
        if _edge(info) > MAX_CROP_RATIO * how.size * zoom:
            return
    widest = max(infos.values(), key=_edge)
    raise CellsError(
        f"{fields}: {len(infos)} image(s) of at most {widest.width} x {widest.height} px, out of which crops of "
        f"{how.size} px would be cut: they look like crops of single cells already, and `urnet train` and "
        "`urnet predict` take such as they are; if they are fields, give a smaller --size, or name them in a field "
        "table (CSV)"
    )

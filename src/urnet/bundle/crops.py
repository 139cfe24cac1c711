"""Crops of cells as a model takes them: where they come from, their size, colours and measures."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from urnet.bundle.config import ModelConfig
from urnet.cells.read import find_images
from urnet.cells.table import Cells
from urnet.errors import CellsError, ImageError
from urnet.fields.cropping.settings import CropSettings
from urnet.images.montage import read_crop, resolve_address
from urnet.images.read import is_file

Image: TypeAlias = Path | str | np.ndarray
"""A path, the address of a tile or page, or an array of raw counts, (H, W) or (H, W, 3)."""
Images: TypeAlias = Image | Iterable[Image] | Cells | pd.DataFrame
"""One image or several: paths of images, folders and cells tables, arrays, `Cells`, or a frame with a column `path`."""

FIELD_MEASURES = ("edge", "touching")
"""Columns of a cells table that are measured in the field, not in the crop; rejection uses them where filled."""


@dataclass(frozen=True)
class CropSource:
    """An image that is read when it is needed.

    Attributes:
        name: path or address; "" for an array.
        read: read the raw counts, (H, W) or (H, W, 3).
        measures: values of `FIELD_MEASURES`, "" where unknown.
    """

    name: str
    read: Callable[[], np.ndarray]
    measures: dict[str, str]


def find_crops(images: Images, config: ModelConfig) -> Iterator[CropSource]:
    """List single crops: folders are searched, tables read, and files of several pages or tiles divided.

    Args:
        images: one image or several.
        config: of the model, which says how large tiles are and which file of a folder holds the cells.

    Raises:
        CellsError: a folder without images, a damaged table (as `find_images`), or something that is no image
            (code `cells.not_an_image`).
    """
    if isinstance(images, str | Path) or (isinstance(images, np.ndarray) and _is_image(images)):
        images = [images]
    if isinstance(images, Cells):
        yield from _crops_of(images)
        return
    if isinstance(images, pd.DataFrame):
        yield from _crops_of(Cells(Path(), images.astype({"path": str})))
        return
    for image in images:
        if isinstance(image, str | Path):
            yield from _crops_at(image, config)
        elif isinstance(image, np.ndarray | list):
            yield CropSource("", partial(np.asarray, image), dict.fromkeys(FIELD_MEASURES, ""))
        else:
            raise CellsError(
                f"an image must be a path or an array of raw counts, found {type(image).__name__}; give a path, a "
                "NumPy array, or a list of them",
                code="cells.not_an_image",
            )


def _is_image(pixels: np.ndarray) -> bool:
    """Return whether an array is one image, (H, W) or (H, W, 3), and not a stack of images."""
    return pixels.ndim == 2 or pixels.shape[2:] == (3,)


def _crops_at(path: Path | str, config: ModelConfig) -> Iterator[CropSource]:
    """List the crops of a file, a folder or a table."""
    if Path(path).is_dir() or is_file(Path(path)):
        yield from _crops_of(find_images([path], config.tile, config.image))
    else:  # the address of a tile or page; anything else cannot be read
        reading = partial(_read_address, str(path), config.tile)
        yield CropSource(str(path), reading, dict.fromkeys(FIELD_MEASURES, ""))


def _read_address(address: str, tile: int | None) -> np.ndarray:
    place = resolve_address(Path(), address)
    if not is_file(Path(place.file)):
        raise ImageError(f"{place.file}: no such file or folder; check the path", code="images.not_found")
    return read_crop(Path(), address, tile)


def _crops_of(cells: Cells) -> Iterator[CropSource]:
    """List the crops of a table."""
    table = cells.table
    for index, path in enumerate(table["path"]):
        measures = {name: table[name].iloc[index] if name in table else "" for name in FIELD_MEASURES}
        yield CropSource(path, partial(cells.read, index), measures)


def resize_crop(config: ModelConfig, cropping: CropSettings | None, crop: np.ndarray) -> np.ndarray:
    """Bring a raw crop to the network's size and colours, as `Model.resize_crop`, without a loaded network.

    Args:
        config: of the model.
        cropping: settings that cut the training's crops out of fields; none for other crops.
        crop: (H, W) or (H, W, 3).

    Raises:
        ImageError: as `Model.resize_crop`.
    """
    if cropping is not None and config.tile is None and crop.ndim >= 2:
        cropping.check_crop(*crop.shape[:2])
    return config.resize_crop(crop)


def parse_measure(name: str, value: Any) -> dict[str, float]:
    """Read an entry of a table as `{name: number}`; `{}` where it is empty.

    Raises:
        CellsError: it is not a number (code `tables.not_a_number`).
    """
    if value == "" or value is None or value != value:
        return {}
    with suppress(ValueError):
        if math.isfinite(number := float(str(value))):
            return {name: number}
    raise CellsError(f"{name} must be a number, found {value!r}. Use a decimal point: 12.5", code="tables.not_a_number")

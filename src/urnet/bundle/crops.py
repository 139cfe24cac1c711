"""Crops of cells as a model takes them: their size, colours and measures."""

import math
from contextlib import suppress

import numpy as np

from urnet.bundle.config import ModelConfig
from urnet.errors import CellsError
from urnet.fields.cropping.settings import CropSettings

FIELD_MEASURES = ("edge", "touching")
"""Columns of a cells table that say of a crop what its pixels do not; rejection goes by them where they are filled."""


def resize_crop(config: ModelConfig, cropping: CropSettings | None, crop: np.ndarray) -> np.ndarray:
    """One raw crop of a cell to be classified, (H, W) or (H, W, 3), as `Model.resize_crop` makes it.

    Args:
        config: of the model.
        cropping: how its training's crops were cut out of fields; none where they were not.
        crop: the pixels.

    Raises:
        ImageError: as `Model.resize_crop`.
    """
    if cropping is not None and config.tile is None and crop.ndim >= 2:
        cropping.check_crop(*crop.shape[:2])
    return config.resize_crop(crop)


def parse_measure(name: str, text: object) -> dict[str, float]:
    """A table's entry as a measure; nothing where it is empty.

    Raises:
        CellsError: it is no number; tables that `urnet.files.user_tables` reads were checked before.
    """
    if text == "" or text is None or text != text:
        return {}
    with suppress(ValueError):
        if math.isfinite(value := float(str(text))):
            return {name: value}
    raise CellsError(f"{name} must be a number, found {text!r}. Use a decimal point: 12.5", code="tables.not_a_number")

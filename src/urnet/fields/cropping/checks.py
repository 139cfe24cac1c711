"""Checks of fields before they are cropped."""

import math
from collections.abc import Mapping

from urnet.errors import CellsError, ImageError
from urnet.fields.cropping.settings import MAX_CROP_RATIO, CropSettings
from urnet.fields.io.read import FieldInfo
from urnet.fields.preprocessing.illumination import Illumination
from urnet.fields.table import FieldRow, FieldSource

MAX_ASPECT_DIFFERENCE = 0.05
"""Largest difference between the aspect ratios of a field and of the flat-field image, as a logarithm."""


def check_not_crops(
    source: FieldSource,
    settings: CropSettings,
    infos: Mapping[FieldRow, FieldInfo],
    pixels: Mapping[FieldRow, float | None],
) -> None:
    """Refuse images that are hardly larger than the crops to be cut out of them, unless a table says they are fields.

    Args:
        source: the fields.
        settings: size of the crops.
        infos: what each file holds.
        pixels: µm per pixel of each field; none where unknown.

    Raises:
        CellsError: all of them are that small.
    """
    if source.table is not None:
        return
    for row, info in infos.items():
        pixel = pixels[row]
        zoom = 1.0 if pixel is None or settings.pixel_um is None else settings.pixel_um / pixel
        if _longer_edge(info) > MAX_CROP_RATIO * settings.size * zoom:
            return
    widest = max(infos.values(), key=_longer_edge)
    raise CellsError(
        f"{source.path}: {len(infos)} image(s) of at most {widest.width} x {widest.height} px, for crops of "
        f"{settings.size} px: they look like crops of single cells. `urnet train` and `urnet predict` read crops as "
        "they are. If the images are fields, give a smaller --size, or name them in a field table (CSV)",
        code="fields.are_crops",
    )


def check_illumination_shape(light: Illumination, infos: Mapping[FieldRow, FieldInfo]) -> None:
    """Refuse a flat-field image of another camera area. One of another binning is stretched over the field.

    Args:
        light: as given by the flat-field image.
        infos: what each file holds.

    Raises:
        ImageError: the aspect ratios differ.
    """
    height, width = light.flat.shape
    for row, info in infos.items():
        if abs(math.log(info.width / info.height * height / width)) > MAX_ASPECT_DIFFERENCE:
            raise ImageError(
                f"{row.brightfield} is {info.width} x {info.height} px, and the flat-field image has another shape "
                f"({width} to {height}). Take both with the same camera area",
                code="fields.flat_field_shape",
            )


def _longer_edge(info: FieldInfo) -> int:
    return max(info.height, info.width)

"""What a TIFF says of its pixels: whether its OME-XML is true, names of channels, the size of a pixel."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile

from urnet.errors import ImageError
from urnet.fields.io.pixel_size import MAX_PIXEL_UM, parse_length, square_pixel_um
from urnet.fields.io.tiff.ome import OmeImage, OmeSet
from urnet.images.ome_xml import find_children
from urnet.images.tiff_pages import Page

_MICROMETRES = {
    **{"m": 1e6, "cm": 1e4, "mm": 1e3, "nm": 1e-3, "pm": 1e-6, "Å": 1e-4, "in": 25400.0, "inch": 25400.0},
    **dict.fromkeys(("µm", "μm", "um", "micron", "microns", "micrometer", "micrometre", "\\u00b5m"), 1.0),
}
_PRINTERS = ("in", "inch", "cm")  # units in which resolutions for printing are kept
_RESOLUTION_UNITS = {2: "inch", 3: "cm"}
_FIX = "export the file anew, or save it as a plain TIFF"
_OME_TYPES = {"float": "float32", "double": "float64", "bit": "bool"}


def check_ome(path: Path, image: OmeImage, page: tifffile.TiffPage) -> None:
    """What the OME-XML says of an image must be what its pages hold.

    Raises:
        ImageError: another size or type.
    """
    what = f"{path}: mislabelled OME-TIFF: its OME-XML"
    if (image.width, image.height) != (page.imagewidth, page.imagelength):
        raise ImageError(
            f"{what} names {image.width} x {image.height} px, its pages have {page.imagewidth} x {page.imagelength}; "
            f"{_FIX}"
        )
    if image.type and page.dtype is not None:
        try:
            same = np.dtype(_OME_TYPES.get(image.type, image.type)) == page.dtype
        except TypeError:
            same = False
        if not same:
            raise ImageError(f"{what} names pixels of type {image.type[:40]}, its pages have {page.dtype}; {_FIX}")


def check_no_page_left(path: Path, pages: Sequence[Page], ome: OmeSet) -> None:
    """Every page of the size of the first belongs to an image of the OME-XML.

    Raises:
        ImageError: there are more.
    """
    named = sum(len(image.planes) for image in ome.images)
    first = pages[0]
    same = sum((page.width, page.height) == (first.width, first.height) and not page.mask for page in pages)
    if same > named:
        raise ImageError(
            f"{path}: mislabelled OME-TIFF: its OME-XML names {named} plane(s) in {len(ome.images)} image(s), but the "
            f"file holds {len(pages)} page(s); if it was cut off, copy it again, else {_FIX}"
        )


def channels_of_ome(image: OmeImage) -> list[str | None]:
    """Names of the channels as the OME-XML has them."""
    return [one.get("Name") for one in find_children(image.pixels, "Channel")]


def imagej_channels(tif: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> list[str]:
    """Names of the channels as ImageJ has them, where there is one for each."""
    return [str(label) for label in (tif.imagej_metadata or {}).get("Labels") or []] if series.kind == "imagej" else []


def channel_names(names: Sequence[str | None], count: int) -> tuple[str, ...]:
    """Names of the channels, and numbers where they have none."""
    known = names if len(names) == count else [None] * count
    return tuple((name or "").strip() or str(index) for index, name in enumerate(known))


def pixel_of_ome(image: OmeImage) -> float | None:
    """Edge of a pixel in µm as the OME-XML states it."""
    return square_pixel_um(
        [
            parse_length(image.pixels.get(f"PhysicalSize{axis}"))
            * _unit(image.pixels.get(f"PhysicalSize{axis}Unit", "µm"))
            for axis in "XY"
        ]
    )


def pixel_um(tif: tifffile.TiffFile, page: tifffile.TiffPage) -> float | None:
    """Edge of a pixel in µm as the file states it; None where it does not, or pixels are not square to one per cent."""
    unit = _RESOLUTION_UNITS.get(int(page.resolutionunit))
    if tif.is_imagej:
        # ImageJ counts pixels a unit of its own, and writes the tag for inches or centimetres only.
        unit = str((tif.imagej_metadata or {}).get("unit") or unit or "")
    if not unit or 282 not in page.tags:
        return None
    sides = [_unit(unit) / r if r > 0 else math.nan for r in page.get_resolution()]
    pixel = square_pixel_um(sides)
    # A resolution for printers, such as 72 dpi, states nothing about the specimen.
    return None if pixel is not None and unit.lower() in _PRINTERS and pixel > MAX_PIXEL_UM else pixel


def _unit(name: str) -> float:
    """A unit of length in µm; NaN for units that are none, as "pixel"."""
    name = name.strip()
    return _MICROMETRES.get(name, _MICROMETRES.get(name.lower(), math.nan))

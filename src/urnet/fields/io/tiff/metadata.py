"""Read the metadata of a TIFF: names of channels and pixel size, and whether its OME-XML matches its pages."""

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
_PRINTERS = ("in", "inch", "cm")  # units of resolutions for printing
_RESOLUTION_UNITS = {2: "inch", 3: "cm"}
_FIX = "export the file again, or save it as a plain TIFF"
_OME_TYPES = {"float": "float32", "double": "float64", "bit": "bool"}


def check_ome(path: Path, image: OmeImage, page: tifffile.TiffPage) -> None:
    """Check that the OME-XML states the size and type of the pages.

    Raises:
        ImageError: they differ (`fields.mislabelled`).
    """
    what = f"{path}: mislabelled OME-TIFF: its OME-XML"
    if (image.width, image.height) != (page.imagewidth, page.imagelength):
        raise ImageError(
            f"{what} states {image.width} x {image.height} px, its pages have {page.imagewidth} x {page.imagelength}; "
            f"{_FIX}",
            code="fields.mislabelled",
        )
    if image.type and page.dtype is not None:
        try:
            same = np.dtype(_OME_TYPES.get(image.type, image.type)) == page.dtype
        except TypeError:
            same = False
        if not same:
            raise ImageError(
                f"{what} states pixels of type {image.type[:40]}, its pages have {page.dtype}; {_FIX}",
                code="fields.mislabelled",
            )


def check_no_page_left(path: Path, pages: Sequence[Page], ome: OmeSet) -> None:
    """Check that the OME-XML names every page of the size of the first page.

    Raises:
        ImageError: the file has more pages (`fields.mislabelled`).
    """
    named = sum(len(image.planes) for image in ome.images)
    first = pages[0]
    same = sum((page.width, page.height) == (first.width, first.height) and not page.mask for page in pages)
    if same > named:
        raise ImageError(
            f"{path}: mislabelled OME-TIFF: its OME-XML names {named} plane(s) in {len(ome.images)} image(s), but the "
            f"file holds {len(pages)} page(s). If the file is incomplete, copy it again; otherwise {_FIX}",
            code="fields.mislabelled",
        )


def channels_of_ome(image: OmeImage) -> list[str | None]:
    """Return the names of the channels in the OME-XML."""
    return [one.get("Name") for one in find_children(image.pixels, "Channel")]


def imagej_channels(tif: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> list[str]:
    """Return the labels in the metadata of ImageJ, which are names of channels where there is one for each."""
    return [str(label) for label in (tif.imagej_metadata or {}).get("Labels") or []] if series.kind == "imagej" else []


def channel_names(names: Sequence[str | None], count: int) -> tuple[str, ...]:
    """Return the names of the channels, or their numbers where they have none."""
    known = names if len(names) == count else [None] * count
    return tuple((name or "").strip() or str(index) for index, name in enumerate(known))


def pixel_of_ome(image: OmeImage) -> float | None:
    """Return the edge of a pixel in the OME-XML, µm."""
    return square_pixel_um(
        [
            parse_length(image.pixels.get(f"PhysicalSize{axis}"))
            * _unit(image.pixels.get(f"PhysicalSize{axis}Unit", "µm"))
            for axis in "XY"
        ]
    )


def pixel_um(tif: tifffile.TiffFile, page: tifffile.TiffPage) -> float | None:
    """Return the edge of a pixel in the tags of the file, µm; None where it is missing or pixels are not square."""
    unit = _RESOLUTION_UNITS.get(int(page.resolutionunit))
    if tif.is_imagej:
        # ImageJ writes pixels per unit of its own, and the tag only for inches or centimetres.
        unit = str((tif.imagej_metadata or {}).get("unit") or unit or "")
    if not unit or 282 not in page.tags:
        return None
    sides = [_unit(unit) / r if r > 0 else math.nan for r in page.get_resolution()]
    pixel = square_pixel_um(sides)
    # A resolution for printing, such as 72 dpi, says nothing about the specimen.
    return None if pixel is not None and unit.lower() in _PRINTERS and pixel > MAX_PIXEL_UM else pixel


def _unit(name: str) -> float:
    """Return a unit of length in µm; NaN for other units, such as "pixel"."""
    name = name.strip()
    return _MICROMETRES.get(name, _MICROMETRES.get(name.lower(), math.nan))

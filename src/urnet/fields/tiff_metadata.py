"""What a TIFF says of its pixels: the OME-XML and whether it is true, names of channels, the size of a pixel."""

import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import tifffile

from urnet.errors import ImageError

COARSEST_UM = 5.0
"""Resolutions per inch or centimetre that give larger pixels, µm, were meant for printers: 72 dpi is 353 µm."""

_MICROMETRES = {
    **{"m": 1e6, "cm": 1e4, "mm": 1e3, "nm": 1e-3, "pm": 1e-6, "Å": 1e-4, "in": 25400.0, "inch": 25400.0},
    **dict.fromkeys(("µm", "μm", "um", "micron", "microns", "micrometer", "micrometre", "\\u00b5m"), 1.0),
}
_PRINTERS = ("in", "inch", "cm")  # units in which resolutions for printing are kept
_RESOLUTION_UNITS = {2: "inch", 3: "cm"}
_OME_TYPES = {"float": "float32", "double": "float64", "bit": "bool"}


def ome_images(path: Path, tif: tifffile.TiffFile, cut: bool) -> list[ElementTree.Element] | None:
    """The `Image` elements of the OME-XML that name pages; none where the file is no OME-TIFF.

    Args:
        path: for the errors.
        tif: the open file.
        cut: whether the file begins like OME-XML that has lost its end.

    Raises:
        ImageError: no XML, no pages named, or metadata that are in another file.
    """
    if not tif.is_ome and not cut:
        return None
    try:
        root = ElementTree.fromstring(tif.ome_metadata or tif.pages.first.description)
    except ElementTree.ParseError as error:
        raise ImageError(
            f"{path}: mislabelled OME-TIFF: its OME-XML is no XML ({error}); export the file anew"
        ) from None
    for element in root:
        if element.tag.endswith("}BinaryOnly") or element.tag == "BinaryOnly":
            raise ImageError(
                f"{path}: one of several files of an OME-TIFF, whose metadata are in "
                f"{element.get('MetadataFile', 'another file')}; save it as a single OME-TIFF"
            )
    found = [image for image in _children(root, "Image") if any(_children(p, "TiffData") for p in _pixels(image))]
    if not found:
        raise ImageError(f"{path}: mislabelled OME-TIFF: its OME-XML names no pages; export the file anew")
    return found


def check_ome(
    path: Path,
    tif: tifffile.TiffFile,
    images: list[ElementTree.Element],
    series: list[tifffile.TiffPageSeries],
) -> None:
    """What the OME-XML says must be what the pages hold.

    Raises:
        ImageError: another size, type or number of pages, or a file of the set is missing.
    """
    what = f"{path}: mislabelled OME-TIFF: its OME-XML"
    fix = "export the file anew, or save it as a plain TIFF"
    first = tif.pages.first
    named, files = 0, set()
    for image in images:
        pixels = _pixels(image)[0]
        size = {axis: int(pixels.get(f"Size{axis}", 1)) for axis in "XYCZT"}
        samples = max([int(one.get("SamplesPerPixel", 1)) for one in _children(pixels, "Channel")], default=1)
        named += size["C"] * size["Z"] * size["T"] // samples
        files |= {u.get("FileName") for data in _children(pixels, "TiffData") for u in _children(data, "UUID")}
        kind = pixels.get("Type", "")
        page = series[images.index(image)].keyframe if len(series) == len(images) else first
        if (size["X"], size["Y"]) != (page.imagewidth, page.imagelength):
            raise ImageError(
                f"{what} names {size['X']} x {size['Y']} px, its pages have {page.imagewidth} x {page.imagelength}; "
                f"{fix}"
            )
        if kind and page.dtype is not None and np.dtype(_OME_TYPES.get(kind, kind)) != page.dtype:
            raise ImageError(f"{what} names pixels of type {kind}, its pages have {page.dtype}; {fix}")
    missing = sorted(name for name in files - {None} if not (path.parent / name).exists())
    if missing and {path.name} != set(missing):
        raise ImageError(
            f"{path}: {missing[0]}, a file of the same OME-TIFF, is missing; put it beside this one, or save one file"
        )
    alone = not (files - {None, path.name, *missing})
    pages = [page.keyframe or page.aspage() for page in tif.pages]
    same = sum((page.imagelength, page.imagewidth) == (first.imagelength, first.imagewidth) for page in pages)
    if len(series) != len(images) or any(one.kind != "ome" for one in series) or (alone and same > named):
        raise ImageError(
            f"{what} names {named} plane(s) in {len(images)} image(s), but the file holds {len(tif.pages)} page(s); "
            f"if it was cut off, copy it again, else {fix}"
        )


def _children(element: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    """Children of a name, whatever version of the OME schema their namespace is."""
    return [child for child in element if child.tag.rpartition("}")[2] == name]


def _pixels(image: ElementTree.Element) -> list[ElementTree.Element]:
    return _children(image, "Pixels")


def channel_names(
    tif: tifffile.TiffFile, series: tifffile.TiffPageSeries, about: ElementTree.Element | None, count: int
) -> tuple[str, ...]:
    """Names of the channels as OME or ImageJ has them, else their numbers."""
    names: list[str | None] = []
    if about is not None:
        names = [one.get("Name") for one in _children(_pixels(about)[0], "Channel")]
    elif series.kind == "imagej":
        labels = (tif.imagej_metadata or {}).get("Labels") or []
        names = [str(label) for label in labels] if len(labels) == count else []
    if len(names) != count:
        names = [None] * count
    return tuple((name or "").strip() or str(index) for index, name in enumerate(names))


def pixel_um(tif: tifffile.TiffFile, page: tifffile.TiffPage, about: ElementTree.Element | None) -> float | None:
    """Edge of a pixel in µm; None where the file does not say, or pixels are not square to one per cent."""
    if about is not None:
        pixels = _pixels(about)[0]
        sides = [
            float(pixels.get(f"PhysicalSize{axis}", "nan")) * _unit(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
            for axis in "XY"
        ]
        return square(sides)
    unit = _RESOLUTION_UNITS.get(int(page.resolutionunit))
    if tif.is_imagej:
        # ImageJ counts pixels a unit of its own, and writes the tag for inches or centimetres only.
        unit = str((tif.imagej_metadata or {}).get("unit") or unit or "")
    if not unit or 282 not in page.tags:
        return None
    sides = [_unit(unit) / r if r > 0 else math.nan for r in page.get_resolution()]
    pixel = square(sides)
    return None if pixel is not None and unit.lower() in _PRINTERS and pixel > COARSEST_UM else pixel


def _unit(name: str) -> float:
    """A unit of length in µm; NaN for units that are none, as "pixel"."""
    name = name.strip()
    return _MICROMETRES.get(name, _MICROMETRES.get(name.lower(), math.nan))


def square(sides: list[float]) -> float | None:
    """The edge of a square pixel; None where it is unknown or the pixel is no square.

    Args:
        sides: width and height, NaN where not known.
    """
    across, down = sides
    if math.isnan(down):
        down = across
    if not (math.isfinite(across) and math.isfinite(down) and across > 0 and down > 0):
        return None
    return math.sqrt(across * down) if abs(across / down - 1) < 0.01 else None

"""List the scenes of a TIFF: which page is which time point, channel and z plane.

The first of these rules that applies decides:

1. OME-XML: each of its images is a scene.
2. The index of Micro-Manager or NDTiff: each position is a scene.
3. Formats of scanners and other programs that tifffile knows: each full-resolution series is a scene.
4. The shape that Python's tifffile wrote: each array is a scene.
5. Otherwise pages of one size and type are the z planes of one scene.

Each time point is a scene of its own.
"""

import math
import re
from collections.abc import Sequence

import numpy as np
import tifffile

from urnet.errors import ImageError
from urnet.fields.io.source import Scene
from urnet.fields.io.tiff.files import TiffFiles, TiffPage
from urnet.fields.io.tiff.metadata import (
    channel_names,
    channels_of_ome,
    check_no_page_left,
    check_ome,
    imagej_channels,
    pixel_of_ome,
    pixel_um,
)
from urnet.fields.io.tiff.ome import OmeSet, PageAddress, read_ome
from urnet.fields.io.tiff.stacks import Stack, micromanager_pixel_um, micromanager_stacks, ndtiff_stacks, shaped_stacks
from urnet.images.read import classify_tiff_pixels, is_grey_with_alpha, read_tiff_orientation
from urnet.images.tiff_pages import read_micromanager_metadata

MAX_SAMPLES = 64
"""Largest number of values of a pixel: channels that a file stores in one page."""

MAX_LAYOUTS = 500
"""Largest number of different sizes and types of pages in a file that urnet sorts into images."""

_VENDORS = (
    *("lsm", "imagej", "fluoview", "stk", "sis", "svs", "scn", "qpi", "ndpi", "bif", "avs", "eer", "philips", "nih"),
    "mdgel",
)
"""Formats with metadata of their own, as the attributes `TiffFile.is_…` name them."""

_RGB = (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR, tifffile.PHOTOMETRIC.PALETTE)
_SLIDE_IMAGE = re.compile(r"thumbnail|label|macro|overview", re.IGNORECASE)
"""Names of the images of the whole slide in files of scanners."""


def list_scenes(files: TiffFiles) -> tuple[Scene, ...]:
    """List the scenes of an open TIFF, and add the other files of the image to `files`.

    Raises:
        ImageError: OME-XML that contradicts the pages, missing or damaged planes, or pixels of an unsupported type.
    """
    path, pages = files.path, files.pages[files.path]
    index = read_micromanager_metadata(path)
    ome = None
    try:
        ome = read_ome(path)
    except ImageError as error:
        # An acquisition that was stopped, or one file of a set alone: Micro-Manager's index lists the planes.
        if not index or error.code not in ("fields.planes_missing", "images.companion_missing"):
            raise
    if ome is not None:
        files.add(ome.pages)
        return _ome_scenes(files, ome, micromanager_pixel_um(path, pages[0], index) if index else None)
    if stacks := micromanager_stacks(path, pages, index) if index else ndtiff_stacks(path, pages):
        return _stack_scenes(files, stacks)
    if any(getattr(files.tif, f"is_{kind}") for kind in _VENDORS):
        return _series_scenes(files)
    if stacks := shaped_stacks(path, pages):
        return _stack_scenes(files, stacks)
    full = [number for number, page in enumerate(pages) if not (page.reduced or page.mask)]
    if len({pages[number].layout for number in full}) == 1:
        return _stack_scenes(files, [Stack(None, "Z", (len(full),), [PageAddress(path, number) for number in full])])
    if len({page.layout for page in pages}) > MAX_LAYOUTS:
        raise ImageError(
            f"{path}: its {len(pages)} pages have more than {MAX_LAYOUTS} different sizes or types; save each field as "
            "a file of its own",
            code="fields.too_many_layouts",
        )
    return _series_scenes(files)


def _ome_scenes(files: TiffFiles, ome: OmeSet, pixel: float | None) -> tuple[Scene, ...]:
    """List the scenes of the OME-XML; `pixel` is the edge of a pixel, µm, for images that do not state it."""
    scenes: list[Scene] = []
    for index, image in enumerate(ome.images):
        files.check_same_layout(list(image.planes.values()))
        keys = [(t, c, z) for t in range(image.times) for c in range(image.channels) for z in range(image.depth)]
        first = files.page(image.planes[0, 0, 0])
        check_ome(files.path, image, first)
        grid = np.empty(len(keys), object)
        grid[:] = [image.planes[key] for key in keys]
        grid = grid.reshape(image.times, image.channels, image.depth)
        name = image.element.get("Name")
        edge = pixel_of_ome(image) or pixel
        scenes += _scenes(files, grid, first, name, index, len(ome.images), channels_of_ome(image), edge)
    if files.paths == (files.path,):
        check_no_page_left(files.path, files.pages[files.path], ome)
    return tuple(scenes)


def _stack_scenes(files: TiffFiles, stacks: list[Stack]) -> tuple[Scene, ...]:
    scenes: list[Scene] = []
    for index, stack in enumerate(stacks):
        files.check_same_layout(stack.places)
        first = files.page(stack.places[0])
        places: list = stack.places
        if len(places) == 1 < math.prod(stack.shape):
            places = files.contiguous_planes(first, math.prod(stack.shape))
        grid = _grid(files, places, stack.axes, stack.shape)
        pixel = stack.pixel_um or pixel_um(files.tif, first)
        scenes += _scenes(files, grid, first, stack.name, index, len(stacks), stack.channels, pixel, stack.samples)
    return tuple(scenes)


def _series_scenes(files: TiffFiles) -> tuple[Scene, ...]:
    """List the scenes as tifffile finds them, for the formats of scanners and other programs."""
    tif, series = files.tif, files.tif.series
    if tif.is_imagej and any(one.kind != "imagej" for one in series):
        count = (tif.imagej_metadata or {}).get("images", "more")
        raise ImageError(
            f"{files.path}: truncated or mislabelled: ImageJ's metadata name {count} images, which the file does not "
            "hold; copy the file again, or export it again",
            code="fields.planes_missing",
        )
    full = [one for one in series if not (one.keyframe.is_reduced or _SLIDE_IMAGE.search(one.name or ""))]
    series = full or series
    scenes: list[Scene] = []
    size = files.path.stat().st_size
    for index, one in enumerate(series):
        first = one.keyframe
        sizes = dict(zip(one.axes, one.shape, strict=True))
        lead = {axis: n for axis, n in sizes.items() if axis not in "YXS" and n > 1}
        planes, pages = math.prod(lead.values()), list(one.pages)
        if len(pages) == 1 and planes > 1 and one.dataoffset is not None:
            pages = files.contiguous_planes(first, planes)
        _check_count(files, pages, planes)
        grid = _grid(files, pages, "".join(lead), tuple(lead.values()))
        channels = imagej_channels(tif, one)
        scenes += _scenes(files, grid, first, None, index, len(series), channels, pixel_um(tif, first))
        for page in one.pages:
            files.check_complete(page, size)
    return tuple(scenes)


def _check_count(files: TiffFiles, places: list, planes: int) -> None:
    present = sum(place is not None for place in places)
    if present != planes or len(places) != planes:
        raise ImageError(
            f"{files.path}: truncated or mislabelled: its metadata name {planes} planes, but {present} are there; copy "
            "the file again, or export it again",
            code="fields.planes_missing",
        )


def _grid(files: TiffFiles, places: list, axes: str, shape: tuple[int, ...]) -> np.ndarray:
    """Arrange planes by time point, channel and z plane, (T, C, Z).

    One axis without a name is z. Of two axes without a name, the outer one is time.
    """
    lead = {axis + str(number): n for number, (axis, n) in enumerate(zip(axes, shape, strict=True)) if n > 1}
    _check_count(files, places, math.prod(lead.values()))
    known = [axis for axis in lead if axis[0] in "CZT"]
    unknown = [axis for axis in lead if axis[0] not in "CZT"]
    free = [axis for axis in "TZ" if axis not in {one[0] for one in known}]
    if len({axis[0] for axis in known}) < len(known) or len(unknown) > len(free) or (unknown and "Z" not in free):
        raise ImageError(
            f"{files.path}: its {' x '.join(map(str, shape))} planes have axes {axes}; urnet reads channels, z planes "
            "and time points. Save the image as an OME-TIFF of these",
            code="fields.dimension_unsupported",
        )
    names = dict(zip(unknown, free[len(free) - len(unknown) :], strict=True))
    named = [names.get(axis, axis[0]) for axis in lead]
    grid = np.empty(len(places), object)
    grid[:] = places
    grid = grid.reshape(tuple(lead.values()))
    for axis in "TCZ":
        if axis not in named:
            grid = grid[..., None]
    order = [*named, *(axis for axis in "TCZ" if axis not in named)]
    return grid.transpose([order.index(axis) for axis in "TCZ"])


def _scenes(
    files: TiffFiles,
    grid: np.ndarray,
    first: TiffPage,
    name: str | None,
    index: int,
    count: int,
    channels: Sequence[str | None],
    pixel: float | None,
    sample_axis: str = "C",
) -> list[Scene]:
    """Build a scene for each time point of a grid of planes.

    Args:
        files: the open files.
        grid: planes, (T, C, Z).
        first: page of the first plane.
        name: of the image; none where it has none.
        index: number of the image.
        count: number of images in the file.
        channels: names of the channels.
        pixel: edge of a pixel, µm; none where it is unknown.
        sample_axis: axis along which several values of a pixel lie that are no colour.
    """
    dtype, colour = classify_tiff_pixels(files.path, first, MAX_SAMPLES)
    samples = first.samplesperpixel
    T, C, Z = grid.shape
    colour = colour and first.photometric in _RGB and sample_axis == "C"
    stored_together = ""
    if samples > 1 and not colour:
        # A grey value with alpha is one channel, as in crops. Other values of a pixel are channels.
        alpha = sample_axis == "C" and is_grey_with_alpha(first)
        axis = "TCZ".index(sample_axis)
        if grid.shape[axis] > 1:
            what = ("time points", "channels", "z planes")[axis]
            raise ImageError(
                f"{files.path}: {samples} values per pixel in each of {grid.shape[axis]} {what}; save each plane as a "
                "page of its own",
                code="fields.dimension_unsupported",
            )
        if not alpha:
            stored_together = sample_axis
            T, C, Z = (samples if number == axis else n for number, n in enumerate(grid.shape))
    files.check_decodable(first)
    own = name or str(index)
    return [
        Scene(
            name=(f"{own} t{t}" if count > 1 else f"t{t}") if T > 1 else own,
            height=first.imagelength,
            width=first.imagewidth,
            channels=channel_names(channels, C),
            planes=Z,
            dtype=dtype,
            colour=colour,
            pixel_um=pixel,
            files=files.paths,
            address=(grid[0].tolist(), t, first)
            if stored_together == "T"
            else (grid[t].tolist(), stored_together, first),
            orientation=read_tiff_orientation(first),
        )
        for t in range(T)
    ]

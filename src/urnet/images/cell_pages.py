"""Select the pages of a TIFF that are images of cells.

The pages of a file can also be smaller versions of one image, its label and overview, channels, z planes or time
points. Pages marked as smaller versions or masks are skipped. A file whose pages may be anything but one cell each is
refused, because the number of cells must not depend on a guess.
"""

import json
import math
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from xml.etree import ElementTree

from urnet.errors import ImageError
from urnet.images.ome_xml import MAX_LENGTH, find_children, is_ome_xml, parse_ome_xml, read_whole_number
from urnet.images.tiff_pages import Page, is_ndtiff, list_pages, read_description, read_micromanager_metadata

MIN_OTHER_SIZE_RATIO = 1.9
"""Ratio of the edges of two pages from which they may be different resolutions of one image."""

_DESCRIPTION_BYTES = 65_536


def list_cell_pages(path: Path) -> tuple[int, ...]:
    """List the numbers of the pages of a TIFF that show one cell each, at full resolution.

    Raises:
        ImageError: with one of these codes:

            - `images.pages_ambiguous`: pages have different sizes or kinds, the file has images that are no pages, or
              its OME-XML names fewer planes than it has pages;
            - `images.pages_of_one_image`: pages are channels, z planes or time points of one image;
            - `images.pages_damaged`: as in `list_pages`;
            - `images.ome_xml_invalid`: as in `parse_ome_xml`.
    """
    status = path.stat()
    return _list_cell_pages(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=64)
def _list_cell_pages(path: Path, modified: int, size: int) -> tuple[int, ...]:
    pages = list_pages(path)
    full = [number for number, page in enumerate(pages) if not (page.reduced or page.mask)] or [0]
    start = read_description(path, pages[0], _DESCRIPTION_BYTES)
    root = _parse_ome_xml(path, pages, start)
    axes = _list_axes(path, pages, start) if root is None else _list_ome_axes(path, root)
    if axes:
        raise ImageError(
            f"{path}: the pages are {' and '.join(axes)} of one image, not several cells. {_FIX}",
            code="images.pages_of_one_image",
        )
    if root is not None and (named := sum(math.prod(sizes.values()) for sizes in _iterate_ome_sizes(path, root))) < len(
        full
    ):
        raise ImageError(
            f"{path}: the OME-XML names {named} plane(s), but the file has {len(full)} pages, and it is not known what "
            f"they are. {_FIX}",
            code="images.pages_ambiguous",
        )
    if len(full) == 1 and len(pages) == 1 and (hidden := _read_imagej_number(start, "images")) > 1:
        raise ImageError(
            f"{path}: a large stack of ImageJ with {hidden} images, of which the file lists one page. Save it as an "
            "image sequence in ImageJ",
            code="images.pages_ambiguous",
        )
    _check_same_kind(path, [pages[number] for number in full])
    return tuple(full)


_FIX = (
    "Save each cell as its own file, or list the pages that are cells in a cells table (stack.tif#p000). Crop a field "
    "of view with `urnet crop`"
)


def _check_same_kind(path: Path, pages: list[Page]) -> None:
    for edges, what in (([p.width for p in pages], "wide"), ([p.height for p in pages], "high")):
        if max(edges) >= MIN_OTHER_SIZE_RATIO * min(edges):
            raise ImageError(
                f"{path}: the pages are {min(edges)} to {max(edges)} px {what}, so they may be resolutions or "
                f"overviews of one image, not several cells. {_FIX}",
                code="images.pages_ambiguous",
            )
    kinds = {(page.samples, *page.kind[:2]) for page in pages}
    if len(kinds) > 1:
        raise ImageError(
            f"{path}: the pages are of {len(kinds)} kinds (values per pixel, bits), so they may be different images of "
            f"one cell. {_FIX}",
            code="images.pages_ambiguous",
        )


def _list_axes(path: Path, pages: tuple[Page, ...], start: str) -> list[str]:
    """List the axes of one image that the file's metadata name, without rows and columns."""
    if start.startswith(("ImageJ=", "SCIFIO=")):
        # ImageJ names the images of any stack slices (or frames), so one of these names alone means nothing.
        named = [axis for axis in ("channels", "slices", "frames") if _read_imagej_number(start, axis) > 1]
        if "channels" in named or len(named) > 1:
            return named
    if start.startswith("{"):
        return _list_tifffile_axes(start)
    return _list_micromanager_axes(path) if len(pages) > 1 else []


def _parse_ome_xml(path: Path, pages: tuple[Page, ...], start: str) -> ElementTree.Element | None:
    """Parse the OME-XML of a file with several pages. With one page, it describes planes in other files."""
    if len(pages) == 1 or not is_ome_xml(start):
        return None
    return parse_ome_xml(str(path), read_description(path, pages[0], MAX_LENGTH + 1))


def _list_ome_axes(path: Path, root: ElementTree.Element) -> list[str]:
    if find_children(root, "BinaryOnly"):
        return ["one part"]
    named = {axis for sizes in _iterate_ome_sizes(path, root) for axis, number in sizes.items() if number > 1}
    return [axis for axis in ("channels", "z planes", "time points") if axis in named]


def _iterate_ome_sizes(path: Path, root: ElementTree.Element) -> Iterator[dict[str, int]]:
    """Yield the numbers of channels, z planes and time points of each image. Channels that share a page count once."""
    for image in find_children(root, "Image"):
        for pixels in find_children(image, "Pixels"):
            samples = [
                read_whole_number(str(path), one, "SamplesPerPixel", 1) for one in find_children(pixels, "Channel")
            ]
            channels = read_whole_number(str(path), pixels, "SizeC", 1) // max([1, *samples])
            sizes = {"channels": channels}
            sizes |= {"z planes": read_whole_number(str(path), pixels, "SizeZ", 1)}
            sizes |= {"time points": read_whole_number(str(path), pixels, "SizeT", 1)}
            yield sizes


def _list_tifffile_axes(text: str) -> list[str]:
    """List the named axes of a file that Python's tifffile wrote."""
    try:
        metadata = json.loads(text)
        sizes = dict(zip(metadata["axes"], metadata["shape"], strict=True))
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
    names = {"C": "channels", "Z": "z planes", "T": "time points"}
    return [name for axis, name in names.items() if isinstance(sizes.get(axis), int) and sizes[axis] > 1]


def _list_micromanager_axes(path: Path) -> list[str]:
    if is_ndtiff(path):
        return ["planes"]
    summary = read_micromanager_metadata(path).get("Summary")
    if not isinstance(summary, dict):
        return []
    names = {"Channels": "channels", "Slices": "z planes", "Frames": "time points"}
    return [name for key, name in names.items() if isinstance(summary.get(key), int) and summary[key] > 1]


def _read_imagej_number(start: str, name: str) -> int:
    if not start.startswith(("ImageJ=", "SCIFIO=")):
        return 1
    match = re.search(rf"^{name}=(\d{{1,9}})\s*$", start, re.MULTILINE)
    return int(match[1]) if match else 1

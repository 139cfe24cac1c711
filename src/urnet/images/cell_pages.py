"""Decide which pages of a TIFF are images of cells when the file is given as cells.

Pages of a file can also be smaller versions of one image, its label and overview, its channels, its z planes or its
time points. What is marked as a smaller version or a mask is left out. Where pages may be anything but one cell each,
the file is refused: a count of cells must not depend on a guess.
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
"""Ratio of edges from which pages are taken for different resolutions of something, or for something else."""

_DESCRIPTION_BYTES = 65_536


def list_cell_pages(path: Path) -> tuple[int, ...]:
    """Numbers of the pages of a TIFF that show one cell each, at full resolution.

    Raises:
        ImageError: `images.pages_ambiguous` where pages have different sizes or kinds, the file has images that are
            no pages, or its OME-XML names fewer planes than it has pages; `images.pages_of_one_image` where they are
            channels, z planes or time points of one image; `images.pages_damaged` as `list_pages`; OME-XML that is
            invalid, as `parse_ome_xml`.
    """
    about = path.stat()
    return _list_cell_pages(path, about.st_mtime_ns, about.st_size)


@lru_cache(maxsize=64)
def _list_cell_pages(path: Path, modified: int, size: int) -> tuple[int, ...]:
    pages = list_pages(path)
    full = [number for number, page in enumerate(pages) if not (page.reduced or page.mask)] or [0]
    start = read_description(path, pages[0], _DESCRIPTION_BYTES)
    root = _parse_ome_xml(path, pages, start)
    axes = _list_axes(path, pages, start) if root is None else _list_ome_axes(path, root)
    if axes:
        raise ImageError(
            f"{path}: its pages are {' and '.join(axes)} of one image and not several cells. {_FIX}",
            code="images.pages_of_one_image",
        )
    if root is not None and (named := sum(math.prod(sizes.values()) for sizes in _iterate_ome_sizes(path, root))) < len(
        full
    ):
        raise ImageError(
            f"{path}: its OME-XML names {named} plane(s), but the file holds {len(full)} pages, which can be anything. "
            f"{_FIX}",
            code="images.pages_ambiguous",
        )
    if len(full) == 1 and len(pages) == 1 and (hidden := _read_imagej_number(start, "images")) > 1:
        raise ImageError(
            f"{path}: holds {hidden} images behind a single page, as ImageJ writes large stacks. Save it from ImageJ "
            "as an image sequence",
            code="images.pages_ambiguous",
        )
    _check_same_kind(path, [pages[number] for number in full])
    return tuple(full)


_FIX = (
    "Save each cell as a file of its own, or name the pages that are cells in a cells table: stack.tif#p000; a field "
    "of view goes through `urnet crop`"
)


def _check_same_kind(path: Path, pages: list[Page]) -> None:
    for edges, what in (([p.width for p in pages], "wide"), ([p.height for p in pages], "high")):
        if max(edges) >= MIN_OTHER_SIZE_RATIO * min(edges):
            raise ImageError(
                f"{path}: its pages are {min(edges)} to {max(edges)} px {what}; they can be resolutions or overviews "
                f"of one image and not several cells. {_FIX}",
                code="images.pages_ambiguous",
            )
    kinds = {(page.samples, *page.kind[:2]) for page in pages}
    if len(kinds) > 1:
        raise ImageError(
            f"{path}: its pages are of {len(kinds)} kinds (values a pixel, bits); they can be different images of one "
            f"cell. {_FIX}",
            code="images.pages_ambiguous",
        )


def _list_axes(path: Path, pages: tuple[Page, ...], start: str) -> list[str]:
    """Axes of one image that the file's metadata name, other than its rows and columns."""
    if start.startswith(("ImageJ=", "SCIFIO=")):
        # ImageJ calls the images of any stack slices (or frames), so one of these says nothing.
        named = [axis for axis in ("channels", "slices", "frames") if _read_imagej_number(start, axis) > 1]
        if "channels" in named or len(named) > 1:
            return named
    if start.startswith("{"):
        return _list_tifffile_axes(start)
    return _list_micromanager_axes(path) if len(pages) > 1 else []


def _parse_ome_xml(path: Path, pages: tuple[Page, ...], start: str) -> ElementTree.Element | None:
    """The OME-XML of a file with several pages; of one with a single page, other planes are in other files."""
    if len(pages) == 1 or not is_ome_xml(start):
        return None
    return parse_ome_xml(str(path), read_description(path, pages[0], MAX_LENGTH + 1))


def _list_ome_axes(path: Path, root: ElementTree.Element) -> list[str]:
    if find_children(root, "BinaryOnly"):
        return ["one part"]
    named = {axis for sizes in _iterate_ome_sizes(path, root) for axis, number in sizes.items() if number > 1}
    return [axis for axis in ("channels", "z planes", "time points") if axis in named]


def _iterate_ome_sizes(path: Path, root: ElementTree.Element) -> Iterator[dict[str, int]]:
    """Channels, z planes and time points of each image; of channels, as many as there are pages for."""
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
    """Axes that Python's tifffile has written; axes without a name say nothing."""
    try:
        about = json.loads(text)
        sizes = dict(zip(about["axes"], about["shape"], strict=True))
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
    found = re.search(rf"^{name}=(\d{{1,9}})\s*$", start, re.MULTILINE)
    return int(found[1]) if found else 1

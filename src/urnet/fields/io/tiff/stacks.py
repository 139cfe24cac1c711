"""List the planes of TIFF stacks of Micro-Manager and tifffile, whose metadata describe their pages."""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from urnet.errors import ImageError
from urnet.fields.io.tiff.ome import PageAddress
from urnet.images.tiff_pages import Page, is_ndtiff, read_description

_MAX_METADATA = 2**20


@dataclass(frozen=True)
class Stack:
    """Planes of one image.

    Attributes:
        name: name of the image; none where it has none.
        axes: a letter for each axis of `shape`: T, C, Z, or Q for an axis without a name.
        shape: number of planes along each axis, the last one fastest.
        places: page of each plane; only the first where the other planes follow it without pages of their own.
        channels: names of the channels, where known.
        pixel_um: edge of a pixel, µm; none where unknown.
        samples: axis along which the values of a pixel lie: "Z", "T", or "C" for colours and channels.
    """

    name: str | None
    axes: str
    shape: tuple[int, ...]
    places: list[PageAddress]
    channels: Sequence[str] = ()
    pixel_um: float | None = None
    samples: str = "C"


def micromanager_stacks(path: Path, pages: Sequence[Page], metadata: dict[str, Any]) -> list[Stack]:
    """List the positions in Micro-Manager's index of a file, each time point as a stack of its own.

    Args:
        path: the file.
        pages: its pages.
        metadata: its `Summary` and `IndexMap`.

    Raises:
        ImageError: `fields.page_twice` where the index names a plane twice, `fields.planes_missing` where it names
            pages that are not there or a position without some of its channels or z planes.
    """
    summary = metadata["Summary"]
    numbers = {page.offset: number for number, page in enumerate(pages)}
    names = summary.get("ChNames")
    names = [str(name) for name in names] if isinstance(names, list) else []
    planes: list[_Plane] = []
    first: dict[int, tuple[str, float | None]] = {}
    for channel, depth, time, position, offset in metadata["IndexMap"].tolist():
        if offset == 0:
            continue  # an acquisition that was stopped leaves empty entries
        if offset not in numbers:
            raise _missing(path, f"a page at byte {offset:,}, where there is none")
        if position not in first:
            page = pages[numbers[offset]]
            name = _text(_of_page(path, page).get("PositionName")) or _position_name(summary, position)
            first[position] = name or f"Pos{position}", micromanager_pixel_um(path, page, metadata)
        name, pixel = first[position]
        planes.append(_Plane((position,), name, time, channel, depth, PageAddress(path, numbers[offset]), pixel))
    if not planes:
        raise _missing(path, "no page")
    return _stacks(path, planes, lambda channel: names[channel] if channel < len(names) else str(channel))


def micromanager_pixel_um(path: Path, page: Page, metadata: dict[str, Any]) -> float | None:
    """Return the edge of a pixel, µm, from Micro-Manager's metadata of a page or of the acquisition."""
    stated = _of_page(path, page).get("PixelSizeUm")
    return _positive(stated) or _positive(metadata.get("Summary", {}).get("PixelSize_um"))


def ndtiff_stacks(path: Path, pages: Sequence[Page]) -> list[Stack]:
    """List the positions of an NDTiff file by the axes of each page; empty for other files.

    Raises:
        ImageError: as `micromanager_stacks`.
    """
    if not is_ndtiff(path):
        return []
    planes = []
    for number, page in enumerate(pages):
        about = _of_page(path, page)
        axes = about.get("Axes")
        if not isinstance(axes, dict):
            raise _missing(path, f"no axes for page {number}")
        where = {key: axes[key] for key in sorted(axes) if key not in ("channel", "z", "time")}
        name = _text(about.get("PositionName")) or " ".join(
            f"Pos{value}" if key == "position" else f"{key}{value}" for key, value in where.items()
        )
        depth, time, channel = (axes.get(key, 0) for key in ("z", "time", "channel"))
        if not all(isinstance(one, (int, str)) for one in (depth, time, channel, *where.values())):
            raise _missing(path, f"axes of page {number} that are neither numbers nor names")
        pixel = _positive(about.get("PixelSizeUm"))
        planes.append(
            _Plane(tuple(where.values()), name or None, time, channel, depth, PageAddress(path, number), pixel)
        )
    return _stacks(path, planes, str)


class _Plane(NamedTuple):
    where: tuple
    name: str | None
    time: int | str
    channel: int | str
    depth: int | str
    place: PageAddress
    pixel_um: float | None


def _stacks(path: Path, planes: list[_Plane], channel_name: Callable[[Any], str]) -> list[Stack]:
    """Group planes by position and time point, and check that every channel has every z plane."""
    positions: dict[tuple, dict[tuple, _Plane]] = defaultdict(dict)
    taken: set[PageAddress] = set()
    for plane in planes:
        those = positions[plane.where, plane.time]
        if plane.place in taken or (plane.channel, plane.depth) in those:
            raise ImageError(
                f"{path}: Micro-Manager's index names page {plane.place.page} or its plane twice ({plane.name}, time "
                f"point {plane.time}, channel {plane.channel}, z plane {plane.depth}); export the file again",
                code="fields.page_twice",
            )
        taken.add(plane.place)
        those[plane.channel, plane.depth] = plane
    several = len({plane.time for plane in planes}) > 1
    stacks = []
    for (_, time), those in sorted(positions.items(), key=lambda item: _order((*item[0][0], item[0][1]))):
        channels = sorted({c for c, _ in those}, key=lambda one: _order((one,)))
        depths = sorted({z for _, z in those}, key=lambda one: _order((one,)))
        if len(those) != len(channels) * len(depths):
            raise _missing(
                path, f"{len(those)} planes of {len(channels)} channels and {len(depths)} z planes at one position"
            )
        first = those[channels[0], depths[0]]
        stacks.append(
            Stack(
                name=" ".join(filter(None, (first.name, f"t{time}" if several else None))) or None,
                axes="CZ",
                shape=(len(channels), len(depths)),
                places=[those[c, z].place for c in channels for z in depths],
                channels=[channel_name(c) for c in channels],
                pixel_um=first.pixel_um,
            )
        )
    return stacks


def _order(values: tuple) -> tuple:
    """Return a sort key: numbers by value, then names."""
    return tuple((isinstance(value, str), value) for value in values)


def _missing(path: Path, what: str) -> ImageError:
    return ImageError(
        f"{path}: Micro-Manager's index names {what}; the file is truncated or mislabelled: copy it again, or export "
        "it again",
        code="fields.planes_missing",
    )


def _of_page(path: Path, page: Page) -> dict[str, Any]:
    """Read Micro-Manager's metadata of a page; empty where there are none."""
    offset, length = page.micromanager
    if not 0 < length <= _MAX_METADATA:
        return {}
    with path.open("rb") as file:
        file.seek(offset)
        text = file.read(length).rstrip(b"\0")
    try:
        about = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return about if isinstance(about, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value not in ("", "null") else None


def _position_name(summary: dict[str, Any], position: int) -> str | None:
    for key in ("StagePositions", "InitialPositionList"):
        those = summary.get(key)
        if isinstance(those, list) and position < len(those) and isinstance(those[position], dict):
            return _text(those[position].get("Label"))
    return None


def _positive(value: object) -> float | None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf
    return float(value) if good else None


def shaped_stacks(path: Path, pages: Sequence[Page]) -> list[Stack]:
    """List the stacks of a file that tifffile wrote with the shape of each array; empty for other files.

    Raises:
        ImageError: `fields.planes_missing` where the shape does not fit the pages.
    """
    stacks = []
    number = 0
    while number < len(pages):
        page = pages[number]
        about = _shape_of(path, page)
        if about is None:
            return []
        shape, axes = about
        inner = [n for n in (page.height, page.width) if n > 1]
        outer = [n for n in shape if n > 1]
        letters = [axis for axis, n in zip(axes, shape, strict=True) if n > 1]
        samples = "C"
        for tail, place in _tails(page, inner):
            rest = len(outer) - len(tail)
            if outer[rest:] == tail:
                if place is not None and letters[rest + place] in "ZT":
                    samples = letters[rest + place]
                outer, letters = outer[:rest], letters[:rest]
                break
        else:
            raise _unshaped(path, shape, page)
        planes = math.prod(outer)
        here = min(planes, len(pages) - number)
        if here < planes and here > 1:
            raise ImageError(
                f"{path}: its metadata name {planes} planes, but {here} are there; the file is truncated or "
                "mislabelled: copy it again, or export it again",
                code="fields.planes_missing",
            )
        places = [PageAddress(path, number + step) for step in range(here)]
        stacks.append(Stack(None, "".join(letters), tuple(outer), places, samples=samples))
        number += here
    return stacks


def _tails(page: Page, inner: list[int]) -> list[tuple[list[int], int | None]]:
    """List possible endings of the shape of an array, each with the place of the values of a pixel in it."""
    if page.samples == 1:
        return [(inner, None)]
    return [([*inner, page.samples], len(inner)), ([page.samples, *inner], 0)]


def _shape_of(path: Path, page: Page) -> tuple[list[int], str] | None:
    text = read_description(path, page, _MAX_METADATA)
    if text.startswith("shape="):
        text = json.dumps({"shape": [int(n) for n in text[7:-1].split(",") if n.strip().isdigit()]})
    if not text.startswith("{") or '"shape"' not in text:
        return None
    try:
        about = json.loads(text)
    except (ValueError, RecursionError):
        return None
    shape, axes = about.get("shape"), about.get("axes")
    if not isinstance(shape, list) or not all(type(n) is int and 0 < n < 2**40 for n in shape):
        return None
    named = isinstance(axes, str) and len(axes) == len(shape)
    return shape, axes if named else "Q" * len(shape)


def _unshaped(path: Path, shape: list[int], page: Page) -> ImageError:
    return ImageError(
        f"{path}: its metadata name an array of {' x '.join(map(str, shape))}, its pages have {page.height} x "
        f"{page.width} px; it is truncated or mislabelled: copy it again, or export it again",
        code="fields.planes_missing",
    )

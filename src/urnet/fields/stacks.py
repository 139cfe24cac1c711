"""Planes of TIFF stacks that are no OME-TIFF but say what their pages are: Micro-Manager's, and those of tifffile."""

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from urnet.errors import ImageError
from urnet.fields.ome import PlaneAt
from urnet.images.tiff_pages import Page, description_of

_MAX_METADATA = 2**20


@dataclass(frozen=True)
class Stack:
    """Planes of one image.

    Attributes:
        name: of the image; none where it has none.
        axes: a letter for each axis of `shape`: T, C, Z, or Q for an axis without a name.
        shape: number of planes along each axis, the last one fastest.
        places: page of each plane; one alone where the other planes follow its pixels without pages of their own.
        channels: their names, as far as they are known.
        pixel_um: edge of a pixel, µm; none where it is not known.
    """

    name: str | None
    axes: str
    shape: tuple[int, ...]
    places: list[PlaneAt]
    channels: Sequence[str] = ()
    pixel_um: float | None = None


def micromanager_stack(path: Path, pages: Sequence[Page], metadata: dict[str, Any]) -> list[Stack]:
    """Positions of a stack by Micro-Manager's own index of the planes in this file, each time point a stack of its own.

    Args:
        path: the file.
        pages: its pages.
        metadata: its `Summary` and `IndexMap`.

    Raises:
        ImageError: `fields.plane_twice` where the index names a plane twice, `fields.planes_missing` where it names
            pages that are not there or a position without some of its channels or z planes.
    """
    summary = metadata["Summary"]
    numbers = {page.offset: number for number, page in enumerate(pages)}
    planes: dict[tuple[int, int], dict[tuple[int, int], PlaneAt]] = defaultdict(dict)
    taken: set[int] = set()
    for channel, depth, time, position, offset in metadata["IndexMap"].tolist():
        if offset == 0:
            continue  # left empty by an acquisition that was stopped
        number = numbers.get(offset)
        if number is None:
            raise _missing(path, f"a page at byte {offset:,}, where there is none")
        if number in taken or (channel, depth) in planes[position, time]:
            raise ImageError(
                f"{path}: Micro-Manager's index names page {number} or its plane twice (position {position}, time "
                f"point {time}, channel {channel}, z plane {depth}); export the file anew",
                code="fields.plane_twice",
            )
        taken.add(number)
        planes[position, time][channel, depth] = PlaneAt(path, number)
    if not planes:
        raise _missing(path, "no page")
    times = len({time for _, time in planes})
    names = summary.get("ChNames")
    names = [str(name) for name in names] if isinstance(names, list) else []
    stacks = []
    for (position, time), those in sorted(planes.items()):
        channels, depths = sorted({c for c, _ in those}), sorted({z for _, z in those})
        if len(those) != len(channels) * len(depths):
            raise _missing(
                path, f"{len(those)} planes of {len(channels)} channels and {len(depths)} z planes at one position"
            )
        name, pixel = _of_page(path, pages[next(iter(those.values())).page])
        name = name or _position_name(summary, position) or f"Pos{position}"
        stacks.append(
            Stack(
                name=f"{name} t{time}" if times > 1 else name,
                axes="CZ",
                shape=(len(channels), len(depths)),
                places=[those[c, z] for c in channels for z in depths],
                channels=[names[c] if c < len(names) else str(c) for c in channels],
                pixel_um=pixel or _positive(summary.get("PixelSize_um")),
            )
        )
    return stacks


def _missing(path: Path, what: str) -> ImageError:
    return ImageError(
        f"{path}: Micro-Manager's index names {what}; the file is truncated or mislabelled: copy it again, or export "
        "it anew",
        code="fields.planes_missing",
    )


def _of_page(path: Path, page: Page) -> tuple[str | None, float | None]:
    """Name of the position and size of a pixel, by the metadata that Micro-Manager keeps with a page."""
    offset, length = page.micromanager
    if not 0 < length <= _MAX_METADATA:
        return None, None
    with path.open("rb") as file:
        file.seek(offset)
        text = file.read(length).rstrip(b"\0")
    try:
        about = json.loads(text)
    except (ValueError, RecursionError):
        return None, None
    if not isinstance(about, dict):
        return None, None
    name = about.get("PositionName")
    return (name if isinstance(name, str) and name != "null" else None), _positive(about.get("PixelSizeUm"))


def _position_name(summary: dict[str, Any], position: int) -> str | None:
    for key in ("StagePositions", "InitialPositionList"):
        those = summary.get(key)
        if isinstance(those, list) and position < len(those) and isinstance(those[position], dict):
            label = those[position].get("Label")
            if isinstance(label, str) and label:
                return label
    return None


def _positive(value: object) -> float | None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf
    return float(value) if good else None


def shaped_stacks(path: Path, pages: Sequence[Page]) -> list[Stack]:
    """Stacks of a file that Python's tifffile has written with the shape of each array; empty for other files.

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
        for tail in _tails(page, inner):
            if outer[len(outer) - len(tail) :] == tail:
                outer, letters = outer[: len(outer) - len(tail)], letters[: len(letters) - len(tail)]
                break
        else:
            raise _unshaped(path, shape, page)
        planes = math.prod(outer)
        here = min(planes, len(pages) - number)
        if here < planes and here > 1:
            raise ImageError(
                f"{path}: its metadata name {planes} planes, but {here} are there; the file is truncated or "
                "mislabelled: copy it again, or export it anew",
                code="fields.planes_missing",
            )
        places = [PlaneAt(path, number + step) for step in range(here)]
        stacks.append(Stack(None, "".join(letters), tuple(outer), places))
        number += here
    return stacks


def _tails(page: Page, inner: list[int]) -> list[list[int]]:
    """How the rows, columns and values of a page end the shape of its array."""
    if page.samples == 1:
        return [inner]
    return [[*inner, page.samples], [page.samples, *inner]]


def _shape_of(path: Path, page: Page) -> tuple[list[int], str] | None:
    text = description_of(path, page, _MAX_METADATA)
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
        f"{page.width} px; it is truncated or mislabelled: copy it again, or export it anew",
        code="fields.planes_missing",
    )

"""List the pages of a TIFF from its directories, in time proportional to their number.

A TIFF is a chain of directories, one per page, that name the positions of the pixels. A file can have a chain that is a
loop, pages that share pixels, and pages that claim any size. The chain is therefore followed here, with limits, before
a decoder opens the file. Pages are then read at their known positions.
"""

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tifffile

from urnet.errors import ImageError

MAX_PAGES = 100_000
"""Maximum number of pages of one file."""

_MAX_TAGS = 4096
"""Maximum number of tags of a page. The standard defines fewer than two hundred."""

_HEADER_BYTES = 8
"""Length of the shortest header, in bytes. No pixels are in it. An empty strip or tile has 0 bytes at byte 0."""

_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_TYPE_LETTERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}

_BYTE_ORDERS = {b"II": "<", b"MM": ">"}

_NDTIFF_MARK = 483729
_MICROMANAGER_INDEX, _MICROMANAGER_SUMMARY, _MICROMANAGER_ROWS = 54773648, 2355492, 3453623
"""Marks of Micro-Manager's metadata (micro-manager.org/Micro-Manager_File_Formats)."""

_NO_OTHER_FILES = dict.fromkeys(("is_ome", "is_mmstack", "is_ndtiff"), False)
"""Formats for which tifffile opens other files. `urnet.fields.io.tiff.ome` opens them, by the rule for companions."""

_NO_UNBOUNDED_METADATA = dict.fromkeys(("is_shaped", "is_scanimage"), False)
"""Formats whose metadata tifffile reads without a limit."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page, from its directory.

    Attributes:
        offset: position of the directory in the file.
        width: number of columns.
        height: number of rows.
        depth: number of slices of a volume in one page, else 1.
        tile: depth, height and width of the tiles; 1, 1, 1 for strips, which end with the page.
        samples: values per pixel.
        kind: bits, number format, photometric interpretation, compression and planar configuration.
        reduced: whether it is marked as a smaller version of another page.
        mask: whether it is marked as the transparency mask of another page.
        segments: number of listed strips or tiles.
        stored: size of its pixels in the file, in bytes.
        start: position of its first strip or tile.
        end: end of its last strip or tile.
        description: position and length of its description.
        micromanager: position and length of its Micro-Manager metadata.
    """

    offset: int
    width: int
    height: int
    depth: int
    tile: tuple[int, int, int]
    samples: int
    kind: tuple[int, ...]
    reduced: bool
    mask: bool
    segments: int
    stored: int
    start: int
    end: int
    description: tuple[int, int]
    micromanager: tuple[int, int]

    @property
    def pixel_count(self) -> int:
        """Number of pixels that are decoded, with those of tiles beyond its edges."""
        return count_decoded_pixels((self.depth, self.height, self.width), self.tile)

    @property
    def layout(self) -> tuple[int, ...]:
        """Properties that are equal for the planes of one image."""
        return (self.width, self.height, self.depth, self.samples, *self.kind)


def count_decoded_pixels(shape: tuple[int, int, int], tile: tuple[int, int, int]) -> int:
    """Count the pixels of all tiles of a page. Tiles are decoded whole, even if they are larger than the page."""
    return math.prod(-(-edge // max(1, step)) * max(1, step) for edge, step in zip(shape, tile, strict=True))


def list_pages(path: Path) -> tuple[Page, ...]:
    """List all pages of a TIFF in order. The number of a page in an address is its index here.

    Raises:
        ImageError: the file cannot be opened (`images.cannot_open`) or is damaged (`images.pages_damaged`): a directory
            is beyond its end, the chain is a loop or longer than `MAX_PAGES`, or pages claim more pixels than the file
            can hold.
    """
    try:
        status = path.stat()
        return _list_pages(path, status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise ImageError(f"{path}: cannot be opened ({error.strerror})", code="images.cannot_open") from None
    except (struct.error, ValueError, KeyError, OverflowError):
        raise _damaged_error(path, "the list of pages cannot be read") from None


@lru_cache(maxsize=8)
def _list_pages(path: Path, modified: int, size: int) -> tuple[Page, ...]:
    with path.open("rb") as file:
        return tuple(_walk_directories(path, file, size))


def open_tiff(path: Path) -> tifffile.TiffFile:
    """Open a TIFF with a decoder that opens no other file."""
    return tifffile.TiffFile(path, **_NO_OTHER_FILES, **_NO_UNBOUNDED_METADATA)


def open_page(tif: tifffile.TiffFile, page: Page, index: int) -> tifffile.TiffPage:
    """Open one page in the decoder without following the chain."""
    first = tif.pages.first
    if first.offset == page.offset:
        return first
    tif.filehandle.seek(page.offset)
    return tifffile.TiffPage(tif, index)


def read_description(path: Path, page: Page, most: int) -> str:
    """Read the description of a page, `most` bytes at most."""
    offset, length = page.description
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(min(length, most)).rstrip(b"\0").decode("utf-8", "replace")


def read_micromanager_metadata(path: Path) -> dict[str, Any]:
    """Read `Summary` and `IndexMap` of a stack of Micro-Manager; empty for other files.

    The index has one row per plane: channel, slice, frame, position and the offset of its directory.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(40)
        if start[:2] not in _BYTE_ORDERS or len(start) < 40:
            return {}
        order = _BYTE_ORDERS[start[:2]]
        index, index_at, *_, summary, summary_length = struct.unpack(order + "8I", start[8:40])
        if index != _MICROMANAGER_INDEX or summary != _MICROMANAGER_SUMMARY:
            return {}
        try:
            metadata = json.loads(_read_at(file, 40, summary_length, size))
        except (ValueError, RecursionError):
            return {}
        head, count = struct.unpack(order + "II", _read_at(file, index_at, 8, size) or bytes(8))
        rows = _read_at(file, index_at + 8, count * 20, size) if head == _MICROMANAGER_ROWS else b""
        if not isinstance(metadata, dict) or not rows:
            return {}
        return {"Summary": metadata, "IndexMap": np.frombuffer(rows, order + "u4").reshape(-1, 5).astype(np.int64)}


def is_ndtiff(path: Path) -> bool:
    """Return whether a file is an NDTiff of Micro-Manager, in which each page has its own metadata."""
    with path.open("rb") as file:
        mark = file.read(12)[8:]
    return _NDTIFF_MARK in (int.from_bytes(mark, "little"), int.from_bytes(mark, "big"))


def _damaged_error(path: Path, what: str) -> ImageError:
    return ImageError(
        f"{path}: truncated or damaged TIFF: {what}. Copy or export the file again",
        code="images.pages_damaged",
    )


def _walk_directories(path: Path, file: BinaryIO, size: int) -> Iterator[Page]:
    start = file.read(16).ljust(16, b"\0")
    order = _BYTE_ORDERS[start[:2]]
    big = struct.unpack(order + "H", start[2:4])[0] == 43
    offset = struct.unpack(order + ("Q" if big else "I"), start[8:16] if big else start[4:8])[0]
    count_of, tag_of, next_of = (order + letters for letters in (("Q", "HHQ8s", "Q") if big else ("H", "HHI4s", "I")))
    entry, inline = struct.calcsize(tag_of), 8 if big else 4
    seen: set[int] = set()
    listed = 0
    while offset:
        number = len(seen)
        if offset in seen:
            raise _damaged_error(path, f"the pages form a loop after page {number - 1}")
        if number == MAX_PAGES:
            raise _damaged_error(path, f"more than the limit of {MAX_PAGES:,} pages")
        seen.add(offset)
        head = _read_at(file, offset, struct.calcsize(count_of), size)
        count = struct.unpack(count_of, head)[0] if head else 0
        body = _read_at(file, offset + len(head), count * entry + inline, size) if 0 < count <= _MAX_TAGS else b""
        if not body:
            raise _damaged_error(path, f"page {number} is beyond its end or has no tags")
        tags: dict[int, np.ndarray] = {}
        texts = dict.fromkeys(_TEXT_TAGS, (0, 0))
        for code, kind, length, value in struct.iter_unpack(tag_of, body[: count * entry]):
            if code not in _WANTED_TAGS:
                continue
            needed = length * _TYPE_SIZES.get(kind, 1)
            far = struct.unpack(next_of, value)[0]
            if code in _TEXT_TAGS:
                if needed > inline and far > size - needed:
                    raise _damaged_error(path, f"the description of page {number} is beyond its end")
                texts[code] = (far, needed) if needed > inline and not texts[code][1] else texts[code]
                continue
            if kind not in _TYPE_LETTERS or code in tags:
                continue
            if needed > inline:
                listed += needed
                value = _read_at(file, far, needed, size) if listed <= size + 2**20 else b""  # arrays do not overlap
                if not value:
                    raise _damaged_error(path, f"page {number} lists pixels beyond its end")
            tags[code] = np.frombuffer(value[:needed], order + _TYPE_LETTERS[kind])
        yield _parse_page(path, number, offset, tags, texts, size)
        offset = struct.unpack(next_of, body[-inline:])[0]
    if not seen:
        raise _damaged_error(path, "the file has no page")


_TEXT_TAGS = (270, 51123)
_WANTED_TAGS = frozenset(
    (*_TEXT_TAGS, 254, 255, 256, 257, 258, 259, 262, 273, 277, 279, 284, 322, 323, 324, 325, 339, 32997, 32998)
)


def _parse_page(
    path: Path, number: int, offset: int, tags: dict[int, np.ndarray], texts: dict[int, tuple[int, int]], size: int
) -> Page:
    def one(code: int, otherwise: int) -> int:
        values = tags.get(code)
        return otherwise if values is None or not len(values) else int(values.max())

    nothing = np.zeros(0, np.uint64)
    starts = tags.get(324, tags.get(273, nothing)).astype(np.uint64)
    counts = tags.get(325, tags.get(279, nothing)).astype(np.uint64)
    listed = min(len(starts), len(counts))
    starts, counts = starts[:listed], counts[:listed]
    filled = counts > 0
    if (starts >= 2**63).any() or (counts >= 2**63).any():
        raise _damaged_error(path, f"page {number} lists pixels beyond its end")
    if (starts[filled] < _HEADER_BYTES).any():
        raise _damaged_error(path, f"page {number} lists a strip or tile with pixels at byte 0, within the header")
    ends = (starts + counts)[filled]
    return Page(
        offset=offset,
        width=max(0, one(256, 0)),
        height=max(0, one(257, 0)),
        depth=max(1, one(32997, 1)),
        tile=(max(1, one(32998, 1)), max(1, one(323, 1)), one(322, 1)) if one(322, 0) > 0 else (1, 1, 1),
        samples=one(277, 1),
        kind=(one(258, 1), one(339, 1), one(262, -1), one(259, 1), one(284, 1)),
        reduced=bool(one(254, 0) & 1) or one(255, 0) == 2,
        mask=bool(one(254, 0) & 4),
        segments=listed,
        stored=int(np.minimum(counts, np.uint64(size)).sum()),
        start=int(starts[filled][0]) if filled.any() else 0,
        end=int(ends.max()) if len(ends) else 0,
        description=texts[270],
        micromanager=texts[51123],
    )


def _read_at(file: BinaryIO, offset: int, length: int, size: int) -> bytes:
    """Read bytes at a position. Return b"" if there are fewer."""
    if not 0 <= offset <= size - length:
        return b""
    file.seek(offset)
    data = file.read(length)
    return data if len(data) == length else b""

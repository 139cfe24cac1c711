"""Addresses of images inside files: tiles of a montage and pages of a multi-page TIFF.

`g1/brightfield.tif#r03c17` is the tile in row 3, column 17 (from 0) of a montage; `stack.tif#p002` is page 2 of a
stack. A plain path is its own address.
"""

import re
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from urnet.errors import ImageError
from urnet.images.cell_pages import list_cell_pages
from urnet.images.read import TIFF_STARTS, is_file, read_first_bytes, read_header, read_image

_DECODING_LOCK = threading.Lock()
_ADDRESS = re.compile(r"(?P<file>.+)#(?:p(?P<page>\d{1,9})|r(?P<row>\d{1,9})c(?P<column>\d{1,9}))")


@dataclass(frozen=True)
class Address:
    """One image: a file, and which page or tile of it."""

    file: str
    page: int | None = None
    row: int | None = None
    column: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Split `file#p002` or `file#r03c17`; anything else is a plain path."""
        match = _ADDRESS.fullmatch(text)
        if match is None:
            return cls(text)
        parts = {key: int(value) for key, value in match.groupdict().items() if key != "file" and value is not None}
        return cls(match["file"], **parts)

    def __str__(self) -> str:
        if self.row is not None:
            return f"{self.file}#r{self.row:02d}c{self.column:02d}"
        return f"{self.file}#p{self.page:03d}" if self.page is not None else self.file


def resolve_address(root: Path, address: str) -> Address:
    """The image at an address; a file whose own name looks like an address is that file."""
    place = Address.parse(address)
    return Address(address) if place.file != address and is_file(root / address) else place


def list_images(root: Path, file: str, tile: int | None) -> list[Address]:
    """All images in one file: itself, its pages of full resolution, or its tiles.

    Args:
        root: folder that `file` is relative to.
        file: path of the file, with forward slashes.
        tile: edge of a montage's tiles in pixels; none for a file that is no montage.

    Raises:
        ImageError: unreadable, a montage whose edges `tile` does not divide, or pages that may not be a cell each (as
            `list_cell_pages`).
    """
    header = read_header(root / file)
    pages = _list_pages(root / file)
    if tile is not None:
        if header.height % tile or header.width % tile or pages != (0,):
            raise ImageError(
                f"{root / file}: {header.width} x {header.height} px, {header.pages} page(s), is no montage of "
                f"{tile} px tiles; its edges must be multiples of tile"
            )
        rows, columns = header.height // tile, header.width // tile
        if rows * columns > 1:
            return [Address(file, row=row, column=column) for row in range(rows) for column in range(columns)]
    return [Address(file, page=page) for page in pages] if pages != (0,) else [Address(file)]


def _list_pages(path: Path) -> tuple[int, ...]:
    return list_cell_pages(path) if read_first_bytes(path).startswith(TIFF_STARTS) else (0,)


def read_crop(root: Path, address: str, tile: int | None = None) -> np.ndarray:
    """Decode the image at an address.

    Args:
        root: folder that the address is relative to.
        address: path, optionally with `#p…` or `#r…c…`.
        tile: edge of the tiles in pixels, needed for tile addresses.

    Returns:
        (H, W) or (H, W, 3) in raw counts.

    Raises:
        ImageError: as `read_image`, a tile outside the montage or without a tile size, or a file named without a page
            whose pages may not be a cell each (as `list_cell_pages`).
    """
    place = resolve_address(root, address)
    path = root / place.file
    if place.row is None:
        return read_image(path, _list_pages(path)[0] if place.page is None else place.page)
    if tile is None:
        raise ImageError(f"{path}: {address} is a tile of a montage, but no tile size is given (tile=PIXELS)")
    with _DECODING_LOCK:  # threads that read tiles of one montage decode it once
        montage = _read_montage(path, path.stat().st_mtime_ns if is_file(path) else 0)
    crop = montage[place.row * tile : (place.row + 1) * tile, place.column * tile : (place.column + 1) * tile]
    if crop.shape[:2] != (tile, tile):
        height, width = montage.shape[:2]
        raise ImageError(f"{root / address}: no such tile of {tile} px in {width} x {height} px")
    return crop.copy()


@lru_cache(maxsize=2)
def _read_montage(path: Path, modified: int) -> np.ndarray:
    """Neighbouring rows of a table name the same montage, so the last few stay decoded."""
    return read_image(path)

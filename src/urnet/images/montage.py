"""Addresses of images in files: tiles of a montage and pages of a multi-page TIFF.

`g1/brightfield.tif#r03c17` is the tile in row 3 and column 17 (from 0) of a montage. `stack.tif#p002` is page 2 of a
stack. A plain path is the address of a whole file.
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
    """Address of one image: a file, and a page or tile of it."""

    file: str
    page: int | None = None
    row: int | None = None
    column: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Parse `file#p002` or `file#r03c17`. Any other text is a plain path."""
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
    """Resolve an address. A file whose name looks like an address is that file."""
    parsed = Address.parse(address)
    return Address(address) if parsed.file != address and is_file(root / address) else parsed


def list_images(root: Path, file: str, tile: int | None) -> list[Address]:
    """List the images in one file: the file itself, its pages at full resolution, or its tiles.

    Args:
        root: folder that `file` is relative to.
        file: path of the file, with forward slashes.
        tile: edge of a montage's tiles, in pixels; None if the file is no montage.

    Raises:
        ImageError: the file is unreadable, its edges are no multiples of `tile` (`images.not_a_montage`), or its pages
            may not show one cell each (as in `list_cell_pages`).
    """
    header = read_header(root / file)
    pages = _list_pages(root / file)
    if tile is not None:
        if header.height % tile or header.width % tile or pages != (0,):
            raise ImageError(
                f"{root / file}: {header.width} x {header.height} px with {header.pages} page(s) is no montage of "
                f"{tile} px tiles. A montage has one page, and edges that are multiples of tile",
                code="images.not_a_montage",
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
        tile: edge of the tiles, in pixels; required for tile addresses.

    Returns:
        (H, W) or (H, W, 3) in raw counts.

    Raises:
        ImageError: as in `read_image`; a tile without a tile size (`images.tile_size_missing`) or outside the montage
            (`images.tile_missing`); or a whole file whose pages may not show one cell each (as in `list_cell_pages`).
    """
    image = resolve_address(root, address)
    path = root / image.file
    if image.row is None or image.column is None:
        return read_image(path, _list_pages(path)[0] if image.page is None else image.page)
    if tile is None:
        raise ImageError(
            f"{path}: {address} is a tile of a montage, but the tile size is missing. Set tile=PIXELS",
            code="images.tile_size_missing",
        )
    with _DECODING_LOCK:  # threads that read tiles of one montage decode it once
        montage = _read_montage(path, path.stat().st_mtime_ns if is_file(path) else 0)
    crop = montage[image.row * tile : (image.row + 1) * tile, image.column * tile : (image.column + 1) * tile]
    if crop.shape[:2] != (tile, tile):
        height, width = montage.shape[:2]
        raise ImageError(
            f"{root / address}: no such tile of {tile} px in {width} x {height} px", code="images.tile_missing"
        )
    return crop.copy()


@lru_cache(maxsize=2)
def _read_montage(path: Path, modified: int) -> np.ndarray:
    """Decode a montage. The last two stay in memory, because rows of a table that follow each other share a montage."""
    return read_image(path)

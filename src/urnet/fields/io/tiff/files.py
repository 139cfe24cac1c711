"""The open files of a TIFF image: their decoders, their pages and their bytes.

An image can be spread over several files. `urnet.images.companions` decides which files may be opened: tifffile itself
opens none.
"""

import logging
import math
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np
import tifffile

from urnet.errors import ImageError
from urnet.fields.io.tiff.ome import PageAddress
from urnet.images.read import MAX_PIXELS, translate_decoder_errors
from urnet.images.tiff_pages import MAX_PAGES, Page, list_pages, open_page, open_tiff

MAX_LOADED_PAGES = 64
"""Number of pages whose decoder object stays in memory."""

TiffPage: TypeAlias = tifffile.TiffPage | tifffile.TiffFrame
"""A page as tifffile opens it."""


class TiffFiles:
    """The files of one TIFF image, open for reading. All of them but the given file are closed while not in use.

    Args:
        path: the given file.

    Attributes:
        paths: all files of the image, sorted by name; the same whichever of them was given.
        pages: pages of each file.
        tif: decoder of the given file.

    Raises:
        ImageError: not a TIFF, damaged or truncated.
    """

    def __init__(self, path: Path):
        self.path = path
        self.paths: tuple[Path, ...] = (path,)
        self.pages: dict[Path, tuple[Page, ...]] = {path: list_pages(path)}
        self._others: dict[Path, tifffile.TiffFile] = {}
        self._loaded: OrderedDict[PageAddress, TiffPage] = OrderedDict()
        with translate_decoder_errors(path), _collect_offset_warnings() as warnings:
            self.tif = open_tiff(path)
        if warnings:
            self.close()
            raise ImageError(
                f"{path}: truncated: a page or a tag lies beyond the end of the file ({len(self.pages[path])} page(s) "
                "are there); copy the file again, or export it again",
                code="fields.truncated",
            )

    def add(self, pages: Mapping[Path, tuple[Page, ...]]) -> None:
        """Add the other files of the image.

        Args:
            pages: pages of all files of the image, sorted by name.
        """
        self.paths = tuple(pages)
        self.pages |= pages

    def close(self) -> None:
        """Close all files."""
        self._loaded.clear()
        for tif in (self.tif, *self._others.values()):
            tif.close()

    def page(self, address: PageAddress | TiffPage) -> TiffPage:
        """Open a page, and check that its pixels are in the file. The last `MAX_LOADED_PAGES` stay in memory."""
        if not isinstance(address, PageAddress):
            return address
        if address in self._loaded:
            self._loaded.move_to_end(address)
            return self._loaded[address]
        tif = self._open(address.file)
        page = open_page(tif, self.pages[address.file][address.page], address.page)
        self.check_complete(page, address.file.stat().st_size)
        self.check_decodable(page)
        self._loaded[address] = page
        while len(self._loaded) > MAX_LOADED_PAGES:
            self._loaded.popitem(last=False)
        return page

    def read_bytes(self, page: TiffPage, offset: int, count: int) -> bytes:
        """Read bytes of the file that holds a page.

        Raises:
            ImageError: the file ends before them.
        """
        handle = page.parent.filehandle
        self._close_others(handle)
        handle.seek(offset)
        data = handle.read(count)
        if len(data) != count:
            raise ImageError(
                f"{self.path}: truncated: {count} bytes at {offset} are not there; copy the file again",
                code="fields.truncated",
            )
        return data

    def contiguous_planes(self, first: TiffPage, count: int) -> list[TiffPage | int]:
        """List planes that follow each other without pages of their own, as ImageJ writes large stacks.

        Args:
            first: page of the first plane.
            count: number of planes.

        Returns:
            The first page, and the byte offsets of the other planes.

        Raises:
            ImageError: too many planes, or the file ends before the last one.
        """
        if count > MAX_PAGES:
            raise ImageError(
                f"{self.path}: its metadata name {count:,} planes; urnet reads at most {MAX_PAGES:,}. Split the file",
                code="fields.too_many_planes",
            )
        start = first.dataoffsets[0]
        needed, size = start + count * first.nbytes, self.path.stat().st_size
        if needed > size or not first.is_final:
            raise ImageError(
                f"{self.path}: truncated: {count} planes need {needed:,} bytes, the file has {size:,}; copy the file "
                "again",
                code="fields.truncated",
            )
        return [first, *(start + number * first.nbytes for number in range(1, count))]

    def check_same_layout(self, places: list[PageAddress]) -> None:
        """Check that the planes of one image have one size and type, and that their pixels are in the files.

        Raises:
            ImageError: they differ, or a file is truncated.
        """
        sizes: dict[Path, int] = {}
        layout = None
        for place in places:
            page = self.pages[place.file][place.page]
            if place.file not in sizes:
                sizes[place.file] = place.file.stat().st_size
            if page.end > sizes[place.file]:
                raise ImageError(
                    f"{self.path}: truncated: the pixels of page {place.page} end at byte {page.end:,}, "
                    f"{place.file.name} ends at {sizes[place.file]:,}; copy the file again",
                    code="fields.truncated",
                )
            if not page.stored:
                raise self._no_pixels_error()
            layout = layout or page.layout
            if page.layout != layout:
                raise ImageError(
                    f"{self.path}: mislabelled: its metadata combine pages of different sizes or types into one image "
                    f"({layout[0]} x {layout[1]} px and {page.width} x {page.height} px); export the file again",
                    code="fields.mislabelled",
                )

    def check_complete(self, page: TiffPage | None, size: int) -> None:
        """Check that all pixels of a page are in its file.

        Args:
            page: the page; none is left unchecked.
            size: size of the file in bytes.

        Raises:
            ImageError: pixels are missing.
        """
        if page is None:
            return
        ends = np.asarray(page.dataoffsets, np.int64)[: len(page.databytecounts)]
        counts = np.asarray(page.databytecounts, np.int64)[: len(ends)]
        if not counts.any() or (len(ends) < math.prod(page.keyframe.chunked) and not page.keyframe.is_contiguous):
            raise self._no_pixels_error()
        last = int((ends + counts)[counts > 0].max())
        if last > size:
            raise ImageError(
                f"{self.path}: truncated: its pixels end at byte {last:,}, the file ends at {size:,}; copy the file "
                "again",
                code="fields.truncated",
            )

    def check_decodable(self, page: tifffile.TiffPage) -> None:
        """Check that a page can be decoded in pieces: a plane that is compressed in one piece is decoded whole.

        Raises:
            ImageError: a piece is too large, or bytes are missing.
        """
        if page.is_final:
            if sum(page.databytecounts) < page.nbytes:
                raise ImageError(
                    f"{self.path}: damaged: {page.imagewidth} x {page.imagelength} px need {page.nbytes:,} bytes, "
                    f"a page has {sum(page.databytecounts):,}; copy the file again, or export it again",
                    code="fields.damaged",
                )
            return
        piece = math.prod(page.tile or page.chunks[:2])
        if piece > MAX_PIXELS:
            raise ImageError(
                f"{self.path}: {page.imagewidth} x {page.imagelength} px without tiles, compressed in pieces of "
                f"{piece:,} px; urnet decodes at most {MAX_PIXELS:,} px at once. Save the field as a tiled TIFF",
                code="fields.not_tiled",
            )

    def _no_pixels_error(self) -> ImageError:
        return ImageError(
            f"{self.path}: damaged: a page holds no pixels; copy the file again, or export it again",
            code="fields.damaged",
        )

    def _open(self, file: Path) -> tifffile.TiffFile:
        """Return the decoder of a file, with the file open."""
        if file == self.path:
            return self.tif
        if file not in self._others:
            self._others[file] = open_tiff(file)
        self._close_others(self._others[file].filehandle)
        return self._others[file]

    def _close_others(self, handle: tifffile.FileHandle) -> None:
        """Open one file, and close the other files except the given one."""
        if handle.closed:
            handle.open()
        if handle is not self.tif.filehandle:
            for tif in self._others.values():
                if tif.filehandle is not handle:
                    tif.filehandle.close()


@contextmanager
def _collect_offset_warnings() -> Iterator[list[str]]:
    """Collect tifffile's log messages on pages and tags beyond the end of the file, which raise no error."""
    log = logging.getLogger("tifffile")
    warnings: list[str] = []

    def collect(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if re.search(r"(invalid|corrupted) (page offset|value offset|offset to|tag list)", text):
            warnings.append(text)
        return False

    disabled, log.disabled = log.disabled, False
    log.addFilter(collect)
    try:
        yield warnings
    finally:
        log.removeFilter(collect)
        log.disabled = disabled

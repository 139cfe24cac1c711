"""Fields in TIFF and OME-TIFF: which page is which plane, how large a pixel is, and regions without reading the rest.

Scenes are the images of an OME-TIFF and the positions of a Micro-Manager stack (time points count as scenes); of a
pyramid the full resolution is read. Pages that no metadata explain are planes of a z-stack. Compressed pixels are
decoded tile by tile or strip by strip and the last ones are kept; others are read row by row, so that memory stays
small however large the field. Other files are opened by the rule of `urnet.images.companions` alone: tifffile opens
none.
"""

import logging
import math
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tifffile

from urnet.errors import ImageError
from urnet.fields.io.source import ReadRegion, Scene, check_pixels
from urnet.fields.io.tiff.metadata import (
    channel_names,
    channels_of_ome,
    check_no_page_left,
    check_ome,
    imagej_channels,
    pixel_of_ome,
    pixel_um,
)
from urnet.fields.io.tiff.ome import OmeSet, PlaneAt, read_ome
from urnet.fields.io.tiff.stacks import Stack, micromanager_pixel_um, micromanager_stacks, ndtiff_stacks, shaped_stacks
from urnet.images.read import (
    MAX_PIXELS,
    classify_tiff_pixels,
    convert_tiff_values,
    is_grey_with_alpha,
    read_tiff_orientation,
    translate_decoder_errors,
)
from urnet.images.tiff_pages import MAX_PAGES, list_pages, open_page, open_tiff, read_micromanager_metadata

MAX_CACHED_BYTES = 160 * 2**20
"""Bytes of decoded tiles or strips that are kept: neighbouring regions share them."""

MAX_SAMPLES = 64
"""Most values of a pixel: channels that a file keeps side by side in one page."""

MAX_FORMS = 500
"""Most different sizes and kinds of pages in one file that are sorted into images."""

MAX_LOADED_PAGES = 64
"""Pages of which the decoder's view is kept."""

_VENDORS = (
    *("lsm", "imagej", "fluoview", "stk", "sis", "svs", "scn", "qpi", "ndpi", "bif", "avs", "eer", "philips", "nih"),
    "mdgel",
)
"""Formats with metadata of their own, which tifffile knows, as `TiffFile.is_…` calls them."""

_RGB = (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR, tifffile.PHOTOMETRIC.PALETTE)
_ASIDE = re.compile(r"thumbnail|label|macro|overview", re.IGNORECASE)  # pictures of the slide in scanners' files


class TiffSource:
    """An open TIFF or OME-TIFF.

    Attributes:
        files: the files that belong together, in order of their names; the set is the same whichever of them was given.

    Raises:
        ImageError: damaged, truncated, OME-XML that contradicts the pages, pixels of an unsupported kind, or a plane
            that cannot be read in parts.
    """

    def __init__(self, path: Path):
        self.path = path
        self.files: tuple[Path, ...] = (path,)
        self._kept: OrderedDict[tuple, np.ndarray] = OrderedDict()
        self._bytes = 0
        self._pages = {path: list_pages(path)}
        self._others: dict[Path, tifffile.TiffFile] = {}
        self._loaded: OrderedDict[PlaneAt, tifffile.TiffPage] = OrderedDict()
        with translate_decoder_errors(path), _lost() as lost:
            self._tif = open_tiff(path)
        try:
            if lost:
                raise ImageError(
                    f"{path}: truncated: of its pages or what it says of them, something lies beyond its end "
                    f"({len(self._pages[path])} page(s) are there); copy it again, or export it anew"
                )
            with translate_decoder_errors(path):
                self.scenes = self._find_scenes()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file, and those that belong to it."""
        self._kept.clear()
        self._loaded.clear()
        for tif in (self._tif, *self._others.values()):
            tif.close()

    def plane(self, scene: Scene, channel: int, z: int) -> ReadRegion:
        """How regions of one plane are read."""
        grid, samples, first = scene.address
        sample = {"": None, "C": channel, "Z": z}.get(samples, samples)
        page, offset = grid[0 if samples == "C" else channel][0 if samples == "Z" else z], None
        if isinstance(page, int):
            page, offset = first, page
        return _Plane(self, page, offset, sample, scene.dtype, scene.colour).region

    def page(
        self, place: "PlaneAt | tifffile.TiffPage | tifffile.TiffFrame"
    ) -> "tifffile.TiffPage | tifffile.TiffFrame":
        """The page at a place, checked; a few of them stay loaded."""
        if not isinstance(place, PlaneAt):
            return place
        if place in self._loaded:
            self._loaded.move_to_end(place)
            return self._loaded[place]
        page = open_page(self._open(place.file), self._pages[place.file][place.page], place.page)
        self._check_whole(page, place.file.stat().st_size)
        self._check_pieces(page)
        self._loaded[place] = page
        while len(self._loaded) > MAX_LOADED_PAGES:
            self._loaded.popitem(last=False)
        return page

    def _open(self, file: Path) -> tifffile.TiffFile:
        """The decoder of a file; of the other files of a set, one is open at a time."""
        if file == self.path:
            return self._tif
        if file not in self._others:
            self._others[file] = open_tiff(file)
        self._alone(self._others[file].filehandle)
        return self._others[file]

    def _alone(self, handle: tifffile.FileHandle) -> None:
        if handle.closed:
            handle.open()
        if handle is not self._tif.filehandle:
            for tif in self._others.values():
                if tif.filehandle is not handle:
                    tif.filehandle.close()

    def _find_scenes(self) -> tuple[Scene, ...]:
        tif, path, pages = self._tif, self.path, self._pages[self.path]
        index = read_micromanager_metadata(path)
        ome = None
        try:
            ome = read_ome(path)
        except ImageError as error:
            # An acquisition that was stopped, or one file of it alone: Micro-Manager's index says what is there.
            if not index or error.code not in ("fields.planes_missing", "images.companion_missing"):
                raise
        if ome is not None:
            self.files, self._pages = tuple(ome.pages), self._pages | ome.pages
            return self._ome_scenes(ome, micromanager_pixel_um(path, pages[0], index) if index else None)
        if stacks := micromanager_stacks(path, pages, index) if index else ndtiff_stacks(path, pages):
            return self._stack_scenes(stacks)
        if any(getattr(tif, f"is_{kind}") for kind in _VENDORS):
            return self._series_scenes()
        if stacks := shaped_stacks(path, pages):
            return self._stack_scenes(stacks)
        full = [number for number, page in enumerate(pages) if not (page.reduced or page.mask)]
        if len({pages[number].layout for number in full}) == 1:
            return self._stack_scenes([Stack(None, "Z", (len(full),), [PlaneAt(path, number) for number in full])])
        if len({page.layout for page in pages}) > MAX_FORMS:
            raise ImageError(
                f"{path}: its {len(pages)} pages have more than {MAX_FORMS} different sizes or kinds; save each field "
                "as a file of its own"
            )
        return self._series_scenes()

    def _ome_scenes(self, ome: OmeSet, pixel: float | None) -> tuple[Scene, ...]:
        """Scenes by the OME-XML; `pixel` is what else is known of the edge of a pixel, µm."""
        scenes: list[Scene] = []
        for index, one in enumerate(ome.images):
            self._check_forms(list(one.planes.values()))
            keys = [(t, c, z) for t in range(one.times) for c in range(one.channels) for z in range(one.depth)]
            first = self.page(one.planes[0, 0, 0])
            check_ome(self.path, one, first)
            grid = np.empty(len(keys), object)
            grid[:] = [one.planes[key] for key in keys]
            grid = grid.reshape(one.times, one.channels, one.depth)
            name = one.element.get("Name")
            edge = pixel_of_ome(one) or pixel
            scenes += self._scenes(grid, first, name, index, len(ome.images), channels_of_ome(one), edge)
        if self.files == (self.path,):
            check_no_page_left(self.path, self._pages[self.path], ome)
        return tuple(scenes)

    def _stack_scenes(self, stacks: list[Stack]) -> tuple[Scene, ...]:
        scenes: list[Scene] = []
        for index, stack in enumerate(stacks):
            self._check_forms([place for place in stack.places if isinstance(place, PlaneAt)])
            first = self.page(stack.places[0])
            places = stack.places
            if len(places) == 1 < math.prod(stack.shape):
                places = self._behind(first, math.prod(stack.shape))
            grid = self._grid(places, stack.axes, stack.shape)
            pixel = stack.pixel_um or pixel_um(self._tif, first)
            scenes += self._scenes(grid, first, stack.name, index, len(stacks), stack.channels, pixel, stack.samples)
        return tuple(scenes)

    def _series_scenes(self) -> tuple[Scene, ...]:
        """Scenes as tifffile finds them, for the formats of scanners and other programs."""
        tif, series = self._tif, self._tif.series
        if tif.is_imagej and any(one.kind != "imagej" for one in series):
            count = (tif.imagej_metadata or {}).get("images", "more")
            raise ImageError(
                f"{self.path}: ImageJ's metadata name {count} images, which the file does not hold; "
                "it is truncated or mislabelled: copy it again, or export it anew"
            )
        full = [one for one in series if not (one.keyframe.is_reduced or _ASIDE.search(one.name or ""))]
        series = full or series
        scenes: list[Scene] = []
        size = self.path.stat().st_size
        for index, one in enumerate(series):
            first = one.keyframe
            sizes = dict(zip(one.axes, one.shape, strict=True))
            lead = {axis: n for axis, n in sizes.items() if axis not in "YXS" and n > 1}
            planes, pages = math.prod(lead.values()), list(one.pages)
            if len(pages) == 1 and planes > 1 and one.dataoffset is not None:
                pages = self._behind(first, planes)
            self._check_count(pages, planes)
            grid = self._grid(pages, "".join(lead), tuple(lead.values()))
            channels = imagej_channels(tif, one)
            pixel = pixel_um(tif, first)
            scenes += self._scenes(grid, first, None, index, len(series), channels, pixel)
            for page in one.pages:
                self._check_whole(page, size)
        return tuple(scenes)

    def _grid(self, places: list, axes: str, shape: tuple[int, ...]) -> np.ndarray:
        """Planes by time point, channel and z plane: (T, C, Z).

        Axes without a name are z planes, and the outer one of two is time points.
        """
        lead = {axis + str(number): n for number, (axis, n) in enumerate(zip(axes, shape, strict=True)) if n > 1}
        self._check_count(places, math.prod(lead.values()))
        known = [axis for axis in lead if axis[0] in "CZT"]
        unknown = [axis for axis in lead if axis[0] not in "CZT"]
        free = [axis for axis in "TZ" if axis not in {one[0] for one in known}]
        if len({axis[0] for axis in known}) < len(known) or len(unknown) > len(free) or (unknown and "Z" not in free):
            raise ImageError(
                f"{self.path}: its {' x '.join(map(str, shape))} planes have axes {axes}, more than channels, z planes "
                "and time points; save it as an OME-TIFF of these"
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
        self,
        grid: np.ndarray,
        first: "tifffile.TiffPage",
        name: str | None,
        index: int,
        count: int,
        channels: Sequence[str | None],
        pixel: float | None,
        along: str = "C",
    ) -> list[Scene]:
        """A scene for each time point of a grid of planes (T, C, Z).

        Several values of a pixel that are no colour lie along the axis `along`.
        """
        depth, colour = classify_tiff_pixels(self.path, first, MAX_SAMPLES)
        samples = first.samplesperpixel
        T, C, Z = grid.shape
        colour = colour and first.photometric in _RGB and along == "C"
        side_by_side = ""
        if samples > 1 and not colour:
            # A grey value with alpha is one channel, as in crops; otherwise values side by side are channels.
            alpha = along == "C" and is_grey_with_alpha(first)
            axis = "TCZ".index(along)
            if grid.shape[axis] > 1:
                what = ("time points", "channels", "z planes")[axis]
                raise ImageError(
                    f"{self.path}: {samples} values a pixel in each of {grid.shape[axis]} {what}; save each plane as "
                    "its own page"
                )
            if not alpha:
                side_by_side = along
                T, C, Z = (samples if number == axis else n for number, n in enumerate(grid.shape))
        self._check_pieces(first)
        own = name or str(index)
        return [
            Scene(
                name=(f"{own} t{t}" if count > 1 else f"t{t}") if T > 1 else own,
                height=first.imagelength,
                width=first.imagewidth,
                channels=channel_names(channels, C),
                planes=Z,
                dtype=depth,
                colour=colour,
                pixel_um=pixel,
                files=self.files,
                address=(grid[0].tolist(), t, first)
                if side_by_side == "T"
                else (grid[t].tolist(), side_by_side, first),
                orientation=read_tiff_orientation(first),
            )
            for t in range(T)
        ]

    def _behind(self, first: "tifffile.TiffPage", planes: int) -> list:
        """The first plane, and the offsets of those that follow its pixels, as ImageJ writes large stacks."""
        if planes > MAX_PAGES:
            raise ImageError(
                f"{self.path}: its metadata name {planes:,} planes, more than the {MAX_PAGES:,} that are read"
            )
        start = first.dataoffsets[0]
        need, have = start + planes * first.nbytes, self.path.stat().st_size
        if need > have or not first.is_final:
            raise ImageError(
                f"{self.path}: truncated: {planes} planes need {need:,} bytes, the file has {have:,}; copy it again"
            )
        return [first, *(start + k * first.nbytes for k in range(1, planes))]

    def _check_count(self, places: list, planes: int) -> None:
        there = sum(place is not None for place in places)
        if there != planes or len(places) != planes:
            raise ImageError(
                f"{self.path}: its metadata name {planes} planes, but {there} are there; the file is truncated or "
                "mislabelled: copy it again, or export it anew",
                code="fields.planes_missing",
            )

    def _check_forms(self, places: list[PlaneAt]) -> None:
        """Planes of one image have one size and kind, and their pixels are in the file."""
        sizes: dict[Path, int] = {}
        form = None
        for place in places:
            page = self._pages[place.file][place.page]
            if place.file not in sizes:
                sizes[place.file] = place.file.stat().st_size
            if page.end > sizes[place.file]:
                raise ImageError(
                    f"{self.path}: truncated: the pixels of page {place.page} end at byte {page.end:,}, "
                    f"{place.file.name} at {sizes[place.file]:,}; copy it again"
                )
            if not page.stored:
                raise ImageError(f"{self.path}: damaged: a page holds no pixels; copy it again, or export it anew")
            form = form or page.layout
            if page.layout != form:
                raise ImageError(
                    f"{self.path}: mislabelled: its metadata make one image of pages of different sizes or kinds "
                    f"({form[0]} x {form[1]} px and {page.width} x {page.height} px); export the file anew"
                )

    def _check_whole(self, page: "tifffile.TiffPage | tifffile.TiffFrame | None", size: int) -> None:
        if page is None:
            return
        ends = np.asarray(page.dataoffsets, np.int64)[: len(page.databytecounts)]
        counts = np.asarray(page.databytecounts, np.int64)[: len(ends)]
        if not counts.any() or (len(ends) < math.prod(page.keyframe.chunked) and not page.keyframe.is_contiguous):
            raise ImageError(f"{self.path}: damaged: a page holds no pixels; copy it again, or export it anew")
        last = int((ends + counts)[counts > 0].max())
        if last > size:
            raise ImageError(
                f"{self.path}: truncated: its pixels end at byte {last:,}, the file at {size:,}; copy it again"
            )

    def _check_pieces(self, page: tifffile.TiffPage) -> None:
        """A plane that is compressed in one piece would have to be decoded whole."""
        if page.is_final:
            if sum(page.databytecounts) < page.nbytes:
                raise ImageError(
                    f"{self.path}: damaged: {page.imagewidth} x {page.imagelength} px need {page.nbytes:,} bytes, "
                    f"a page has {sum(page.databytecounts):,}; copy it again, or export it anew"
                )
            return
        piece = math.prod(page.tile or page.chunks[:2])
        if piece > MAX_PIXELS:
            raise ImageError(
                f"{self.path}: {page.imagewidth} x {page.imagelength} px without tiles: compressed in pieces of "
                f"{piece:,} px, more than the {MAX_PIXELS:,} that are decoded at once; save it as a tiled TIFF"
            )

    def _segment(self, page: "tifffile.TiffPage | tifffile.TiffFrame", index: int) -> np.ndarray | None:
        """One decoded tile or strip, (rows, columns, values); None where the file leaves it empty."""
        key = (page.parent.filehandle.path, page.offset, page.index, index)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        keyframe = page.keyframe
        count = page.databytecounts[index]
        data = self._bytes_at(page, page.dataoffsets[index], count) if count else None
        tables = {}
        if keyframe.compression in (6, 7, 34892, 33007):  # JPEG in TIFF, whose tables may stand apart
            tables = {"jpegtables": page.jpegtables, "jpegheader": keyframe.jpegheader}
        decoded = keyframe.decode(data, index, _fullsize=False, **tables)[0]
        if decoded is None:
            return None
        piece = decoded[0]
        self._kept[key] = piece
        self._bytes += piece.nbytes
        while self._bytes > MAX_CACHED_BYTES and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return piece

    def _bytes_at(self, page: "tifffile.TiffPage | tifffile.TiffFrame", offset: int, count: int) -> bytes:
        handle = page.parent.filehandle
        self._alone(handle)
        handle.seek(offset)
        data = handle.read(count)
        if len(data) != count:
            raise ImageError(f"{self.path}: truncated: {count} bytes at {offset} are not there; copy it again")
        return data


@contextmanager
def _lost() -> Iterator[list[str]]:
    """Collects what tifffile passes over with no more than a line in its log: pages and tags beyond the end."""
    log = logging.getLogger("tifffile")
    found: list[str] = []

    def collect(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if re.search(r"(invalid|corrupted) (page offset|value offset|offset to|tag list)", text):
            found.append(text)
        return False

    silent, log.disabled = log.disabled, False
    log.addFilter(collect)
    try:
        yield found
    finally:
        log.removeFilter(collect)
        log.disabled = silent


class _Plane:
    """Regions of one page, or of one plane behind it."""

    def __init__(
        self,
        source: TiffSource,
        place: "PlaneAt | tifffile.TiffPage | tifffile.TiffFrame",
        offset: int | None,
        sample: int | None,
        depth: str,
        colour: bool,
    ):
        self.source, self.place, self.offset, self.sample = source, place, offset, sample
        self.depth, self.colour = depth, colour

    def region(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """(h, w), or (h, w, 3) in colour."""
        with translate_decoder_errors(self.source.path):
            page = self.source.page(self.place)  # looked up each time: thousands of planes are not held at once
            keyframe = page.keyframe
            palette = keyframe.photometric == tifffile.PHOTOMETRIC.PALETTE
            read = self._rows if keyframe.is_final else self._segments
            if keyframe.samplesperpixel > 1 and keyframe.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
                wanted = range(3) if self.colour and not palette else [self.sample or 0]
                pixels = np.stack([read(page, s, 1, top, left, height, width)[..., 0] for s in wanted], axis=-1)
            else:
                pixels = read(page, 0, keyframe.samplesperpixel, top, left, height, width)
                if self.sample is not None:
                    pixels = pixels[..., self.sample : self.sample + 1]
            pixels = pixels[..., :3] if self.colour and not palette else pixels[..., 0]
            return check_pixels(self.source.path, convert_tiff_values(pixels, keyframe, self.depth))

    def _rows(
        self, at: "tifffile.TiffPage", plane: int, together: int, top: int, left: int, height: int, width: int
    ) -> np.ndarray:
        """Pixels that lie uncompressed in one run, row by row."""
        page = at.keyframe
        dtype = page.dtype.newbyteorder(page.parent.byteorder)
        start = at.dataoffsets[0] if self.offset is None else self.offset
        step = together * dtype.itemsize
        row = page.imagewidth * step
        start += plane * page.imagelength * row
        if width == page.imagewidth:
            data = bytearray(self.source._bytes_at(at, start + top * row, height * row))
        else:
            places = (start + (top + r) * row + left * step for r in range(height))
            data = bytearray().join(self.source._bytes_at(at, place, width * step) for place in places)
        pixels = np.frombuffer(data, dtype).reshape(height, width, together)
        return pixels.astype(page.dtype.newbyteorder("="), copy=False)

    def _segments(
        self, at: "tifffile.TiffPage", plane: int, together: int, top: int, left: int, height: int, width: int
    ) -> np.ndarray:
        """Pixels of the tiles or strips that the region touches."""
        page = at.keyframe
        tall, wide = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
        down, across = math.ceil(page.imagelength / tall), math.ceil(page.imagewidth / wide)
        pixels = np.full((height, width, together), page.nodata, page.dtype)
        for i in range(top // tall, (top + height - 1) // tall + 1):
            for j in range(left // wide, (left + width - 1) // wide + 1):
                piece = self.source._segment(at, (plane * down + i) * across + j)
                if piece is None:
                    continue
                upper, outer = i * tall, j * wide
                r0, c0 = max(top, upper), max(left, outer)
                r1 = min(top + height, upper + piece.shape[0])
                c1 = min(left + width, outer + piece.shape[1])
                pixels[r0 - top : r1 - top, c0 - left : c1 - left] = piece[
                    r0 - upper : r1 - upper, c0 - outer : c1 - outer
                ]
        return pixels

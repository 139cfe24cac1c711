"""Fields in TIFF and OME-TIFF: which page is which plane, how large a pixel is, and regions without reading the rest.

Scenes are the images of an OME-TIFF (time points count as scenes); of a pyramid the full resolution is read. Pages
that no metadata explain are planes of a z-stack. What is compressed is decoded tile by tile or strip by strip and the
last ones are kept; what is not is read row by row, so that memory stays small however large the field.
"""

import logging
import math
import re
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import tifffile

from urnet.errors import ImageError
from urnet.fields.source import Region, Scene, checked
from urnet.fields.tiff_metadata import channel_names, check_ome, ome_images, pixel_um
from urnet.images.read import MAX_PIXELS, decoding, tiff_kind, tiff_values

KEPT = 160 * 2**20
"""Bytes of decoded tiles or strips that are kept: neighbouring regions share them."""

MAX_SAMPLES = 64
"""Most values of a pixel: channels that a file keeps side by side in one page."""

_RGB = (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR, tifffile.PHOTOMETRIC.PALETTE)
_ASIDE = re.compile(r"thumbnail|label|macro|overview", re.IGNORECASE)  # pictures of the slide in scanners' files


class TiffSource:
    """An open TIFF or OME-TIFF.

    Raises:
        ImageError: damaged, truncated, OME-XML that contradicts the pages, pixels of an unsupported kind, or a plane
            that cannot be read in parts.
    """

    def __init__(self, path: Path):
        self.path = path
        self._kept: OrderedDict[tuple, np.ndarray] = OrderedDict()
        self._bytes = 0
        with decoding(path), _lost() as lost:
            self._tif = tifffile.TiffFile(path)
            pages = len(self._tif.pages)
        try:
            if lost:
                raise ImageError(
                    f"{path}: truncated: of its pages or what it says of them, something lies beyond its end "
                    f"({pages} page(s) are there); copy it again, or export it anew"
                )
            with decoding(path):
                self.scenes = self._find_scenes()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file, and those that belong to it."""
        self._kept.clear()
        self._tif.close()

    def plane(self, scene: Scene, channel: int, z: int) -> Region:
        """How regions of one plane are read."""
        grid, side_by_side, first = scene.address
        page, offset = grid[0 if side_by_side else channel][z], None
        if isinstance(page, int):
            page, offset = first, page
        return _Plane(self, page, offset, channel if side_by_side else None, scene.dtype, scene.colour).region

    def _find_scenes(self) -> tuple[Scene, ...]:
        tif = self._tif
        cut = "<OME" in (tif.pages.first.description or "")[:2000] and not tif.is_ome
        images = ome_images(self.path, tif, cut)
        series = [one for one in tif.series if one.kind != "ome" or len(one.pages)]
        if images is not None:
            check_ome(self.path, tif, images, series)
        else:
            if tif.is_imagej and any(one.kind != "imagej" for one in series):
                count = (tif.imagej_metadata or {}).get("images", "more")
                raise ImageError(
                    f"{self.path}: ImageJ's metadata name {count} images, which the file does not hold; "
                    "it is truncated or mislabelled: copy it again, or export it anew"
                )
            full = [one for one in series if not (one.keyframe.is_reduced or _ASIDE.search(one.name or ""))]
            series = full or series
        size_of_file = {}
        scenes = []
        for index, one in enumerate(series):
            about = images[index] if images is not None else None
            for scene in self._scenes_of(one, about, index, len(series)):
                scenes.append(scene)
            for page in one.pages:
                name = page.parent.filehandle.path
                if name not in size_of_file:
                    size_of_file[name] = Path(name).stat().st_size
                self._check_whole(page, size_of_file[name])
        return tuple(scenes)

    def _scenes_of(
        self, series: tifffile.TiffPageSeries, about: ElementTree.Element | None, index: int, count: int
    ) -> list[Scene]:
        first = series.keyframe
        depth, colour = tiff_kind(self.path, first, MAX_SAMPLES)
        sizes = dict(zip(series.axes, series.shape, strict=True))
        lead = {axis: n for axis, n in sizes.items() if axis not in "YXS" and n > 1}
        samples = first.samplesperpixel
        unknown = [axis for axis in lead if axis not in "CZT"]
        if len(unknown) == 1 and "Z" not in lead:
            lead = {("Z" if axis == unknown[0] else axis): n for axis, n in lead.items()}
        elif unknown:
            raise ImageError(
                f"{self.path}: its {' x '.join(map(str, sizes.values()))} values have axes "
                f"{''.join(sizes)}, more than channels, z planes and time points; save it as an OME-TIFF of these"
            )
        planes = math.prod(lead.values())
        pages = self._pages(series, planes)
        grid = np.empty(planes, object)
        grid[:] = pages
        grid = grid.reshape(tuple(lead.values()))
        for axis in "TCZ":
            if axis not in lead:
                grid = grid[..., None]
        order = [*lead, *(axis for axis in "TCZ" if axis not in lead)]
        grid = grid.transpose([order.index(axis) for axis in "TCZ"])  # (T, C, Z)
        T, C, Z = grid.shape
        colour = colour and first.photometric in _RGB
        side_by_side = False
        if samples > 1 and not colour:
            # A grey value with alpha is one channel, as in crops; otherwise values side by side are channels.
            alpha = len(first.extrasamples) == 1 and samples == 2 and int(first.extrasamples[0]) in (1, 2)
            if C > 1:
                raise ImageError(
                    f"{self.path}: {samples} values a pixel in each of {C} channels; save each channel as its own page"
                )
            if not alpha:
                side_by_side, C = True, samples
        self._check_pieces(first)
        names = channel_names(self._tif, series, about, C)
        pixel = pixel_um(self._tif, first, about)
        own = (about.get("Name") if about is not None else None) or str(index)
        many = T > 1
        return [
            Scene(
                name=(f"{own} t{t}" if count > 1 else f"t{t}") if many else own,
                height=first.imagelength,
                width=first.imagewidth,
                channels=names,
                planes=Z,
                dtype=depth,
                colour=colour,
                pixel_um=pixel,
                address=(grid[t].tolist(), side_by_side, first),
            )
            for t in range(T)
        ]

    def _pages(self, series: tifffile.TiffPageSeries, planes: int) -> list:
        """The page of each plane; behind a single page, as ImageJ writes large stacks, the offsets of its planes."""
        pages = list(series.pages)
        if len(pages) == 1 and planes > 1 and series.dataoffset is not None:
            first = series.keyframe
            need = series.dataoffset + planes * first.nbytes
            have = self.path.stat().st_size
            if need > have:
                raise ImageError(
                    f"{self.path}: truncated: {planes} planes need {need:,} bytes, the file has {have:,}; copy it again"
                )
            return [first, *(series.dataoffset + k * first.nbytes for k in range(1, planes))]
        there = sum(page is not None for page in pages)
        if there != planes or len(pages) != planes:
            raise ImageError(
                f"{self.path}: its metadata name {planes} planes, but {there} are there; the file is truncated or "
                "mislabelled: copy it again, or export it anew"
            )
        return pages

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
        piece = math.prod(page.chunks[:2])
        if piece > MAX_PIXELS:
            raise ImageError(
                f"{self.path}: {page.imagewidth} x {page.imagelength} px without tiles: compressed in pieces of "
                f"{piece:,} px, more than the {MAX_PIXELS:,} that are decoded at once; save it as a tiled TIFF"
            )

    def _segment(self, page: "tifffile.TiffPage | tifffile.TiffFrame", index: int) -> np.ndarray | None:
        """One decoded tile or strip, (rows, columns, values); None where the file leaves it empty."""
        key = (id(page), index)
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
        while self._bytes > KEPT and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return piece

    def _bytes_at(self, page: "tifffile.TiffPage | tifffile.TiffFrame", offset: int, count: int) -> bytes:
        handle = page.parent.filehandle
        if handle.closed:  # another file of the same OME-TIFF
            handle.open()
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
        page: "tifffile.TiffPage | tifffile.TiffFrame",
        offset: int | None,
        sample: int | None,
        depth: str,
        colour: bool,
    ):
        self.source, self.page, self.offset, self.sample = source, page, offset, sample
        self.depth, self.colour = depth, colour
        self.keyframe = page.keyframe
        self.separate = self.keyframe.samplesperpixel > 1 and self.keyframe.planarconfig == 2
        self.together = 1 if self.separate else self.keyframe.samplesperpixel

    def region(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """(h, w), or (h, w, 3) in colour."""
        with decoding(self.source.path):
            read = self._rows if self.keyframe.is_final else self._segments
            if self.separate:
                wanted = range(3) if self.colour else [self.sample or 0]
                pixels = np.stack([read(s, top, left, height, width)[..., 0] for s in wanted], axis=-1)
            else:
                pixels = read(0, top, left, height, width)
                if self.sample is not None:
                    pixels = pixels[..., self.sample : self.sample + 1]
            palette = self.keyframe.photometric == tifffile.PHOTOMETRIC.PALETTE
            pixels = pixels[..., :3] if self.colour and not palette else pixels[..., 0]
            return checked(self.source.path, tiff_values(pixels, self.keyframe, self.depth))

    def _rows(self, plane: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Pixels that lie uncompressed in one run, row by row."""
        page = self.keyframe
        dtype = page.dtype.newbyteorder(page.parent.byteorder)
        start = self.page.dataoffsets[0] if self.offset is None else self.offset
        step = self.together * dtype.itemsize
        row = page.imagewidth * step
        start += plane * page.imagelength * row
        if width == page.imagewidth:
            data = bytearray(self.source._bytes_at(self.page, start + top * row, height * row))
        else:
            places = (start + (top + r) * row + left * step for r in range(height))
            data = bytearray().join(self.source._bytes_at(self.page, place, width * step) for place in places)
        pixels = np.frombuffer(data, dtype).reshape(height, width, self.together)
        return pixels.astype(page.dtype.newbyteorder("="), copy=False)

    def _segments(self, plane: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Pixels of the tiles or strips that the region touches."""
        page = self.keyframe
        tall, wide = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
        down, across = math.ceil(page.imagelength / tall), math.ceil(page.imagewidth / wide)
        pixels = np.full((height, width, self.together), page.nodata, page.dtype)
        for i in range(top // tall, (top + height - 1) // tall + 1):
            for j in range(left // wide, (left + width - 1) // wide + 1):
                piece = self.source._segment(self.page, (plane * down + i) * across + j)
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

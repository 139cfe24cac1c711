"""Read regions of planes of TIFF and OME-TIFF files.

Compressed pixels are decoded tile by tile or strip by strip, and the last ones are cached. Uncompressed pixels are read
row by row. So memory stays small for a field of any size.
"""

import math
from collections import OrderedDict
from pathlib import Path

import numpy as np
import tifffile

from urnet.fields.io.source import ReadRegion, Scene, check_pixels
from urnet.fields.io.tiff.files import TiffFiles, TiffPage
from urnet.fields.io.tiff.ome import PageAddress
from urnet.fields.io.tiff.scenes import list_scenes
from urnet.images.read import convert_tiff_values, translate_decoder_errors

MAX_CACHED_BYTES = 160 * 2**20
"""Bytes of decoded tiles or strips that stay in memory; neighbouring regions share them."""

_JPEG_COMPRESSIONS = (6, 7, 34892, 33007)  # their tables may be stored apart from the tiles


class TiffSource:
    """An open TIFF or OME-TIFF.

    Args:
        path: the file; it may be any file of an image that is spread over several.

    Raises:
        ImageError: damaged, truncated, OME-XML that contradicts the pages, pixels of an unsupported type, or a plane
            that cannot be decoded in pieces.
    """

    def __init__(self, path: Path):
        self.path = path
        self.files = TiffFiles(path)
        self._segments = SegmentCache(self.files)
        try:
            with translate_decoder_errors(path):
                self.scenes = list_scenes(self.files)
        except BaseException:
            self.close()
            raise

    @property
    def cached_bytes(self) -> int:
        """Bytes of the decoded tiles and strips."""
        return self._segments.bytes

    def close(self) -> None:
        """Close all files of the image."""
        self._segments.clear()
        self.files.close()

    def plane(self, scene: Scene, channel: int, z: int) -> ReadRegion:
        """Return a function that reads regions of one plane."""
        grid, samples, first = scene.address
        sample = {"": None, "C": channel, "Z": z}.get(samples, samples)
        page, offset = grid[0 if samples == "C" else channel][0 if samples == "Z" else z], None
        if isinstance(page, int):
            page, offset = first, page
        return _Plane(self.files, self._segments, page, offset, sample, scene.dtype, scene.colour).read


class SegmentCache:
    """Decoded tiles and strips, at most `MAX_CACHED_BYTES` of them.

    Args:
        files: the open files.

    Attributes:
        bytes: size of the decoded tiles and strips.
    """

    def __init__(self, files: TiffFiles):
        self._files = files
        self._decoded: OrderedDict[tuple, np.ndarray] = OrderedDict()
        self.bytes = 0

    def clear(self) -> None:
        """Forget all tiles and strips."""
        self._decoded.clear()
        self.bytes = 0

    def segment(self, page: TiffPage, index: int) -> np.ndarray | None:
        """Return one decoded tile or strip, (rows, columns, values); None where the file leaves it empty."""
        key = (page.parent.filehandle.path, page.offset, page.index, index)
        if key in self._decoded:
            self._decoded.move_to_end(key)
            return self._decoded[key]
        segment = self._decode(page, index)
        if segment is None:
            return None
        self._decoded[key] = segment
        self.bytes += segment.nbytes
        while self.bytes > MAX_CACHED_BYTES and len(self._decoded) > 1:
            self.bytes -= self._decoded.popitem(last=False)[1].nbytes
        return segment

    def _decode(self, page: TiffPage, index: int) -> np.ndarray | None:
        keyframe = page.keyframe
        count = page.databytecounts[index]
        data = self._files.read_bytes(page, page.dataoffsets[index], count) if count else None
        tables = {}
        if keyframe.compression in _JPEG_COMPRESSIONS:
            tables = {"jpegtables": page.jpegtables, "jpegheader": keyframe.jpegheader}
        decoded = keyframe.decode(data, index, _fullsize=False, **tables)[0]
        return None if decoded is None else decoded[0]


class _Plane:
    """One plane of an image.

    Args:
        files: the open files.
        segments: their decoded tiles and strips.
        address: page of the plane, or of the first plane of a contiguous stack.
        offset: byte offset of the plane in a contiguous stack; none where the plane has a page of its own.
        sample: number of the one value of each pixel to read; none reads all.
        dtype: type of the pixels as they are returned.
        colour: whether the plane is in colour.
    """

    def __init__(
        self,
        files: TiffFiles,
        segments: SegmentCache,
        address: PageAddress | TiffPage,
        offset: int | None,
        sample: int | None,
        dtype: str,
        colour: bool,
    ):
        self.files, self.segments = files, segments
        self.address, self.offset, self.sample = address, offset, sample
        self.dtype, self.colour = dtype, colour

    def read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Read a region, (h, w), or (h, w, 3) in colour."""
        with translate_decoder_errors(self.files.path):
            page = self.files.page(self.address)  # opened for each region, so that thousands of planes need no memory
            keyframe = page.keyframe
            palette = keyframe.photometric == tifffile.PHOTOMETRIC.PALETTE
            read = self._read_rows if keyframe.is_final else self._read_segments
            if keyframe.samplesperpixel > 1 and keyframe.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
                wanted = range(3) if self.colour and not palette else [self.sample or 0]
                pixels = np.stack([read(page, s, 1, top, left, height, width)[..., 0] for s in wanted], axis=-1)
            else:
                pixels = read(page, 0, keyframe.samplesperpixel, top, left, height, width)
                if self.sample is not None:
                    pixels = pixels[..., self.sample : self.sample + 1]
            pixels = pixels[..., :3] if self.colour and not palette else pixels[..., 0]
            return check_pixels(self.files.path, convert_tiff_values(pixels, keyframe, self.dtype))

    def _read_rows(
        self, page: TiffPage, sample: int, samples: int, top: int, left: int, height: int, width: int
    ) -> np.ndarray:
        """Read uncompressed, contiguous pixels row by row.

        Args:
            page: page of the plane.
            sample: number of the sample plane, where the samples of a pixel are stored in separate planes.
            samples: samples of a pixel that are stored together.
            top: first row.
            left: first column.
            height: number of rows.
            width: number of columns.
        """
        keyframe = page.keyframe
        dtype = keyframe.dtype.newbyteorder(keyframe.parent.byteorder)
        start = page.dataoffsets[0] if self.offset is None else self.offset
        step = samples * dtype.itemsize
        row = keyframe.imagewidth * step
        start += sample * keyframe.imagelength * row
        if width == keyframe.imagewidth:
            data = bytearray(self.files.read_bytes(page, start + top * row, height * row))
        else:
            offsets = (start + (top + r) * row + left * step for r in range(height))
            data = bytearray().join(self.files.read_bytes(page, offset, width * step) for offset in offsets)
        pixels = np.frombuffer(data, dtype).reshape(height, width, samples)
        return pixels.astype(keyframe.dtype.newbyteorder("="), copy=False)

    def _read_segments(
        self, page: TiffPage, sample: int, samples: int, top: int, left: int, height: int, width: int
    ) -> np.ndarray:
        """Read the tiles or strips that a region touches; arguments as for `_read_rows`."""
        keyframe = page.keyframe
        if keyframe.is_tiled:
            tall, wide = keyframe.tilelength, keyframe.tilewidth
        else:
            tall, wide = keyframe.rowsperstrip, keyframe.imagewidth
        down, across = math.ceil(keyframe.imagelength / tall), math.ceil(keyframe.imagewidth / wide)
        pixels = np.full((height, width, samples), keyframe.nodata, keyframe.dtype)
        for i in range(top // tall, (top + height - 1) // tall + 1):
            for j in range(left // wide, (left + width - 1) // wide + 1):
                segment = self.segments.segment(page, (sample * down + i) * across + j)
                if segment is None:
                    continue
                upper, outer = i * tall, j * wide
                r0, c0 = max(top, upper), max(left, outer)
                r1 = min(top + height, upper + segment.shape[0])
                c1 = min(left + width, outer + segment.shape[1])
                pixels[r0 - top : r1 - top, c0 - left : c1 - left] = segment[
                    r0 - upper : r1 - upper, c0 - outer : c1 - outer
                ]
        return pixels

"""Read one crop or page from PNG, JPEG, BMP or TIFF without changing its bit depth or range.

The first bytes of a file determine its format, not its name. Sizes are checked in the header, before decoding. The
result is (H, W) or (H, W, 3) in `uint8`, `uint16` or `float32`. Alpha is dropped, palettes become colours, inverted
grey (TIFF "min is white") becomes normal grey. An orientation in the file (EXIF, XMP, TIFF tag 274) is applied:
heights, widths and positions are those of the displayed image.
"""

import logging
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tifffile
from PIL import ExifTags, Image, UnidentifiedImageError

from urnet.errors import ImageError
from urnet.images.orientation import AS_STORED, orient, orient_shape, parse_orientation
from urnet.images.tiff_pages import count_decoded_pixels, list_pages, open_page, open_tiff

MAX_PIXELS = 10**8
"""Size limit of a crop, montage or page, in pixels."""

MIN_EDGE = 8
"""Minimum edge of a crop, in pixels. The enhancers halve the size four times."""

MAX_EXIF_BYTES = 2**20
"""Size limit of EXIF metadata, in bytes."""

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"})
"""File name suffixes of images in folders, in lower case."""

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of TIFF and BigTIFF in both byte orders."""

_PNG_START = b"\x89PNG\r\n\x1a\n"
_PILLOW_STARTS = (_PNG_START, b"\xff\xd8\xff", b"BM")
_PILLOW_FORMATS = ("PNG", "JPEG", "BMP")
_PNG_COLOUR_TYPES = (2, 6)  # RGB and RGBA; 16-bit PNG has no palettes
_ALPHA = (1, 2)  # extra samples: associated and unassociated alpha
_TIFF_PHOTOMETRICS = (
    tifffile.PHOTOMETRIC.MINISWHITE,
    tifffile.PHOTOMETRIC.MINISBLACK,
    tifffile.PHOTOMETRIC.RGB,
    tifffile.PHOTOMETRIC.PALETTE,
)


@dataclass(frozen=True)
class Header:
    """Properties of an image file from its header."""

    height: int
    width: int
    pages: int
    dtype: str
    colour: bool


@dataclass(frozen=True)
class PageSurvey:
    """Number and sizes of the pages of a file. Tiles count whole, because they are decoded whole.

    Attributes:
        pages: number of pages.
        largest_pixels: number of pixels of the largest page.
        total_pixels: number of pixels of all pages. Pages that share their strips are decoded, and counted, each.
    """

    pages: int
    largest_pixels: int
    total_pixels: int


def survey_pages(path: Path) -> PageSurvey:
    """Survey the pages of an image file by their headers, in time and memory proportional to their number.

    Args:
        path: PNG, JPEG, BMP or TIFF file.

    Raises:
        ImageError: the file is no such image or damaged, or its chain of pages is a loop or too long.
    """
    if read_first_bytes(path).startswith(TIFF_STARTS):
        sizes = [page.pixel_count for page in list_pages(path)]
    else:
        height, width, _, _ = read_single_image_size(path)
        sizes = [height * width]
    return PageSurvey(len(sizes), max(sizes), sum(sizes))


def read_header(path: Path) -> Header:
    """Read the size, pages, depth and colour of an image file from its header.

    Args:
        path: PNG, JPEG, BMP or TIFF file.

    Raises:
        ImageError: the file is no such image, damaged, larger than `MAX_PIXELS`, or of an unsupported depth.
    """
    start = read_first_bytes(path)
    with translate_decoder_errors(path):
        if start.startswith(TIFF_STARTS):
            pages = list_pages(path)
            with open_tiff(path) as tif:
                page = open_page(tif, pages[0], 0)
                header = _read_tiff_header(path, page, len(pages))
                height, width = orient_shape((header.height, header.width), read_tiff_orientation(page))
                return replace(header, height=height, width=width)
    height, width, depth, colour = read_single_image_size(path)
    return _check_size(path, Header(height, width, 1, depth, colour))


def read_single_image_size(path: Path) -> tuple[int, int, str, bool]:
    """Read the height, width, depth and colour of a PNG, JPEG or BMP of any size from its header.

    Raises:
        ImageError: the file is no such image, is damaged, or has several frames.
    """
    start = read_first_bytes(path)
    with _open_single_image(path) as image:
        deep = _is_16_bit_png(start)
        colour = start[25] in _PNG_COLOUR_TYPES if deep else not _is_grey(image)
        height, width = orient_shape((image.height, image.width), _read_orientation(path, image))
        return height, width, "uint16" if deep else "uint8", colour


def read_image(path: Path, page: int = 0) -> np.ndarray:
    """Decode one page of an image file at its own depth.

    Args:
        path: PNG, JPEG, BMP or TIFF file.
        page: page of a multi-page TIFF, from 0.

    Returns:
        (H, W) or (H, W, 3); `uint8`, `uint16` or `float32`, in the file's own counts.

    Raises:
        ImageError: the file is unreadable, damaged, too large or too small, has several frames or values that are not
            finite, or has no such page.
    """
    start = read_first_bytes(path)
    if start.startswith(TIFF_STARTS):
        with translate_decoder_errors(path):
            pixels = _read_tiff(path, page)
    else:
        header = read_header(path)
        _check_page(path, page, header.pages)
        with _open_single_image(path) as image:
            orientation = _read_orientation(path, image)
            if _is_16_bit_png(start):
                import imagecodecs

                pixels = imagecodecs.png_decode(path.read_bytes())
            else:
                pixels = np.asarray(image.convert("RGB" if header.colour else "L"))
        pixels = orient(pixels, orientation)
    height, width = pixels.shape[:2]
    if min(height, width) < MIN_EDGE:
        raise ImageError(
            f"{path}: {width} x {height} px; a crop needs at least {MIN_EDGE} px each way", code="images.too_small"
        )
    check_finite(path, pixels)
    return _drop_alpha(pixels)


@contextmanager
def _open_single_image(path: Path) -> Iterator[Image.Image]:
    """Open a PNG, JPEG or BMP that holds one image.

    Raises:
        ImageError: the file is damaged (`images.damaged`) or has several frames (`images.several_frames`).
    """
    with translate_decoder_errors(path), path.open("rb") as file, Image.open(file, formats=_PILLOW_FORMATS) as image:
        frames = _count_full_size_frames(path) if image.format == "MPO" else getattr(image, "n_frames", 1)
        if frames > 1:
            raise ImageError(
                f"{path}: {frames} frames (an animation or a series); an image must have one frame. Save each frame as "
                "its own image, or all frames as the pages of a TIFF",
                code="images.several_frames",
            )
        yield image


def _count_full_size_frames(path: Path) -> int:
    """Count the full-size frames of a multi-picture JPEG. Cameras add smaller previews and brightness maps."""
    with path.open("rb") as file, Image.open(file, formats=_PILLOW_FORMATS) as image:
        size, count = image.size, 1
        for frame in range(1, image.n_frames):
            with suppress(EOFError, OSError, SyntaxError, ValueError):  # listed, but missing
                image.seek(frame)
                count += image.width >= size[0] and image.height >= size[1]
    return count


def _read_orientation(path: Path, image: Image.Image) -> int:
    """Read the orientation of a PNG, JPEG or BMP from EXIF or XMP; `AS_STORED` if they are damaged."""
    with suppress(Exception):
        exif = Image.Image.getexif(image)  # that of PNG images decodes all pixels to reach metadata after them
        if ExifTags.Base.Orientation not in exif and image.format == "PNG":
            exif.load(_read_trailing_exif(path))
        return parse_orientation(exif.get(ExifTags.Base.Orientation))
    return AS_STORED


def _read_trailing_exif(path: Path) -> bytes:
    """Read the EXIF metadata after the pixels of a PNG, where some programs write them; empty if there are none."""
    with path.open("rb") as file:
        file.seek(len(_PNG_START))
        while len(head := file.read(8)) == 8:
            length, name = int.from_bytes(head[:4], "big"), head[4:]
            if name == b"eXIf" and length <= MAX_EXIF_BYTES:
                return file.read(length)
            file.seek(length + 4, 1)
    return b""


def is_file(path: Path) -> bool:
    """Return whether a file exists. A name that is invalid on this system, or not accessible, is no file."""
    try:
        return path.is_file()
    except OSError:
        return False


def read_first_bytes(path: Path) -> bytes:
    """Read the first 32 bytes of an image file, which determine its format.

    Raises:
        ImageError: there is no such file (`images.not_found`), it cannot be opened (`images.cannot_open`), is empty
            (`images.empty`), or is no PNG, JPEG, BMP or TIFF (`images.format_unknown`).
    """
    try:
        if path.exists() and not path.is_file():  # opening a pipe would block
            raise ImageError(f"{path}: cannot be opened (a folder or device, not a file)", code="images.cannot_open")
        with path.open("rb") as file:
            start = file.read(32)
    except (FileNotFoundError, ValueError):  # ValueError: a name with a zero byte
        raise ImageError(f"{path}: no such file", code="images.not_found") from None
    except OSError as error:
        raise ImageError(f"{path}: cannot be opened ({error.strerror})", code="images.cannot_open") from None
    if not start:
        raise ImageError(f"{path}: the file is empty (0 bytes)", code="images.empty")
    if not start.startswith(TIFF_STARTS + _PILLOW_STARTS):
        raise ImageError(
            f"{path}: the content is no PNG, JPEG, BMP or TIFF image, whatever the file name is",
            code="images.format_unknown",
        )
    return start


class _MutedDecoders:
    """Context without warnings and without messages of tifffile.

    Both are settings of the whole process. Of several decoding threads, the first turns them off, and the last restores
    them.
    """

    def __init__(self) -> None:
        self.lock, self.inside, self.restore = threading.Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self.lock:
            if self.inside == 0:
                self.restore.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")
                log = logging.getLogger("tifffile")
                self.restore.callback(setattr, log, "disabled", log.disabled)
                log.disabled = True
            self.inside += 1

    def __exit__(self, *problem: object) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                self.restore.close()


_MUTED_DECODERS = _MutedDecoders()


@contextmanager
def translate_decoder_errors(path: Path) -> Iterator[None]:
    """Convert errors of a decoder into one `ImageError` with the file name, and suppress its warnings and messages."""
    try:
        with _MUTED_DECODERS:
            yield
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError(_format_too_large(path), code="images.too_large") from None
    except UnidentifiedImageError:
        raise ImageError(
            f"{path}: damaged or incomplete image (the header cannot be read)", code="images.damaged"
        ) from None
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        detail = f" ({reason})" if re.search("[a-z]{2}", reason) else ""  # a missing key alone explains nothing
        raise ImageError(f"{path}: damaged or incomplete image{detail}", code="images.damaged") from None


def _check_size(path: Path, header: Header) -> Header:
    if header.height * header.width > MAX_PIXELS:
        raise ImageError(_format_too_large(path, f"{header.width} x {header.height} px"), code="images.too_large")
    return header


def _format_too_large(path: Path, size: str = "its size") -> str:
    return (
        f"{path}: {size} is more than the limit of {MAX_PIXELS:,} px for one image. Divide it into crops, or save a "
        "field as a tiled TIFF"
    )


def _is_16_bit_png(start: bytes) -> bool:
    return start.startswith(_PNG_START) and len(start) > 25 and start[24] == 16


def _is_grey(image: Image.Image) -> bool:
    return image.mode in ("1", "L", "LA")


def _drop_alpha(pixels: np.ndarray) -> np.ndarray:
    if pixels.ndim == 3:
        pixels = pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., 0]
    return np.ascontiguousarray(pixels)


def classify_tiff_pixels(path: Path, page: tifffile.TiffPage, most_samples: int = 4) -> tuple[str, bool]:
    """Determine the depth of a decoded TIFF page (`uint8`, `uint16` or `float32`), and whether it is in colour.

    Args:
        path: path of the file, for the errors.
        page: the page.
        most_samples: maximum number of values per pixel.

    Raises:
        ImageError: the depth (`images.depth_unsupported`) or kind of pixels (`images.pixels_unsupported`) is not
            supported.
    """
    dtype = page.dtype
    if dtype is None or not (dtype.kind == "f" or dtype in (np.uint8, np.uint16, np.int16, np.bool_)):
        raise ImageError(
            f"{path}: pixels are {dtype or 'of an unknown type'}; use 8- or 16-bit integers or floating point",
            code="images.depth_unsupported",
        )
    kind = tifffile.PHOTOMETRIC(page.photometric)
    decoded_to_rgb = kind == tifffile.PHOTOMETRIC.YCBCR and page.compression == tifffile.COMPRESSION.JPEG
    if not (kind in _TIFF_PHOTOMETRICS or decoded_to_rgb) or page.samplesperpixel > most_samples or page.imagedepth > 1:
        raise ImageError(
            f"{path}: {page.samplesperpixel} channel(s) of kind {kind.name}, {page.imagedepth} slice(s) deep, "
            "cannot be read. Save each page as one grey channel or as RGB",
            code="images.pixels_unsupported",
        )
    palette = kind == tifffile.PHOTOMETRIC.PALETTE
    depth = "float32" if dtype.kind in "fi" else "uint8" if palette or dtype == np.bool_ else dtype.name
    return depth, palette or page.samplesperpixel >= 3


def convert_tiff_values(pixels: np.ndarray, page: tifffile.TiffPage, depth: str) -> np.ndarray:
    """Convert stored values to brightness: apply palettes, invert "min is white", scale few bits to eight.

    Args:
        pixels: (H, W) or (H, W, samples) as decoded; all of the page or a part.
        page: page of the pixels.
        depth: depth from `classify_tiff_pixels`.
    """
    if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
        indices = pixels[..., 0] if pixels.ndim == 3 else pixels  # the second value is alpha
        return (np.moveaxis(page.colormap[:, indices.astype(np.intp)], 0, -1) >> 8).astype(np.uint8)
    if pixels.dtype.kind in "bu":
        brightest = 2**page.bitspersample - 1
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
            pixels = brightest - pixels.astype(depth)
        if page.bitspersample < 8:
            pixels = pixels.astype(np.uint8) * np.uint8(255 // brightest)
    return pixels.astype(depth, copy=False)


def read_tiff_orientation(page: tifffile.TiffPage) -> int:
    """Read the orientation of a TIFF page, 1 to 8."""
    return parse_orientation(page.tags.valueof(274, default=AS_STORED))


def check_finite(path: Path, pixels: np.ndarray) -> None:
    """Refuse NaN and infinite pixels.

    Raises:
        ImageError: there are such pixels (`images.not_finite`).
    """
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        count = int((~np.isfinite(pixels)).sum())
        raise ImageError(
            f"{path}: {count} of {pixels.size} values are NaN or infinite as 32-bit numbers. Replace them first",
            code="images.not_finite",
        )


def is_grey_with_alpha(page: tifffile.TiffPage) -> bool:
    """Return whether pixels have two values, grey and alpha."""
    return page.samplesperpixel == 2 and len(page.extrasamples) == 1 and int(page.extrasamples[0]) in _ALPHA


def _read_tiff_header(path: Path, page: tifffile.TiffPage, pages: int) -> Header:
    depth, colour = classify_tiff_pixels(path, page)
    palette = page.photometric == tifffile.PHOTOMETRIC.PALETTE
    if page.samplesperpixel == 2 and not (palette or is_grey_with_alpha(page)):
        raise ImageError(
            f"{path}: two channels (2 values per pixel, the second not marked as alpha); an image has one or three. "
            "Save each channel as its own image",
            code="images.several_channels",
        )
    if page.is_tiled:
        tile = (page.tiledepth, page.tilelength, page.tilewidth)
        if count_decoded_pixels((page.imagedepth, page.imagelength, page.imagewidth), tile) > MAX_PIXELS:
            size = f"{page.imagewidth} x {page.imagelength} px in tiles of {page.tilewidth} x {page.tilelength} px"
            raise ImageError(_format_too_large(path, size), code="images.too_large")
    return _check_size(path, Header(page.imagelength, page.imagewidth, pages, depth, colour))


def _check_page(path: Path, page: int, pages: int) -> None:
    if not 0 <= page < pages:
        raise ImageError(
            f"{path}: there is no page {page}; the file has {pages} page(s), counted from 0", code="images.page_missing"
        )


def _read_tiff(path: Path, index: int) -> np.ndarray:
    pages = list_pages(path)
    _check_page(path, index, len(pages))
    listed = pages[index]
    if listed.end > path.stat().st_size or not listed.stored:
        raise ImageError(
            f"{path}: damaged or incomplete image (page {index} points beyond the end of the file)",
            code="images.damaged",
        )
    with open_tiff(path) as tif:
        page = open_page(tif, listed, index)
        header = _read_tiff_header(path, page, len(pages))
        pixels = page.asarray()
    if pixels.ndim == 3 and page.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.shape[:2] != (header.height, header.width):
        raise ImageError(
            f"{path}: damaged or incomplete image (page {index} has other pixels than its header says)",
            code="images.damaged",
        )
    return orient(convert_tiff_values(pixels, page, header.dtype), read_tiff_orientation(page))

"""Read one crop or page from PNG, JPEG, BMP or TIFF without touching its bit depth or range.

The kind of file is decided by its first bytes, not by its name. Sizes are checked from the header, before anything is
decoded. What comes back is (H, W) or (H, W, 3) in `uint8`, `uint16` or `float32`; alpha is dropped, palettes are looked
up, inverted grey (TIFF "min is white") is turned the right way, and a picture that says how it is to be turned (EXIF,
XMP, TIFF's tag 274) is turned as viewers show it: heights, widths and positions are those of the shown picture.
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
"""Largest crop, montage or page that is decoded, in pixels."""

MIN_EDGE = 8
"""Shortest edge of a usable crop, in pixels: below it the four halvings of the enhancers have nothing left."""

MAX_EXIF_BYTES = 2**20
"""Most bytes of EXIF that are looked at."""

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"})
"""Names that are looked for in folders (lower case)."""

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
    """What a file says of itself before it is decoded."""

    height: int
    width: int
    pages: int
    dtype: str
    colour: bool


@dataclass(frozen=True)
class PageSurvey:
    """How much there is to decode in a file.

    Attributes:
        pages: number of pages.
        largest_pixels: pixels of the largest page.
        total_pixels: pixels of all pages; pages that share their strips are decoded each, and counted each.

    Pixels of tiles count in whole tiles, because a tile is decoded whole.
    """

    pages: int
    largest_pixels: int
    total_pixels: int


def survey_pages(path: Path) -> PageSurvey:
    """Number and sizes of all pages of an image file, from its headers alone.

    Time and memory are proportional to the number of pages, of which a TIFF has at most `tiff_pages.MAX_PAGES`.

    Args:
        path: PNG, JPEG, BMP or TIFF file.

    Raises:
        ImageError: not such an image, damaged, or a chain of pages that is a loop or too long.
    """
    if read_first_bytes(path).startswith(TIFF_STARTS):
        sizes = [page.pixel_count for page in list_pages(path)]
    else:
        height, width, _, _ = read_single_image_size(path)
        sizes = [height * width]
    return PageSurvey(len(sizes), max(sizes), sum(sizes))


def read_header(path: Path) -> Header:
    """Size, pages, depth and colour of an image file, without decoding it.

    Args:
        path: PNG, JPEG, BMP or TIFF file.

    Raises:
        ImageError: not an image of these kinds, damaged, larger than `MAX_PIXELS` or of an unsupported depth.
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
    """Height, width, depth and colour of a PNG, JPEG or BMP of any size, from its header.

    Raises:
        ImageError: not such an image, damaged, or one of several frames.
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
        ImageError: unreadable, truncated, too large or too small, not finite, of several frames, or no such page.
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
        raise ImageError(f"{path}: {width} x {height} px; a crop needs at least {MIN_EDGE} px each way")
    check_finite(path, pixels)
    return _drop_alpha(pixels)


@contextmanager
def _open_single_image(path: Path) -> Iterator[Image.Image]:
    """Open a PNG, JPEG or BMP that holds one picture.

    Raises:
        ImageError: damaged, or of several frames.
    """
    with translate_decoder_errors(path), path.open("rb") as file, Image.open(file, formats=_PILLOW_FORMATS) as image:
        frames = _count_full_size_frames(path) if image.format == "MPO" else getattr(image, "n_frames", 1)
        if frames > 1:
            raise ImageError(
                f"{path}: {frames} frames (an animation or a series), of which one would be taken for the whole; "
                "save each frame as an image of its own, or all of them as the pages of a TIFF",
                code="images.several_frames",
            )
        yield image


def _count_full_size_frames(path: Path) -> int:
    """Number of pictures in a JPEG of several: the smaller ones are previews and brightness maps of cameras."""
    with path.open("rb") as file, Image.open(file, formats=_PILLOW_FORMATS) as image:
        size, count = image.size, 1
        for frame in range(1, image.n_frames):
            with suppress(EOFError, OSError, SyntaxError, ValueError):  # listed, and not there
                image.seek(frame)
                count += image.width >= size[0] and image.height >= size[1]
    return count


def _read_orientation(path: Path, image: Image.Image) -> int:
    """How a PNG, JPEG or BMP is to be turned, from EXIF or XMP; damaged metadata say nothing."""
    with suppress(Exception):
        exif = Image.Image.getexif(image)  # PNG's own decodes all pixels to see what stands behind them
        if ExifTags.Base.Orientation not in exif and image.format == "PNG":
            exif.load(_read_trailing_exif(path))
        return parse_orientation(exif.get(ExifTags.Base.Orientation))
    return AS_STORED


def _read_trailing_exif(path: Path) -> bytes:
    """The EXIF of a PNG that stands behind its pixels, where some programs write it; empty where there is none."""
    with path.open("rb") as file:
        file.seek(len(_PNG_START))
        while len(head := file.read(8)) == 8:
            length, name = int.from_bytes(head[:4], "big"), head[4:]
            if name == b"eXIf" and length <= MAX_EXIF_BYTES:
                return file.read(length)
            file.seek(length + 4, 1)
    return b""


def is_file(path: Path) -> bool:
    """Whether a file is there; a name that the system does not take, or lets nobody see, names none."""
    try:
        return path.is_file()
    except OSError:
        return False


def read_first_bytes(path: Path) -> bytes:
    """The first 32 bytes of an image file, by which its kind is told.

    Raises:
        ImageError: no such file, not readable, empty, or neither PNG, JPEG, BMP nor TIFF.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for without end
            raise ImageError(f"{path}: cannot be opened (a folder or device, no file)")
        with path.open("rb") as file:
            start = file.read(32)
    except (FileNotFoundError, ValueError):  # ValueError: a name with a zero byte
        raise ImageError(f"{path}: no such file") from None
    except OSError as error:
        raise ImageError(f"{path}: cannot be opened ({error.strerror})") from None
    if not start:
        raise ImageError(f"{path}: the file is empty (0 bytes)")
    if not start.startswith(TIFF_STARTS + _PILLOW_STARTS):
        raise ImageError(f"{path}: its content is no PNG, JPEG, BMP or TIFF image, whatever its name says")
    return start


class _MutedDecoders:
    """No warnings, and nothing from tifffile's log.

    Both belong to the whole process: of the threads that decode at once, the first to come silences them, and the last
    to go puts them back as they were.
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
    """Turn whatever a decoder throws, warns or logs about a damaged file into one `ImageError` that names the file."""
    try:
        with _MUTED_DECODERS:
            yield
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError(_format_too_large(path)) from None
    except UnidentifiedImageError:
        raise ImageError(f"{path}: damaged or incomplete image (its header cannot be read)") from None
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        told = f" ({reason})" if re.search("[a-z]{2}", reason) else ""  # a key that is missing says nothing to anyone
        raise ImageError(f"{path}: damaged or incomplete image{told}") from None


def _check_size(path: Path, header: Header) -> Header:
    if header.height * header.width > MAX_PIXELS:
        raise ImageError(_format_too_large(path, f"{header.width} x {header.height} px"))
    return header


def _format_too_large(path: Path, size: str = "its size") -> str:
    return (
        f"{path}: {size} is more than the {MAX_PIXELS:,} px allowed for one image; cut it into crops first, "
        "or save a field as a tiled TIFF"
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
    """Depth at which a TIFF page is handed on (`uint8`, `uint16` or `float32`), and whether it comes in colour.

    Args:
        path: for the errors.
        page: the page.
        most_samples: greatest number of values that a pixel may have.

    Raises:
        ImageError: a depth or a kind of pixel that is not supported.
    """
    dtype = page.dtype
    if dtype is None or not (dtype.kind == "f" or dtype in (np.uint8, np.uint16, np.int16, np.bool_)):
        raise ImageError(
            f"{path}: pixels are {dtype or 'of an unknown type'}; use 8- or 16-bit integers or floating point"
        )
    kind = tifffile.PHOTOMETRIC(page.photometric)
    decoded_to_rgb = kind == tifffile.PHOTOMETRIC.YCBCR and page.compression == tifffile.COMPRESSION.JPEG
    if not (kind in _TIFF_PHOTOMETRICS or decoded_to_rgb) or page.samplesperpixel > most_samples or page.imagedepth > 1:
        raise ImageError(
            f"{path}: {page.samplesperpixel} channel(s) of kind {kind.name}, {page.imagedepth} deep; "
            "save each page as one grey channel or as RGB"
        )
    palette = kind == tifffile.PHOTOMETRIC.PALETTE
    depth = "float32" if dtype.kind in "fi" else "uint8" if palette or dtype == np.bool_ else dtype.name
    return depth, palette or page.samplesperpixel >= 3


def convert_tiff_values(pixels: np.ndarray, page: tifffile.TiffPage, depth: str) -> np.ndarray:
    """Stored values as brightness: palettes looked up, inverted grey turned round, few bits spread over eight.

    Args:
        pixels: (H, W) or (H, W, samples) as decoded, a part of the page or all of it.
        page: the page that they come from.
        depth: as `classify_tiff_pixels` says.
    """
    if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
        places = pixels[..., 0] if pixels.ndim == 3 else pixels  # alpha stands beside the place in the palette
        return (np.moveaxis(page.colormap[:, places.astype(np.intp)], 0, -1) >> 8).astype(np.uint8)
    if pixels.dtype.kind in "bu":
        brightest = 2**page.bitspersample - 1
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
            pixels = brightest - pixels.astype(depth)
        if page.bitspersample < 8:
            pixels = pixels.astype(np.uint8) * np.uint8(255 // brightest)
    return pixels.astype(depth, copy=False)


def read_tiff_orientation(page: tifffile.TiffPage) -> int:
    """How a TIFF page is to be turned, 1 to 8."""
    return parse_orientation(page.tags.valueof(274, default=AS_STORED))


def check_finite(path: Path, pixels: np.ndarray) -> None:
    """Refuse floating-point pixels that are no numbers.

    Raises:
        ImageError: NaN or infinite values.
    """
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        count = int((~np.isfinite(pixels)).sum())
        raise ImageError(
            f"{path}: {count} of {pixels.size} values are NaN or infinite as 32-bit numbers; mask or fill them first"
        )


def is_grey_with_alpha(page: tifffile.TiffPage) -> bool:
    """Whether the second of two values a pixel is alpha, and the first one grey."""
    return page.samplesperpixel == 2 and len(page.extrasamples) == 1 and int(page.extrasamples[0]) in _ALPHA


def _read_tiff_header(path: Path, page: tifffile.TiffPage, pages: int) -> Header:
    depth, colour = classify_tiff_pixels(path, page)
    palette = page.photometric == tifffile.PHOTOMETRIC.PALETTE
    if page.samplesperpixel == 2 and not (palette or is_grey_with_alpha(page)):
        raise ImageError(
            f"{path}: 2 values a pixel, the second not marked as alpha: two channels, of which one would be "
            "taken for the whole; save each channel as an image of its own",
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
        raise ImageError(f"{path}: page {page} asked for, but the file has {pages} (counted from 0)")


def _read_tiff(path: Path, index: int) -> np.ndarray:
    pages = list_pages(path)
    _check_page(path, index, len(pages))
    about = pages[index]
    if about.end > path.stat().st_size or not about.stored:
        raise ImageError(f"{path}: truncated: page {index} points beyond the end of the file")
    with open_tiff(path) as tif:
        page = open_page(tif, about, index)
        header = _read_tiff_header(path, page, len(pages))
        pixels = page.asarray()
    if pixels.ndim == 3 and page.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.shape[:2] != (header.height, header.width):
        raise ImageError(f"{path}: damaged: page {index} does not hold the pixels that its header names")
    return orient(convert_tiff_values(pixels, page, header.dtype), read_tiff_orientation(page))

"""Read one crop or page from PNG, JPEG, BMP or TIFF without touching its bit depth or range.

The kind of file is decided by its first bytes, not by its name. Sizes are checked from the header, before anything is
decoded. What comes back is (H, W) or (H, W, 3) in `uint8`, `uint16` or `float32`; alpha is dropped, palettes are looked
up, inverted grey (TIFF "min is white") is turned the right way.
"""

import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image, UnidentifiedImageError

from urnet.errors import ImageError

MAX_PIXELS = 10**8
"""Largest crop, montage or page that is decoded, in pixels."""

MIN_EDGE = 8
"""Shortest edge of a usable crop, in pixels: below it the four halvings of the enhancers have nothing left."""

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"})
"""Names that are looked for in folders (lower case)."""

_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PILLOW_STARTS = (_PNG_START, b"\xff\xd8\xff", b"BM")


@dataclass(frozen=True)
class Header:
    """What a file says of itself before it is decoded."""

    height: int
    width: int
    pages: int
    dtype: str
    colour: bool


def read_header(path: Path) -> Header:
    """Size, pages, depth and colour of an image file, without decoding it.

    Args:
        path: PNG, JPEG, BMP or TIFF file.

    Raises:
        ImageError: not an image of these kinds, damaged, larger than `MAX_PIXELS` or of an unsupported depth.
    """
    start = _first_bytes(path)
    if start.startswith(_TIFF_STARTS):
        with _Decoding(path), tifffile.TiffFile(path) as tif:
            pages = len(tif.pages)
            page = tif.pages.first
            header = Header(page.imagelength, page.imagewidth, pages, _tiff_dtype(path, page), _tiff_colour(page))
    else:
        with _Decoding(path), _pillow(path) as image:
            deep = _is_16_bit_png(start)
            colour = start[25] in (2, 6) if deep else not _is_grey(image)
            header = Header(image.height, image.width, 1, "uint16" if deep else "uint8", colour)
    if header.height * header.width > MAX_PIXELS:
        raise ImageError(
            f"{path}: {header.width} x {header.height} px is more than {MAX_PIXELS:,} px allowed for one image; "
            "cut it into crops first"
        )
    return header


def read_image(path: Path, page: int = 0) -> np.ndarray:
    """Decode one page of an image file at its own depth.

    Args:
        path: PNG, JPEG, BMP or TIFF file.
        page: page of a multi-page TIFF, from 0.

    Returns:
        (H, W) or (H, W, 3); `uint8`, `uint16` or `float32`, in the file's own counts.

    Raises:
        ImageError: unreadable, truncated, too large or too small, not finite, or no such page.
    """
    header = read_header(path)
    if not 0 <= page < header.pages:
        raise ImageError(f"{path}: page {page} asked for, but the file has {header.pages} (counted from 0)")
    if min(header.height, header.width) < MIN_EDGE:
        raise ImageError(f"{path}: {header.width} x {header.height} px; a crop needs at least {MIN_EDGE} px each way")
    start = _first_bytes(path)
    with _Decoding(path):
        if start.startswith(_TIFF_STARTS):
            pixels = _read_tiff(path, page)
        elif _is_16_bit_png(start):
            import imagecodecs

            pixels = imagecodecs.png_decode(path.read_bytes())
        else:
            with _pillow(path) as image:
                pixels = np.asarray(image.convert("L" if _is_grey(image) else "RGB"))
    pixels = _drop_alpha(pixels)
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        count = int((~np.isfinite(pixels)).sum())
        raise ImageError(f"{path}: {count} of {pixels.size} values are NaN or infinite; mask or fill them first")
    return pixels


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            start = file.read(32)
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except OSError as error:
        raise ImageError(f"{path}: cannot be opened ({error.strerror})") from None
    if not start:
        raise ImageError(f"{path}: the file is empty (0 bytes)")
    if not start.startswith(_TIFF_STARTS + _PILLOW_STARTS):
        raise ImageError(f"{path}: its content is no PNG, JPEG, BMP or TIFF image, whatever its name says")
    return start


class _Decoding:
    """Turns whatever a decoder throws at a damaged file into one `ImageError` that names the file."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> None:
        self.warnings = warnings.catch_warnings()
        self.warnings.__enter__()
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        self.warnings.__exit__(None, None, None)
        if isinstance(error, Image.DecompressionBombError):
            raise ImageError(f"{self.path}: more than {MAX_PIXELS:,} px allowed for one image") from None
        if isinstance(error, Exception) and not isinstance(error, ImageError):
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise ImageError(f"{self.path}: damaged or incomplete image ({reason})") from None


def _pillow(path: Path) -> Image.Image:
    try:
        return Image.open(io.BytesIO(path.read_bytes()), formats=("PNG", "JPEG", "BMP"))
    except UnidentifiedImageError:
        raise ImageError(f"{path}: damaged or incomplete image (its header cannot be read)") from None


def _is_16_bit_png(start: bytes) -> bool:
    return start.startswith(_PNG_START) and len(start) > 25 and start[24] == 16


def _is_grey(image: Image.Image) -> bool:
    return image.mode in ("1", "L", "LA")


def _drop_alpha(pixels: np.ndarray) -> np.ndarray:
    if pixels.ndim == 3:
        pixels = pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., 0]
    return np.ascontiguousarray(pixels)


def _tiff_colour(page: tifffile.TiffPage) -> bool:
    return page.samplesperpixel >= 3 or page.photometric == tifffile.PHOTOMETRIC.PALETTE


def _tiff_dtype(path: Path, page: tifffile.TiffPage) -> str:
    dtype = page.dtype
    if dtype is None or not (dtype.kind == "f" or dtype in (np.uint8, np.uint16, np.int16, np.bool_)):
        raise ImageError(
            f"{path}: pixels are {dtype or 'of an unknown type'}; use 8- or 16-bit integers or floating point"
        )
    if dtype == np.bool_:
        return "uint8"
    return "float32" if dtype.kind in "fi" else str(dtype)


def _read_tiff(path: Path, index: int) -> np.ndarray:
    size = path.stat().st_size
    with tifffile.TiffFile(path) as tif:
        page = tif.pages[index].aspage()
        if page.imagelength * page.imagewidth > MAX_PIXELS:
            raise ImageError(f"{path}: page {index} has more than {MAX_PIXELS:,} px allowed for one image")
        ends = [o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=True)]
        if not ends or max(ends) > size:
            raise ImageError(f"{path}: truncated: page {index} points beyond the end of the file")
        dtype = _tiff_dtype(path, page)
        pixels = page.asarray()
        if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and pixels.ndim == 3:
            pixels = np.moveaxis(pixels, 0, -1)
        if page.photometric == tifffile.PHOTOMETRIC.PALETTE and page.colormap is not None:
            return (np.moveaxis(page.colormap[:, pixels], 0, -1) >> 8).astype(np.uint8)
        if pixels.dtype == np.bool_:
            pixels = pixels.astype(np.uint8) * 255
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE and pixels.dtype.kind == "u":
            pixels = np.iinfo(pixels.dtype).max - pixels
    if pixels.ndim not in (2, 3):
        raise ImageError(f"{path}: page {index} has shape {pixels.shape}; a crop is (height, width) or with colours")
    return pixels.astype(dtype, copy=False)

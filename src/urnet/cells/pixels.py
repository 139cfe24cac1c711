"""Decode cells into one array of raw counts, at the size and colour of a network's input."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from urnet.cells.table import Cells
from urnet.images.montage import resolve_address
from urnet.images.read import Header, read_header


@dataclass(frozen=True)
class Pixels:
    """Crops as raw counts.

    Attributes:
        images: (N, C, S, S) in the depth of the files; float32 for several depths.
        converted: number of crops that were converted between grey and colour.
    """

    images: np.ndarray
    converted: int


def fit_input(crop: np.ndarray, size: int, channels: int) -> np.ndarray:
    """Fit one crop to the size and colour of a network's input, in its own depth.

    The longer edge becomes `size`. The shorter edge keeps the aspect ratio and is padded by reflection.

    Args:
        crop: (H, W) or (H, W, 3).
        size: edge of the square result, in pixels.
        channels: 1 for grey (the mean of colours), 3 for colour (grey is repeated).

    Returns:
        (C, S, S).
    """
    dtype = crop.dtype
    if channels == 1 and crop.ndim == 3:
        crop = _round_to(crop.mean(axis=-1), dtype)
    planes = [crop] if crop.ndim == 2 else [crop[..., k] for k in range(3)]
    planes = [resize_plane(plane, size) for plane in planes]
    return np.stack(planes * (channels // len(planes)))


def load_pixels(
    cells: Cells,
    size: int,
    channels: int,
    *,
    column: str = "path",
    progress: Callable[[int], None] | None = None,
) -> Pixels:
    """Decode all cells.

    Args:
        cells: the table.
        size: edge of the network's input, in pixels.
        channels: 1 or 3.
        column: `path`, or one of `TARGET_COLUMNS` for the paired images.
        progress: called with the number of decoded crops.

    Raises:
        ImageError: an image cannot be used.
    """
    images = np.empty((len(cells), channels, size, size), np.uint8)
    converted = 0
    for index in range(len(cells)):
        crop = cells.read(index, column)
        converted += (crop.ndim == 3) != (channels == 3)
        common = crop.dtype if index == 0 or crop.dtype == images.dtype else np.float32
        images = images.astype(common, copy=False)
        images[index] = fit_input(crop, size, channels)
        if progress is not None:
            progress(index + 1)
    return Pixels(images, converted)


@dataclass(frozen=True)
class ImageSurvey:
    """Properties of a set of images, from their headers.

    Attributes:
        edge: most common longer edge, in pixels.
        colours: (N,) bool: images in colour.
        depths: number of images of each depth.
    """

    edge: int
    colours: np.ndarray
    depths: Counter[str]

    @property
    def colour(self) -> bool:
        """Whether any image is in colour."""
        return bool(self.colours.any())


def survey_images(cells: Cells, column: str = "path") -> ImageSurvey:
    """Survey size, colour and depth of the crops (`path`) or paired images (one of `TARGET_COLUMNS`) by their headers.

    Raises:
        ImageError: a header cannot be read.
    """
    edges: Counter[int] = Counter()
    depths: Counter[str] = Counter()
    headers: dict[str, Header] = {}
    colours = np.zeros(len(cells), bool)
    tiles = cells.table.get("tile", [""] * len(cells))
    for index, (path, tile) in enumerate(zip(cells.table[column], tiles, strict=True)):
        file = resolve_address(cells.root, path).file
        if file not in headers:
            headers[file] = read_header(cells.root / file)
        header = headers[file]
        edges[int(tile) if tile != "" else max(header.height, header.width)] += 1
        depths[header.dtype] += 1
        colours[index] = header.colour
    edge = max(edges, key=lambda edge: (edges[edge], edge))
    return ImageSurvey(edge, colours, depths)


def resize_plane(plane: np.ndarray, size: int) -> np.ndarray:
    """Resize one plane, (H, W), to (S, S) as `fit_input` does."""
    height, width = plane.shape
    if (height, width) == (size, size):
        return plane
    scale = size / max(height, width)
    new = (max(1, round(width * scale)), max(1, round(height * scale)))
    if plane.dtype == np.uint8:
        image = np.asarray(Image.fromarray(plane).resize(new, Image.Resampling.BICUBIC))
    else:
        floating = np.asarray(Image.fromarray(plane.astype(np.float32)).resize(new, Image.Resampling.BICUBIC))
        image = _round_to(floating, plane.dtype)
    down, right = size - image.shape[0], size - image.shape[1]
    return np.pad(image, ((down // 2, down - down // 2), (right // 2, right - right // 2)), mode="symmetric")


def _round_to(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if dtype.kind == "f":
        return values.astype(dtype)
    return np.clip(np.rint(values), 0, np.iinfo(dtype).max).astype(dtype)

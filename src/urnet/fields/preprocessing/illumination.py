"""Illumination of a batch of fields: estimated from the fields, or given by images of an empty spot.

A corrected pixel is (pixel - dark) / flat. The flat field is relative, with mean 1. It is stored on a coarse grid that
covers a field of any size, so that training and prediction apply the same correction. Fields alone do not show the dark
level: it is 0 unless a dark image is given.

The estimate follows BaSiC (Peng et al., Nat. Commun. 8, 14836, 2017) without its low-rank decomposition:

1. Take the median brightness of each block of each field, relative to the median of the field.
2. Fit a polynomial of degree 4 by robust least squares, which gives little weight to blocks that cells cover.
3. With `MIN_FIELDS_PER_BLOCK_MEDIAN` fields or more, add the smoothed median of the residuals (dust, for example).
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from urnet.errors import ImageError
from urnet.fields.io.read import Field, open_field

GRID_BLOCKS = 48
"""Edge of the grid of an estimated flat field, blocks."""

MAX_GIVEN_BLOCKS = 128
"""Largest edge of the grid of a given flat-field or dark image, blocks."""

POLYNOMIAL_DEGREE = 4
"""Degree of the polynomial: vignetting falls with the fourth power of the cosine."""

MIN_FIELDS_PER_BLOCK_MEDIAN = 8
"""Number of fields from which the median of the residuals corrects each block."""

MIN_RELATIVE_BRIGHTNESS = 0.1
"""Smallest relative brightness of the flat field. Darker corners hold noise, which a division would amplify."""

_BAND_ROWS = 1024  # rows read at once
_MAX_SAMPLES = 64  # pixels along the edge of a block from which its median is computed


@dataclass(frozen=True, eq=False)
class Illumination:
    """Illumination of a batch of fields.

    Args:
        method: `none`, `estimated` or `given`.
        flat: relative brightness, (h, w) float32, mean 1. Entry (i, j) is the value at the centre of block (i, j) of a
            field that is divided into h x w blocks.
        dark: counts without light, (h, w) float32; none for 0.
    """

    method: str
    flat: np.ndarray
    dark: np.ndarray | None = None

    def correct(self, pixels: np.ndarray, top: int, left: int, shape: tuple[int, int]) -> np.ndarray:
        """Correct a region. All colours of a pixel get the same correction.

        Args:
            pixels: (h, w) or (h, w, 3), raw counts.
            top: first row of the region in its field.
            left: first column.
            shape: height and width of the field, px.

        Returns:
            Corrected pixels of the same type; integers are rounded and clipped to the range of the type.
        """
        if self.method == "none":
            return pixels
        rows, columns = (np.arange(start, start + n) for start, n in zip((top, left), pixels.shape[:2], strict=True))
        flat = _spread(self.flat, rows, columns, shape)
        even = pixels.astype(np.float32)
        if self.dark is not None:
            dark = _spread(self.dark, rows, columns, shape)
            even -= dark if even.ndim == 2 else dark[..., None]
        even /= flat if even.ndim == 2 else flat[..., None]
        if pixels.dtype.kind == "f":
            return even.astype(pixels.dtype, copy=False)
        limits = np.iinfo(pixels.dtype)
        return np.clip(np.rint(even, out=even), limits.min, limits.max, out=even).astype(pixels.dtype)

    def to_json(self) -> dict[str, Any]:
        """Return the content for JSON, rounded to five digits."""
        dark = None if self.dark is None else _digits(self.dark)
        return {"method": self.method, "flat": _digits(self.flat), "dark": dark}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Illumination":
        """Build the illumination from what `to_json` returned.

        Raises:
            KeyError, TypeError, ValueError: invalid data.
        """
        if data["method"] not in ("none", "estimated", "given"):
            raise ValueError(f"illumination method {data['method']!r}")
        flat = np.array(data["flat"], np.float32)
        dark = None if data["dark"] is None else np.array(data["dark"], np.float32)
        for grid in (flat, dark):
            if grid is not None and (grid.ndim != 2 or not grid.size or not np.isfinite(grid).all()):
                raise ValueError("illumination is not a grid of finite numbers")
        if flat.min() <= 0:
            raise ValueError("illumination is not above 0 everywhere")
        return cls(data["method"], flat, dark)

    def save(self, path: Path) -> None:
        """Write the illumination as JSON."""
        path.write_text(json.dumps(self.to_json()) + "\n", encoding="utf-8", newline="\n")

    @classmethod
    def load(cls, path: Path) -> "Illumination":
        """Read a file that `save` wrote.

        Raises:
            ImageError: the file is damaged.
        """
        try:
            return cls.from_json(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ImageError(
                f"{path}: not a stored illumination ({error}); restore the file", code="fields.illumination_damaged"
            ) from None


def measure_illumination(field: Field) -> np.ndarray:
    """Measure the brightness and texture of each block of a field, (2, GRID_BLOCKS, GRID_BLOCKS).

    Args:
        field: the open field, which is read once, band by band. Colours are averaged.

    Raises:
        ImageError: the field cannot be read.
    """
    block, texture = (_at_least(grid, GRID_BLOCKS) for grid in _blocks(field, GRID_BLOCKS, GRID_BLOCKS))
    level = np.median(block)
    return np.stack([block, texture]) / level if level > 0 else np.ones((2, *block.shape))


def estimate_illumination(measured: Sequence[np.ndarray]) -> Illumination:
    """Estimate the illumination of fields from one microscope and session.

    Args:
        measured: results of `measure_illumination`, one per field; the fields may differ in size.

    Returns:
        The illumination; 1 everywhere where the fields are black.

    Raises:
        ValueError: no fields.
    """
    if not measured:
        raise ValueError("no fields to estimate the illumination from")
    stack, textures = np.stack(measured, axis=1)  # (fields, GRID_BLOCKS, GRID_BLOCKS) each
    flat = _fit(stack, textures)
    if len(stack) >= MIN_FIELDS_PER_BLOCK_MEDIAN:
        rest = np.median(stack / flat, axis=0)
        flat = flat * gaussian_filter(rest, 1.0, mode="nearest")
    return Illumination("estimated", _relative(flat))


def read_flat_field(flat: Path, dark: Path | None = None) -> Illumination:
    """Read the illumination from a flat-field image: an image of an empty spot.

    Args:
        flat: the flat-field image, in the same focus as the fields; of several channels, the first.
        dark: image with the light off, of the same size.

    Raises:
        ImageError: unreadable, blank, saturated, not brighter than the dark image, or of another size.
    """
    bright, edges, saturated = _given(flat)
    if saturated > 0.01:
        raise ImageError(
            f"{flat}: {100 * saturated:.0f} % of the pixels are saturated; take the image with less light or exposure",
            code="fields.flat_field_saturated",
        )
    below = None
    if dark is not None:
        below, dark_edges, _ = _given(dark)
        if dark_edges != edges:
            sizes = " and ".join(f"{width} x {height}" for height, width in (edges, dark_edges))
            raise ImageError(
                f"{flat} and {dark} are {sizes} px; take the flat-field and the dark image with the same camera area",
                code="fields.flat_field_size",
            )
    light = bright - (0 if below is None else below)
    if light.min() <= MIN_RELATIVE_BRIGHTNESS * light.mean():
        against = "black in places" if dark is None else f"no brighter than the dark image {dark} in places"
        raise ImageError(
            f"{flat}: {against}; give an image of an empty, evenly lit spot", code="fields.flat_field_dark"
        )
    return Illumination("given", _relative(light), below)


def _given(path: Path) -> tuple[np.ndarray, tuple[int, int], float]:
    """Read block means, (h, w), height and width, and the share of pixels at the largest value of the type."""
    with open_field(path) as field:
        H, W = field.info.height, field.info.width
        fold = max(1, math.ceil(max(H, W) / MAX_GIVEN_BLOCKS))
        means, _ = _blocks(field, math.ceil(H / fold), math.ceil(W / fold), mean=True)
        middle = field.read(H // 4, W // 4, max(1, min(H // 2, _BAND_ROWS)), max(1, min(W // 2, _BAND_ROWS)))
    top = np.iinfo(middle.dtype).max if middle.dtype.kind != "f" else np.inf
    return means, (H, W), float((middle >= top).mean())


def _blocks(field: Field, down: int, across: int, mean: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Measure the median (or mean) and texture of each block of a field, (down, across) float64.

    The texture is the median absolute deviation from the median; it is high where cells lie.
    """
    H, W = field.info.height, field.info.width
    down, across = min(down, H), min(across, W)
    rows, columns = (np.linspace(0, edge, n + 1).astype(int) for edge, n in ((H, down), (W, across)))
    level, texture = np.zeros((down, across)), np.zeros((down, across))
    first = 0
    while first < down:
        last = max(first + 1, int(np.searchsorted(rows, rows[first] + _BAND_ROWS, "right")) - 1)
        band = field.read(int(rows[first]), 0, int(rows[last] - rows[first]), W)
        for i in range(first, last):
            step = 1 if mean else max(1, (rows[i + 1] - rows[i]) // _MAX_SAMPLES)
            lines = band[rows[i] - rows[first] : rows[i + 1] - rows[first] : step]
            grey = lines if lines.ndim == 2 else lines.mean(axis=2)
            for j in range(across):
                block = grey[:, columns[j] : columns[j + 1]]
                if mean:
                    level[i, j] = block.mean(dtype=np.float64)
                else:
                    block = block[:, :: max(1, block.shape[1] // _MAX_SAMPLES)].astype(np.float64)
                    level[i, j] = np.median(block)
                    texture[i, j] = np.median(np.abs(block - level[i, j]))
        first = last
    return level, texture


def _at_least(grid: np.ndarray, edge: int) -> np.ndarray:
    """Enlarge the grid of a small field to edge x edge blocks, by repeating blocks."""
    rows, columns = (np.arange(edge) * n // edge for n in grid.shape)
    return grid[np.ix_(rows, columns)]


def _fit(stack: np.ndarray, textures: np.ndarray) -> np.ndarray:
    """Fit a robust polynomial to the blocks of all fields, (h, w), by iteratively reweighted least squares."""
    F, h, w = stack.shape
    y, x = (np.linspace(-1, 1, n) for n in (h, w))
    powers = [(p, q) for p in range(POLYNOMIAL_DEGREE + 1) for q in range(POLYNOMIAL_DEGREE + 1 - p)]
    terms = np.stack([np.outer(y**p, x**q).ravel() for p, q in powers], axis=1)  # (h·w, terms)
    values = stack.reshape(F, -1)
    texture = textures.reshape(F, -1)
    # Blocks with cells have more texture than empty blocks.
    quiet = np.median(texture, axis=1, keepdims=True)
    calm = 1 / (1 + (texture / np.where(quiet > 0, 2 * quiet, 1)) ** 4)
    weight = calm
    for _ in range(20):
        total = weight.sum(axis=0)
        middle = (weight * values).sum(axis=0) / np.maximum(total, 1e-12)
        root = np.sqrt(total)[:, None]
        fitted = terms @ np.linalg.lstsq(terms * root, middle * root[:, 0], rcond=None)[0]
        rest = values - fitted
        scale = 1.4826 * np.median(np.abs(rest)) + 1e-9
        weight = calm * np.clip(1 - (rest / (4.685 * scale)) ** 2, 0, None) ** 2  # Tukey's biweight
        if not weight.any():
            break
    return np.maximum(fitted, MIN_RELATIVE_BRIGHTNESS).reshape(h, w)


def _relative(flat: np.ndarray) -> np.ndarray:
    """Scale to mean 1, and clip at `MIN_RELATIVE_BRIGHTNESS`."""
    flat = flat / flat.mean()
    return np.maximum(flat, MIN_RELATIVE_BRIGHTNESS).astype(np.float32)


def _spread(grid: np.ndarray, rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Interpolate a grid linearly between block centres, at pixels of a field, (rows, columns) float32."""
    down = _weights(rows, shape[0], grid.shape[0])
    across = _weights(columns, shape[1], grid.shape[1])
    return down @ grid @ across.T


def _weights(places: np.ndarray, edge: int, blocks: int) -> np.ndarray:
    """Compute the weight of each block at each place along one axis, (places, blocks) float32."""
    at = np.clip((places + 0.5) * blocks / edge - 0.5, 0, blocks - 1)
    lower = np.minimum(at.astype(int), max(blocks - 2, 0))
    weights = np.zeros((len(places), blocks), np.float32)
    weights[np.arange(len(places)), lower] = 1 - (at - lower)
    if blocks > 1:
        weights[np.arange(len(places)), lower + 1] += at - lower
    return weights


def _digits(grid: np.ndarray) -> list[list[float]]:
    return [[float(f"{value:.5g}") for value in line] for line in grid]

"""Register the fluorescence image of a field with its brightfield image.

Both images are turned into maps on which cells are bright: the local contrast of the brightfield, which is high on
cells on either side of the focus, and the smoothed fluorescence. The shift is the peak of the cross-correlation of the
maps. A parabola refines it to a fraction of a pixel.

The correlation is not normalised, as a phase correlation is: that weighs all frequencies equally, but only structures
as coarse as a cell agree in both images. On phantom fields a phase correlation is wrong by tens of pixels, this
correlation by a third of a pixel. The rest comes from nuclei that lie off the centre of their cells, and falls with the
number of cells.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter, label, median_filter, zoom

from urnet.errors import ImageError

MAX_MAP_EDGE_PX = 1024
"""Longest edge of the maps, px. Larger images are averaged down, at an error of less than half a pixel."""

MIN_SIGNAL = 8.0
"""Smallest height of the brightest spot of a map above the median, in standard deviations of the noise."""

MIN_CORRELATION = 0.4
"""Smallest correlation of maps of the same cells: phantoms have 0.6 and more, other fields less than 0.3."""

MIN_NUCLEI_TO_REJECT = 5
"""Number of nuclei from which images can be refused as not belonging together."""

MIN_NUCLEI = 3
"""Number of nuclei from which a shift is measured."""


@dataclass(frozen=True)
class Shift:
    """Offset that is added to coordinates in the image of the nuclei to get those in the brightfield.

    Args:
        down: rows, px.
        right: columns, px.
        error: 1 minus the correlation of the two maps at this shift, 0 to 1; 1 where too few cells leave the shift at
            0.
    """

    down: float
    right: float
    error: float


def register(brightfield: np.ndarray, nuclei: np.ndarray, limit: float) -> Shift:
    """Measure the shift between the two images of a field.

    Args:
        brightfield: (H, W), any units.
        nuclei: nuclear fluorescence, (H, W), bright on dark.
        limit: largest accepted shift, px.

    Raises:
        ImageError: different sizes, a larger shift, or images that show different cells.
    """
    if brightfield.shape != nuclei.shape or brightfield.ndim != 2:
        sizes = (" x ".join(map(str, image.shape[1::-1])) for image in (brightfield, nuclei))
        raise ImageError(
            f"the brightfield is {next(sizes)} px and the nuclei are {next(sizes)} px; both must show the same field "
            "in grey at the same size. Export them again together",
            code="fields.nuclei_size",
        )
    fold = max(1, math.ceil(max(brightfield.shape) / MAX_MAP_EDGE_PX))
    bright, fluorescence = (_reduced(image, fold) for image in (brightfield, nuclei))
    fluorescence = fluorescence - _background(fluorescence)
    width = _width(fluorescence)
    maps = [_contrast(bright, width), gaussian_filter(fluorescence, width)]
    if min(_signal(one) for one in maps) < MIN_SIGNAL:
        return Shift(0.0, 0.0, 1.0)
    window = np.sqrt(np.outer(*(np.hanning(edge + 2)[1:-1] for edge in bright.shape))).astype(np.float32)
    cells = [_isolate_cells(one) for one in maps]
    surface = _correlation(*(one * window for one in cells))
    near, agreement = _best(surface, cells, limit / fold)
    far, far_agreement = _best(surface, cells, math.inf)
    nuclei_seen = label(cells[1] > 0.5)[1]
    few = nuclei_seen < MIN_NUCLEI_TO_REJECT
    if nuclei_seen < MIN_NUCLEI or (
        few and agreement < MIN_CORRELATION
    ):  # one or two nuclei can match debris by chance
        return Shift(0.0, 0.0, 1.0)
    if not few and far_agreement > MIN_CORRELATION and far_agreement > agreement + 0.2:
        down, right = (part * fold for part in far)
        raise ImageError(
            f"the nuclei are shifted by {math.hypot(down, right):.0f} px from the brightfield ({-down:+.0f} rows, "
            f"{-right:+.0f} columns); at most {limit:.0f} px are accepted. Check that the two files belong together, "
            "or align them first",
            code="fields.nuclei_shifted",
        )
    if agreement < MIN_CORRELATION:
        raise ImageError(
            f"brightfield and nuclei show different cells: their correlation is {agreement:.2f} at best, and must be "
            f"at least {MIN_CORRELATION:g}. Check that the two files belong together, and that none is turned or "
            "mirrored",
            code="fields.nuclei_differ",
        )
    return Shift(near[0] * fold, near[1] * fold, 1 - agreement)


def _reduced(image: np.ndarray, fold: int) -> np.ndarray:
    """Average blocks of fold x fold pixels, float32."""
    H, W = (edge // fold * fold for edge in image.shape)
    return image[:H, :W].reshape(H // fold, fold, W // fold, fold).mean(axis=(1, 3), dtype=np.float32)


def _background(fluorescence: np.ndarray) -> np.ndarray:
    """Estimate the fluorescence between the cells by smoothed block medians."""
    fold = max(1, min(fluorescence.shape) // 16)
    H, W = (edge // fold * fold for edge in fluorescence.shape)
    blocks = np.median(fluorescence[:H, :W].reshape(H // fold, fold, W // fold, fold), axis=(1, 3))
    blocks = median_filter(blocks, 3, mode="nearest")
    coarse = zoom(
        blocks,
        [a / b for a, b in zip(fluorescence.shape, blocks.shape, strict=True)],
        order=1,
        mode="nearest",
        grid_mode=True,
    )
    return coarse.astype(np.float32)


def _width(fluorescence: np.ndarray) -> float:
    """Estimate the width of nuclei, px: the distance at which their autocorrelation has fallen to a half."""
    smooth = gaussian_filter(fluorescence, 1.5)
    spectrum = np.abs(np.fft.rfft2(smooth - smooth.mean())) ** 2
    correlation = np.fft.irfft2(spectrum, smooth.shape)
    reach = min(smooth.shape) // 4
    along = correlation[0, :reach] + correlation[:reach, 0]
    below = np.flatnonzero(along < 0.5 * along[0])
    return float(np.clip(below[0] if len(below) else 8, 3, 30))


def _contrast(bright: np.ndarray, width: float) -> np.ndarray:
    """Compute the local standard deviation of the brightfield, smoothed like the nuclei."""
    detail = gaussian_filter(bright, 1.0) - gaussian_filter(bright, width)
    return np.sqrt(gaussian_filter(detail**2, width))


def _isolate_cells(one: np.ndarray) -> np.ndarray:
    """Map the background to 0 and cells, bright or faint, to 1."""
    middle = np.median(one)
    floor = middle + 3 * 1.4826 * np.median(np.abs(one - middle))
    top = max(floor, middle + 0.5 * (np.quantile(one, 0.999) - middle))
    return (np.clip(one, floor, top) - floor) / max(top - floor, 1e-9)


def _signal(one: np.ndarray) -> float:
    """Return the height of the brightest spot above the median, in robust standard deviations."""
    middle = np.median(one)
    noise = 1.4826 * np.median(np.abs(one - middle))
    return float((one.max() - middle) / noise) if noise > 0 else 0.0


def _correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Compute the cross-correlation of two maps for each shift of the second; negative shifts count from the end."""
    a, b = (np.fft.rfft2(one - one.mean()) for one in (first, second))
    return np.fft.irfft2(a * b.conj(), first.shape)


def _best(surface: np.ndarray, cells: list[np.ndarray], limit: float) -> tuple[tuple[float, float], float]:
    """Return the best shift (down, right) within a limit, px of the maps, and the correlation there."""
    H, W = surface.shape
    down, right = (np.fft.fftfreq(edge, 1 / edge) for edge in (H, W))
    allowed = np.hypot(down[:, None], right) <= max(limit, 1)
    row, column = np.unravel_index(np.argmax(np.where(allowed, surface, -np.inf)), surface.shape)
    whole = np.array([down[row], right[column]])
    # The peak is as broad as a cell, so a parabola through its top and the neighbours gives its centre.
    part = [
        _vertex(*(surface[(row + step) % H, column] for step in (-1, 0, 1))),
        _vertex(*(surface[row, (column + step) % W] for step in (-1, 0, 1))),
    ]
    first, second = cells
    shift = float(whole[0] + part[0]), float(whole[1] + part[1])
    return shift, _agreement(first, second, whole.astype(int))


def _vertex(before: float, top: float, after: float) -> float:
    """Return the position of the vertex of the parabola through three neighbours, -0.5 to 0.5 from the middle one."""
    bend = before - 2 * top + after
    return float(np.clip(0.5 * (before - after) / bend, -0.5, 0.5)) if bend < 0 else 0.0


def _agreement(first: np.ndarray, second: np.ndarray, moved: np.ndarray) -> float:
    """Correlate the first map with the shifted second map, where they overlap."""
    down, right = moved
    H, W = first.shape
    fixed = first[max(down, 0) : H + min(down, 0), max(right, 0) : W + min(right, 0)]
    moving = second[max(-down, 0) : H + min(-down, 0), max(-right, 0) : W + min(-right, 0)]
    if fixed.size < 0.1 * first.size or not (fixed.std() and moving.std()):
        return 0.0
    return float(np.corrcoef(fixed.ravel(), moving.ravel())[0, 1])

"""How far the fluorescence image of a field lies beside its brightfield image.

The two show the same cells by different means, so that both are first turned into maps on which cells are bright: the
brightfield's local contrast, which is high on cells on either side of the focus, and the smoothed fluorescence. The
shift is the peak of the maps' cross-correlation, computed by Fourier transforms and refined to parts of a pixel by a
parabola. Without the normalisation of a phase correlation, that is: it weighs all frequencies alike, and only those as
coarse as a cell mean the same in both images (on phantom fields it is wrong by tens of pixels, this by a third of one).
What remains comes from nuclei that lie beside the middle of their cells, and falls with the number of cells.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter, label, median_filter, zoom

from urnet.errors import ImageError

MAX_MAP_EDGE_PX = 1024
"""Longest edge of the maps, px; larger images are averaged down, which leaves less than half a pixel of doubt."""

MIN_SIGNAL = 8.0
"""Least height of a map's brightest spot above its median, in standard deviations of its noise; below, no cells."""

MIN_CORRELATION = 0.4
"""Least correlation of the two maps where they show the same cells: phantoms have 0.6 and more, strangers below 0.3."""

MIN_NUCLEI_TO_REJECT = 5
"""Nuclei below which a field is too empty to say that the images do not belong together."""

MIN_NUCLEI = 3
"""Nuclei below which no shift is looked for."""


@dataclass(frozen=True)
class Shift:
    """What is added to coordinates in the nuclei's image to get those in the brightfield.

    Args:
        down: rows, px.
        right: columns, px.
        error: 1 minus the correlation of the two maps at this shift, 0 to 1; 1 where there are too few cells to go by,
            and the shift is 0.
    """

    down: float
    right: float
    error: float


def register(brightfield: np.ndarray, nuclei: np.ndarray, limit: float) -> Shift:
    """Find the shift between the two images of a field.

    Args:
        brightfield: (H, W), any units.
        nuclei: nuclear fluorescence, (H, W), bright on dark.
        limit: greatest shift that is believed, px.

    Raises:
        ImageError: different sizes, a larger shift, or images that show different cells.
    """
    if brightfield.shape != nuclei.shape or brightfield.ndim != 2:
        sizes = (" x ".join(map(str, image.shape[1::-1])) for image in (brightfield, nuclei))
        raise ImageError(
            f"the brightfield is {next(sizes)} px and the nuclei are {next(sizes)} px; both must show the same field "
            "in grey at the same size; export them again together"
        )
    fold = max(1, math.ceil(max(brightfield.shape) / MAX_MAP_EDGE_PX))
    bright, glow = (_reduced(image, fold) for image in (brightfield, nuclei))
    glow = glow - _background(glow)
    width = _width(glow)
    maps = [_contrast(bright, width), gaussian_filter(glow, width)]
    if min(_signal(one) for one in maps) < MIN_SIGNAL:
        return Shift(0.0, 0.0, 1.0)
    window = np.sqrt(np.outer(*(np.hanning(edge + 2)[1:-1] for edge in bright.shape))).astype(np.float32)
    cells = [_cells_alone(one) for one in maps]
    surface = _correlation(*(one * window for one in cells))
    near, agreement = _best(surface, cells, limit / fold)
    far, far_agreement = _best(surface, cells, math.inf)
    nuclei_seen = label(cells[1] > 0.5)[1]
    few = nuclei_seen < MIN_NUCLEI_TO_REJECT
    if nuclei_seen < MIN_NUCLEI or (few and agreement < MIN_CORRELATION):  # one or two nuclei fit some debris by chance
        return Shift(0.0, 0.0, 1.0)
    if not few and far_agreement > MIN_CORRELATION and far_agreement > agreement + 0.2:
        down, right = (part * fold for part in far)
        raise ImageError(
            f"the nuclei lie {math.hypot(down, right):.0f} px beside the brightfield ({-down:+.0f} rows, {-right:+.0f} "
            f"columns), more than the {limit:.0f} px that are believed; check that the two files belong together, or "
            "align them first"
        )
    if agreement < MIN_CORRELATION:
        raise ImageError(
            f"brightfield and nuclei show different cells: their correlation is {agreement:.2f} at best, less than "
            f"{MIN_CORRELATION:g}; check that the two files belong together and that none is turned or mirrored"
        )
    return Shift(near[0] * fold, near[1] * fold, 1 - agreement)


def _reduced(image: np.ndarray, fold: int) -> np.ndarray:
    """Means of fold x fold pixels, float32."""
    H, W = (edge // fold * fold for edge in image.shape)
    return image[:H, :W].reshape(H // fold, fold, W // fold, fold).mean(axis=(1, 3), dtype=np.float32)


def _background(glow: np.ndarray) -> np.ndarray:
    """What glows between the cells, coarse: medians of blocks, smoothed."""
    fold = max(1, min(glow.shape) // 16)
    H, W = (edge // fold * fold for edge in glow.shape)
    blocks = np.median(glow[:H, :W].reshape(H // fold, fold, W // fold, fold), axis=(1, 3))
    blocks = median_filter(blocks, 3, mode="nearest")
    coarse = zoom(
        blocks, [a / b for a, b in zip(glow.shape, blocks.shape, strict=True)], order=1, mode="nearest", grid_mode=True
    )
    return coarse.astype(np.float32)


def _width(glow: np.ndarray) -> float:
    """Standard deviation of the Gaussian that fits the nuclei: where their autocorrelation has fallen to a half, px."""
    smooth = gaussian_filter(glow, 1.5)
    spectrum = np.abs(np.fft.rfft2(smooth - smooth.mean())) ** 2
    correlation = np.fft.irfft2(spectrum, smooth.shape)
    reach = min(smooth.shape) // 4
    along = correlation[0, :reach] + correlation[:reach, 0]
    below = np.flatnonzero(along < 0.5 * along[0])
    return float(np.clip(below[0] if len(below) else 8, 3, 30))


def _contrast(bright: np.ndarray, width: float) -> np.ndarray:
    """Local standard deviation of the brightfield's detail, smoothed like the nuclei."""
    detail = gaussian_filter(bright, 1.0) - gaussian_filter(bright, width)
    return np.sqrt(gaussian_filter(detail**2, width))


def _cells_alone(one: np.ndarray) -> np.ndarray:
    """0 between cells, 1 on them whether bright or faint."""
    middle = np.median(one)
    floor = middle + 3 * 1.4826 * np.median(np.abs(one - middle))
    top = max(floor, middle + 0.5 * (np.quantile(one, 0.999) - middle))
    return (np.clip(one, floor, top) - floor) / max(top - floor, 1e-9)


def _signal(one: np.ndarray) -> float:
    """Height of the brightest spot above the median, in robust standard deviations."""
    middle = np.median(one)
    noise = 1.4826 * np.median(np.abs(one - middle))
    return float((one.max() - middle) / noise) if noise > 0 else 0.0


def _correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cross-correlation: how well the second map fits when moved by (row, column), negative ones from the end."""
    ours, theirs = (np.fft.rfft2(one - one.mean()) for one in (first, second))
    return np.fft.irfft2(ours * theirs.conj(), first.shape)


def _best(surface: np.ndarray, cells: list[np.ndarray], limit: float) -> tuple[tuple[float, float], float]:
    """The best shift (down, right) within a limit, px of the maps, to parts of a pixel, and its correlation."""
    H, W = surface.shape
    down, right = (np.fft.fftfreq(edge, 1 / edge) for edge in (H, W))
    allowed = np.hypot(down[:, None], right) <= max(limit, 1)
    row, column = np.unravel_index(np.argmax(np.where(allowed, surface, -np.inf)), surface.shape)
    whole = np.array([down[row], right[column]])
    # The peak is as broad as a cell: a parabola through its top and the neighbours finds the middle.
    part = [
        _vertex(*(surface[(row + step) % H, column] for step in (-1, 0, 1))),
        _vertex(*(surface[row, (column + step) % W] for step in (-1, 0, 1))),
    ]
    return tuple(float(w + p) for w, p in zip(whole, part, strict=True)), _agreement(*cells, whole.astype(int))


def _vertex(before: float, top: float, after: float) -> float:
    """Where the parabola through three neighbours has its top, -0.5 to 0.5 from the middle one."""
    bend = before - 2 * top + after
    return float(np.clip(0.5 * (before - after) / bend, -0.5, 0.5)) if bend < 0 else 0.0


def _agreement(first: np.ndarray, second: np.ndarray, moved: np.ndarray) -> float:
    """Correlation of the first map with the second, moved, where they overlap."""
    down, right = moved
    H, W = first.shape
    ours = first[max(down, 0) : H + min(down, 0), max(right, 0) : W + min(right, 0)]
    theirs = second[max(-down, 0) : H + min(-down, 0), max(-right, 0) : W + min(-right, 0)]
    if ours.size < 0.1 * first.size or not (ours.std() and theirs.std()):
        return 0.0
    return float(np.corrcoef(ours.ravel(), theirs.ravel())[0, 1])

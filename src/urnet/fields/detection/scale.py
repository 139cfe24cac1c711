"""Choose the scale at which a field is searched, and estimate the noise at that scale.

The field is reduced until a cell is about `WORKING_WIDTH_PX` wide. The scale is searched among the powers of two: the
one at which cells cover the largest share of the field gives their width. Thresholds come from the quiet parts.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from urnet.fields.detection.energy import BLOCK_PX, ReadRegion, ReducedField, Window
from urnet.fields.detection.split_touching import Segment, find_segments

WORKING_WIDTH_PX = 30
"""Width of a typical cell in the reduced field, px; reached as closely as integer factors allow."""

NOISE_PERCENTILE = 20
"""Percentile of the energy that represents noise: four fifths of a field may be cells."""

ENERGY_THRESHOLD_RATIO = 7.0
"""Threshold of the energy, in units of the energy of noise; 0.5 % of white noise lies above."""

SMOOTHING_WIDTH_PX = 4
"""Width that smoothing adds to a segment, px."""

MIN_WIDTH_PX, MAX_WIDTH_PX = 16, 60
"""Range of the widths of cells in the reduced field, px."""

MAX_WIDTH_SHARE = 0.7
"""Largest width of a cell, as a share of the field's shorter edge. Wider segments are uneven illumination."""

WINDOW_PX, MAX_WINDOWS = 640, 3
"""Edge of the windows from which noise and scale are estimated, px, and their largest number along each axis."""

MIN_CONTRAST = 0.002
"""Smallest contrast of a cell, as a share of the brightness."""


def reduce_field(
    read: ReadRegion, nuclei: ReadRegion | None, full: tuple[int, int], least: float | None, most: float | None
) -> ReducedField | None:
    """Reduce a field to the scale at which cells cover most of it; None where there is no signal."""
    field, covered_most, best, size = ReducedField(read, nuclei, full), 0.0, None, 0.0
    fold = 1
    while min(full) / fold >= MIN_WIDTH_PX:
        tried = _measured(replace(field, fold=fold))
        if tried is not None:
            widths = np.array([2 * np.sqrt(segment.area / np.pi) for segment in _sampled(tried)])
            low = max(MIN_WIDTH_PX, 0 if least is None else least / fold)
            high = min(MAX_WIDTH_PX, MAX_WIDTH_SHARE * min(tried.shape), np.inf if most is None else most / fold)
            widths = widths[(widths >= low) & (widths <= high)]
            covered = ((widths - SMOOTHING_WIDTH_PX) ** 2).sum() / sum(h * w for *_, h, w in _windows(tried.shape))
            covered *= len(widths) / (len(widths) + 3)  # a single large shadow is not a field of cells
            if covered < covered_most:  # at coarser scales cells vanish, and only uneven illumination is left
                break
            if covered > 1.05 * covered_most:
                covered_most, best, size = covered, tried, typical_width(widths) * fold
        fold *= 2
    if best is None:
        return None
    fold = max(1, round(size / WORKING_WIDTH_PX))
    return best if fold == best.fold else _measured(replace(field, fold=fold))


def _measured(view: ReducedField) -> ReducedField | None:
    """Add the thresholds to a reduced field, with the windows they come from; None where there is no signal."""
    cached = {window: view.signal(window) for window in _windows(view.shape)}
    energy = np.concatenate([signal.energy.ravel() for signal in cached.values()])
    deviation = np.concatenate([signal.deviation.ravel() for signal in cached.values()])
    threshold = float(ENERGY_THRESHOLD_RATIO * np.percentile(energy, NOISE_PERCENTILE))
    # In a noise-free background, a deviation of a hundredth of the strongest one is no signal.
    threshold = max(threshold, 1e-4 * float(np.percentile(energy, 99.9)))
    # Neither are residuals of rounding, saturation and the correction of the illumination.
    threshold = max(threshold, (MIN_CONTRAST * float(np.median([signal.level for signal in cached.values()]))) ** 2)
    if not threshold > 0:
        threshold = 1e-4 * float(energy.max())
    nuclear_threshold = np.inf
    if view.nuclei is not None:
        nuclei = np.concatenate([signal.nuclei.ravel() for signal in cached.values()])
        sure = 6 * 1.4826 * float(np.median(np.abs(nuclei - np.median(nuclei))))
        bright = nuclei[nuclei > max(sure, 0.02 * float(nuclei.max()))]
        nuclear_threshold = max(sure, 0.25 * float(np.percentile(bright, 90))) if len(bright) else np.inf
    if not threshold > 0:
        if not np.isfinite(nuclear_threshold):
            return None
        threshold = 1.0
    quiet = deviation[energy <= threshold]
    noise = 1.4826 * float(np.median(np.abs(quiet)))
    return replace(view, threshold=threshold, noise=noise, nuclear_threshold=nuclear_threshold, cached=cached)


def _windows(shape: tuple[int, int]) -> list[Window]:
    """Spread windows evenly over a field; a small field is one window."""
    starts = []
    for side in shape:
        count = min(MAX_WINDOWS, -(-side // WINDOW_PX))
        last = max(0, side - WINDOW_PX) // BLOCK_PX * BLOCK_PX
        starts.append(sorted({int(start) // BLOCK_PX * BLOCK_PX for start in np.linspace(0, last, count)}))
    return [
        (top, left, min(WINDOW_PX, shape[0] - top), min(WINDOW_PX, shape[1] - left))
        for top in starts[0]
        for left in starts[1]
    ]


def _sampled(view: ReducedField) -> Iterator[Segment]:
    """Find segments that are compact as cells and do not touch the border, as uneven illumination does."""
    for signal in view.cached.values():
        energy, _ = view.evidence(signal)
        for segment in find_segments(energy):
            h, w = segment.mask.shape
            within = (
                min(segment.top, segment.left, energy.shape[0] - segment.top - h, energy.shape[1] - segment.left - w)
                > 0
            )
            if (
                within and max(h, w) < 1.6 * min(h, w) and segment.area > 0.5 * h * w
            ):  # a disc fills 0.785 of its square
                yield segment


def typical_width(widths: np.ndarray) -> float:
    """Return the median width, weighted by area, so that debris does not count."""
    order = np.sort(widths)
    return float(order[np.searchsorted(np.cumsum(order**2), 0.5 * (order**2).sum())])

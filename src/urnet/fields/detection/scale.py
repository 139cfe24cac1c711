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
"""Width of a typical cell in the picture that is searched, px, as far as reducing by whole numbers gets there."""

NOISE_PERCENTILE = 20
"""Percentile of the energy that is taken for the noise's: four fifths of a field may be cells."""

ENERGY_THRESHOLD_RATIO = 7.0
"""Threshold of the energy, in that of the quiet parts; of white noise, 0.5 % lies above."""

SMOOTHING_WIDTH_PX = 4
"""What smoothing adds to the width of a piece, px."""

MIN_WIDTH_PX, MAX_WIDTH_PX = 16, 60
"""Widths of cells in the picture that is searched, px."""

MAX_WIDTH_SHARE = 0.7
"""Greatest width of a cell, in the field's shorter edge; what is wider is uneven light."""

WINDOW_PX, MAX_WINDOWS = 640, 3
"""Edge of the windows from which noise and scale are learned, px, and how many of them down and across at most."""


MIN_CONTRAST = 0.002
"""Contrast below which nothing is believed to be a cell, as a share of the brightness."""


def reduce_field(
    read: ReadRegion, nuclei: ReadRegion | None, full: tuple[int, int], least: float | None, most: float | None
) -> ReducedField | None:
    """The reduction at which most of a field's windows is cells, and the noise there; None where nothing is found."""
    field, best, kept, size = ReducedField(read, nuclei, full), 0.0, None, 0.0
    fold = 1
    while min(full) / fold >= MIN_WIDTH_PX:
        tried = _measured(replace(field, fold=fold))
        if tried is not None:
            widths = np.array([2 * np.sqrt(piece.area / np.pi) for piece in _sampled(tried)])
            low = max(MIN_WIDTH_PX, 0 if least is None else least / fold)
            high = min(MAX_WIDTH_PX, MAX_WIDTH_SHARE * min(tried.shape), np.inf if most is None else most / fold)
            widths = widths[(widths >= low) & (widths <= high)]
            covered = ((widths - SMOOTHING_WIDTH_PX) ** 2).sum() / sum(h * w for *_, h, w in _windows(tried.shape))
            covered *= len(widths) / (len(widths) + 3)  # one large shadow is not a field of cells
            if covered < best:  # once cells are smaller than they can be seen, all that follows is uneven light
                break
            if covered > 1.05 * best:
                best, kept, size = covered, tried, typical_width(widths) * fold
        fold *= 2
    if kept is None:
        return None
    fold = max(1, round(size / WORKING_WIDTH_PX))
    return kept if fold == kept.fold else _measured(replace(field, fold=fold))


def _measured(view: ReducedField) -> ReducedField | None:
    """A view with its thresholds, and the windows that they come from; None where it holds nothing."""
    known = {window: view.signal(window) for window in _windows(view.shape)}
    energy = np.concatenate([signal.energy.ravel() for signal in known.values()])
    deviation = np.concatenate([signal.deviation.ravel() for signal in known.values()])
    threshold = float(ENERGY_THRESHOLD_RATIO * np.percentile(energy, NOISE_PERCENTILE))
    # Where the background is even to the last count, a hundredth of the strongest trace is none.
    threshold = max(threshold, 1e-4 * float(np.percentile(energy, 99.9)))
    # What is left of rounding, of saturation and of the light that was divided out is no cell either.
    threshold = max(threshold, (MIN_CONTRAST * float(np.median([signal.level for signal in known.values()]))) ** 2)
    if not threshold > 0:
        threshold = 1e-4 * float(energy.max())
    nuclear = np.inf
    if view.nuclei is not None:
        glow = np.concatenate([signal.glow.ravel() for signal in known.values()])
        sure = 6 * 1.4826 * float(np.median(np.abs(glow - np.median(glow))))
        bright = glow[glow > max(sure, 0.02 * float(glow.max()))]
        nuclear = max(sure, 0.25 * float(np.percentile(bright, 90))) if len(bright) else np.inf
    if not threshold > 0:
        if not np.isfinite(nuclear):
            return None
        threshold = 1.0
    quiet = deviation[energy <= threshold]
    noise = 1.4826 * float(np.median(np.abs(quiet)))
    return replace(view, threshold=threshold, noise=noise, nuclear=nuclear, known=known)


def _windows(shape: tuple[int, int]) -> list[Window]:
    """Windows evenly spread over a field (the whole of a small one)."""
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
    """Pieces of a view's windows that are as compact as cells and lie within; uneven light lies across the border."""
    for signal in view.known.values():
        energy, _ = view.evidence(signal)
        for piece in find_segments(energy):
            h, w = piece.mask.shape
            within = min(piece.top, piece.left, energy.shape[0] - piece.top - h, energy.shape[1] - piece.left - w) > 0
            if within and max(h, w) < 1.6 * min(h, w) and piece.area > 0.5 * h * w:  # a disc fills 0.785 of its square
                yield piece


def typical_width(widths: np.ndarray) -> float:
    """Median width, every particle counting by its area, so that debris does not."""
    order = np.sort(widths)
    return float(order[np.searchsorted(np.cumsum(order**2), 0.5 * (order**2).sum())])

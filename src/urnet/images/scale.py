"""The one scale that takes a data set's raw counts to [0, 1], fitted on the training part and kept with the model.

A scale is never fitted to a single file: two cells that differ in brightness must still differ afterwards.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from urnet.errors import ImageError
from urnet.images.rows import Rows

PERCENTILES = (0.1, 99.9)
ANY_DEPTH = "any"
"""Depth of a scale with given limits over images of several depths."""


@dataclass(frozen=True)
class Scaling:
    """Linear map of raw counts: `low` to 0, `high` to 1, clipped outside.

    Attributes:
        low: raw value that becomes 0.
        high: raw value that becomes 1.
        dtype: depth of the images that it was fitted to: `uint8`, `uint16`, `float32`, or `any`.
    """

    low: float
    high: float
    dtype: str

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Raw counts of any shape to `float32` in [0, 1]."""
        scaled = pixels.astype(np.float32)
        scaled -= np.float32(self.low)
        scaled *= np.float32(1 / (self.high - self.low))
        return np.clip(scaled, 0.0, 1.0, out=scaled)

    def invert(self, scaled: np.ndarray) -> np.ndarray:
        """Values in [0, 1] back to raw counts in the original depth (float for images of several depths)."""
        counts = np.clip(scaled, 0.0, 1.0) * (self.high - self.low) + self.low
        if self.dtype in ("float32", ANY_DEPTH):
            return counts.astype(np.float32)
        limit = np.iinfo(self.dtype).max
        return np.clip(np.rint(counts), 0, limit).astype(self.dtype)


def fit_scaling(images: np.ndarray | Rows, depth: str, limits: tuple[float, float] | None = None) -> Scaling:
    """The scale of a set of images.

    Args:
        images: raw counts, any shape.
        depth: of the files that they came from: `uint8`, `uint16`, `float32`, or `any`.
        limits: given (low, high) in raw counts, used as they are.

    Returns:
        (0, 255) for 8 bits, otherwise percentiles 0.1 and 99.9 over all pixels.

    Raises:
        ImageError: the images are constant.
    """
    if limits is not None:
        return Scaling(float(limits[0]), float(limits[1]), depth)
    if depth == "uint8":
        return Scaling(0.0, 255.0, depth)
    parts = images.parts() if isinstance(images, Rows) else [images]
    low, high = _percentiles_of_counts(parts) if depth == "uint16" else _percentiles(parts, images.size)
    if high <= low:
        raise ImageError(f"the images are constant ({low:g} nearly everywhere); there is nothing to scale")
    return Scaling(low, high, depth)


def _percentiles_of_counts(parts: Iterable[np.ndarray]) -> list[float]:
    """Of 16 bits: the count that so many per cent do not exceed."""
    counts = sum(np.bincount(part.ravel().astype(np.uint16), minlength=2**16) for part in parts)
    below = np.cumsum(counts) / np.sum(counts)
    return [float(np.searchsorted(below, percentile / 100)) for percentile in PERCENTILES]


def _percentiles(parts: Iterable[np.ndarray], total: int) -> list[float]:
    """As `np.percentile` has it, of `total` values; between the parts, only the tails are kept in memory."""
    low_place, high_place = ((total - 1) * (percentile / 100) for percentile in PERCENTILES)
    below, above = min(int(low_place) + 2, total), total - int(high_place)  # values in the tails
    low = high = np.empty(0, np.float32)
    for part in parts:
        low, high = np.append(low, part), np.append(high, part)
        low = np.partition(low, below - 1)[:below] if len(low) > below else low
        high = np.partition(high, -above)[-above:] if len(high) > above else high
    return [_between(np.sort(low), low_place), _between(np.sort(high), high_place - int(high_place))]


def _between(values: np.ndarray, place: float) -> float:
    """The value at a place between two, counted from the nearer one so that nothing is lost by rounding."""
    first, share = int(place), np.float64(place - int(place))
    before, after = values[first], values[min(first + 1, len(values) - 1)]
    step = after - before
    return float(after - step * (1 - share) if share >= 0.5 else before + step * share)

"""Scaling of a data set's raw counts to [0, 1], fitted to the training part and stored with the model.

It is not fitted to single files, because the brightness of two cells must stay comparable. It is not the range of the
data type, because unstained cells use a small part of that range.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from urnet.errors import ImageError
from urnet.images.rows import LazyRows

PERCENTILES = (0.1, 99.9)
"""Percentiles of the counts that determine the scale."""

MARGIN = 0.02
"""Margin on each side, as a share of the range between the percentiles."""

ANY_DEPTH = "any"
"""Depth of a scaling with given limits for images of several depths."""


@dataclass(frozen=True)
class Scaling:
    """Linear map of raw counts: `low` to 0, `high` to 1, clipped outside.

    Attributes:
        low: raw value that becomes 0.
        high: raw value that becomes 1.
        dtype: depth of the images: `uint8`, `uint16`, `float32`, or `any`.
    """

    low: float
    high: float
    dtype: str

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Scale raw counts of any shape to `float32` in [0, 1]."""
        scaled = pixels.astype(np.float32)
        scaled -= np.float32(self.low)
        scaled *= np.float32(1 / (self.high - self.low))
        return np.clip(scaled, 0.0, 1.0, out=scaled)

    def invert(self, scaled: np.ndarray) -> np.ndarray:
        """Convert values in [0, 1] back to raw counts in the original depth (float32 for several depths)."""
        counts = np.clip(scaled, 0.0, 1.0) * (self.high - self.low) + self.low
        if self.dtype in ("float32", ANY_DEPTH):
            return counts.astype(np.float32)
        limit = np.iinfo(self.dtype).max
        return np.clip(np.rint(counts), 0, limit).astype(self.dtype)


def fit_scaling(images: np.ndarray | LazyRows, depth: str, limits: tuple[float, float] | None = None) -> Scaling:
    """Fit the scaling of a set of images, with the same rule for every depth.

    `low` and `high` are the percentiles 0.1 and 99.9 over all pixels and channels, with a margin of 2 % of their
    difference on each side. The margin ends at the lowest and highest count of the images, so that saturated pixels
    become exactly 0 or 1.

    Args:
        images: raw counts, any shape.
        depth: depth of the files: `uint8`, `uint16`, `float32`, or `any`.
        limits: (low, high) in raw counts, which replace the fit.

    Raises:
        ImageError: the images are constant.
    """
    if limits is not None:
        return Scaling(float(limits[0]), float(limits[1]), depth)
    lowest, low, high, highest = _measure_range(images, depth)
    margin = MARGIN * (high - low)
    return Scaling(max(lowest, low - margin), min(highest, high + margin), depth)


def fit_scaling_0_1_0(images: np.ndarray | LazyRows, depth: str, limits: tuple[float, float] | None = None) -> Scaling:
    """Fit the scaling as version 0.1.0 did, to resume its runs: (0, 255) for 8 bits, else without a margin."""
    if limits is None:
        limits = (0, 255) if depth == "uint8" else _measure_range(images, depth)[1:3]
    return fit_scaling(images, depth, limits)


def _measure_range(images: np.ndarray | LazyRows, depth: str) -> tuple[float, float, float, float]:
    """Measure the lowest count, both percentiles, and the highest count."""
    parts = images.iterate_parts() if isinstance(images, LazyRows) else [images]
    counted = depth in ("uint8", "uint16")
    lowest, low, high, highest = _measure_integer_range(parts) if counted else _measure_float_range(parts, images.size)
    if high <= low:
        raise ImageError(
            f"the images are constant ({low:g} almost everywhere) and cannot be scaled", code="images.constant"
        )
    return lowest, low, high, highest


def _measure_integer_range(parts: Iterable[np.ndarray]) -> tuple[float, float, float, float]:
    """Measure the range of 8- or 16-bit counts. A percentile is a count that occurs."""
    counts = sum(np.bincount(part.ravel().astype(np.uint16), minlength=2**16) for part in parts)
    below = np.cumsum(counts) / np.sum(counts)
    used = np.flatnonzero(counts)
    low, high = (float(np.searchsorted(below, percentile / 100)) for percentile in PERCENTILES)
    return float(used[0]), low, high, float(used[-1])


def _measure_float_range(parts: Iterable[np.ndarray], total: int) -> tuple[float, float, float, float]:
    """Measure the range of `total` values as `np.percentile` does, with only the tails in memory."""
    low_position, high_position = ((total - 1) * (percentile / 100) for percentile in PERCENTILES)
    below, above = min(int(low_position) + 2, total), total - int(high_position)  # values in the tails
    low = high = np.empty(0, np.float32)
    for part in parts:
        low, high = np.append(low, part), np.append(high, part)
        low = np.partition(low, below - 1)[:below] if len(low) > below else low
        high = np.partition(high, -above)[-above:] if len(high) > above else high
    low, high = np.sort(low), np.sort(high)
    return (
        float(low[0]),
        _interpolate(low, low_position),
        _interpolate(high, high_position - int(high_position)),
        float(high[-1]),
    )


def _interpolate(values: np.ndarray, position: float) -> float:
    """Interpolate between two values from the nearer one, as NumPy does, to avoid rounding errors."""
    first, share = int(position), np.float64(position - int(position))
    before, after = values[first], values[min(first + 1, len(values) - 1)]
    step = after - before
    return float(after - step * (1 - share) if share >= 0.5 else before + step * share)

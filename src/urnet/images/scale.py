"""The one scale that takes a data set's raw counts to [0, 1], fitted on the training part and kept with the model.

A scale is never fitted to a single file: two cells that differ in brightness must still differ afterwards.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from urnet.errors import ImageError

PERCENTILES = (0.1, 99.9)


@dataclass(frozen=True)
class Scaling:
    """Linear map of raw counts: `low` to 0, `high` to 1, clipped outside.

    Attributes:
        low: raw value that becomes 0.
        high: raw value that becomes 1.
        dtype: depth of the images that it was fitted to: `uint8`, `uint16` or `float32`.
    """

    low: float
    high: float
    dtype: str

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Raw counts of any shape to `float32` in [0, 1]."""
        scaled = (pixels.astype(np.float32) - np.float32(self.low)) * np.float32(1 / (self.high - self.low))
        return np.clip(scaled, 0.0, 1.0, out=scaled)

    def invert(self, scaled: np.ndarray) -> np.ndarray:
        """Values in [0, 1] back to raw counts in the original depth."""
        counts = np.clip(scaled, 0.0, 1.0) * (self.high - self.low) + self.low
        if self.dtype == "float32":
            return counts.astype(np.float32)
        limit = np.iinfo(self.dtype).max
        return np.clip(np.rint(counts), 0, limit).astype(self.dtype)


def fit_scaling(images: Iterable[np.ndarray], limits: tuple[float, float] | None = None) -> Scaling:
    """The scale of a set of images of one depth.

    Args:
        images: raw images of any shapes, `uint8`, `uint16` or `float32`; read through once.
        limits: given (low, high) in raw counts, used as they are.

    Returns:
        (0, 255) for 8 bits, otherwise percentiles 0.1 and 99.9 over all pixels.

    Raises:
        ImageError: the images are constant, or of several depths without `limits`.
    """
    images = list(images)
    depths = sorted({str(image.dtype) for image in images})
    if limits is not None:
        return Scaling(float(limits[0]), float(limits[1]), depths[0])
    if len(depths) > 1:
        counts = ", ".join(f"{sum(str(i.dtype) == d for i in images)} {d}" for d in depths)
        raise ImageError(
            f"images of several depths ({counts}) have no common scale; convert them to one depth, "
            "or give input.limits=[low,high] in raw counts"
        )
    if depths == ["uint8"]:
        return Scaling(0.0, 255.0, "uint8")
    low, high = (_percentiles_uint16 if depths == ["uint16"] else _percentiles_float)(images)
    if high <= low:
        raise ImageError(f"the images are constant ({low:g} nearly everywhere); there is nothing to scale")
    return Scaling(low, high, depths[0])


def _percentiles_uint16(images: list[np.ndarray]) -> tuple[float, float]:
    counts = np.zeros(2**16, dtype=np.int64)
    for image in images:
        counts += np.bincount(image.ravel(), minlength=2**16)
    below = np.cumsum(counts) / counts.sum()
    low, high = (int(np.searchsorted(below, p / 100)) for p in PERCENTILES)
    return float(low), float(high)


def _percentiles_float(images: list[np.ndarray]) -> tuple[float, float]:
    low, high = np.percentile(np.concatenate([image.ravel() for image in images]), PERCENTILES)
    return float(low), float(high)

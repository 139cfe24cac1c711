"""Measure the local energy of a field: the squared deviation of its brightness from the background.

Cells without stain are neither darker nor brighter than their surroundings, but less even. Edges, rings, granules and
shading all raise the local energy, and ramps of illumination do not.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

ReadRegion = Callable[[int, int, int, int], np.ndarray]
"""Reads the region (top, left, height, width) of a field: (h, w) or (h, w, 3)."""

Window = tuple[int, int, int, int]
"""Top, left, height and width, px of the reduced field."""

BLOCK_PX = 8
"""Edge of the blocks whose medians give the background, px."""

MIN_CELL_ENERGY = 2.5
"""Smallest mean energy of a cell, in units of the threshold."""


@dataclass(frozen=True)
class Signal:
    """Deviation of a region from its background.

    Args:
        deviation: smoothed brightness minus background, (h, w).
        energy: local energy of the deviation, (h, w).
        nuclei: deviation of the nuclear channel, (h, w); None without one.
        level: median of the absolute brightness.
    """

    deviation: np.ndarray
    energy: np.ndarray
    nuclei: np.ndarray | None
    level: float


@dataclass(frozen=True)
class ReducedField:
    """A field reduced by an integer factor, with the thresholds of its signal.

    Args:
        read: reads the brightfield.
        nuclei: reads the nuclear channel.
        full: height and width of the field, px.
        fold: reduction factor.
        threshold: threshold of the energy.
        noise: standard deviation of the smoothed brightness in the background.
        nuclear_threshold: threshold of the brightness of the nuclear channel above its background.
        cached: signal of the windows that were read before.
    """

    read: ReadRegion
    nuclei: ReadRegion | None
    full: tuple[int, int]
    fold: int = 1
    threshold: float = 0.0
    noise: float = 0.0
    nuclear_threshold: float = np.inf
    cached: Mapping[Window, Signal] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the reduced field, px."""
        return -(-self.full[0] // self.fold), -(-self.full[1] // self.fold)

    def signal(self, window: Window) -> Signal:
        """Measure the signal of a window, or take it from the cache."""
        if window in self.cached:
            return self.cached[window]
        grey = self._region(self.read, *window)
        deviation = _deviation(grey)
        sample = np.abs(grey[::8, ::8])
        level = float(np.nanmedian(sample)) if np.isfinite(sample).any() else 0.0
        nuclei = None if self.nuclei is None else _deviation(self._region(self.nuclei, *window))
        return Signal(deviation, _energy(deviation), nuclei, level)

    def evidence(self, signal: Signal) -> tuple[np.ndarray, np.ndarray]:
        """Return the energy of both channels, and of the brightfield alone, in units of the threshold.

        The nuclear channel is clipped a little above the energy of a cell, so that a cell that brightfield shows keeps
        its own shape.
        """
        bright = signal.energy / self.threshold
        if signal.nuclei is None:
            return bright, bright
        return np.maximum(bright, np.clip(signal.nuclei / self.nuclear_threshold, 0, 1.2 * MIN_CELL_ENERGY)), bright

    def _region(self, read: ReadRegion, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Read a region of the reduced field, (height, width), float32; NaN where pixels are not finite."""
        grey = np.empty((height, width), np.float32)
        rows = max(1, 1024 // self.fold)  # one strip at a time, to bound memory
        for start in range(0, height, rows):
            count = min(rows, height - start)
            grey[start : start + count] = self._strip(read, top + start, left, count, width)
        return grey

    def _strip(self, read: ReadRegion, top: int, left: int, height: int, width: int) -> np.ndarray:
        (H, W), n = self.full, self.fold
        down, right = min((top + height) * n, H) - top * n, min((left + width) * n, W) - left * n
        pixels = np.asarray(read(top * n, left * n, down, right))
        grey = pixels.mean(axis=2, dtype=np.float32) if pixels.ndim == 3 else pixels.astype(np.float32)
        if not np.isfinite(grey).all():
            grey[~np.isfinite(grey)] = np.nan
        if n == 1:
            return grey
        grey = np.pad(grey, ((0, height * n - down), (0, width * n - right)), mode="edge")
        return grey.reshape(height, n, width, n).mean(axis=(1, 3))


def _background(grey: np.ndarray) -> np.ndarray:
    """Estimate the background at each pixel by the median of block medians over about three cells."""
    from scipy.ndimage import distance_transform_edt, gaussian_filter, median_filter, zoom

    H, W = grey.shape
    h, w = -(-H // BLOCK_PX), -(-W // BLOCK_PX)
    padded = np.pad(grey, ((0, h * BLOCK_PX - H), (0, w * BLOCK_PX - W)), mode="edge")
    blocks = padded.reshape(h, BLOCK_PX, w, BLOCK_PX).swapaxes(1, 2).reshape(h, w, -1)
    if np.isnan(grey).any():
        empty = np.isnan(blocks).all(axis=2)
        if empty.all():
            return np.zeros_like(grey)
        blocks[empty] = 0
        level = np.nanmedian(blocks, axis=2)
        nearest = distance_transform_edt(empty, return_distances=False, return_indices=True)
        level = level[tuple(nearest)]
    else:
        middle = BLOCK_PX * BLOCK_PX // 2  # a tenth of the time of np.median for so few values
        level = np.sort(blocks, axis=2)[:, :, middle - 1 : middle + 1].mean(axis=2)
    level = gaussian_filter(median_filter(level, 9, mode="nearest"), 1.5, mode="nearest")
    return zoom(level, BLOCK_PX, order=1, mode="nearest", grid_mode=True)[:H, :W]


def _deviation(grey: np.ndarray) -> np.ndarray:
    """Return the smoothed brightness minus the background; 0 where pixels are not finite."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(np.nan_to_num(grey - _background(grey), nan=0.0), 1.0)


def _energy(deviation: np.ndarray) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(deviation * deviation, 1.5)

"""Simulated destaining: give a stained crop the appearance of the same cell without stain.

The stain's optical density approximates the cell's thickness. It saturates: the stain makes the nucleus several times
denser than the cytoplasm, but in an unstained cell the nucleus is almost invisible. The thickness then passes the
optics of `urnet.images.simulation.optics` (transport of intensity, Teague 1983). The result has real morphology and
simulated optics, and must be labelled as simulated.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from urnet.errors import ImageError
from urnet.images.simulation.optics import REFERENCE_PX, Imaging, draw_imaging, simulate_brightfield

SATURATION_DENSITY = 0.15
"""Optical density at which the thickness comes within 1/e of that of a full cell."""

WHITE_PHASE = 1.25
"""Phase that is white in `clean`: a saturated cell (1) with an optical density of 2.5, denser than any nucleus."""


@dataclass(frozen=True)
class Destained:
    """A stained crop after simulated destaining.

    Attributes:
        image: the stain-free image, (H, W), float32 in [0, 1].
        clean: the phase φ, scaled to [0, 1], (H, W), float32.
        imaging: the imaging conditions.
    """

    image: np.ndarray
    clean: np.ndarray
    imaging: Imaging


def compute_optical_density(stained: np.ndarray) -> np.ndarray:
    """Compute the mean optical density of the colours, −ln(I/I_bg). I_bg is the 95th percentile of each colour.

    Args:
        stained: 8-bit colour crop, (H, W, 3).

    Returns:
        Density, (H, W), float32, at least 0.

    Raises:
        ImageError: the crop is not 8-bit RGB (`images.not_rgb`).
    """
    if stained.ndim != 3 or stained.shape[2] != 3 or stained.dtype != np.uint8:
        raise ImageError(
            f"the stained crop has the shape {stained.shape} and type {stained.dtype}; simulated destaining needs "
            "8-bit RGB, (H, W, 3). Convert it first",
            code="images.not_rgb",
        )
    intensity = np.maximum(stained, 1).astype(np.float32)
    background = np.maximum(np.percentile(stained, 95, axis=(0, 1)), 1).astype(np.float32)  # (3,)
    return np.maximum(-np.log(intensity / background), 0).mean(axis=2)


def destain(stained: np.ndarray, rng: np.random.Generator, imaging: Imaging | None = None) -> Destained:
    """Simulate the unstained brightfield image of a stained cell.

    Args:
        stained: 8-bit colour crop of one cell, (H, W, 3).
        rng: random generator for the imaging conditions and the noise.
        imaging: the imaging conditions; None for random ones.

    Returns:
        The stain-free image and its phase.

    Raises:
        ImageError: the crop is not 8-bit RGB (`images.not_rgb`).
    """
    density = compute_optical_density(stained)
    scale = min(density.shape) / REFERENCE_PX
    phase = gaussian_filter(1 - np.exp(-density / SATURATION_DENSITY), scale, mode="nearest") + 0.1 * density
    imaging = imaging or draw_imaging(rng)
    return Destained(simulate_brightfield(phase, density, imaging, rng), np.clip(phase / WHITE_PHASE, 0, 1), imaging)

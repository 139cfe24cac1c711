"""Simulated destaining: give a stained crop the look that the same cell would have without stain.

The stain's optical density stands in for the cell's thickness, saturating, so that the nucleus, which the stain makes
several times denser than the cytoplasm, all but vanishes as it does in an unstained cell. The thickness then goes
through the optics of `urnet.images.simulation.optics` (transport of intensity, Teague 1983). What comes of it is real
morphology under simulated optics, and wants to be called so.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from urnet.errors import ImageError
from urnet.images.simulation.optics import REFERENCE_PX, Imaging, draw_imaging, simulate_brightfield

SATURATION_DENSITY = 0.15
"""Optical density at which the thickness has come within 1/e of a full cell's."""

WHITE_PHASE = 1.25
"""Phase that `clean` shows as white: a saturated cell (1) under an optical density of 2.5, denser than any nucleus."""


@dataclass(frozen=True)
class Destained:
    """A stained crop without its stain.

    Args:
        image: the stain-free look, (H, W), float32 in [0, 1].
        clean: the phase φ that the optics saw, scaled to [0, 1], (H, W), float32.
        imaging: the conditions drawn for it.
    """

    image: np.ndarray
    clean: np.ndarray
    imaging: Imaging


def compute_optical_density(stained: np.ndarray) -> np.ndarray:
    """Mean optical density over the colours, −ln(I/I_bg), with the 95th percentile of each colour as background.

    Args:
        stained: 8-bit colour crop, (H, W, 3).

    Returns:
        Density, (H, W), float32, at least 0.

    Raises:
        ImageError: if the crop is not 8-bit RGB.
    """
    if stained.ndim != 3 or stained.shape[2] != 3 or stained.dtype != np.uint8:
        raise ImageError(
            f"a stained crop has shape {stained.shape} and type {stained.dtype}; "
            "simulated destaining needs 8-bit RGB, (H, W, 3): convert it first"
        )
    intensity = np.maximum(stained, 1).astype(np.float32)
    background = np.maximum(np.percentile(stained, 95, axis=(0, 1)), 1).astype(np.float32)  # (3,)
    return np.maximum(-np.log(intensity / background), 0).mean(axis=2)


def destain(stained: np.ndarray, rng: np.random.Generator, imaging: Imaging | None = None) -> Destained:
    """Simulate the unstained brightfield image of a stained cell.

    Args:
        stained: 8-bit colour crop of one cell, (H, W, 3).
        rng: source of the imaging conditions and of the noise.
        imaging: the conditions, instead of drawn ones.

    Returns:
        The stain-free look and the phase it came from.

    Raises:
        ImageError: if the crop is not 8-bit RGB.
    """
    density = compute_optical_density(stained)
    scale = min(density.shape) / REFERENCE_PX
    phase = gaussian_filter(1 - np.exp(-density / SATURATION_DENSITY), scale, mode="nearest") + 0.1 * density
    imaging = imaging or draw_imaging(rng)
    return Destained(simulate_brightfield(phase, density, imaging, rng), np.clip(phase / WHITE_PHASE, 0, 1), imaging)

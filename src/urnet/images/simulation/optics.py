"""What a brightfield microscope makes of a cell without stain: little absorption, and phase seen through defocus.

A thin transparent object leaves a trace in brightfield only out of focus, where the transport-of-intensity equation
turns the curvature of its phase φ into brightness: ∂I/∂z ∝ −∇·(I∇φ) (Teague, J. Opt. Soc. Am. 73, 1434, 1983, Eq. 8).
To first order in the defocus z, and for an intensity that varies slowly, I = e^(−ε·od)·(1 − z·∇²φ).

All lengths are stated for a crop of 128 px and scaled with the crop, so that a cell looks the same at 48 and 200 px.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter, laplace

REFERENCE_PX = 128
"""Side in px of the crop for which lengths are stated."""

BACKGROUND = 0.5
"""Grey level of an empty spot at gain 1: mid-grey, so that bright rims and dark ones both have room."""

ABSORPTION = 0.06
"""Share ε of the stained optical density that an unstained cell still absorbs."""

IMAGING_RANGES = {"defocus": (-3.0, 3.0), "blur": (0.6, 1.8), "ramp": (0.0, 0.15), "gain": (0.8, 1.15)}
"""Least and greatest value of each imaging condition; see `Imaging` for units."""


@dataclass(frozen=True)
class Imaging:
    """The conditions under which one image is taken.

    Args:
        defocus: z of the transport-of-intensity equation, px² at a 128 px crop; either sign.
        blur: standard deviation of the point spread, px at a 128 px crop.
        ramp: brightness lost or gained over the image along `angle`, as a share of the mean.
        angle: direction of the ramp, radians.
        gain: brightness of lamp and camera; 1 puts an empty spot at `BACKGROUND`.
        noise: standard deviation of the camera's noise, as a share of the brightness of an empty spot.
        absorption: share ε of the optical density that is seen.
    """

    defocus: float = 0.0
    blur: float = 0.0
    ramp: float = 0.0
    angle: float = 0.0
    gain: float = 1.0
    noise: float = 0.0
    absorption: float = ABSORPTION


def draw_imaging(rng: np.random.Generator, around: Imaging | None = None, spread: float = 0.2) -> Imaging:
    """Draw imaging conditions uniformly from `IMAGING_RANGES`, or near given ones.

    Args:
        rng: source of chance.
        around: the conditions of a donor's slide; None draws freely.
        spread: with `around`, the standard deviation about it as a share of each range; results stay in the range.

    Returns:
        The conditions of one image.
    """
    values = {}
    for name, (low, high) in IMAGING_RANGES.items():
        if around is None:
            value = rng.uniform(low, high)
        else:
            value = np.clip(rng.normal(getattr(around, name), spread * (high - low)), low, high)
        values[name] = float(value)
    return Imaging(angle=float(rng.uniform(0, 2 * np.pi)), noise=0.02, **values)


def simulate_brightfield(
    phase: np.ndarray, density: np.ndarray, imaging: Imaging, rng: np.random.Generator, crop: float | None = None
) -> np.ndarray:
    """Image a phase object in brightfield: transport of intensity, point spread, illumination ramp, gain, noise.

    Args:
        phase: thickness or phase φ of the object, (H, W), about 1 inside a cell and 0 outside.
        density: optical density of the object, (H, W), 0 outside cells.
        imaging: the conditions.
        rng: source of the noise.
        crop: side in px of a single cell's crop at this magnification; None means that the image is such a crop.

    Returns:
        Grey values in [0, 1], (H, W), float32. With default conditions, `BACKGROUND`·e^(−ε·od).
    """
    H, W = phase.shape
    scale = (crop or min(H, W)) / REFERENCE_PX
    transmitted = np.exp(-imaging.absorption * density.astype(np.float32))
    seen = transmitted * (1 - imaging.defocus * scale**2 * laplace(phase.astype(np.float32), mode="nearest"))
    seen = gaussian_filter(seen, imaging.blur * scale, mode="nearest")
    seen *= BACKGROUND * imaging.gain * _compute_ramp(H, W, imaging)
    if imaging.noise:
        seen += BACKGROUND * imaging.gain * imaging.noise * rng.standard_normal((H, W), dtype=np.float32)
    return np.clip(seen, 0, 1)


def _compute_ramp(H: int, W: int, imaging: Imaging) -> np.ndarray:
    """Illumination relative to the image's middle, (H, W): 1 ± ramp/2 at the ends."""
    rows = np.linspace(-0.5, 0.5, H, dtype=np.float32)[:, None]
    columns = np.linspace(-0.5, 0.5, W, dtype=np.float32)
    return 1 + np.float32(imaging.ramp) * (rows * np.sin(imaging.angle) + columns * np.cos(imaging.angle))

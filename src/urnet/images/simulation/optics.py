"""Brightfield optics of unstained cells: little absorption, and phase that is visible through defocus.

A thin transparent object is visible in brightfield only out of focus. There, the transport-of-intensity equation turns
the curvature of its phase φ into brightness: ∂I/∂z ∝ −∇·(I∇φ) (Teague, J. Opt. Soc. Am. 73, 1434, 1983, Eq. 8). To
first order in the defocus z, and for slowly varying intensity, I = e^(−ε·od)·(1 − z·∇²φ).

Lengths refer to a crop of 128 px and are scaled with the crop, so that a cell looks the same at 48 and 200 px.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter, laplace

REFERENCE_PX = 128
"""Edge of the crop that lengths refer to, in pixels."""

BACKGROUND = 0.5
"""Grey level of an empty area at gain 1: mid-grey, so that rims can be brighter or darker."""

ABSORPTION = 0.06
"""Share ε of the stained optical density that an unstained cell absorbs."""

IMAGING_RANGES = {"defocus": (-3.0, 3.0), "blur": (0.6, 1.8), "ramp": (0.0, 0.15), "gain": (0.8, 1.15)}
"""Smallest and largest value of each imaging condition, in the units of `Imaging`."""


@dataclass(frozen=True)
class Imaging:
    """Imaging conditions of one image.

    Attributes:
        defocus: z of the transport-of-intensity equation, in px² of a 128 px crop; positive or negative.
        blur: standard deviation of the point spread, in pixels of a 128 px crop.
        ramp: change of brightness over the image along `angle`, as a share of the mean.
        angle: direction of the ramp, in radians.
        gain: brightness of lamp and camera. At 1, an empty area has the grey level `BACKGROUND`.
        noise: standard deviation of the camera's noise, as a share of the brightness of an empty area.
        absorption: share ε of the optical density that is visible.
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
        rng: random generator.
        around: conditions of a donor's slide; None for a uniform draw.
        spread: standard deviation around `around`, as a share of each range. Results stay in the range.

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
    """Simulate the brightfield image of a phase object: intensity transport, point spread, ramp, gain and noise.

    Args:
        phase: thickness or phase φ of the object, (H, W), about 1 in a cell and 0 outside.
        density: optical density of the object, (H, W), 0 outside cells.
        imaging: the imaging conditions.
        rng: random generator for the noise.
        crop: edge of a single cell's crop at this magnification, in pixels; None if the image is such a crop.

    Returns:
        Grey values in [0, 1], (H, W), float32. With default conditions, `BACKGROUND`·e^(−ε·od).
    """
    H, W = phase.shape
    scale = (crop or min(H, W)) / REFERENCE_PX
    transmitted = np.exp(-imaging.absorption * density.astype(np.float32))
    image = transmitted * (1 - imaging.defocus * scale**2 * laplace(phase.astype(np.float32), mode="nearest"))
    image = gaussian_filter(image, imaging.blur * scale, mode="nearest")
    image *= BACKGROUND * imaging.gain * _compute_ramp(H, W, imaging)
    if imaging.noise:
        image += BACKGROUND * imaging.gain * imaging.noise * rng.standard_normal((H, W), dtype=np.float32)
    return np.clip(image, 0, 1)


def _compute_ramp(H: int, W: int, imaging: Imaging) -> np.ndarray:
    """Compute the illumination relative to the image's centre, (H, W): 1 ± ramp/2 at the ends."""
    rows = np.linspace(-0.5, 0.5, H, dtype=np.float32)[:, None]
    columns = np.linspace(-0.5, 0.5, W, dtype=np.float32)
    return 1 + np.float32(imaging.ramp) * (rows * np.sin(imaging.angle) + columns * np.cos(imaging.angle))

"""How a crop was taken: focus, brightness, contrast, illumination, saturation and noise, from its pixels alone.

None of them says what is in the crop. They say whether it was imaged as the cells were that a model was trained on, so
they are always compared with those cells' and never with fixed limits. Lengths are in pixels, so crops are compared at
one size: the network's.
"""

import numpy as np
from scipy.ndimage import correlate, gaussian_filter

from urnet.errors import ImageError
from urnet.images.read import MIN_EDGE

MEASURES = ("brightness", "contrast", "ramp", "saturation", "noise", "focus")

FINE_PX, COARSE_PX = 1.0, 2.0
"""Standard deviations in px of the two blurs between which detail counts as being in focus."""

_MIN_CONTRAST = 1e-4
"""Contrast, as a share of the scale, below which an image is empty and has no focus to speak of."""

_IMMERKAER_KERNEL = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]]) / 6


def measure_quality(crop: np.ndarray, low: float, high: float) -> dict[str, float]:
    """Measure how a crop was taken.

    Args:
        crop: (H, W) or (H, W, 3), raw counts; colours are averaged.
        low: count that becomes 0, as in `Scaling`.
        high: count that becomes 1.

    Returns:
        By the names of `MEASURES`, the first three and noise in units of `high - low`:

        - brightness: the median.
        - ramp: rise of the plane that fits best (least squares), from one end of the crop to the other.
        - contrast: standard deviation about that plane.
        - saturation: share of pixels at or beyond `low` or `high`, 0 to 1.
        - noise: standard deviation of what no smooth image has (Immerkær, Comput. Vis. Image Underst. 64, 300, 1996,
          Eq. 3, with the median for robustness).
        - focus: logarithm (base 10) of the share of the variance between blurs of `FINE_PX` and `COARSE_PX`, as
          a difference of Gaussians; defocus takes the fine detail first. 0 at most, -8 for an empty image.

    Raises:
        ImageError: the crop has another shape, or some of it are no numbers.
    """
    if crop.ndim not in (2, 3) or crop.shape[2:] not in ((), (1,), (3,)) or min(crop.shape[:2]) < MIN_EDGE:
        raise ImageError(
            f"an array of shape {crop.shape}; its quality needs (H, W) or (H, W, 3) of at least {MIN_EDGE} px each way"
        )
    saturation = float(((crop <= low) | (crop >= high)).mean())
    grey = crop.reshape(*crop.shape[:2], -1).mean(axis=2, dtype=np.float64)
    grey = (grey - low) / (high - low)  # (H, W)
    if not np.isfinite(grey).all():
        raise ImageError("some values are NaN or infinite; mask or fill them first")
    down, right = (np.linspace(-0.5, 0.5, edge) for edge in grey.shape)
    # The two slopes and the mean are orthogonal on a grid, so each is a projection of its own.
    fall, rise = grey.mean(axis=1) @ down / (down @ down), grey.mean(axis=0) @ right / (right @ right)
    flat = grey - grey.mean() - fall * down[:, None] - rise * right
    variance = flat.var()
    detail = gaussian_filter(flat, FINE_PX, mode="nearest") - gaussian_filter(flat, COARSE_PX, mode="nearest")
    share = detail.var() / variance if variance > _MIN_CONTRAST**2 else 0.0
    residual = np.abs(correlate(flat, _IMMERKAER_KERNEL, mode="nearest")[1:-1, 1:-1])
    return {
        "brightness": float(np.median(grey)),
        "contrast": float(np.sqrt(variance)),
        "ramp": float(np.hypot(fall, rise)),
        "saturation": saturation,
        "noise": float(np.median(residual) / 0.6745),
        "focus": float(np.log10(max(share, 1e-8))),
    }

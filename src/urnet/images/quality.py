"""Image quality of a crop: focus, brightness, contrast, illumination, saturation and noise, from its pixels alone.

The measures do not depend on fixed limits: they are compared with those of the cells that a model was trained on. Their
lengths are in pixels, so crops are compared at one size, that of the network's input.
"""

import numpy as np
from scipy.ndimage import correlate, gaussian_filter

from urnet.errors import ImageError
from urnet.images.read import MIN_EDGE

MEASURES = ("brightness", "contrast", "ramp", "saturation", "noise", "focus")

FINE_PX, COARSE_PX = 1.0, 2.0
"""Standard deviations of the two Gaussian blurs whose difference measures focus, in pixels."""

_MIN_CONTRAST = 1e-4
"""Contrast, as a share of the scale, up to which an image is empty."""

_IMMERKAER_KERNEL = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]]) / 6


def measure_quality(crop: np.ndarray, low: float, high: float) -> dict[str, float]:
    """Measure the image quality of a crop.

    Args:
        crop: (H, W) or (H, W, 3), raw counts; colours are averaged.
        low: count that becomes 0, as in `Scaling`.
        high: count that becomes 1.

    Returns:
        The values of `MEASURES`. Brightness, contrast, ramp and noise are in units of `high - low`:

        - brightness: the median.
        - contrast: standard deviation from the best fitting plane (least squares).
        - ramp: rise of that plane over the crop.
        - saturation: share of pixels at or beyond `low` or `high`, 0 to 1.
        - noise: standard deviation of the noise (Immerkær, Comput. Vis. Image Underst. 64, 300, 1996, Eq. 3, with the
          median for robustness).
        - focus: logarithm (base 10) of the share of the variance between blurs of `FINE_PX` and `COARSE_PX`, as a
          difference of Gaussians. Defocus removes fine detail first. At most 0; -8 for an empty image.

    Raises:
        ImageError: the crop has another shape (`images.shape_invalid`), or values that are not finite
            (`images.not_finite`).
    """
    if crop.ndim not in (2, 3) or crop.shape[2:] not in ((), (1,), (3,)) or min(crop.shape[:2]) < MIN_EDGE:
        raise ImageError(
            f"the crop has the shape {crop.shape}; this needs (H, W) or (H, W, 3), at least {MIN_EDGE} px each way",
            code="images.shape_invalid",
        )
    saturation = float(((crop <= low) | (crop >= high)).mean())
    grey = crop.reshape(*crop.shape[:2], -1).mean(axis=2, dtype=np.float64)
    grey = (grey - low) / (high - low)  # (H, W)
    if not np.isfinite(grey).all():
        raise ImageError("some values of the crop are NaN or infinite. Replace them first", code="images.not_finite")
    down, right = (np.linspace(-0.5, 0.5, edge) for edge in grey.shape)
    # On a grid, the two slopes and the mean are orthogonal, so each is a projection.
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

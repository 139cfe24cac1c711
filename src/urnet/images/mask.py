"""Where the cell lies in a centred crop, from the crop alone.

An unstained cell has neither a dark nucleus nor a brightness of its own, and on a smear its neighbours touch it, so
that thresholds of brightness or texture merge it with them. What it does have is a closed outline about the crop's
middle, along which the brightness rises, or falls, all the way round. Of all such outlines the strongest is taken
(`closed_path`).

Over 200 cells each, the median overlap (intersection over union) with the truth was 0.94 on phantom crops of 48 px,
0.95 at 128 px, and 0.92 (a tenth below 0.58) on PBC cells of 128 px under simulated destaining, whose truth was cut out
of the stained original. Otsu's threshold of the smoothed gradient reached 0.80 and 0.27 there, and a central disc 0.74
and 0.43.
"""

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates, zoom

from urnet.errors import ImageError
from urnet.images.contour import find_closed_paths
from urnet.images.read import MIN_EDGE

N_ANGLES, N_RADII = 96, 64
FINE_EDGE_PX = 64
"""Edge in px to which smaller crops are enlarged, so that an outline passes between their pixels."""

MIN_RADIUS, MAX_RADIUS = 0.09, 0.48
"""Least and greatest distance of an outline from the middle, as shares of the crop's shorter edge."""

FALLBACK_RADIUS = 0.3
"""Radius of the disc that stands in for a cell without an outline, as a share of the shorter edge."""

SMOOTHING_SIGMA = 1 / 128
"""Standard deviation of the gradient's smoothing, as a share of the shorter edge; 0.7 px at least."""

MIN_RELATIVE_GRADIENT = 1e-9
"""Edges below this share of the brightness are rounding."""

MIN_OUTLINE_STRENGTH = 0.5
"""Mean edge strength, 0 to 1, below which an outline is none: pure noise gives about 0.45."""


def segment_cell(crop: np.ndarray) -> tuple[np.ndarray, bool]:
    """Find the cell in the middle of a crop.

    Args:
        crop: (H, W) or (H, W, 3), raw counts of any depth or floats on any scale.

    Returns:
        The mask, (H, W) booleans, and whether an outline was found; without one, the mask is a central disc.

    Raises:
        ImageError: the crop has another shape, or some of it are no numbers.
    """
    if crop.ndim not in (2, 3) or crop.shape[2:] not in ((), (1,), (3,)) or min(crop.shape[:2]) < MIN_EDGE:
        raise ImageError(
            f"an array of shape {crop.shape}; a mask needs (H, W) or (H, W, 3) of at least {MIN_EDGE} px each way"
        )
    grey = crop.reshape(*crop.shape[:2], -1).mean(axis=2, dtype=np.float64)  # (H, W)
    if not np.isfinite(grey).all():
        raise ImageError("some values are NaN or infinite; mask or fill them first")
    H, W = grey.shape
    rows, columns = np.mgrid[:H, :W] - np.array([(H - 1) / 2, (W - 1) / 2])[:, None, None]
    distance = np.hypot(rows, columns)
    edges = _compute_radial_gradient(_enlarge(grey))  # (ANGLES, RADII)
    strongest = np.percentile(np.abs(edges), 99)
    if strongest > MIN_RELATIVE_GRADIENT * np.abs(grey).max():
        edges = np.clip(edges / strongest, -1, 1)
        rings, strengths = find_closed_paths(np.stack([edges, -edges]))  # bright outside, or dark
        best = strengths.argmax()
        if strengths[best] >= MIN_OUTLINE_STRENGTH:
            ring = rings[best]
            angles = np.arange(N_ANGLES + 1) * 2 * np.pi / N_ANGLES
            outline = _list_radii(min(H, W))[np.append(ring, ring[0])]
            reach = np.interp(np.arctan2(rows, columns) % (2 * np.pi), angles, outline)  # (H, W)
            return distance <= reach, True
    return distance <= FALLBACK_RADIUS * min(H, W), False


def _enlarge(grey: np.ndarray) -> np.ndarray:
    fold = FINE_EDGE_PX / min(grey.shape)
    return grey if fold <= 1 else zoom(grey, fold, order=3, mode="nearest", grid_mode=True)


def _list_radii(edge: int) -> np.ndarray:
    return np.linspace(MIN_RADIUS * edge, MAX_RADIUS * edge, N_RADII)


def _compute_radial_gradient(grey: np.ndarray) -> np.ndarray:
    """Rise of the brightness away from the middle, (ANGLES, RADII)."""
    H, W = grey.shape
    sigma = max(0.7, SMOOTHING_SIGMA * min(H, W))
    angles = (np.arange(N_ANGLES) * 2 * np.pi / N_ANGLES)[:, None]
    radii = _list_radii(min(H, W))
    places = [(H - 1) / 2 + np.sin(angles) * radii, (W - 1) / 2 + np.cos(angles) * radii]
    down, right = (
        map_coordinates(gaussian_filter(grey, sigma, order=order, mode="nearest"), places, order=1, mode="nearest")
        for order in ((1, 0), (0, 1))
    )
    return down * np.sin(angles) + right * np.cos(angles)

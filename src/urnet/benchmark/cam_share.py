"""Share of a Grad-CAM map that lies on the cell, to put a number beside the pictures of the paper's Fig. 3b.

It is the energy-based pointing game (H. Wang et al., "Score-CAM", CVPR Workshops 2020, section 4.3) with the mask of
the cell in place of a bounding box. A uniform map has the share of the area that the mask covers.
"""

import numpy as np


def cam_share(cams: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Compute the share of each map's mass that lies on the cell.

    Args:
        cams: (N, H, W), at least 0.
        masks: (N, H, W) booleans, True on the cell.

    Returns:
        (N,) float64 in [0, 1]; NaN where a map is 0 everywhere.

    Raises:
        ValueError: Maps and masks differ in shape, or a map is negative somewhere or no number.
    """
    if cams.ndim != 3 or cams.shape != masks.shape:
        raise ValueError(f"maps {cams.shape} and masks {masks.shape}: expected (N, H, W) of both")
    if not (cams >= 0).all():
        raise ValueError("a map is negative somewhere or no number: expected rectified maps")
    mass = cams.sum(axis=(1, 2), dtype=np.float64)
    on_cell = np.where(masks, cams, 0).sum(axis=(1, 2), dtype=np.float64)
    return np.divide(on_cell, mass, out=np.full(len(mass), np.nan), where=mass > 0)


def chance_share(masks: np.ndarray) -> np.ndarray:
    """Compute the share of a uniform map: the share of the area that the cell covers.

    Args:
        masks: (N, H, W) booleans.

    Returns:
        (N,) float64 in [0, 1].
    """
    return masks.mean(axis=(1, 2), dtype=np.float64)

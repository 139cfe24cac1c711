"""Orientation of images (EXIF, TIFF tag 274): turn stored pixels as viewers show them."""

import numpy as np

_TRANSFORMS = {  # orientation: reverse rows, reverse columns, then swap rows and columns
    1: (False, False, False),
    2: (False, True, False),
    3: (True, True, False),
    4: (True, False, False),
    5: (False, False, True),
    6: (True, False, True),
    7: (True, True, True),
    8: (False, True, True),
}
AS_STORED = 1
"""Orientation of an image that is displayed as it is stored."""


def parse_orientation(value: object) -> int:
    """Return an orientation from 1 to 8. Any other value means `AS_STORED`, as in viewers."""
    return value if isinstance(value, int) and value in _TRANSFORMS else AS_STORED


def orient(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn stored pixels, (H, W) or (H, W, S), to the displayed orientation. The result can be a view."""
    rows, columns, is_transposed = _TRANSFORMS[orientation]
    pixels = pixels[:: -1 if rows else 1, :: -1 if columns else 1]
    return pixels.swapaxes(0, 1) if is_transposed else pixels


def orient_shape(shape: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Convert the stored height and width to the displayed ones."""
    return (shape[1], shape[0]) if _TRANSFORMS[orientation][2] else shape


def map_to_stored(
    region: tuple[int, int, int, int], shape: tuple[int, int], orientation: int
) -> tuple[int, int, int, int]:
    """Map a region of the displayed image to the stored image.

    Args:
        region: top, left, height and width in the displayed image.
        shape: height and width of the stored image.
        orientation: 1 to 8.

    Returns:
        Top, left, height and width in the stored image.
    """
    rows, columns, is_transposed = _TRANSFORMS[orientation]
    top, left, height, width = region
    if is_transposed:
        top, left, height, width = left, top, width, height
    if rows:
        top = shape[0] - top - height
    if columns:
        left = shape[1] - left - width
    return top, left, height, width

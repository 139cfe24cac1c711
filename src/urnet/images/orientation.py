"""Turn stored pixels the way that viewers show them: the orientation of EXIF and of TIFF tag 274."""

import numpy as np

_TRANSFORMS = {  # orientation: rows reversed, columns reversed, and then rows and columns exchanged
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
"""The orientation of an image that is shown as it is stored."""


def parse_orientation(value: object) -> int:
    """An orientation from 1 to 8; anything else that a file may hold counts as `AS_STORED`, as in viewers."""
    return value if isinstance(value, int) and value in _TRANSFORMS else AS_STORED


def orient(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn stored pixels, (H, W) or (H, W, S), as they are shown; a view where nothing has to be moved."""
    rows, columns, exchanged = _TRANSFORMS[orientation]
    pixels = pixels[:: -1 if rows else 1, :: -1 if columns else 1]
    return pixels.swapaxes(0, 1) if exchanged else pixels


def orient_shape(shape: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Height and width as shown, of an image of this height and width as stored."""
    return (shape[1], shape[0]) if _TRANSFORMS[orientation][2] else shape


def map_to_stored(
    region: tuple[int, int, int, int], shape: tuple[int, int], orientation: int
) -> tuple[int, int, int, int]:
    """Where a region of the shown image lies in the stored one.

    Args:
        region: top, left, height and width as shown.
        shape: height and width as stored.
        orientation: 1 to 8.
    """
    rows, columns, exchanged = _TRANSFORMS[orientation]
    top, left, height, width = region
    if exchanged:
        top, left, height, width = left, top, width, height
    if rows:
        top = shape[0] - top - height
    if columns:
        left = shape[1] - left - width
    return top, left, height, width

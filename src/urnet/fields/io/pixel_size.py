"""Accept or reject the pixel sizes that files state."""

import math

MIN_PIXEL_UM = 0.005
"""Smallest accepted edge of a pixel, µm."""

MAX_PIXEL_UM = 5.0
"""Largest accepted edge of a pixel, µm. At a coarser scale a white cell has at most three pixels."""

UNCALIBRATED_UM = 1.0
"""Edge of a pixel, µm, that programs write without a calibration: one unit per pixel."""


def is_plausible(pixel_um: float) -> bool:
    """Return whether an edge of a pixel, µm, can come from a calibrated microscope.

    Programs write exactly 1 µm without a calibration (Micro-Manager, ImageJ, OME writers). Sizes outside `MIN_PIXEL_UM`
    to `MAX_PIXEL_UM` are in a wrong unit.
    """
    return MIN_PIXEL_UM <= pixel_um <= MAX_PIXEL_UM and not math.isclose(pixel_um, UNCALIBRATED_UM, rel_tol=1e-6)


def explain_implausible(pixel_um: float) -> str:
    """Explain in a message why a stated edge of a pixel, µm, is not accepted."""
    if MIN_PIXEL_UM <= pixel_um <= MAX_PIXEL_UM:
        return f"{pixel_um:g} µm, the value that programs write without a calibration"
    return f"{pixel_um:.4g} µm, which is not between {MIN_PIXEL_UM:g} and {MAX_PIXEL_UM:g} µm"


def parse_length(stated: object) -> float:
    """Parse a length that a file states; NaN where it is missing or not a number."""
    try:
        return float(stated)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan


def square_pixel_um(sides: list[float]) -> float | None:
    """Return the edge of a square pixel; None where it is unknown or the pixel is not square.

    Args:
        sides: width and height, NaN where unknown.
    """
    across, down = sides
    if math.isnan(down):
        down = across
    if not (math.isfinite(across) and math.isfinite(down) and across > 0 and down > 0):
        return None
    return across * math.sqrt(down / across) if abs(across / down - 1) < 0.01 else None

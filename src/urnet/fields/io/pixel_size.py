"""Decide which pixel sizes that files state are believed."""

import math

MIN_PIXEL_UM = 0.005
"""Smallest edge of a pixel that is believed, µm."""

MAX_PIXEL_UM = 5.0
"""Largest edge of a pixel that is believed, µm: in coarser fields a white cell has no more than three pixels."""

UNCALIBRATED_UM = 1.0
"""What programs write for pixels that nobody has calibrated: one unit a pixel."""


def is_plausible(pixel_um: float) -> bool:
    """Whether an edge of a pixel, µm, can be that of a calibrated microscope.

    Exactly 1 µm is what uncalibrated programs write (Micro-Manager, ImageJ, OME writers); a calibration does not come
    to a round 1. Sizes outside `MIN_PIXEL_UM` to `MAX_PIXEL_UM` are mistaken units.
    """
    return MIN_PIXEL_UM <= pixel_um <= MAX_PIXEL_UM and not math.isclose(pixel_um, UNCALIBRATED_UM, rel_tol=1e-6)


def explain_implausible(pixel_um: float) -> str:
    """Why a stated edge of a pixel, µm, is not believed, for a message."""
    if MIN_PIXEL_UM <= pixel_um <= MAX_PIXEL_UM:
        return f"{pixel_um:g} µm, as programs write that are not calibrated"
    return f"{pixel_um:.4g} µm, not between {MIN_PIXEL_UM:g} and {MAX_PIXEL_UM:g}"


def parse_length(stated: object) -> float:
    """A length as a file states it; NaN where it states none, or what is no number."""
    try:
        return float(stated)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan


def square_pixel_um(sides: list[float]) -> float | None:
    """The edge of a square pixel; None where it is unknown or the pixel is no square.

    Args:
        sides: width and height, NaN where not known.
    """
    across, down = sides
    if math.isnan(down):
        down = across
    if not (math.isfinite(across) and math.isfinite(down) and across > 0 and down > 0):
        return None
    return across * math.sqrt(down / across) if abs(across / down - 1) < 0.01 else None

"""Choose one pixel size for all crops."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from urnet.errors import CellsError, list_first
from urnet.fields.cropping.settings import CropSettings
from urnet.fields.io.pixel_size import explain_implausible
from urnet.fields.table import FieldRow

SPAN_LIMITS_PX = (8, 4096)
"""Smallest and largest edge of the part of a field that a crop shows, px of the field."""


class PixelSizeError(CellsError):
    """The pixel size of a field is unknown, and a setting in µm needs it.

    Args:
        problem: which fields, and why the pixel size is needed.
    """

    code = "fields.pixel_size_unknown"

    def __init__(self, problem: str):
        super().__init__(f"{problem}. Give it in a field table (column pixel_size_um)")
        self.problem = problem


def choose_pixel_size(
    settings: CropSettings,
    rows: Sequence[FieldRow],
    pixels: Sequence[float | None],
    for_prediction: bool,
    implausible: Mapping[str, float] | None = None,
) -> tuple[CropSettings, list[str]]:
    """Choose the pixel size of all crops.

    Args:
        settings: the settings.
        rows: the fields.
        pixels: µm per pixel of each field; none where unknown.
        for_prediction: whether the settings are those of a trained model.
        implausible: pixel sizes in files that were not accepted, µm, by the names of the fields.

    Returns:
        The settings with the pixel size, and notes for the user.

    Raises:
        PixelSizeError: the pixel size of a field is unknown, and a setting in µm needs it.
        CellsError: crops would show too little or too much of a field.
    """
    unknown = [row.field for row, pixel in zip(rows, pixels, strict=True) if pixel is None]
    stated = {name: pixel for name, pixel in (implausible or {}).items() if name in unknown}
    rejected = "".join(
        f"; the file of {list_first(names)} states {explain_implausible(pixel)}, which is not accepted"
        for pixel in sorted(set(stated.values()))
        if (names := [name for name in stated if stated[name] == pixel])
    )
    micrometres = (
        settings.width_um is not None
        or settings.diameter_um is not None
        or (for_prediction and settings.pixel_um is not None)
    )
    if unknown and micrometres:
        why = (
            f"the model was trained on crops of {settings.pixel_um:.4g} µm per pixel"
            if for_prediction and settings.pixel_um is not None
            else "a setting in µm needs it"
        )
        raise PixelSizeError(f"{list_first(unknown)}: the pixel size is unknown, but {why}{rejected}")
    if for_prediction:
        _check_span(settings, rows, pixels)
        return settings, []
    if settings.width_um is not None:
        chosen_settings = replace(settings, pixel_um=settings.width_um / settings.size)
        _check_span(chosen_settings, rows, pixels)
        return chosen_settings, []
    known = Counter(round(pixel, 6) for pixel in pixels if pixel is not None)
    if not known:
        return settings, [f"The pixel size is unknown; limits of size are derived from each field{rejected}."]
    # The most common pixel size, and of several the coarsest: resampling adds no detail.
    chosen = max(known, key=lambda pixel: (known[pixel], pixel))
    notes = []
    if len(known) > 1:
        notes.append(f"Fields have {len(known)} pixel sizes; all crops are resampled to {chosen:.4g} µm.")
    if unknown:
        notes.append(
            f"{list_first(unknown)}: the pixel size is unknown; {chosen:.4g} µm is assumed, as in other fields"
            f"{rejected}."
        )
    chosen_settings = replace(settings, pixel_um=chosen)
    _check_span(chosen_settings, rows, pixels)
    return chosen_settings, notes


def _check_span(settings: CropSettings, rows: Sequence[FieldRow], pixels: Sequence[float | None]) -> None:
    for row, pixel in zip(rows, pixels, strict=True):
        if pixel is None or settings.pixel_um is None:
            continue
        width_um = settings.size * settings.pixel_um
        if not SPAN_LIMITS_PX[0] <= width_um / pixel <= SPAN_LIMITS_PX[1]:
            raise CellsError(
                f"{row.field}: a crop of {width_um:.4g} µm would show {width_um / pixel:.4g} px of the field, at "
                f"{pixel:.4g} µm per pixel; it must show {SPAN_LIMITS_PX[0]} to {SPAN_LIMITS_PX[1]} px. Correct the "
                "width or the pixel size",
                code="fields.crop_span",
            )

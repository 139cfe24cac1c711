"""Crop one field: correct it, detect its cells, and write their crops, masks and nuclei."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from urnet.errors import ImageError
from urnet.fields.cropping.extract import extract_crop, make_preview, to_grey, write_image
from urnet.fields.cropping.result import CroppedField
from urnet.fields.cropping.settings import CropSettings
from urnet.fields.detection.detect import detect
from urnet.fields.io.pool import FieldPool
from urnet.fields.labels.nuclear_features import nuclear_features
from urnet.fields.labels.positions import match_labels
from urnet.fields.preprocessing.corrected_field import CorrectedField
from urnet.fields.preprocessing.registration import Shift, register
from urnet.fields.table import FieldRow
from urnet.images.quality import measure_quality

COLUMNS = (
    *("path", "label", "proposed", "confidence", "donor", "field", "x", "y", "source", "target_nuclei", "mask"),
    *("scale", "diameter", "focus", "touching", "edge", "simulated"),
)
"""Columns of the cells table."""

MAX_SHIFT_SHARE = 0.05
"""Largest accepted shift between nuclei and brightfield, as a share of the field's shorter edge."""

REGISTRATION_WINDOW_PX = 2048
"""Edge of the middle part of a field from which the shift of its nuclei is measured, px."""


@dataclass(frozen=True)
class FieldCells:
    """The cells of one field, as they are written.

    Args:
        rows: rows of the cells table, with the columns of `COLUMNS`.
        features: features of the nucleus of each cell; none where there is no nucleus.
        field: the field.
    """

    rows: list[dict[str, Any]]
    features: list[dict[str, float] | None]
    field: CroppedField


def crop_field(
    folder: Path,
    stem: str,
    row: FieldRow,
    pixel: float | None,
    settings: CropSettings,
    labels: pd.DataFrame | None,
    pool: FieldPool,
) -> FieldCells:
    """Detect the cells of one field, and write their crops.

    Args:
        folder: the cells folder.
        stem: folder of the field below `cells/`, `masks/` and `nuclei/`.
        row: the field.
        pixel: µm per pixel of the field; none where unknown.
        settings: with the chosen pixel size and illumination.
        labels: labelled positions, from `read_labels`; none without a table of labels.
        pool: opens the files.

    Raises:
        ImageError: the field cannot be read, or its nuclei do not belong to it.
    """
    with _open_channels(row, settings, pool) as (bright, nuclei, shift):
        # With a known pixel size the limits are diameters on the specimen, whatever the objective.
        own = pixel or settings.pixel_um
        least, most = None, None
        if settings.diameter_um is not None and own is not None:
            least, most = (um / own for um in settings.diameter_um)
        detections = detect(
            bright.read,
            bright.shape,
            nuclei=None if nuclei is None else nuclei.read,
            least=least,
            most=most,
            roundness=settings.roundness,
            border=settings.border,
        )
        # Pixels of the field per pixel of the crop.
        zoom = 1.0 if own is None or settings.pixel_um is None else settings.pixel_um / own
        known, agreement = match_labels(detections, None if labels is None else labels[labels["field"] == row.field])
        rows, features = [], []
        for number, cell in enumerate(detections):
            name = f"{stem}/{number:05d}"
            crop, mask, edge = extract_crop(bright, cell, settings.size, zoom)
            suffix = write_image(folder / "cells" / name, crop)
            write_image(folder / "masks" / name, np.where(mask, np.uint8(255), np.uint8(0)))
            record = dict.fromkeys(COLUMNS, "") | {
                "path": f"cells/{name}{suffix}",
                "label": row.label,
                "donor": row.donor,
                "field": row.field,
                "x": f"{cell.x:.1f}",
                "y": f"{cell.y:.1f}",
                "source": row.field,
                "mask": f"masks/{name}.png",
                "scale": "" if settings.pixel_um is None else f"{settings.pixel_um:.6g}",
                "diameter": f"{cell.diameter * (own or 1):.2f}",
                "focus": f"{_focus(crop):.3f}",
                "touching": f"{cell.touching:.3f}",
                "edge": f"{edge:.3f}",
                "simulated": row.simulated,
            }
            record |= known.get(number, {})
            measured = None
            if nuclei is not None:
                nucleus, _, _ = extract_crop(nuclei, cell, settings.size, zoom)
                record["target_nuclei"] = f"nuclei/{name}{write_image(folder / 'nuclei' / name, nucleus)}"
                measured = nuclear_features(nucleus, mask, settings.pixel_um)
            features.append(measured)
            rows.append(record)
        preview, preview_scale = make_preview(bright)
        field = CroppedField(row, bright.field.info, detections, shift, preview, preview_scale, agreement)
        return FieldCells(rows, features, field)


@contextmanager
def _open_channels(
    row: FieldRow, settings: CropSettings, pool: FieldPool
) -> Iterator[tuple[CorrectedField, CorrectedField | None, Shift | None]]:
    """Open the brightfield in even illumination, and the nuclei aligned with it."""
    with pool.open(row.brightfield, channel=row.channel, z=row.z, scene=row.scene) as field:
        bright = CorrectedField(field, settings.illumination)
        if row.nuclei is None:
            yield bright, None, None
            return
        z = row.z
        if row.nuclei != row.brightfield and pool.describe(row.nuclei, row.scene).planes == 1:
            z = None  # one plane of nuclei belongs to any plane of the brightfield
        with pool.open(row.nuclei, channel=row.nuclei_channel, z=z, scene=row.scene) as nuclei:
            if bright.shape != (nuclei.info.height, nuclei.info.width):
                raise ImageError(
                    f"{row.brightfield} is {bright.shape[1]} x {bright.shape[0]} px and its nuclei {row.nuclei} are "
                    f"{nuclei.info.width} x {nuclei.info.height} px; both must show the same field at the "
                    "same size. Export them again together",
                    code="fields.nuclei_size",
                )
            top, left, height, width = _middle(bright.shape)
            try:
                shift = register(
                    to_grey(bright.read(top, left, height, width)),
                    to_grey(nuclei.read(top, left, height, width)),
                    MAX_SHIFT_SHARE * min(bright.shape),
                )
            except ImageError as error:
                raise ImageError(f"{row.brightfield} and {row.nuclei}: {error}", code=error.code) from None
            yield bright, CorrectedField(nuclei, shift=shift), shift


def _middle(shape: tuple[int, int]) -> tuple[int, int, int, int]:
    height, width = (min(REGISTRATION_WINDOW_PX, edge) for edge in shape)
    return (shape[0] - height) // 2, (shape[1] - width) // 2, height, width


def _focus(crop: np.ndarray) -> float:
    """Measure the focus at the crop's own contrast: the scaling of pixel values is known only after training."""
    low, high = float(crop.min()), float(crop.max())
    return measure_quality(crop, low, high if high > low else low + 1)["focus"]

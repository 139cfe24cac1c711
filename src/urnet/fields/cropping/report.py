"""Report of `urnet crop`: the outlined fields, the crops, counts, and the corrected illumination."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from scipy.ndimage import binary_erosion

from urnet.fields.cropping.result import CroppedField, CropResult
from urnet.fields.detection.matching import Agreement
from urnet.html_pages import create_environment
from urnet.images.montage import read_crop

MAX_FIELDS_SHOWN = 8
"""Largest number of fields in the report."""

MAX_CROPS_SHOWN = 60
"""Largest number of crops on the contact sheet."""

PX_PER_LINE_WIDTH = 700
"""Outlines are one pixel wider for each such length of the longer edge of a preview, px: pages show it reduced."""

SINGLE_COLOUR, TOUCHING_COLOUR = (0, 158, 115), (213, 94, 0)
"""Colours of outlines: bluish green and vermilion, which colour-blind readers can tell apart (Okabe and Ito, 2008)."""


def write_crop_report(path: Path, result: CropResult) -> None:
    """Write the report beside the crops.

    Args:
        path: the HTML file, in the folder of the crops, which may still have a temporary name.
        result: what was cropped.
    """
    table = result.table
    agreements = [one.agreement for one in result.fields if one.agreement is not None]
    agreement = sum(agreements[1:], agreements[0]) if agreements else None
    generator = np.random.default_rng(0)
    chosen = np.sort(generator.permutation(len(table))[:MAX_CROPS_SHOWN])
    light = result.settings.illumination
    page = (
        create_environment("urnet.fields.cropping")
        .get_template("crop.html.j2")
        .render(
            result=result,
            single_colour=SINGLE_COLOUR,
            touching_colour=TOUCHING_COLOUR,
            labels=table["label"].replace("", "no label").value_counts().to_dict(),
            proposals=table["proposed"][table["proposed"] != ""].value_counts().to_dict(),
            simulated=", ".join(sorted(set(table["simulated"]) - {""})),
            agreement=agreement,
            measures=[] if agreement is None else _measures(agreement),
            pictures=[(one, _draw_outlines(one)) for one in result.fields[:MAX_FIELDS_SHOWN]],
            light=None if light is None or light.method == "none" else _draw_illumination(light.flat),
            light_range=None if light is None else (float(light.flat.min()), float(light.flat.max())),
            sheet=_draw_contact_sheet(path.parent, table["path"].iloc[chosen].tolist()),
            sheet_count=len(chosen),
            touching=_count_positive(table["touching"]),
            beyond=_count_positive(table["edge"]),
        )
    )
    path.write_text(page, encoding="utf-8", errors="backslashreplace", newline="\n")


def _count_positive(column: pd.Series) -> int:
    return int((column.replace("", "0").astype(float) > 0).sum())


def _measures(agreement: Agreement) -> list[tuple[str, float | None, tuple[float, float]]]:
    """Return name, value and interval of recall and precision, in percent."""
    rows = [
        ("Recall", agreement.recall, agreement.recall_interval),
        ("Precision", agreement.precision, agreement.precision_interval),
    ]
    return [
        (name, None if np.isnan(value) else 100 * value, (100 * low, 100 * high)) for name, value, (low, high) in rows
    ]


def _draw_outlines(field: CroppedField) -> bytes:
    """Draw the outlines of the cells into a field, as JPEG. Outlines of cells that touch others are wider, too."""
    picture = np.repeat(_eight_bits(field.preview)[..., None], 3, axis=2)
    h, w = field.preview.shape
    width = 1 + max(h, w) // PX_PER_LINE_WIDTH
    for cell in field.detections:
        colour = TOUCHING_COLOUR if cell.touching > 0 else SINGLE_COLOUR
        outline = cell.mask & ~binary_erosion(cell.mask)
        rows, columns = np.nonzero(outline)
        rows = ((rows + cell.top) / field.preview_scale).astype(int)
        columns = ((columns + cell.left) / field.preview_scale).astype(int)
        offsets = range(width + (cell.touching > 0))
        for down in offsets:
            for right in offsets:
                inside = (rows + down < h) & (columns + right < w)
                picture[rows[inside] + down, columns[inside] + right] = colour
    return _encode(picture, "JPEG")


def _draw_illumination(flat: np.ndarray) -> bytes:
    """Draw the illumination enlarged, from its darkest to its brightest value, as PNG."""
    grey = Image.fromarray(_eight_bits(flat, (0, 100)))
    return _encode(np.asarray(grey.resize((320, max(1, round(320 * flat.shape[0] / flat.shape[1]))))), "PNG")


def _draw_contact_sheet(root: Path, paths: list[str]) -> bytes | None:
    """Arrange crops side by side with one brightness scale, as JPEG."""
    if not paths:
        return None
    crops = [read_crop(root, path).astype(np.float32) for path in paths]
    low, high = np.percentile(np.concatenate([crop.ravel() for crop in crops]), (0.2, 99.8))
    edge, across = 96, 12
    down = -(-len(crops) // across)
    sheet = np.full((down * (edge + 4), min(across, len(crops)) * (edge + 4), 3), 255, np.uint8)
    for number, crop in enumerate(crops):
        grey = (255 * np.clip((crop - low) / max(high - low, 1e-9), 0, 1)).astype(np.uint8)
        small = np.asarray(Image.fromarray(grey).convert("RGB").resize((edge, edge), Image.Resampling.BICUBIC))
        top, left = number // across * (edge + 4) + 2, number % across * (edge + 4) + 2
        sheet[top : top + edge, left : left + edge] = small
    return _encode(sheet, "JPEG")


def _eight_bits(grey: np.ndarray, limits: tuple[float, float] = (0.2, 99.8)) -> np.ndarray:
    low, high = np.percentile(grey, limits)
    if low == high:
        return np.full(grey.shape, 128, np.uint8)
    return (255 * np.clip((grey - low) / max(high - low, 1e-9), 0, 1)).astype(np.uint8)


def _encode(pixels: np.ndarray, kind: str) -> bytes:
    target = io.BytesIO()
    options: dict[str, Any] = {"quality": 88} if kind == "JPEG" else {}
    Image.fromarray(pixels).save(target, kind, **options)
    return target.getvalue()

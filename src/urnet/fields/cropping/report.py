"""The report of a cropping: what was found where, how the light was corrected, and how the crops look."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from scipy.ndimage import binary_erosion

from urnet.html_pages import create_environment
from urnet.images.montage import read_crop

if TYPE_CHECKING:
    from urnet.fields.cropping.crop import CroppedField, CropResult

MAX_FIELDS_SHOWN = 8
"""Fields that are shown with the outlines of their cells."""

MAX_CROPS_SHOWN = 60
"""Crops on the contact sheet."""

PX_PER_LINE_WIDTH = 700
"""Edge of a picture, px, with each of which outlines become a pixel wider."""

SINGLE_COLOUR, TOUCHING_COLOUR = (0, 158, 115), (213, 94, 0)
"""Colours of outlines: bluish green and vermilion, told apart by the colour-blind as well (Okabe and Ito, 2008)."""


def write_crop_report(path: Path, cropped: "CropResult") -> None:
    """Write the report of a cropping beside its crops.

    Args:
        path: the HTML file, in the folder of the crops, which need not have its final name yet.
        cropped: what was cut out.
    """
    table = cropped.table
    agreements = [one.agreement for one in cropped.fields if one.agreement is not None]
    generator = np.random.default_rng(0)
    chosen = np.sort(generator.permutation(len(table))[:MAX_CROPS_SHOWN])
    light = cropped.settings.illumination
    page = (
        create_environment("urnet.fields.cropping")
        .get_template("crop.html.j2")
        .render(
            cropped=cropped,
            labels=table["label"].replace("", "no label").value_counts().to_dict(),
            proposals=table["proposed"][table["proposed"] != ""].value_counts().to_dict(),
            simulated=", ".join(sorted(set(table["simulated"]) - {""})),
            agreement=sum(agreements[1:], agreements[0]) if agreements else None,
            pictures=[(one.row.field, _outlined(one)) for one in cropped.fields[:MAX_FIELDS_SHOWN]],
            light=None if light is None or light.method == "none" else _light(light.flat),
            light_range=None if light is None else (float(light.flat.min()), float(light.flat.max())),
            sheet=_sheet(path.parent, table["path"].iloc[chosen].tolist()),
            sheet_count=len(chosen),
            touching=int((table["touching"].replace("", "0").astype(float) > 0).sum()) if len(table) else 0,
            cut=int((table["edge"].replace("", "0").astype(float) > 0).sum()) if len(table) else 0,
        )
    )
    path.write_text(page, encoding="utf-8", errors="backslashreplace", newline="\n")


def _outlined(field: "CroppedField") -> bytes:
    """The field with the outlines of its cells as JPEG; cells that touch others are drawn thicker, too.

    Lines are wider in large pictures, which pages show reduced.
    """
    picture = np.repeat(_eight_bits(field.preview)[..., None], 3, axis=2)
    h, w = field.preview.shape
    line = 1 + max(h, w) // PX_PER_LINE_WIDTH
    for cell in field.detections:
        outline = cell.mask & ~binary_erosion(cell.mask)
        rows, columns = np.nonzero(outline)
        rows = ((rows + cell.top) / field.preview_scale).astype(int)
        columns = ((columns + cell.left) / field.preview_scale).astype(int)
        thick = range(line + (cell.touching > 0))
        for down in thick:
            for right in thick:
                inside = (rows + down < h) & (columns + right < w)
                picture[rows[inside] + down, columns[inside] + right] = (
                    TOUCHING_COLOUR if cell.touching > 0 else SINGLE_COLOUR
                )
    return _encoded(picture, "JPEG")


def _light(flat: np.ndarray) -> bytes:
    """The light over the field, enlarged, from its darkest grey to its brightest."""
    grey = Image.fromarray(_eight_bits(flat, (0, 100)))
    return _encoded(np.asarray(grey.resize((320, max(1, round(320 * flat.shape[0] / flat.shape[1]))))), "PNG")


def _sheet(root: Path, paths: list[str]) -> bytes | None:
    """Some of the crops side by side, all at one brightness scale."""
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
    return _encoded(sheet, "JPEG")


def _eight_bits(grey: np.ndarray, limits: tuple[float, float] = (0.2, 99.8)) -> np.ndarray:
    low, high = np.percentile(grey, limits)
    if low == high:
        return np.full(grey.shape, 128, np.uint8)
    return (255 * np.clip((grey - low) / max(high - low, 1e-9), 0, 1)).astype(np.uint8)


def _encoded(pixels: np.ndarray, kind: str) -> bytes:
    target = io.BytesIO()
    options: dict[str, Any] = {"quality": 88} if kind == "JPEG" else {}
    Image.fromarray(pixels).save(target, kind, **options)
    return target.getvalue()

"""Extract the crop and the mask of one cell from a field, and write them to files."""

from pathlib import Path

import numpy as np

from urnet.cells.pixels import resize_plane
from urnet.fields.detection.detect import Detection
from urnet.fields.preprocessing.corrected_field import CorrectedField

PREVIEW_EDGE_PX = 1200
"""Longest edge of a preview, px, approximately."""


def to_grey(pixels: np.ndarray) -> np.ndarray:
    """Average the colours, (H, W)."""
    return pixels if pixels.ndim == 2 else pixels.mean(axis=2, dtype=np.float32)


def extract_crop(view: CorrectedField, cell: Detection, size: int, zoom: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Extract one cell in the middle of a crop.

    Args:
        view: the field.
        cell: the cell.
        size: edge of the crop, px.
        zoom: pixels of the field per pixel of the crop.

    Returns:
        The crop, the mask of the cell in it, and the share of the crop beyond the border of the field.
    """
    side = max(1, round(size * zoom))
    top, left = round(cell.y - side / 2), round(cell.x - side / 2)
    pixels = view.read(top, left, side, side)
    H, W = view.shape
    inside = (min(top + side, H) - max(top, 0)) * (min(left + side, W) - max(left, 0))
    mask = np.zeros((side, side), bool)
    down, right = cell.top - top, cell.left - left
    h, w = cell.mask.shape
    rows, columns = slice(max(down, 0), min(down + h, side)), slice(max(right, 0), min(right + w, side))
    if rows.start < rows.stop and columns.start < columns.stop:
        mask[rows, columns] = cell.mask[
            rows.start - down : rows.stop - down, columns.start - right : columns.stop - right
        ]
    planes = [pixels] if pixels.ndim == 2 else [pixels[..., k] for k in range(3)]
    planes = [resize_plane(np.ascontiguousarray(plane), size) for plane in planes]
    fine = resize_plane(mask.astype(np.float32), size) >= 0.5
    return planes[0] if pixels.ndim == 2 else np.stack(planes, axis=-1), fine, 1 - inside / side**2


def write_image(path: Path, pixels: np.ndarray) -> str:
    """Write 8-bit pixels as PNG, which any viewer shows, and others as TIFF; return the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels.dtype == np.uint8:
        from PIL import Image

        Image.fromarray(pixels).save(path.with_name(path.name + ".png"))
        return ".png"
    import tifffile

    kind = "rgb" if pixels.ndim == 3 else "minisblack"
    tifffile.imwrite(path.with_name(path.name + ".tif"), pixels, photometric=kind, compression="zlib")
    return ".tif"


def make_preview(view: CorrectedField) -> tuple[np.ndarray, float]:
    """Reduce a field to about `PREVIEW_EDGE_PX`, in grey, band by band; return the reduction factor as well."""
    H, W = view.shape
    step = max(1, int(np.ceil(max(H, W) / PREVIEW_EDGE_PX)))
    bands = []
    for top in range(0, H - H % step or H, step * 64):
        height = min(step * 64, H - top)
        band = to_grey(view.read(top, 0, height, W)).astype(np.float32)
        h, w = height // step * step, W // step * step
        if h and w:
            bands.append(band[:h, :w].reshape(h // step, step, w // step, step).mean(axis=(1, 3)))
    return np.concatenate(bands), float(step)

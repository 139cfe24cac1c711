"""Classify image files with a trained model, a batch at a time, and write a row for each as it is done."""

import csv
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from urnet.bundle import Model
from urnet.cells.table import Cells, find_images
from urnet.errors import ImageError
from urnet.training.run import refuse_existing

BATCH = 64


@dataclass(frozen=True)
class Predicted:
    """How a prediction went.

    Attributes:
        images: number of images named.
        counts: images of each class.
        failed: images that could not be used; their rows say why.
    """

    images: int
    counts: dict[str, int]
    failed: int


def predict_files(
    model: Model,
    paths: Iterable[Path | str],
    out: Path,
    *,
    enhanced: Path | None = None,
    cam: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Predicted:
    """Classify files, folders or tables into a CSV: `path`, `predicted`, `p_<class>`, `error`.

    An image that cannot be used gets a row with its reason, and the rest goes on. The CSV is written beside its place
    and moved there at the end.

    Args:
        model: a trained model.
        paths: images, folders of images, or tables with a column `path`.
        out: the CSV.
        enhanced: folder for the enhanced images, in the raw counts' own range; named in the column `enhanced`.
        cam: folder for Grad-CAM over the raw image, for the predicted class; named in the column `cam`.
        progress: called with the number of images done and of all.

    Raises:
        CellsError: a path does not exist or holds no images.
        RunError: `out`, `enhanced` or `cam` exists already.
    """
    for path in filter(None, (out, enhanced, cam)):
        refuse_existing(path)
    cells = find_images(paths, model.config.tile)
    names = _file_names(cells.table["path"])
    extras = [name for name, folder in (("enhanced", enhanced), ("cam", cam)) if folder is not None]
    columns = ["path", "predicted", *(f"p_{c}" for c in model.classes), *extras, "error"]
    counts = dict.fromkeys(model.classes, 0)
    failed = 0
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    with part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        for start in range(0, len(cells), BATCH):
            index = range(start, min(start + BATCH, len(cells)))
            rows, inputs = _read(model, cells, index)
            good = [k for k, row in enumerate(rows) if "error" not in row]
            if good:
                _classify(
                    model, [rows[k] for k in good], np.stack(inputs), [names[start + k] for k in good], enhanced, cam
                )
            for row in rows:
                failed += "error" in row
                if "error" not in row:
                    counts[str(row["predicted"])] += 1
                writer.writerow(row)
            file.flush()
            if progress is not None:
                progress(index.stop, len(cells))
    part.replace(out)
    return Predicted(len(cells), counts, failed)


def _read(model: Model, cells: Cells, index: range) -> tuple[list[dict[str, object]], list[np.ndarray]]:
    rows, inputs = [], []
    for i in index:
        row: dict[str, object] = {"path": cells.table["path"].iloc[i]}
        try:
            inputs.append(model.prepare(cells.read(i)))
        except ImageError as error:
            row["error"] = str(error)
        rows.append(row)
    return rows, inputs


def _classify(
    model: Model,
    rows: list[dict[str, object]],
    inputs: np.ndarray,
    names: list[str],
    enhanced: Path | None,
    cam: Path | None,
) -> None:
    """Fill in the rows of one batch, and write its pictures."""
    probabilities, images = next(iter(model.forward(inputs, batch_size=len(inputs))))
    chosen = probabilities.argmax(axis=1)
    for row, values, best in zip(rows, probabilities, chosen, strict=True):
        row["predicted"] = model.classes[best]
        row |= {f"p_{c}": f"{v:.6f}" for c, v in zip(model.classes, values, strict=True)}
    if enhanced is not None:
        for row, image, name in zip(rows, images, names, strict=True):
            row["enhanced"] = _write_enhanced(enhanced / f"{name}.tif", model.config.scaling.invert(image))
    if cam is not None:
        import torch
        from PIL import Image

        from urnet.evaluation.gradcam import grad_cam, overlay

        maps = grad_cam(
            model.joint, torch.from_numpy(inputs).to(model.device), torch.from_numpy(chosen).to(model.device)
        )
        for row, image, heat, name in zip(rows, inputs, maps, names, strict=True):
            path = cam / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(overlay(np.moveaxis(image, 0, -1).squeeze(), heat)).save(path)
            row["cam"] = path.as_posix()


def _write_enhanced(path: Path, planes: np.ndarray) -> str:
    """(C, S, S) as TIFF at its own depth."""
    import tifffile

    path.parent.mkdir(parents=True, exist_ok=True)
    colour = planes.shape[0] == 3
    tifffile.imwrite(
        path, np.moveaxis(planes, 0, -1) if colour else planes[0], photometric="rgb" if colour else "minisblack"
    )
    return path.as_posix()


def _file_names(paths: Iterable[str]) -> list[str]:
    """Distinct file names, without suffix, that keep the folders below the common one."""
    paths = list(paths)
    folders = [Path(p).parent.as_posix() for p in paths]
    try:
        common = os.path.commonpath(folders)
    except ValueError:
        common = ""
    names, seen = [], set()
    for path in paths:
        plain = os.path.relpath(path, common) if common else Path(path).as_posix().lstrip("./")
        name = Path(plain.replace("#", "_").replace(":", "_"))
        stem = (
            name.with_suffix("") if name.suffix.lower() in (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff") else name
        )
        unique = stem.as_posix().replace("../", "")
        while unique.casefold() in seen:
            unique += "_"
        seen.add(unique.casefold())
        names.append(unique)
    return names

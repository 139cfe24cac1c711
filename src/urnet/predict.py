"""Classify image files with a trained model, a batch at a time, and write a row for each as it is done."""

import csv
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from urnet.bundle import Model
from urnet.calibration.calibration import COVERAGE
from urnet.cells.copies import padding_tiles
from urnet.cells.table import Cells, find_images
from urnet.errors import ImageError, RecipeError, RunError
from urnet.images.read import SUFFIXES
from urnet.training.run import refuse_existing

BATCH = 64
PADDING = "padding of the archive: an identical tile stands there a dozen times or more"


@dataclass(frozen=True)
class Predicted:
    """How a prediction went.

    Attributes:
        images: number of images named.
        counts: images of each class, without those rejected.
        rejected: images that show no countable cell; their rows say why. 0 for a model without calibration.
        failed: images that could not be used; their rows say why.
        left_out: tiles that are an archive's padding, not cells.
    """

    images: int
    counts: dict[str, int]
    rejected: int
    failed: int
    left_out: int


def predict_files(
    model: Model,
    paths: Iterable[Path | str],
    out: Path,
    *,
    enhanced: Path | None = None,
    cam: Path | None = None,
    coverage: float = COVERAGE,
    progress: Callable[[int, int], None] | None = None,
) -> Predicted:
    """Classify files, folders or tables into a CSV: `path`, `predicted`, `p_<class>`, `error`.

    Of a calibrated model it also says, after the probabilities, why an image shows no countable cell (`rejected`, empty
    for one that does), and which classes cannot be ruled out (`set`, joined by `|`). `predicted` is filled either way:
    what counts as a cell of its class is a row whose `rejected` and `error` are empty.

    An image that cannot be used gets a row with its reason, and the rest goes on. The CSV is written beside its place
    and moved there at the end; of an interrupted prediction its rows so far stay in `<out>.part`.

    Args:
        model: a trained model.
        paths: images, folders of images, or tables with a column `path`.
        out: the CSV.
        enhanced: folder for the enhanced images, in the raw counts' own range; named in the column `enhanced`.
        cam: folder for Grad-CAM over the raw image, for the predicted class; named in the column `cam`.
        coverage: of the sets: the share of each class's cells whose set holds it, between 0 and 1.
        progress: called with the number of images done and of all.

    Raises:
        CellsError: a path does not exist or holds no images.
        RunError: `out`, `enhanced` or `cam` exists already, or rows of an interrupted prediction do; or the coverage is
            not between 0 and 1.
        RecipeError: Grad-CAM is asked for, and the classifier has no feature maps.
    """
    refuse_existing(out, file=True)
    for folder in filter(None, (enhanced, cam)):
        refuse_existing(folder)
    if out in (enhanced, cam):
        raise RunError(f"{out}: cannot be the table and a folder of pictures at once; choose another --out")
    if not 0 < coverage < 1:
        raise RunError(f"a coverage of {coverage:g} was asked for; it must lie between 0 and 1, as 0.9")
    if cam is not None:
        _check_cam(model)
    cells = find_images(paths, model.config.tile, model.config.image)
    padding = padding_tiles(cells)
    names = _file_names(cells.table["path"])
    extras = [name for name, folder in (("enhanced", enhanced), ("cam", cam)) if folder is not None]
    columns = ["path", "predicted", *model.columns, *extras, "error"]
    counts = dict.fromkeys(model.classes, 0)
    rejected = failed = left_out = 0
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    if part.exists():
        raise RunError(f"{part}: rows of an interrupted prediction, or of one that is running; move or remove it first")
    with part.open("x", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        for start in range(0, len(cells), BATCH):
            index = range(start, min(start + BATCH, len(cells)))
            rows, crops = _read(model, cells, index, padding)
            good = [(row, names[i]) for row, i in zip(rows, index, strict=True) if "error" not in row]
            if good:
                seen = cells.table.iloc[[i for row, i in zip(rows, index, strict=True) if "error" not in row]]
                _classify(model, good, np.stack(crops), seen, coverage, enhanced, cam)
            for row in rows:
                if row.get("error") == PADDING:
                    left_out += 1
                elif "error" in row:
                    failed += 1
                elif row.get("rejected"):
                    rejected += 1
                else:
                    counts[row["predicted"]] += 1
            writer.writerows(rows)
            file.flush()
            if progress is not None:
                progress(index.stop, len(cells))
    part.replace(out)
    return Predicted(len(cells), counts, rejected, failed, left_out)


def _check_cam(model: Model) -> None:
    """Find out with one black image, not after the first batch."""
    import torch

    from urnet.evaluation.gradcam import grad_cam

    config = model.config
    try:
        grad_cam(model.joint, torch.zeros(1, config.channels, config.size, config.size))
    except (RecipeError, ValueError):
        raise RecipeError(
            f"classifier {config.classifier['name']!r} makes no feature maps that Grad-CAM could show; leave --cam out"
        ) from None


def _read(model: Model, cells: Cells, index: range, padding: set[int]) -> tuple[list[dict[str, str]], list[np.ndarray]]:
    """A row for each cell, and the crops (C, S, S) of those that can be used, in raw counts."""
    rows, crops = [], []
    for i in index:
        row = {"path": cells.table["path"].iloc[i]}
        if i in padding:
            row["error"] = PADDING
            rows.append(row)
            continue
        try:
            crops.append(model.fit(cells.read(i)))
        except ImageError as error:
            row["error"] = str(error)
        rows.append(row)
    return rows, crops


def _classify(
    model: Model,
    named_rows: list[tuple[dict[str, str], str]],
    crops: np.ndarray,
    seen: pd.DataFrame,
    coverage: float,
    enhanced: Path | None,
    cam: Path | None,
) -> None:
    """Fill in the rows of one batch, and write its pictures under their names."""
    inputs = model.config.scaling.apply(crops)
    outputs = next(model.outputs(inputs, batch_size=len(inputs)))
    for (row, _), told in zip(named_rows, model.rows(outputs, crops, seen, coverage), strict=True):
        row |= {name: f"{value:.6f}" if type(value) is float else value for name, value in told.items()}
    if enhanced is not None:
        for (row, name), image in zip(named_rows, model.config.scaling.invert(outputs.enhanced), strict=True):
            row["enhanced"] = _write_enhanced(enhanced / f"{name}.tif", image)
    if cam is not None:
        import torch

        from urnet.evaluation.gradcam import grad_cam

        maps = grad_cam(model.joint, torch.from_numpy(inputs), torch.from_numpy(outputs.logits.argmax(axis=1)))
        for (row, name), image, heat in zip(named_rows, inputs, maps, strict=True):
            row["cam"] = _write_cam(cam / f"{name}.png", image, heat)


def _write_cam(path: Path, image: np.ndarray, heat: np.ndarray) -> str:
    """A map (S, S) over its image (C, S, S) as PNG."""
    from PIL import Image

    from urnet.evaluation.gradcam import overlay

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(overlay(np.moveaxis(image, 0, -1), heat)).save(path)
    return path.as_posix()


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
    """Distinct file names, without the image's suffix, that keep the folders below the common one."""
    paths = list(paths)
    try:
        common = os.path.commonpath([Path(path).parent for path in paths])
    except ValueError:  # absolute beside relative, or two drives
        common = ""
    names, seen = [], set()
    for path in paths:
        below = Path(os.path.relpath(path, common) if common else path)
        name = "/".join(part for part in below.parts if part not in ("..", below.anchor))
        if below.suffix.lower() in SUFFIXES:
            name = name.removesuffix(below.suffix)
        name = re.sub(r'[#:*?"<>|\\]', "_", name)
        while name.casefold() in seen:
            name += "_"
        seen.add(name.casefold())
        names.append(name)
    return names

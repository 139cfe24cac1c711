"""Write folders of simulated cells: phantoms drawn from scratch, and stained crops after simulated destaining.

A folder holds `cells.csv` and crops as 8-bit PNG in `cells/<label>/`. The paired images of a crop have the same size
and name in `clean/` (phase), `nuclei/` (nuclear fluorescence) or `stained/`. The folder appears when it is complete.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from urnet.cells.read import read_cells
from urnet.cells.table import TABLE_NAME
from urnet.errors import CellsError, ImageError
from urnet.files.atomic import atomic_folder
from urnet.files.csv_tables import write_csv
from urnet.images.simulation.destain import destain
from urnet.images.simulation.phantom import CLASS_FREQUENCY, CROP_UM, draw_crop, draw_field
from urnet.version import __version__

SIZE_RANGE_PX = (16, 1024)
"""Smallest and largest edge of a simulated crop, in pixels."""

FIELD_SIZE_PX = 1024
"""Edge of a phantom field, in pixels."""

README_NAME = "README.txt"
"""File that says how the cells were simulated."""

TARGETS = ("stained", "clean")
"""Paired images that the column `target` of destained cells can name."""

Progress = Callable[[float], None]

_COPIED_COLUMNS = ("donor", "field", "x", "y", "split", "fold")


def write_phantom(
    out: Path,
    cells: int,
    *,
    size: int = 48,
    donors: int = 12,
    fields: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Write phantom cells of three classes with their natural imbalance, and optionally whole fields.

    Every donor has cells of all classes. The fields show other cells of the same donors than the crops:

    - `fields/field_000.tif` (brightfield) and `fields/field_000_nuclei.tif` (fluorescence), both uint16;
    - `fields/fields.csv`, the field table;
    - `fields/truth.csv`, the cells: field, x (column), y (row), radius, label, donor, and overlap (`single`, `touching`
      or `overlapping`).

    Args:
        out: new or empty folder.
        cells: number of cells, at least one of each class per donor.
        size: edge of the crops, in pixels.
        donors: number of donors. They have equal numbers of cells.
        fields: number of whole fields, for one donor after the other.
        seed: seed of all random numbers. The same seed gives the same files.
        progress: called with the finished share, 0 to 1.

    Returns:
        `out`.

    Raises:
        CellsError: a number is outside its range (`cells.simulation_invalid`).
        RunError: `out` is not empty.
    """
    _check_numbers(size, seed)
    if donors < 1 or fields < 0:
        raise CellsError(
            f"donors is {donors} and fields is {fields}; donors must be at least 1, fields at least 0",
            code="cells.simulation_invalid",
        )
    minimum = donors * len(CLASS_FREQUENCY)
    if cells < minimum:
        raise CellsError(
            f"cells is {cells} for {donors} donors; every donor needs at least one of each of the "
            f"{len(CLASS_FREQUENCY)} classes, so at least {minimum} cells. Increase cells or lower donors",
            code="cells.simulation_invalid",
        )
    report = progress or (lambda share: None)
    with atomic_folder(out) as folder:
        rows = []
        for donor in range(donors):
            for label, count in _count_classes(cells // donors + (donor < cells % donors)).items():
                for index in range(count):
                    crop = draw_crop(label, seed, donor, index, size)
                    name = f"{label}/d{donor:02d}_{index:04d}.png"
                    for kind, pixels in (("cells", crop.image), ("clean", crop.clean), ("nuclei", crop.nuclei)):
                        _write_png(folder / kind / name, pixels)
                    rows.append(
                        {
                            "path": f"cells/{name}",
                            "label": label,
                            "donor": f"d{donor:02d}",
                            "target": f"clean/{name}",
                            "target_nuclei": f"nuclei/{name}",
                            "target_clean": f"clean/{name}",
                            "simulated": "phantom",
                        }
                    )
                    report(len(rows) / (cells + 20 * fields))
        _write_csv(folder / TABLE_NAME, rows)
        if fields:
            _write_fields(
                folder / "fields",
                fields,
                size,
                donors,
                seed,
                lambda n: report((cells + 20 * n) / (cells + 20 * fields)),
            )
        _write_readme(
            folder,
            "Phantom cells, drawn from scratch: no real cell was imaged.",
            f"{cells} cells of {donors} donors, crops of {size} px ({CROP_UM:g} µm), {fields} fields, seed {seed}.",
            "cells/: stain-free brightfield. clean/: its phase. nuclei/: nuclear fluorescence.",
        )
    return out


def write_destained(
    stained: Path,
    out: Path,
    *,
    size: int = 128,
    target: str = "stained",
    seed: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Write stained crops after simulated destaining, with the stained originals and the phase as paired images.

    Labels, donors, sources and a given split are copied.

    Args:
        stained: cells table, or folder per class, of 8-bit RGB crops. Their central square is resized.
        out: new or empty folder.
        size: edge of the written crops, in pixels.
        target: paired image in the column `target`, one of `TARGETS`. Both are written.
        seed: seed of all random numbers. The same seed gives the same files.
        progress: called with the finished share, 0 to 1.

    Returns:
        `out`.

    Raises:
        CellsError: the stained table is invalid, or an argument is outside its range (`cells.simulation_invalid`).
        ImageError: a stained crop cannot be read, or is not 8-bit RGB. Then `out` is not written.
        RunError: `out` is not empty.
    """
    _check_numbers(size, seed)
    if target not in TARGETS:
        raise CellsError(
            f"target is {target!r}; it must be one of {', '.join(TARGETS)}", code="cells.simulation_invalid"
        )
    source = read_cells(stained)
    copied = [column for column in _COPIED_COLUMNS if column in source.table]
    with atomic_folder(out) as folder:
        rows: list[dict[str, str]] = []
        names: set[str] = set()
        for index, row in enumerate(source.table.to_dict("records")):
            name = _make_unique_name(row["label"], row["path"], names)
            try:
                original = _crop_to_square(source.read(index), size)
                result = destain(original, np.random.default_rng((seed, index, 1)))
            except ImageError as error:
                file = str(source.root / row["path"])
                raise error if file in str(error) else ImageError(f"{file}: {error}", code=error.code) from None
            _write_png(folder / "cells" / name, _to_8_bit(result.image))
            _write_png(folder / "clean" / name, _to_8_bit(result.clean))
            _write_png(folder / "stained" / name, original)
            new = {
                "path": f"cells/{name}",
                "label": row["label"],
                "source": row["source"],
                "target": f"{target}/{name}",
                "target_stain": f"stained/{name}",
                "target_clean": f"clean/{name}",
                "simulated": "simulated destaining",
            }
            rows.append(new | {column: row[column] for column in copied})
            if progress is not None:
                progress(len(rows) / len(source))
        _write_csv(folder / TABLE_NAME, rows)
        _write_readme(
            folder,
            "Simulated destaining of stained cells: real morphology under simulated stain-free optics.",
            f"{len(rows)} cells, {size} px a crop, target {target}, seed {seed}.",
            "cells/: simulated stain-free brightfield. clean/: its phase. stained/: the original, resized.",
        )
    return out


def _count_classes(cells: int) -> dict[str, int]:
    """Count the cells of each class of one donor: the natural shares, with a few monocytes if possible."""
    monocytes = max(round(CLASS_FREQUENCY["monocyte"] * cells), min(3, max(1, cells // 10)))
    others = cells - monocytes
    share = CLASS_FREQUENCY["lymphocyte"] / (CLASS_FREQUENCY["lymphocyte"] + CLASS_FREQUENCY["granulocyte"])
    lymphocytes = max(round(share * others), 1)
    return {"granulocyte": others - lymphocytes, "lymphocyte": lymphocytes, "monocyte": monocytes}


def _write_fields(folder: Path, fields: int, crop: int, donors: int, seed: int, report: Callable[[int], None]) -> None:
    # Each cell has the space of one and a half crops in each direction; at most sixty cells.
    cells = int(np.clip((FIELD_SIZE_PX / (1.5 * crop)) ** 2 / 3, 1, 60))
    rows, fields_table = [], []
    for number in range(fields):
        donor, index = number % donors, number // donors
        field = draw_field(seed, donor, index, shape=(FIELD_SIZE_PX, FIELD_SIZE_PX), cells=cells, crop=crop)
        name = f"field_{number:03d}"
        _write_tiff(folder / f"{name}.tif", field.brightfield, CROP_UM / crop)
        _write_tiff(folder / f"{name}_nuclei.tif", field.nuclei, CROP_UM / crop)
        rows += [
            {
                "field": f"{name}.tif",
                "x": cell.x,
                "y": cell.y,
                "radius": f"{cell.radius:.2f}",
                "label": cell.label,
                "donor": f"d{donor:02d}",
                "overlap": cell.contact,
                "simulated": "phantom",
            }
            for cell in field.cells
        ]
        fields_table.append(
            {
                "field": f"{name}.tif",
                "nuclei": f"{name}_nuclei.tif",
                "donor": f"d{donor:02d}",
                "pixel_size_um": f"{CROP_UM / crop:.6g}",
                "simulated": "phantom",
            }
        )
        report(number + 1)
    _write_csv(folder / "fields.csv", fields_table)
    _write_csv(folder / "truth.csv", rows)


def _check_numbers(size: int, seed: int) -> None:
    if not SIZE_RANGE_PX[0] <= size <= SIZE_RANGE_PX[1]:
        raise CellsError(
            f"size is {size} px; it must be {SIZE_RANGE_PX[0]} to {SIZE_RANGE_PX[1]} px",
            code="cells.simulation_invalid",
        )
    if seed < 0:
        raise CellsError(f"seed is {seed}; it must be 0 or more", code="cells.simulation_invalid")


def _make_unique_name(label: str, path: str, taken: set[str]) -> str:
    """Make a unique name, `<label>/<stem>.png`, that is valid on every system, whatever the case of letters."""
    stem = re.sub(r"\.(png|jpe?g|bmp|tiff?)(?=$|#)", "", path.rsplit("/", 1)[-1], flags=re.IGNORECASE)
    folder, stem = (re.sub(r"[^\w.-]", "_", part).strip(".") or "_" for part in (label, stem))
    name, number = f"{folder}/{stem}.png", 1
    while name.casefold() in taken:
        number += 1
        name = f"{folder}/{stem}_{number}.png"
    taken.add(name.casefold())
    return name


def _crop_to_square(image: np.ndarray, size: int) -> np.ndarray:
    """Crop to the central square and resize. Return other than 8-bit RGB unchanged, so that `destain` refuses it."""
    if image.ndim != 3 or image.dtype != np.uint8:
        return image
    side = min(image.shape[:2])
    top, left = ((edge - side) // 2 for edge in image.shape[:2])
    square = Image.fromarray(image[top : top + side, left : left + side])
    return np.asarray(square.resize((size, size), Image.Resampling.BICUBIC))


def _to_8_bit(image: np.ndarray) -> np.ndarray:
    return np.rint(255 * image).astype(np.uint8)


def _write_png(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _write_tiff(path: Path, pixels: np.ndarray, pixel_um: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    per_cm = 1e4 / pixel_um
    tifffile.imwrite(path, pixels, photometric="minisblack", resolution=(per_cm, per_cm), resolutionunit="CENTIMETER")


def _write_csv(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    rows = list(rows)
    write_csv(path, list(rows[0]), rows)


def is_phantom(folder: Path, seed: int) -> bool:
    """Return whether a folder holds phantom cells that were drawn with a seed."""
    try:
        text = (folder / README_NAME).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    return text.startswith("Phantom cells") and f"seed {seed}." in text


def _write_readme(folder: Path, *lines: str) -> None:
    text = "\n".join((*lines, f"Made by urnet {__version__}.", ""))
    (folder / README_NAME).write_text(text, encoding="utf-8", newline="\n")

"""The cells table in memory: one row per cell, and the names of its columns.

Every table has `path` and `label`. Other columns, if known:

- origin: `donor`, `field`, `x`, `y`, `source`, `simulated`. `source` is the original image of a cell; without the
  column it is the file's path, or the address of a tile.
- split: `split`, `fold`, `left_out` (reason for an excluded cell), `augmented` (the original of a written copy).
- files: `target`, `target_nuclei`, `target_stain`, `target_clean` (paired images), `mask`, `tile` (edge of a montage's
  tiles, in pixels).
- cells cropped from fields: `proposed`, `confidence`, `scale`, `diameter`, `focus`, `touching`, `edge`.
- cells of a run: `content`, `target_content` and so on, see `urnet.cells.pixel_hashes`.

Paths are relative to the table, with forward slashes.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd

from urnet.errors import CellsError
from urnet.files.csv_tables import write_frame
from urnet.images.montage import read_crop

TARGET_COLUMNS = ("target", "target_nuclei", "target_stain", "target_clean")
"""Columns with the path of a paired image of the same cell."""

PATH_COLUMNS = ("path", *TARGET_COLUMNS, "mask")
"""Columns with paths."""

CROP_COLUMNS = ("proposed", "confidence", "scale", "diameter", "focus", "touching", "edge")
"""Columns with measurements of a cell in its field. Training does not use them."""

HASH_COLUMNS = {"path": "content", **{column: f"{column}_content" for column in TARGET_COLUMNS}}
"""Columns with the pixel hashes of a run's images, by the column with the image's path."""

COLUMNS = (
    *("path", "label", "donor", "field", "x", "y", "split", "source", *TARGET_COLUMNS, "mask"),
    *("tile", "fold", "augmented", "simulated", "left_out", *CROP_COLUMNS, *HASH_COLUMNS.values()),
)
"""All columns of a cells table."""

PARTS = ("train", "validation", "test")
"""Parts of a split."""

TABLE_NAME = "cells.csv"
"""File name of the cells table in a folder."""


class MissingFilesError(CellsError):
    """Files of a cells table do not exist.

    Args:
        message: what is missing.
        files: all missing files, as in the table.
    """

    code = "cells.files_missing"

    def __init__(self, message: str, files: Sequence[str]):
        super().__init__(message)
        self.files = tuple(files)


class CropSource(Protocol):
    """Decoded crops of a table, such as `urnet.cells.cache.crops.CachedCrops`."""

    def read(self, cells: "Cells", index: int) -> np.ndarray | None:
        """Return the crop of a cell, or None if it must be decoded."""

    def select(self, table: pd.DataFrame, rows: np.ndarray | slice = ...) -> "CropSource":
        """Select the crops of some rows, for a table that holds these rows only."""


@dataclass(frozen=True)
class Cells:
    """Labelled crops.

    Attributes:
        root: folder that the paths are relative to.
        table: one row per cell, columns as in the module's docstring. Unknown text is "".
        classes: the labels in the order of the network's outputs.
        cached_crops: crops that need not be decoded.
    """

    root: Path
    table: pd.DataFrame
    classes: tuple[str, ...] = ()
    cached_crops: CropSource | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def labels(self) -> np.ndarray:
        """Index of each cell's label in `classes`, (N,) int64."""
        order = {name: index for index, name in enumerate(self.classes)}
        return self.table["label"].map(order).to_numpy(np.int64)

    @property
    def has_split(self) -> bool:
        """Whether any cell has a part in the column `split`."""
        return "split" in self.table and bool((self.table["split"] != "").any())

    @property
    def simulated(self) -> str:
        """Kinds of simulation of the images; "" for real images."""
        return ", ".join(sorted(set(self.table["simulated"]) - {""})) if "simulated" in self.table else ""

    def is_complete(self, column: str) -> bool:
        """Return whether a column exists and has a value for every cell."""
        return column in self.table and bool((self.table[column] != "").all())

    def part(self, name: str) -> "Cells":
        """Select the cells of one part: `train`, `validation` or `test`."""
        return self.where(self.table["split"] == name)

    def where(self, mask: "pd.Series | np.ndarray") -> "Cells":
        """Select the cells for which a mask is true, in order."""
        rows = np.asarray(mask)
        table = self.table.loc[rows].reset_index(drop=True)
        return replace(self, table=table, cached_crops=self.cached_crops and self.cached_crops.select(table, rows))

    def with_columns(self, **columns: object) -> "Cells":
        """Copy the cells, with columns added or replaced."""
        table = self.table.assign(**columns)
        has_same_files = columns.keys().isdisjoint(("path", "tile"))
        cached_crops = self.cached_crops.select(table) if self.cached_crops and has_same_files else None
        return replace(self, table=table, cached_crops=cached_crops)

    def read(self, index: int, column: str = "path") -> np.ndarray:
        """Read one cell's image (`path`) or paired image (one of `TARGET_COLUMNS`), in raw counts.

        Raises:
            ImageError: the file cannot be read.
        """
        if self.cached_crops is not None and column == "path":
            cached = self.cached_crops.read(self, index)
            if cached is not None:
                return cached
        # Single values: a whole row takes several times as long as a small crop.
        tile = self.table["tile"].iat[index] if "tile" in self.table else ""
        return read_crop(self.root, self.table[column].iat[index], int(tile) if tile != "" else None)

    def write(self, path: Path) -> None:
        """Write the table to a CSV file, with paths relative to the file's folder."""
        table = self.table
        if path.parent.resolve() != self.root.resolve():
            moved = {c: [_rebase(self.root, path.parent, p) for p in table[c]] for c in PATH_COLUMNS if c in table}
            table = table.assign(**moved)
        used = [c for c in table if c in ("path", "label") or (table[c] != "").any()]
        write_frame(path, table[used])


def _rebase(old: Path, new: Path, path: str) -> str:
    """Make a path relative to `new` instead of `old`; make it absolute if they are on different drives."""
    if not path:
        return path
    full = old.resolve() / path
    try:
        return Path(os.path.relpath(full, new.resolve())).as_posix()
    except ValueError:
        return full.as_posix()

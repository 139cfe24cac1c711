"""Images of the cells to be labelled: decoded in background threads before they are needed, with bounded memory."""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from urnet.bundle.model import Model
from urnet.cells.class_folders import locate_paired_file
from urnet.cells.copies import find_padding_tiles
from urnet.cells.read import find_images, read_cells
from urnet.cells.table import TABLE_NAME, TARGET_COLUMNS, Cells
from urnet.errors import ImageError, StoreError, UrnetError
from urnet.evaluation.figure_style import encode_png
from urnet.images.montage import resolve_address
from urnet.run_folder import find_run
from urnet.serve.database.labels import LabelStore

PREFETCHED_CELLS = 1000
"""Cells that are decoded before a page shows them."""

CACHED_CELLS = PREFETCHED_CELLS + 500
"""Cells whose images stay in memory; the least recently used are dropped."""

CHUNK_CELLS = 16
"""Cells decoded before other threads get a turn."""

PREFETCH_INTERVAL = 50
"""Number of labels between two prefetches."""

SCALE_SAMPLE_CELLS = 64
"""Cells from which the common display range of all cells is measured."""

DISPLAY_PERCENTILES = (0.5, 99.8)
"""Percentiles of the pixel values that are shown black and white."""

PAIRED_COLUMNS = ("target_nuclei", "target", "target_stain", "target_clean")
"""Columns with paired images; the first one with values is shown, since nuclear fluorescence says most."""


@dataclass(frozen=True)
class CellImage:
    """The images of one cell, as PNG.

    Attributes:
        crop: the cell; none where it cannot be read.
        paired: the fluorescence or another paired image; none without one.
        error: reason for which the cell cannot be shown.
    """

    crop: bytes | None
    paired: bytes | None
    error: str = ""


class CellImages:
    """Images of the cells of a labelling queue.

    Args:
        name: name of the queue.
        cells: the cells, with absolute paths.
        model: model whose scaling is used for display; without one, all cells share a measured range.

    Attributes:
        rows: row of each path in the cells table.
        paired: column of the paired images; none without any.
    """

    def __init__(self, name: str, cells: Cells, model: Model | None = None):
        self.name, self.cells, self.model = name, cells, model
        self.rows = {path: row for row, path in enumerate(cells.table["path"])}
        self.paired = next((column for column in PAIRED_COLUMNS if _has_values(cells, column)), None)
        self._display_ranges: dict[str, tuple[float, float]] = {}
        self._cache: OrderedDict[int, CellImage] = OrderedDict()
        self._lock = threading.Lock()
        self._prefetching: asyncio.Task[None] | None = None
        self._since = 0

    @classmethod
    def open(cls, path: Path, *, model: Model | None = None, run: Path | None = None) -> "CellImages":
        """Open the cells of a table or folder.

        Args:
            path: the table or folder.
            model: model that proposes labels, if any; it says how montages are divided into tiles.
            run: run folder of the model; its recipe names the paired images of class folders.

        Raises:
            CellsError: the table or folder holds no cells.
        """
        tile, image = (None, None) if model is None else (model.config.tile, model.config.image)
        if path.suffix.lower() == ".csv" or (path / TABLE_NAME).is_file():
            cells = read_cells(path, tile=tile, image=image, labelled=False)
        else:
            cells = find_images([path], tile, image)
            if run is not None and (target := _read_target(run)):
                paired = [_paired_address(address, target) for address in cells.table["path"]]
                cells = cells.with_columns(target=paired)
        root = cells.root.resolve()
        absolute = {
            column: [_absolute(root, one) for one in cells.table[column]]
            for column in ("path", *TARGET_COLUMNS)
            if column in cells.table
        }
        return cls(path.resolve().as_posix(), replace(cells.with_columns(**absolute), root=Path()), model)

    def queue_rows(self) -> list[dict[str, Any]]:
        """Return the rows for the labelling queue: all cells but the padding of montages."""
        padding = find_padding_tiles(self.cells)
        return [row for number, row in enumerate(self.cells.table.to_dict("records")) if number not in padding]

    def image(self, path: str) -> CellImage:
        """Return the images of a cell; decode them if they are not in memory. A failure is tried again at every call.

        Args:
            path: path of the cell in the queue.

        Raises:
            KeyError: the queue has no such path.
        """
        row = self.rows[path]
        with self._lock:
            if row in self._cache:
                self._cache.move_to_end(row)
                return self._cache[row]
        made = self._draw(row)
        if made.crop is None:
            return made
        with self._lock:
            self._cache[row] = made
            while len(self._cache) > CACHED_CELLS:
                self._cache.popitem(last=False)
        return made

    def find_problem(self, path: str) -> str:
        """Return why a cell cannot be shown; empty if it can.

        Args:
            path: path of the cell in the queue.
        """
        if path not in self.rows:
            return f"{self.name} no longer holds it"
        return self.image(path).error

    def prefetch(self, labels: LabelStore) -> None:
        """Decode the next cells of the queue in the background; call this whenever a cell is shown."""
        self._since += 1
        busy = self._prefetching is not None and not self._prefetching.done()
        if not busy and (self._prefetching is None or self._since >= PREFETCH_INTERVAL):
            self._since = 0
            self._prefetching = asyncio.create_task(self._prefetch(labels))

    async def _prefetch(self, labels: LabelStore) -> None:
        try:
            following = await asyncio.to_thread(labels.list_next, self.name, PREFETCHED_CELLS)
        except StoreError:  # the page reports this error when it claims a cell
            return
        paths = [path for path in following if path in self.rows]
        for start in range(0, len(paths), CHUNK_CELLS):
            await asyncio.to_thread(self._decode, paths[start : start + CHUNK_CELLS])

    def _decode(self, paths: Iterable[str]) -> None:
        for path in reversed(list(paths)):  # the next one is dropped last
            self.image(path)

    def _draw(self, row: int) -> CellImage:
        try:
            crop = self._png(row)
        except (UrnetError, OSError) as error:
            return CellImage(None, None, str(error))
        return CellImage(crop, self._paired_png(row))

    def _png(self, row: int) -> bytes:
        pixels = self.cells.read(row)
        if self.model is None:
            low, high = self._display_range("path")
            return encode_png((pixels.astype(np.float32) - low) / (high - low))
        scaling = self.model.config.scaling
        if scaling.dtype in (str(pixels.dtype), "any"):
            return encode_png(scaling.apply(pixels))
        low, high = np.percentile(pixels, DISPLAY_PERCENTILES)
        return encode_png((pixels - low) / max(high - low, 1e-6))

    def _paired_png(self, row: int) -> bytes | None:
        column = self.paired
        if column is None or not self.cells.table[column].iat[row]:
            return None
        try:
            pixels = self.cells.read(row, column)
        except (UrnetError, OSError):
            return None
        low, high = self._display_range(column)
        return encode_png((pixels.astype(np.float32) - low) / (high - low))

    def _display_range(self, column: str) -> tuple[float, float]:
        """Measure the pixel values that are shown black and white, on cells spread over the table."""
        if column not in self._display_ranges:
            filled = np.flatnonzero(self.cells.table[column] != "")
            values = []
            for row in filled[:: max(1, len(filled) // SCALE_SAMPLE_CELLS)][:SCALE_SAMPLE_CELLS]:
                try:
                    values.append(self.cells.read(int(row), column).ravel())
                except (ImageError, OSError):
                    continue
            low, high = np.percentile(np.concatenate(values), DISPLAY_PERCENTILES) if values else (0.0, 1.0)
            self._display_ranges[column] = (float(low), float(max(high, low + 1e-6)))
        return self._display_ranges[column]


def _has_values(cells: Cells, column: str) -> bool:
    return column in cells.table and bool((cells.table[column] != "").any())


def _read_target(run: Path) -> str | None:
    """Return the name of the paired image in each class folder, from the recipe of a run."""
    trained = find_run(run)
    try:
        return None if trained is None else trained.recipe().target
    except (UrnetError, OSError):
        return None


def _paired_address(address: str, target: str) -> str:
    """Return the address of the paired image of a cell in a class folder; "" without one."""
    place = resolve_address(Path(), address)
    file = locate_paired_file(Path(place.file), target)
    return str(replace(place, file=file.as_posix())) if file is not None and file.is_file() else ""


def _absolute(root: Path, path: str) -> str:
    return (root / path).as_posix() if path else ""

"""The cells of `--cells` as they are shown to a labeller: decoded ahead, so that the next one is there at once."""

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from sqlalchemy import exists, not_, select

from urnet.bundle.model import Model
from urnet.cells.class_folders import locate_paired_file
from urnet.cells.read import find_images, read_cells
from urnet.cells.table import TABLE_NAME, TARGET_COLUMNS, Cells
from urnet.errors import ImageError, StoreError, UrnetError
from urnet.evaluation.figure_style import encode_png
from urnet.images.montage import resolve_address
from urnet.run_folder import find_run
from urnet.serve.database.models import cells, claims, labels
from urnet.serve.database.store import Store

PREFETCHED_CELLS = 1000
"""Cells that are decoded before anybody asks for them."""

CACHED_CELLS = PREFETCHED_CELLS + 500
"""Cells whose pictures are held; those shown longest ago are let go."""

CHUNK_CELLS = 16
"""Cells decoded before others get a turn."""

PREFETCH_INTERVAL = 50
"""Labels after which it is looked anew which cells come next."""

SCALE_SAMPLE_CELLS = 64
"""Cells from which the scale of the paired images is taken, the same for all."""

DISPLAY_PERCENTILES = (0.5, 99.8)
"""Percentiles of the paired images that are shown black and white."""


@dataclass(frozen=True)
class CellImage:
    """What is shown of a cell, as PNG.

    Attributes:
        crop: the cell; none where it cannot be read.
        paired: its fluorescence, or another paired image; none where there is none.
        error: why the cell cannot be shown.
    """

    crop: bytes | None
    paired: bytes | None
    error: str = ""


class CellImages:
    """The cells of a labelling queue.

    Args:
        name: of the queue.
        found: the cells, with absolute paths.
        model: whose scale they are shown in.
    """

    def __init__(self, name: str, found: Cells, model: Model):
        self.name, self.cells, self.model = name, found, model
        self.rows = {path: row for row, path in enumerate(found.table["path"])}
        self.paired = next((column for column in PAIRED_COLUMNS if _has_values(found, column)), None)
        self._display_ranges: dict[str, tuple[float, float]] = {}
        self._cache: OrderedDict[int, CellImage] = OrderedDict()
        self._lock = threading.Lock()
        self._prefetching: asyncio.Task[None] | None = None
        self._since = 0

    @classmethod
    def open(cls, run: Path, path: Path, model: Model) -> "CellImages":
        """The cells of a table or folder, as `read_queue` gives them to the labelling queue.

        Args:
            run: run folder of the model; its recipe says which files of class folders are paired images.
            path: the table or folder.
            model: the model.

        Raises:
            CellsError: no cells there.
        """
        config = model.config
        if path.suffix.lower() == ".csv" or (path / TABLE_NAME).is_file():
            found = read_cells(path, tile=config.tile, image=config.image, labelled=False)
        else:
            found = find_images([path], config.tile, config.image)
            if target := _read_target(run):
                beside = [_paired_address(address, target) for address in found.table["path"]]
                found = found.with_columns(target=beside)
        root = found.root.resolve()
        placed = {
            c: [_absolute(root, one) for one in found.table[c]] for c in ("path", *TARGET_COLUMNS) if c in found.table
        }
        return cls(path.resolve().as_posix(), replace(found.with_columns(**placed), root=Path()), model)

    def image(self, path: str) -> CellImage:
        """What is shown of a cell of the queue; decoded now if it was not before.

        Args:
            path: as the queue has it.

        Raises:
            KeyError: no cell of these.
        """
        row = self.rows[path]
        with self._lock:
            if row in self._cache:
                self._cache.move_to_end(row)
                return self._cache[row]
        made = self._draw(row)
        with self._lock:
            self._cache[row] = made
            while len(self._cache) > CACHED_CELLS:
                self._cache.popitem(last=False)
        return made

    def prefetch(self, store: Store) -> None:
        """Decode what will be asked for next, in the background; called when a cell was shown."""
        self._since += 1
        busy = self._prefetching is not None and not self._prefetching.done()
        if not busy and (self._prefetching is None or self._since >= PREFETCH_INTERVAL):
            self._since = 0
            self._prefetching = asyncio.create_task(self._prefetch(store))

    async def _prefetch(self, store: Store) -> None:
        try:
            coming = await asyncio.to_thread(upcoming, store, self.name, PREFETCHED_CELLS)
        except StoreError:  # whoever asks for a cell is told; decoding ahead can wait
            return
        paths = [path for path in coming if path in self.rows]
        for start in range(0, len(paths), CHUNK_CELLS):
            await asyncio.to_thread(self._decode, paths[start : start + CHUNK_CELLS])

    def _decode(self, paths: Iterable[str]) -> None:
        for path in reversed(list(paths)):  # the next one is let go last
            self.image(path)

    def _draw(self, row: int) -> CellImage:
        try:
            crop = self._png(row)
        except (UrnetError, OSError) as error:
            return CellImage(None, None, str(error))
        return CellImage(crop, self._paired_png(row))

    def _png(self, row: int) -> bytes:
        pixels = self.cells.read(row)
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
        """Counts shown black and white, from cells spread over the table."""
        if column not in self._display_ranges:
            named = np.flatnonzero(self.cells.table[column] != "")
            values = []
            for row in named[:: max(1, len(named) // SCALE_SAMPLE_CELLS)][:SCALE_SAMPLE_CELLS]:
                try:
                    values.append(self.cells.read(int(row), column).ravel())
                except (ImageError, OSError):
                    continue
            low, high = np.percentile(np.concatenate(values), DISPLAY_PERCENTILES) if values else (0.0, 1.0)
            self._display_ranges[column] = (float(low), float(max(high, low + 1e-6)))
        return self._display_ranges[column]


def upcoming(store: Store, queue: str, count: int) -> list[str]:
    """Paths of the cells of a queue that nobody has labelled or is looking at, in the order they are asked for."""
    labelled = exists().where(labels.c.cell == cells.c.id, labels.c.undone.is_(None))
    claimed = exists().where(claims.c.cell == cells.c.id, claims.c.until > time.time())
    wanted = (
        select(cells.c.path)
        .where(cells.c.queue == queue, not_(labelled), not_(claimed))
        .order_by(cells.c.place, cells.c.id)
        .limit(count)
    )
    with store.reading() as db:
        return list(db.execute(wanted).scalars())


def path_of(store: Store, queue: str, cell: int) -> str | None:
    """Path of a cell of a queue; none where the queue has none of that number."""
    with store.reading() as db:
        return db.execute(select(cells.c.path).where(cells.c.queue == queue, cells.c.id == cell)).scalar()


PAIRED_COLUMNS = ("target_nuclei", "target", "target_stain", "target_clean")
"""Of several paired images, the first of these is shown: nuclear fluorescence says most."""


def _has_values(found: Cells, column: str) -> bool:
    return column in found.table and bool((found.table[column] != "").any())


def _read_target(run: Path) -> str | None:
    """The file of each class folder that holds paired images, as the run's recipe has it."""
    trained = find_run(run)
    try:
        return None if trained is None else trained.recipe().target
    except (UrnetError, OSError):
        return None


def _paired_address(address: str, target: str) -> str:
    """The paired image of a cell in a class folder; "" where there is none."""
    place = resolve_address(Path(), address)
    file = locate_paired_file(Path(place.file), target)
    return str(replace(place, file=file.as_posix())) if file is not None and file.is_file() else ""


def _absolute(root: Path, path: str) -> str:
    return (root / path).as_posix() if path else ""

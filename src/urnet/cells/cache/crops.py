"""Crops of a table kept as they are in their files, so that whoever reads it again decodes none of them.

The audit reads every cell first and stores what it decodes (`cache_crops`). Training, calibration
and evaluation have the table's crops from there (`use_cached_crops`), and decode what is not kept: crops that cannot be
used, with the same error as ever, and all of a table whose crops take more room than `MAX_TABLE_BYTES`.

An entry of the cache is one file: the crops' bytes, one crop after the other, then where each one is, with a checksum
of its bytes: a crop that the disk has damaged is decoded again.
"""

import math
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from urnet.cells.cache.storage import (
    MAX_BYTES,
    MIN_FREE_BYTES,
    evict_entries,
    fingerprint_images,
    locate_cell_cache,
    mark_used,
)
from urnet.cells.table import Cells
from urnet.files.locks import lock_file

MAX_TABLE_BYTES = MAX_BYTES // 4
"""Bytes of one table's crops that are kept: a few large tables should not drive out all others."""

_DEPTHS = tuple(map(np.dtype, ("uint8", "uint16", "float32")))
_ITEM_SIZES = (0, *(depth.itemsize for depth in _DEPTHS))
_CROP_RECORD = np.dtype(
    [("start", "<i8"), ("checksum", "<u4"), ("height", "<i4"), ("width", "<i4"), ("channels", "<i4"), ("bytes", "<i4")]
)
"""Of one crop; no channels for grey, all zeros for a crop that is not kept. `bytes` are those of a count, `checksum`
is the CRC-32 of all of the crop's."""


class CachedCrops:
    """The crops of a table in one mapped file.

    Args:
        path: the file.
        cells: the table that it was made of.

    Raises:
        OSError: there is no such file.
        ValueError: it is damaged.
    """

    def __init__(self, path: Path, cells: Cells):
        self.path, self.root, self.table = path, cells.root, cells.table
        self.rows = np.arange(len(cells))
        self.bytes, self.places = _map_entry(path, len(cells))

    def select(self, table: pd.DataFrame, rows: np.ndarray | slice = slice(None)) -> "CachedCrops":
        """The crops of some rows, which another table holds."""
        some = object.__new__(CachedCrops)
        some.__dict__.update(self.__dict__)
        some.table, some.rows = table, self.rows[rows]
        return some

    def read(self, cells: Cells, index: int) -> np.ndarray | None:
        """One crop, as decoding gives it; none where it is not kept, is damaged, or the table is another one.

        Args:
            cells: the table as it is now.
            index: of the cell.
        """
        if cells.table is not self.table or cells.root != self.root:
            return None
        start, checksum, height, width, channels, size = self.places[self.rows[index]].item()
        shape = (height, width, channels) if channels else (height, width)
        if size == 0:
            return None
        depth = next(depth for depth in _DEPTHS if depth.itemsize == size)
        crop = self.bytes[start : start + math.prod(shape) * size].copy()
        return crop.view(depth).reshape(shape) if zlib.crc32(crop) == checksum else None

    def __getstate__(self) -> dict[str, Any]:
        """Another process maps the file itself; pickling its content would copy it."""
        return self.__dict__ | {"bytes": None, "places": len(self.places)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        try:
            self.bytes, self.places = _map_entry(self.path, state["places"])
        except (OSError, ValueError):  # removed meanwhile: nothing is kept
            self.bytes, self.places = np.zeros(0, np.uint8), np.zeros(state["places"], _CROP_RECORD)


def use_cached_crops(cells: Cells) -> Cells:
    """The same cells, which read their crops from the cache where they are kept in it; nothing is decoded for that."""
    return cells if cells.cached_crops is not None else _attach_entry(cells, _locate_entry(cells))


@contextmanager
def cache_crops(cells: Cells) -> Iterator[Callable[[int], np.ndarray]]:
    """Read the cells of a table, and keep their crops if all are read and there is room for them.

    Whether they can be kept changes nothing for the reader.

    Args:
        cells: the table.

    Yields:
        What reads the cell at an index, as `Cells.read` does.
    """
    entry = _locate_entry(cells)
    known = _attach_entry(cells, entry)
    if known.cached_crops is not None or not len(cells):
        yield known.read
        return
    draft = _CropWriter(cells, entry)
    try:
        yield draft.read
        draft.finish()
    finally:
        draft.discard()


class _CropWriter:
    """An entry that is being written. After any trouble, as a full disk, it only reads.

    One process writes an entry at a time, so that it can replace what a killed one left of it.
    """

    def __init__(self, cells: Cells, entry: Path):
        self.cells, self.entry = cells, entry
        self.places, self.seen, self.end = np.zeros(len(cells), _CROP_RECORD), np.zeros(len(cells), bool), 0
        self.part = entry.with_name(f"{entry.name}.part")
        self.lock: FileLock | None = None
        self.file: BinaryIO | None = None
        self.given_up = False

    def read(self, index: int) -> np.ndarray:
        again, self.seen[index] = self.seen[index], True
        crop = self.cells.read(index)
        if not (again or self.given_up or crop.dtype not in _DEPTHS):
            try:
                self._write(index, crop)
            except OSError:
                self.discard()
        return crop

    def _write(self, index: int, crop: np.ndarray) -> None:
        if self.file is None:
            self._begin(crop.nbytes * len(self.cells))
        if self.given_up or self.end + crop.nbytes > MAX_TABLE_BYTES:
            return self.discard()
        content = crop.tobytes()
        self.file.write(content)
        height, width, *channels = crop.shape
        self.places[index] = (self.end, zlib.crc32(content), height, width, *(channels or [0]), crop.itemsize)
        self.end += crop.nbytes

    def _begin(self, expected: int) -> None:
        """Open the file, if crops like the first one have room."""
        folder = self.entry.parent
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if expected > MAX_TABLE_BYTES or shutil.disk_usage(folder).free < expected + MIN_FREE_BYTES:
            self.given_up = True
            return
        with suppress(Timeout):  # written by another process
            self.lock = lock_file(self.entry.with_name(f"{self.entry.name}.lock"))
        if self.lock is None:
            self.given_up = True
        else:
            self.file = self.part.open("wb")

    def finish(self) -> None:
        """Give the file its name, if it holds all cells and these have not changed meanwhile."""
        if self.file is None or not self.seen.all() or _locate_entry(self.cells) != self.entry:
            return
        with suppress(OSError):  # PermissionError on Windows, where another process has the same in use
            self.file.write(self.places.tobytes())
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()
            self.part.replace(self.entry)
            evict_entries(self.entry)

    def discard(self) -> None:
        """Remove what is not finished, and keep nothing more."""
        self.given_up = True
        if self.file is not None:
            with suppress(OSError):
                self.file.close()
            with suppress(OSError):
                self.part.unlink(missing_ok=True)
            self.file = None
        if self.lock is not None:
            with suppress(OSError):  # Windows, where it must be released first
                Path(self.lock.lock_file).unlink(missing_ok=True)
            self.lock.release()
            self.lock = None


def _locate_entry(cells: Cells) -> Path:
    return locate_cell_cache() / f"{fingerprint_images(cells, None, None, 'path')}.crops"


def _attach_entry(cells: Cells, entry: Path) -> Cells:
    try:
        crops = CachedCrops(entry, cells)
    except (OSError, ValueError):
        return cells
    mark_used(entry)
    return replace(cells, cached_crops=crops)


def _map_entry(path: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of all crops, and their places, (count,)."""
    content = np.asarray(np.memmap(path, np.uint8, "r"))
    end = len(content) - _CROP_RECORD.itemsize * count
    if end < 0:
        raise ValueError("too short")
    places = content[end:].copy().view(_CROP_RECORD)
    counts = places["height"].astype(np.int64) * places["width"] * np.maximum(1, places["channels"])
    ends = places["start"] + counts * places["bytes"]
    negative = any((places[name] < 0).any() for name in places.dtype.names)
    if negative or not np.isin(places["bytes"], _ITEM_SIZES).all() or ends.max(initial=0) != end:
        raise ValueError("crops and places do not fit together")
    return content[:end], places

"""Cached crops of a table, as they are in their files.

The audit reads every crop first and stores it (`cache_crops`). Training, calibration and evaluation read it from there
(`use_cached_crops`). They decode what is not stored: unreadable crops, which raise the same error as before, and all
crops of a table that needs more than `MAX_TABLE_BYTES`.

An entry is one file: the bytes of all crops, then a record for each crop with its position, shape and checksum. A
damaged crop is decoded again.
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
from urnet.files.locks import lock_file, unlock

MAX_TABLE_BYTES = MAX_BYTES // 4
"""Size limit of one entry, in bytes, so that a few large tables do not fill the cache."""

_DEPTHS = tuple(map(np.dtype, ("uint8", "uint16", "float32")))
_ITEM_SIZES = (0, *(depth.itemsize for depth in _DEPTHS))
_CROP_RECORD = np.dtype(
    [("start", "<i8"), ("checksum", "<u4"), ("height", "<i4"), ("width", "<i4"), ("channels", "<i4"), ("bytes", "<i4")]
)
"""Record of one crop. `channels` is 0 for grey, `bytes` is the size of one count, `checksum` the CRC-32 of the crop's
bytes. All fields are 0 for a crop that is not stored."""


class CachedCrops:
    """Crops of a table in one mapped file.

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
        self.bytes, self.records = _map_entry(path, len(cells))

    def select(self, table: pd.DataFrame, rows: np.ndarray | slice = slice(None)) -> "CachedCrops":
        """Select the crops of some rows, for a table that holds these rows only."""
        selection = object.__new__(CachedCrops)
        selection.__dict__.update(self.__dict__)
        selection.table, selection.rows = table, self.rows[rows]
        return selection

    def read(self, cells: Cells, index: int) -> np.ndarray | None:
        """Read one crop, equal to the decoded one.

        Args:
            cells: the table as it is now.
            index: index of the cell.

        Returns:
            The crop, or None if it is not stored, is damaged, or belongs to another table.
        """
        if cells.table is not self.table or cells.root != self.root:
            return None
        start, checksum, height, width, channels, size = self.records[self.rows[index]].item()
        shape = (height, width, channels) if channels else (height, width)
        if size == 0:
            return None
        depth = next(depth for depth in _DEPTHS if depth.itemsize == size)
        crop = self.bytes[start : start + math.prod(shape) * size].copy()
        return crop.view(depth).reshape(shape) if zlib.crc32(crop) == checksum else None

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without the content: another process maps the file itself."""
        return self.__dict__ | {"bytes": None, "records": len(self.records)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        try:
            self.bytes, self.records = _map_entry(self.path, state["records"])
        except (OSError, ValueError):  # the entry was removed meanwhile
            self.bytes, self.records = np.zeros(0, np.uint8), np.zeros(state["records"], _CROP_RECORD)


def use_cached_crops(cells: Cells) -> Cells:
    """Return cells that read their crops from the cache, if it has an entry. Decode nothing."""
    return cells if cells.cached_crops is not None else _attach_entry(cells, _locate_entry(cells))


@contextmanager
def cache_crops(cells: Cells) -> Iterator[Callable[[int], np.ndarray]]:
    """Read the cells of a table and store their crops, if all are read and there is space.

    A crop is the same whether or not it can be stored.

    Args:
        cells: the table.

    Yields:
        A function that reads the cell at an index, like `Cells.read`.
    """
    entry = _locate_entry(cells)
    attached = _attach_entry(cells, entry)
    if attached.cached_crops is not None or not len(cells):
        yield attached.read
        return
    writer = _CropWriter(cells, entry)
    try:
        yield writer.read
        writer.finish()
    finally:
        writer.discard()


class _CropWriter:
    """Writer of an entry, for one process at a time. After an error, such as a full disk, it only reads."""

    def __init__(self, cells: Cells, entry: Path):
        self.cells, self.entry = cells, entry
        self.records, self.was_read, self.end = np.zeros(len(cells), _CROP_RECORD), np.zeros(len(cells), bool), 0
        self.unfinished = entry.with_name(f"{entry.name}.part")
        self.lock: FileLock | None = None
        self.file: BinaryIO | None = None
        self.is_stopped = False

    def read(self, index: int) -> np.ndarray:
        """Decode one crop, and write it when it is read for the first time."""
        is_first, self.was_read[index] = not self.was_read[index], True
        crop = self.cells.read(index)
        if is_first and not self.is_stopped and crop.dtype in _DEPTHS:
            try:
                self._write(index, crop)
            except OSError:
                self.discard()
        return crop

    def _write(self, index: int, crop: np.ndarray) -> None:
        if self.file is None:
            self._open(crop.nbytes * len(self.cells))
        if self.file is None or self.end + crop.nbytes > MAX_TABLE_BYTES:
            return self.discard()
        content = crop.tobytes()
        self.file.write(content)
        height, width, *channels = crop.shape
        self.records[index] = (self.end, zlib.crc32(content), height, width, *(channels or [0]), crop.itemsize)
        self.end += crop.nbytes

    def _open(self, expected: int) -> None:
        """Open the file if there is space for the expected number of bytes, and no other process writes the entry."""
        folder = self.entry.parent
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if expected > MAX_TABLE_BYTES or shutil.disk_usage(folder).free < expected + MIN_FREE_BYTES:
            self.is_stopped = True
            return
        with suppress(Timeout):
            self.lock = lock_file(self.entry.with_name(f"{self.entry.name}.lock"))
        if self.lock is None:
            self.is_stopped = True
        else:
            self.file = self.unfinished.open("wb")

    def finish(self) -> None:
        """Complete the entry, if all cells were read and their files have not changed meanwhile."""
        if self.file is None or not self.was_read.all() or _locate_entry(self.cells) != self.entry:
            return
        with suppress(OSError):  # PermissionError on Windows, while another process uses the entry
            self.file.write(self.records.tobytes())
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()
            self.unfinished.replace(self.entry)
            evict_entries(self.entry)

    def discard(self) -> None:
        """Remove the unfinished file and stop writing."""
        self.is_stopped = True
        if self.file is not None:
            with suppress(OSError):
                self.file.close()
            with suppress(OSError):
                self.unfinished.unlink(missing_ok=True)
            self.file = None
        if self.lock is not None:
            unlock(self.lock)
            self.lock = None


def _locate_entry(cells: Cells) -> Path:
    return locate_cell_cache() / f"{fingerprint_images(cells, None, None, 'path')}.crops"


def _attach_entry(cells: Cells, entry: Path) -> Cells:
    """Return cells that read from an entry, or the cells as they are if it is missing or damaged."""
    try:
        crops = CachedCrops(entry, cells)
    except (OSError, ValueError):
        return cells
    mark_used(entry)
    return replace(cells, cached_crops=crops)


def _map_entry(path: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Map an entry: the bytes of all crops, and their records, (count,)."""
    content = np.asarray(np.memmap(path, np.uint8, "r"))
    end = len(content) - _CROP_RECORD.itemsize * count
    if end < 0:
        raise ValueError("too short")
    records = content[end:].copy().view(_CROP_RECORD)
    counts = records["height"].astype(np.int64) * records["width"] * np.maximum(1, records["channels"])
    ends = records["start"] + counts * records["bytes"]
    has_negative = any((records[name] < 0).any() for name in records.dtype.names)
    if has_negative or not np.isin(records["bytes"], _ITEM_SIZES).all() or ends.max(initial=0) != end:
        raise ValueError("crops and records do not match")
    return content[:end], records

"""Decode crops in background threads, in order, with bounded memory."""

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Protocol

import numpy as np

from urnet.cells.copies import hash_any_orientation
from urnet.cpus import usable_cpus
from urnet.errors import ImageError

if TYPE_CHECKING:
    from urnet.cells.table import Cells

CELLS_PER_TASK = 8
"""Number of cells that a thread decodes in one task."""

MAX_THREADS = 4
"""Maximum number of threads; the parts of decoders that are written in Python run in one thread at a time anyway."""


@dataclass(frozen=True)
class DecodedCell:
    """One decoded cell of a table.

    Attributes:
        index: its row in the table.
        crop: (C, S, S) raw counts at the network's size; none if it cannot be used.
        error: the reason why it cannot be used.
        code: stable code of the error.
        copy_key: hash of the raw crop, by which copies are found; "" unless asked for.
    """

    index: int
    crop: np.ndarray | None
    error: str = ""
    code: str = ""
    copy_key: str = ""


class CropResizer(Protocol):
    """An object that brings a raw crop to the network's size: a model, or its settings without a loaded network."""

    def resize_crop(self, crop: np.ndarray) -> np.ndarray:
        """Resize one raw crop to (C, S, S)."""
        ...


def decode_cells(
    model: CropResizer,
    cells: "Cells",
    index: Iterable[int],
    skipped: Collection[int] = (),
    *,
    hash_crops: bool = False,
) -> list[DecodedCell]:
    """Decode some cells of a table; a cell that cannot be used carries the reason.

    Args:
        model: resizes the crops.
        cells: the table.
        index: rows of the table.
        skipped: rows that are not read; they come with neither crop nor error.
        hash_crops: whether to hash each crop as well.
    """
    decoded = []
    for i in index:
        key = ""
        if i in skipped:
            decoded.append(DecodedCell(i, None))
            continue
        try:
            crop = cells.read(i)
            key = hash_any_orientation(crop) if hash_crops else ""
            decoded.append(DecodedCell(i, model.resize_crop(crop), copy_key=key))
        except ImageError as error:
            decoded.append(DecodedCell(i, None, str(error), error.code, key))
    return decoded


def prefetch_cells(
    model: CropResizer,
    cells: "Cells",
    start: int,
    ahead: int,
    skipped: Collection[int] = (),
    *,
    hash_crops: bool = False,
) -> Iterator[DecodedCell]:
    """Decode the cells of a table in background threads, in order.

    Args:
        model: resizes the crops.
        cells: the table.
        start: the first row.
        ahead: number of cells that may be decoded ahead of the caller.
        skipped: as for `decode_cells`.
        hash_crops: as for `decode_cells`.
    """

    def decode(first: int) -> list[DecodedCell]:
        index = range(first, min(first + CELLS_PER_TASK, len(cells)))
        return decode_cells(model, cells, index, skipped, hash_crops=hash_crops)

    firsts, tasks = iter(range(start, len(cells), CELLS_PER_TASK)), deque[Future[list[DecodedCell]]]()
    pool = ThreadPoolExecutor(min(MAX_THREADS, usable_cpus()), "decode")
    try:
        tasks.extend(pool.submit(decode, first) for first in islice(firsts, max(1, ahead // CELLS_PER_TASK)))
        while tasks:
            chunk = tasks.popleft().result()
            tasks.extend(pool.submit(decode, first) for first in islice(firsts, 1))
            yield from chunk
    finally:
        pool.shutdown(cancel_futures=True)

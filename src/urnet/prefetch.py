"""Crops decoded by threads ahead of whoever uses them, in order, a few at a time, so that memory stays flat."""

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Protocol

import numpy as np

from urnet.cpus import usable_cpus
from urnet.errors import ImageError

if TYPE_CHECKING:
    from urnet.bundle.model import Model
    from urnet.cells.table import Cells

CELLS_PER_TASK = 8
"""Cells that a thread reads in one go."""

MAX_THREADS = 4
"""At most; what decoders do in Python goes on in one thread at a time anyway."""


@dataclass(frozen=True)
class DecodedCell:
    """One cell of a table.

    Attributes:
        index: its row.
        crop: (C, S, S) raw counts at the network's size; none where it cannot be used.
        error: why it cannot.
        code: stable code of the error.
    """

    index: int
    crop: np.ndarray | None
    error: str = ""
    code: str = ""


class _CropResizer(Protocol):
    """What brings a raw crop to the network's size: a model, or what stands for it where no network is loaded."""

    def resize_crop(self, crop: np.ndarray) -> np.ndarray: ...


def decode_cells(model: _CropResizer, cells: "Cells", index: Iterable[int]) -> list[DecodedCell]:
    """Decode some cells; those that cannot be used say why."""
    found = []
    for i in index:
        try:
            found.append(DecodedCell(i, model.resize_crop(cells.read(i))))
        except ImageError as error:
            found.append(DecodedCell(i, None, str(error), error.code))
    return found


def prefetch_cells(
    model: "Model", cells: "Cells", start: int, ahead: int, skipped: Collection[int] = ()
) -> Iterator[DecodedCell]:
    """Decode the cells of a table in threads.

    Args:
        model: whose crops they become.
        cells: the table.
        start: the row to begin with.
        ahead: cells that may be waiting for whoever takes them.
        skipped: rows that are not read; they come with neither crop nor error.
    """

    def read(first: int) -> list[DecodedCell]:
        return [
            DecodedCell(i, None) if i in skipped else decode_cells(model, cells, [i])[0]
            for i in range(first, min(first + CELLS_PER_TASK, len(cells)))
        ]

    firsts, waiting = iter(range(start, len(cells), CELLS_PER_TASK)), deque[Future[list[DecodedCell]]]()
    pool = ThreadPoolExecutor(min(MAX_THREADS, usable_cpus()), "read")
    try:
        waiting.extend(pool.submit(read, first) for first in islice(firsts, max(1, ahead // CELLS_PER_TASK)))
        while waiting:
            chunk = waiting.popleft().result()
            waiting.extend(pool.submit(read, first) for first in islice(firsts, 1))
            yield from chunk
    finally:
        pool.shutdown(cancel_futures=True)

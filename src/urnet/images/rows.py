"""Rows of an array that can be larger than memory."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

PART_BYTES = 2**26
"""Size of a part in `LazyRows.iterate_parts`, in bytes."""


class LazyRows:
    """Selected rows of an array, such as a memory-mapped file, that are read on demand.

    Args:
        array: (N, C, S, S).
        index: (M,) numbers of the rows.
    """

    def __init__(self, array: np.ndarray, index: np.ndarray):
        self.array, self.index = array, index
        self.shape, self.dtype = (len(index), *array.shape[1:]), array.dtype
        self.size = math.prod(self.shape)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: list[int] | np.ndarray | slice) -> np.ndarray:
        return self.array[self.index[rows]]

    def iterate_parts(self) -> Iterator[np.ndarray]:
        """Yield all rows in parts of about `PART_BYTES`."""
        step = max(1, PART_BYTES * len(self) // max(1, self.size * self.dtype.itemsize))
        return (self[start : start + step] for start in range(0, len(self), step))

    def __getstate__(self) -> dict[str, object]:
        """Pickle a mapped file by its path: another process maps it itself."""
        file = getattr(self.array, "filename", None)
        return self.__dict__ | ({"array": Path(file)} if file is not None else {})

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        if isinstance(self.array, Path):
            self.array = np.load(self.array, mmap_mode="r")

"""Hashes of the pixels of a run's images, so that resumed training detects changed images.

They hash decoded pixels: a file that was moved, or written again with the same pixels, keeps its hash.
"""

from collections.abc import Callable, Collection

import numpy as np

from urnet.cells.copies import hash_pixels
from urnet.cells.table import HASH_COLUMNS, Cells
from urnet.errors import ImageError


def add_pixel_hashes(cells: Cells, columns: Collection[str], progress: Callable[[float], None] | None = None) -> Cells:
    """Add the hashes of the images that training uses, in place of older hashes.

    Args:
        cells: cells with a split. Excluded cells get no hashes.
        columns: columns of the images: `path`, and the used ones of `TARGET_COLUMNS`.
        progress: called with the finished share, 0 to 1.

    Raises:
        ImageError: an image cannot be read.
    """
    used = np.flatnonzero(cells.table["split"] != "")
    hashes = {name: np.full(len(cells), "", dtype=object) for name in HASH_COLUMNS.values() if name in cells.table}
    for number, column in enumerate(columns):
        values = hashes[HASH_COLUMNS[column]] = np.full(len(cells), "", dtype=object)
        for done, index in enumerate(used, 1):
            if cells.table[column].iat[index] != "":
                values[index] = hash_pixels(cells.read(int(index), column))
            if progress is not None:
                progress((number + done / len(used)) / len(columns))
    return cells.with_columns(**hashes)


def find_changed_images(cells: Cells, progress: Callable[[float], None] | None = None) -> list[str]:
    """Find the images whose pixels differ from their hashes.

    Args:
        cells: from `add_pixel_hashes`, or from their table. Without hashes, no image counts as changed.
        progress: called with the finished share, 0 to 1.

    Returns:
        Paths of the changed images, as in the table.
    """
    hashed = [(column, name) for column, name in HASH_COLUMNS.items() if name in cells.table]
    changed = []
    for number, (column, name) in enumerate(hashed):
        for index, (path, expected) in enumerate(zip(cells.table[column], cells.table[name], strict=True)):
            if expected != "" and _hash_current_pixels(cells, index, column) != expected:
                changed.append(path)
            if progress is not None:
                progress((number + (index + 1) / len(cells)) / len(hashed))
    return list(dict.fromkeys(changed))


def _hash_current_pixels(cells: Cells, index: int, column: str) -> str:
    try:
        return hash_pixels(cells.read(index, column))
    except ImageError:
        return "not readable"

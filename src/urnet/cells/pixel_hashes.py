"""What the pixels of cells are, a hash each, so that a training that goes on notices when they have become others.

The hash is that of the audit's copies, of what is decoded: a file that is moved, or written anew with the same pixels,
keeps it.
"""

from collections.abc import Callable, Collection

import numpy as np

from urnet.cells.copies import hash_pixels
from urnet.cells.table import HASH_COLUMNS, Cells
from urnet.errors import ImageError


def add_pixel_hashes(cells: Cells, columns: Collection[str], progress: Callable[[float], None] | None = None) -> Cells:
    """The cells with the hashes of the images that are trained on; older ones go.

    Args:
        cells: with a split; cells that are in no part have no hashes.
        columns: which images: `path`, and those of `TARGET_COLUMNS` that are painted.
        progress: called with the share done, 0 to 1.

    Raises:
        ImageError: an image cannot be read.
    """
    used = np.flatnonzero(cells.table["split"] != "")
    hashes = {name: np.full(len(cells), "", dtype=object) for name in HASH_COLUMNS.values() if name in cells.table}
    for number, column in enumerate(columns):
        found = hashes[HASH_COLUMNS[column]] = np.full(len(cells), "", dtype=object)
        for done, index in enumerate(used, 1):
            if cells.table[column].iat[index] != "":
                found[index] = hash_pixels(cells.read(int(index), column))
            if progress is not None:
                progress((number + done / len(used)) / len(columns))
    return cells.with_columns(**hashes)


def find_changed_images(cells: Cells, progress: Callable[[float], None] | None = None) -> list[str]:
    """Images whose pixels are no longer those of their hashes, as the table names them; none where it has no hashes.

    Args:
        cells: from `add_pixel_hashes`, perhaps read from a file again.
        progress: called with the share done, 0 to 1.
    """
    named = [(column, name) for column, name in HASH_COLUMNS.items() if name in cells.table]
    found = []
    for number, (column, name) in enumerate(named):
        for index, (image, before) in enumerate(zip(cells.table[column], cells.table[name], strict=True)):
            if before != "" and _hash_current_pixels(cells, index, column) != before:
                found.append(image)
            if progress is not None:
                progress((number + (index + 1) / len(cells)) / len(named))
    return list(dict.fromkeys(found))


def _hash_current_pixels(cells: Cells, index: int, column: str) -> str:
    try:
        return hash_pixels(cells.read(index, column))
    except ImageError:
        return "not readable"

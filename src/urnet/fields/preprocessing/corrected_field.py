"""One channel of a field with corrections: even illumination, alignment, and reflection at the border."""

import numpy as np
from scipy.ndimage import shift as moved

from urnet.fields.io.read import Field
from urnet.fields.preprocessing.illumination import Illumination
from urnet.fields.preprocessing.registration import Shift


class CorrectedField:
    """One channel of an open field, corrected. Regions may reach beyond its border.

    Args:
        field: the open field.
        illumination: is corrected; none leaves the counts as they are.
        shift: offset of the channel from the brightfield, whose coordinates `read` takes.
    """

    MARGIN = 1
    """Margin around a region that is shifted by a fraction of a pixel, px."""

    def __init__(self, field: Field, illumination: Illumination | None = None, shift: Shift | None = None):
        self.field = field
        self.illumination = illumination
        self.shift = shift
        self.shape = (field.info.height, field.info.width)

    def read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Read a region in the type of the field. Pixels beyond the border are reflections.

        Args:
            top: first row, may be negative.
            left: first column, may be negative.
            height: rows, at least 1.
            width: columns, at least 1.

        Returns:
            (height, width) or (height, width, 3).
        """
        if self.shift is None:
            return self._reflected(top, left, height, width)
        down, right = int(np.floor(self.shift.down)), int(np.floor(self.shift.right))
        margin = self.MARGIN
        wide = self._reflected(top - down - margin, left - right - margin, height + 2 * margin, width + 2 * margin)
        rest = (self.shift.down - down, self.shift.right - right, 0)[: wide.ndim]
        if any(rest):
            limits = (wide.min(), wide.max())
            placed = np.clip(moved(wide.astype(np.float32), rest, order=1, mode="nearest"), *limits)
            wide = placed.astype(wide.dtype) if wide.dtype.kind == "f" else np.rint(placed).astype(wide.dtype)
        return wide[margin : margin + height, margin : margin + width]

    def _reflected(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        H, W = self.shape
        rows, columns = _mirrored(top, height, H), _mirrored(left, width, W)
        first, last, start, end = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
        inside = self.field.read(int(first), int(start), int(last - first), int(end - start))
        if self.illumination is not None:
            inside = self.illumination.correct(inside, int(first), int(start), self.shape)
        if (len(rows), len(columns)) == inside.shape[:2] and top >= 0 and left >= 0:
            return inside
        return inside[np.ix_(rows - first, columns - start)]


def _mirrored(start: int, count: int, size: int) -> np.ndarray:
    """Return `count` indices from `start`, reflected at both ends of 0 … size - 1 without repeating the edge."""
    if size == 1:
        return np.zeros(count, np.int64)
    turn = np.arange(start, start + count) % (2 * size - 2)
    return np.minimum(turn, 2 * size - 2 - turn)

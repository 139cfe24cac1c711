"""The scale at which a field is searched, and the regions that are read to choose it."""

from collections import Counter

import numpy as np
import pytest

from urnet.fields.detection.detect import detect
from urnet.fields.detection.scale import WORKING_WIDTH_PX, reduce_field, typical_width
from urnet.images.simulation.phantom import draw_field


def counted(pixels: np.ndarray) -> tuple:
    """A field in memory, and how often each of its regions was read."""
    regions = Counter()

    def read(top: int, left: int, height: int, width: int) -> np.ndarray:
        regions[top, left, height, width] += 1
        return pixels[top : top + height, left : left + width]

    return read, regions


@pytest.mark.slow
@pytest.mark.parametrize("fold", [1, 2, 4])
def test_cells_are_reduced_to_the_working_width(fold):
    field = draw_field(5, 1, 0, shape=(400, 400), cells=12)
    read, _ = counted(np.kron(field.brightfield, np.ones((fold, fold), np.uint16)))
    view = reduce_field(read, None, (400 * fold, 400 * fold), None, None)
    width = 2 * np.median([cell.radius for cell in field.cells]) * fold
    assert width / view.fold == pytest.approx(WORKING_WIDTH_PX, rel=0.3)


def test_a_small_field_is_read_once_at_each_reduction():
    field = draw_field(5, 0, 0, shape=(512, 512), cells=20)
    bright, regions = counted(field.brightfield)
    nuclei, glowing = counted(field.nuclei)
    assert detect(bright, (512, 512), nuclei=nuclei)
    assert regions == glowing
    assert regions.total() <= 3  # as it is, reduced by two, and by four at most


def test_debris_does_not_make_the_typical_cell_smaller():
    assert typical_width(np.array([5.0] * 20 + [28.0, 30.0, 32.0])) == 30


def test_a_blank_field_has_no_scale():
    read, _ = counted(np.full((300, 300), 9))
    assert reduce_field(read, None, (300, 300), None, None) is None

"""Segments of an energy whose threshold is 1, and how they are split."""

import numpy as np
import pytest

from urnet.fields.detection.split_touching import MIN_RADIUS_PX, find_segments, split_by_nuclei


def discs(*middles: tuple[float, float, float], shape: tuple[int, int] = (80, 120)) -> np.ndarray:
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.any([np.hypot(y - row, x - column) < radius for row, column, radius in middles], axis=0)


def energy(mask: np.ndarray) -> np.ndarray:
    return np.where(mask, 20.0, 0.1)


def test_a_disc_is_one_segment():
    mask = discs((40, 50, 14))
    (piece,) = find_segments(energy(mask))
    assert piece.area == piece.mask.sum() == pytest.approx(mask.sum(), rel=0.03)
    np.testing.assert_array_equal(mask[piece.box], piece.mask)


def test_a_ring_is_filled():
    (piece,) = find_segments(energy(discs((40, 50, 14)) & ~discs((40, 50, 9))))
    assert piece.area == pytest.approx(np.pi * 14**2, rel=0.05)


def test_a_neck_splits_a_segment():
    pieces = list(find_segments(energy(discs((40, 40, 15), (40, 66, 15)))))
    assert [piece.area for piece in pieces] == pytest.approx([np.pi * 15**2] * 2, rel=0.1)
    taken = np.zeros((80, 120), int)
    for piece in pieces:
        taken[piece.box] += piece.mask
    assert taken.max() == 1


def test_threads_specks_and_weak_spots_are_no_segments():
    mask = discs((20, 20, MIN_RADIUS_PX - 0.5))
    mask[60:64, 10:110] = True
    assert list(find_segments(energy(mask))) == []
    assert list(find_segments(np.where(discs((40, 50, 14)), 2.0, 0.1))) == []


@pytest.mark.parametrize(("columns", "count"), [((45, 65), 2), ((55, 55), 1)])
def test_a_long_segment_has_as_many_cells_as_nuclei(columns, count):
    y, x = np.mgrid[:80, :120]
    (piece,) = find_segments(energy(((y - 40) / 12) ** 2 + ((x - 55) / 20) ** 2 < 1))
    glow = 100.0 * discs(*((40, column, 6) for column in columns))
    cells = split_by_nuclei(piece, glow, 10.0)
    assert len(cells) == count
    assert sum(cell.area for cell in cells) == piece.area

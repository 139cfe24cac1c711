"""The share of a Grad-CAM that lies on the cell."""

import numpy as np
import pytest

from urnet.benchmark.cam_share import cam_share, chance_share


def masks() -> np.ndarray:
    mask = np.zeros((3, 8, 8), bool)
    mask[:, 2:6, 2:6] = True
    return mask


def test_shares_of_maps_on_the_cell_beside_it_and_everywhere():
    on, outside, everywhere = np.zeros((3, 8, 8))
    on[3:5, 3:5], outside[0, 0], everywhere[:] = 1, 1, 0.3
    shares = cam_share(np.stack([on, outside, everywhere]), masks())
    assert shares == pytest.approx([1, 0, 0.25])
    assert shares[2] == pytest.approx(chance_share(masks())[2])


def test_the_scale_of_a_map_does_not_matter_and_an_empty_map_has_no_share():
    cam = np.random.default_rng(0).random((3, 8, 8), np.float32)
    assert cam_share(cam, masks()) == pytest.approx(cam_share(7 * cam, masks()))
    cam[1] = 0
    assert np.isnan(cam_share(cam, masks())).tolist() == [False, True, False]


def test_half_precision_maps_do_not_overflow():
    cam = np.full((1, 400, 400), 1, np.float16)
    mask = np.zeros((1, 400, 400), bool)
    mask[:, :200] = True
    assert cam_share(cam, mask) == pytest.approx([0.5])


def test_shapes_that_do_not_fit_and_maps_that_are_not_rectified_are_refused():
    with pytest.raises(ValueError, match=r"\(N, H, W\) of both"):
        cam_share(np.ones((3, 8, 9)), masks())
    for value in (-0.1, np.nan):
        with pytest.raises(ValueError, match="negative somewhere or no number"):
            cam_share(np.full((3, 8, 8), value), masks())

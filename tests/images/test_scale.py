"""One scale for a whole data set: full contrast, order kept, and back again."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from urnet.cells.table import read_cells
from urnet.errors import ImageError
from urnet.images.scale import ANY_DEPTH, Scaling, fit_scaling


def test_8_bits_are_scaled_by_their_depth_whatever_they_hold():
    assert fit_scaling(np.array([[40, 90]], np.uint8), "uint8") == Scaling(0.0, 255.0, "uint8")


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_other_depths_are_scaled_by_percentiles(dtype):
    counts = np.arange(10_001).astype(dtype)
    scaling = fit_scaling(np.random.default_rng(0).permutation(counts).reshape(73, 137), dtype)
    assert scaling.low == pytest.approx(10, abs=1)
    assert scaling.high == pytest.approx(9990, abs=1)
    assert scaling.dtype == dtype


def test_a_few_wild_pixels_do_not_set_the_scale():
    images = np.random.default_rng(0).integers(600, 800, (10, 1, 40, 40)).astype(np.uint16)
    images[0, 0, 0, :3] = 65535
    images[1, 0, 0, :3] = 0
    scaling = fit_scaling(images, "uint16")
    assert 600 <= scaling.low < scaling.high < 800


@settings(deadline=None)
@given(npst.arrays(np.uint16, st.integers(2, 300)))
def test_percentiles_of_16_bits_are_those_of_numpy(images):
    expected = np.percentile(images, (0.1, 99.9), method="inverted_cdf")
    if expected[0] == expected[1]:
        with pytest.raises(ImageError, match="constant"):
            fit_scaling(images, "uint16")
    else:
        scaling = fit_scaling(images, "uint16")
        assert (scaling.low, scaling.high) == tuple(expected)


def test_given_limits_are_used_as_they_are():
    assert fit_scaling(np.zeros((2, 2), np.uint16), ANY_DEPTH, (200, 1650)) == Scaling(200.0, 1650.0, ANY_DEPTH)


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_constant_images_are_refused(dtype):
    with pytest.raises(ImageError, match="676 nearly everywhere"):
        fit_scaling(np.full((3, 1, 40, 40), 676, dtype), dtype)


def scalings(depth: str) -> st.SearchStrategy[Scaling]:
    limit = 255 if depth == "uint8" else 65535
    ends = st.tuples(st.integers(0, limit), st.integers(0, limit)).filter(lambda e: e[0] < e[1])
    return ends.map(lambda e: Scaling(float(e[0]), float(e[1]), depth))


@settings(deadline=None)
@pytest.mark.parametrize("depth", ["uint8", "uint16"])
@given(data=st.data())
def test_every_count_inside_the_limits_comes_back(depth, data):
    scaling = data.draw(scalings(depth))
    counts = np.arange(scaling.low, scaling.high + 1).astype(depth)
    scaled = scaling.apply(counts)
    assert scaled.dtype == np.float32
    assert scaled[0] == 0
    assert scaled[-1] == pytest.approx(1)
    assert (np.diff(scaled) > 0).all()
    back = scaling.invert(scaled)
    assert back.dtype == depth
    np.testing.assert_array_equal(back, counts)


def test_outside_the_limits_is_clipped_and_the_input_left_alone():
    raw = np.array([0, 100, 150, 200, 65535], np.uint16)
    np.testing.assert_allclose(Scaling(100, 200, "uint16").apply(raw), [0, 0, 0.5, 1, 1])
    np.testing.assert_array_equal(raw, [0, 100, 150, 200, 65535])


def test_back_to_counts_never_leaves_the_depth():
    scaling = Scaling(-50.0, 300.0, "uint8")
    np.testing.assert_array_equal(scaling.invert(np.array([-1.0, 0, 1, 2])), np.array([0, 0, 255, 255], np.uint8))
    assert Scaling(-1.0, 1.0, "float32").invert(np.array([0.5])).dtype == np.float32
    assert Scaling(-1.0, 1.0, ANY_DEPTH).invert(np.array([0.5])).dtype == np.float32


def test_jurkat_has_full_contrast(jurkat):
    """Its counts lie within 200 to 1,650 of 65,535: scaled by depth, nothing would be left."""
    cells = read_cells(jurkat, tile=40, image="brightfield.tif")
    crops = np.stack([cells.read(index) for index in range(0, len(cells), 10)])
    scaled = fit_scaling(crops, "uint16").apply(crops)
    assert scaled.min() == 0
    assert scaled.max() == 1
    assert scaled.std() > 0.05
    assert 0.2 < np.median(scaled) < 0.8
    assert (crops / 65535).std() < 0.002

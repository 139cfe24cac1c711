"""Scaling of a data set: full contrast, unchanged order, and the inverse."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from urnet.cells.read import read_cells
from urnet.images.scale import ANY_DEPTH, PERCENTILES, Scaling, fit_scaling, fit_scaling_0_1_0

DEPTHS = ["uint8", "uint16", "float32"]


def crops(dtype: str, channels: int = 1) -> np.ndarray:
    """Draw counts of a narrow range, like those of unstained cells, with a few dead and hot pixels, (N, C, S, S)."""
    images = np.random.default_rng(0).normal(128, 10, (40, channels, 32, 32)).clip(90, 170)
    images[0, 0, 0, :3], images[1, 0, 0, :3] = 0, 255
    return images.round().astype(dtype)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", DEPTHS)
def test_every_depth_is_scaled_by_percentiles_with_a_margin(dtype, channels):
    images = crops(dtype, channels)
    low, high = np.percentile(images, PERCENTILES, method="inverted_cdf")
    margin = 0.02 * (high - low)
    scaling = fit_scaling(images, dtype)
    assert scaling.low == pytest.approx(low - margin, abs=0.1)
    assert scaling.high == pytest.approx(high + margin, abs=0.1)
    assert scaling.dtype == dtype
    assert scaling.apply(images).std() > 0.12  # by depth, 8 bits had 0.04


def test_the_rule_is_the_same_for_the_same_counts_of_any_depth():
    eight, sixteen, real = (fit_scaling(crops(dtype), dtype) for dtype in DEPTHS)
    assert (eight.low, eight.high) == (sixteen.low, sixteen.high) == pytest.approx((real.low, real.high), abs=0.1)


@pytest.mark.parametrize("dtype", DEPTHS)
def test_margin_ends_at_lowest_and_highest_count(dtype):
    images = np.random.default_rng(0).integers(40, 255, (40, 32, 32), endpoint=True)
    assert fit_scaling(images.astype(dtype), dtype) == Scaling(40.0, 255.0, dtype)


def test_interrupted_runs_of_version_0_1_0_keep_its_rule():
    assert fit_scaling_0_1_0(crops("uint8"), "uint8") == Scaling(0.0, 255.0, "uint8")
    images = crops("uint16")
    low, high = np.percentile(images, PERCENTILES, method="inverted_cdf")
    assert fit_scaling_0_1_0(images, "uint16") == Scaling(low, high, "uint16")
    assert fit_scaling_0_1_0(images, "uint16", (1, 2)) == Scaling(1.0, 2.0, "uint16")


def test_scale_is_robust_to_outliers():
    images = np.random.default_rng(0).integers(600, 800, (10, 1, 40, 40)).astype(np.uint16)
    images[0, 0, 0, :3] = 65535
    images[1, 0, 0, :3] = 0
    scaling = fit_scaling(images, "uint16")
    assert 595 <= scaling.low < scaling.high < 805  # 2 % of the range beyond 600 and 799


@settings(deadline=None)
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@given(data=st.data())
def test_percentiles_of_8_and_16_bits_are_those_of_numpy(dtype, data, raises_code):
    images = data.draw(npst.arrays(dtype, st.integers(2, 300)))
    low, high = map(float, np.percentile(images, PERCENTILES, method="inverted_cdf"))
    if low == high:
        with raises_code("images.constant"):
            fit_scaling(images, dtype)
    else:
        margin = 0.02 * (high - low)
        expected = max(images.min(), low - margin), min(images.max(), high + margin)
        scaling = fit_scaling(images, dtype)
        assert (scaling.low, scaling.high) == pytest.approx(expected)
        whole = np.arange(np.ceil(scaling.low), np.floor(scaling.high) + 1).astype(dtype)
        np.testing.assert_array_equal(scaling.invert(scaling.apply(whole)), whole)


def test_uses_given_limits():
    assert fit_scaling(np.zeros((2, 2), np.uint16), ANY_DEPTH, (200, 1650)) == Scaling(200.0, 1650.0, ANY_DEPTH)


@pytest.mark.parametrize("dtype", DEPTHS)
def test_refuses_constant_images(dtype, raises_code):
    with raises_code("images.constant") as caught:
        fit_scaling(np.full((3, 1, 40, 40), 76, dtype), dtype)
    assert "76 almost everywhere" in str(caught.value)


def scalings(depth: str) -> st.SearchStrategy[Scaling]:
    limit = 255 if depth == "uint8" else 65535
    ends = st.tuples(st.integers(0, limit), st.integers(0, limit)).filter(lambda e: e[0] < e[1])
    return ends.map(lambda e: Scaling(float(e[0]), float(e[1]), depth))


@settings(deadline=None)
@pytest.mark.parametrize("depth", ["uint8", "uint16"])
@given(data=st.data())
def test_inverts_every_count_inside_the_limits(depth, data):
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


def test_clips_outside_the_limits_without_changing_the_input():
    raw = np.array([0, 100, 150, 200, 65535], np.uint16)
    np.testing.assert_allclose(Scaling(100, 200, "uint16").apply(raw), [0, 0, 0.5, 1, 1])
    np.testing.assert_array_equal(raw, [0, 100, 150, 200, 65535])


def test_inverted_counts_stay_in_the_depth():
    scaling = Scaling(-50.0, 300.0, "uint8")
    np.testing.assert_array_equal(scaling.invert(np.array([-1.0, 0, 1, 2])), np.array([0, 0, 255, 255], np.uint8))
    assert Scaling(-1.0, 1.0, "float32").invert(np.array([0.5])).dtype == np.float32
    assert Scaling(-1.0, 1.0, ANY_DEPTH).invert(np.array([0.5])).dtype == np.float32


@pytest.mark.real_data
def test_jurkat_has_full_contrast(jurkat):
    """The counts are between 200 and 1,650 of 65,535, so a scale of the whole depth has no contrast."""
    cells = read_cells(jurkat, tile=40, image="brightfield.tif")
    crops = np.stack([cells.read(index) for index in range(0, len(cells), 10)])
    scaled = fit_scaling(crops, "uint16").apply(crops)
    assert scaled.min() == 0
    assert scaled.max() == 1
    assert scaled.std() > 0.05
    assert 0.2 < np.median(scaled) < 0.8
    assert (crops / 65535).std() < 0.002

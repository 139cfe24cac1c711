"""Measures of image quality: each depends on one property of the image only."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from urnet.images.quality import MEASURES, measure_quality
from urnet.images.simulation.phantom import draw_crop


@pytest.fixture(scope="module")
def crop() -> np.ndarray:
    return draw_crop("granulocyte", 0, 0, 0, 96).image


def measured(image: np.ndarray) -> dict[str, float]:
    return measure_quality(np.clip(np.rint(image), 0, 255).astype(np.uint8), 0, 255)


def test_every_measure_is_a_number(crop):
    values = measured(crop)
    assert tuple(sorted(values)) == tuple(sorted(MEASURES))
    assert all(type(value) is float and np.isfinite(value) for value in values.values())


def test_focus_falls_with_every_blur(crop):
    blurred = [measured(gaussian_filter(crop.astype(float), sigma))["focus"] for sigma in (0, 1, 2, 4)]
    assert blurred == sorted(blurred, reverse=True)
    assert blurred[0] - blurred[-1] > 0.5


def test_brightness_and_contrast_follow_gain(crop):
    whole, half = measured(crop.astype(float)), measured(crop / 2)
    assert half["brightness"] == pytest.approx(whole["brightness"] / 2, abs=0.005)
    assert half["contrast"] == pytest.approx(whole["contrast"] / 2, rel=0.05)
    assert half["focus"] == pytest.approx(whole["focus"], abs=0.1)


def test_ramp_is_measured_from_end_to_end_without_changing_contrast():
    rows = np.linspace(0.3, 0.5, 64)[:, None] * np.ones(48)
    values = measure_quality(rows, 0, 1)
    assert values["ramp"] == pytest.approx(0.2)
    assert values["contrast"] == pytest.approx(0, abs=1e-9)
    assert values["brightness"] == pytest.approx(0.4)
    across = measure_quality(rows + np.linspace(0, 0.1, 48), 0, 1)
    assert across["ramp"] == pytest.approx(np.hypot(0.2, 0.1))


def test_saturation_counts_pixels_at_both_ends():
    image = np.full((10, 10), 100, np.uint8)
    image[0, :3], image[1, 0] = 255, 0
    assert measure_quality(image, 0, 255)["saturation"] == pytest.approx(0.04)
    assert measure_quality(image, 50, 100)["saturation"] == 1


def test_noise_is_its_standard_deviation(crop):
    smooth = gaussian_filter(crop / 255, 2)
    noisy = smooth + 0.05 * np.random.default_rng(0).standard_normal(smooth.shape)
    assert measure_quality(smooth, 0, 1)["noise"] < 0.002
    assert measure_quality(noisy, 0, 1)["noise"] == pytest.approx(0.05, rel=0.1)


def test_an_empty_image_has_no_focus():
    assert measure_quality(np.full((16, 16), 0.5), 0, 1)["focus"] == -8


def test_measures_are_independent_of_depth_and_colour(crop):
    grey = measured(crop)
    deep = measure_quality(crop.astype(np.uint16) * 100 + 1000, 1000, 26_500)
    colour = measure_quality(np.stack([crop] * 3, axis=-1), 0, 255)
    assert deep == pytest.approx(grey, abs=1e-6)
    assert colour == pytest.approx(grey, abs=1e-6)


@pytest.mark.parametrize(
    ("image", "code"),
    [
        (np.zeros((4, 40)), "images.shape_invalid"),
        (np.zeros((40, 40, 2)), "images.shape_invalid"),
        (np.full((20, 20), np.nan), "images.not_finite"),
    ],
)
def test_refuses_arrays_that_are_no_crop(image, code, raises_code):
    with raises_code(code):
        measure_quality(image, 0, 1)

"""Regions of a corrected field: reflection at the border, subpixel shifts, even illumination."""

import numpy as np
import pytest
import tifffile
from scipy.ndimage import shift as moved

from urnet.fields.io.read import open_field
from urnet.fields.preprocessing.corrected_field import CorrectedField
from urnet.fields.preprocessing.illumination import Illumination
from urnet.fields.preprocessing.registration import Shift


@pytest.fixture
def noise(tmp_path):
    pixels = np.random.default_rng(0).integers(100, 4000, (40, 52)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "noise.tif", pixels, photometric="minisblack")
    with open_field(tmp_path / "noise.tif") as field:
        yield field, pixels


@pytest.mark.parametrize(
    "region", [(5, 6, 10, 12), (-7, 3, 20, 20), (30, 45, 20, 20), (-10, -10, 60, 72), (0, 0, 40, 52)]
)
def test_regions_beyond_the_border_are_reflections(noise, region):
    field, pixels = noise
    top, left, height, width = region
    whole = np.pad(pixels, 30, mode="reflect")
    expected = whole[top + 30 : top + 30 + height, left + 30 : left + 30 + width]
    assert np.array_equal(CorrectedField(field).read(*region), expected)


def test_a_region_can_be_larger_than_the_field(tmp_path):
    tifffile.imwrite(tmp_path / "small.tif", np.arange(81, dtype=np.uint8).reshape(9, 9), photometric="minisblack")
    with open_field(tmp_path / "small.tif") as field:
        assert CorrectedField(field).read(-30, -30, 80, 80).shape == (80, 80)


@pytest.mark.parametrize("way", [(2.0, -3.0), (0.5, 0.25), (-1.75, 4.1)])
def test_a_shifted_channel_is_aligned(noise, way):
    field, pixels = noise
    view = CorrectedField(field, shift=Shift(*way, 0.0))
    expected = moved(pixels.astype(float), way, order=1)
    assert np.abs(view.read(10, 10, 20, 30) - expected[10:30, 10:40]).max() <= 0.6


def test_every_region_gets_the_same_illumination_correction(noise):
    field, pixels = noise
    flat = np.linspace(0.8, 1.2, 16, dtype=np.float32)[None, :].repeat(16, axis=0)
    view = CorrectedField(field, Illumination("given", flat))
    whole = view.read(0, 0, 40, 52)
    assert np.array_equal(view.read(8, 9, 10, 11), whole[8:18, 9:20])
    assert whole[:, :5].mean() / pixels[:, :5].mean() > 1.15
    assert whole[:, -5:].mean() / pixels[:, -5:].mean() < 0.9

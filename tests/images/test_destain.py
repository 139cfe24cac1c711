"""Simulated destaining removes the stain and keeps the cell."""

import numpy as np
import pytest

from urnet.images.read import read_image
from urnet.images.simulation.destain import compute_optical_density, destain
from urnet.images.simulation.optics import BACKGROUND, Imaging


def stained(size: int = 128) -> np.ndarray:
    """Draw a pale pink background, a lilac cell and a violet nucleus."""
    axis = (np.arange(size) - size / 2) / size
    distance = np.hypot(axis, axis[:, None])[..., None]
    image = np.where(distance < 0.3, (190, 160, 200), (250, 225, 215))
    return np.where(distance < 0.15, (80, 40, 130), image).astype(np.uint8)


def michelson(image: np.ndarray, one: np.ndarray, other: np.ndarray) -> float:
    a, b = image[one].mean(), image[other].mean()
    return abs(a - b) / (a + b)


def test_shapes_types_and_ranges():
    result = destain(stained(100)[:90], np.random.default_rng(0))
    for image in (result.image, result.clean):
        assert image.shape == (90, 100)
        assert image.dtype == np.float32
        assert 0 <= image.min() <= image.max() <= 1


def test_same_seed_gives_the_same_image():
    first, again, other = (destain(stained(), np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.image, again.image)
    assert (first.image != other.image).mean() > 0.9
    np.testing.assert_array_equal(first.clean, other.clean)


def test_only_absorption_remains_in_focus():
    result = destain(stained(), np.random.default_rng(0), Imaging(absorption=0.06))
    expected = BACKGROUND * np.exp(-0.06 * compute_optical_density(stained()))
    np.testing.assert_allclose(result.image, expected, rtol=1e-5)


def test_optical_density_matches_the_stain():
    density = compute_optical_density(stained())
    assert np.median(density[:10]) == 0
    expected = np.mean(-np.log(np.array([80, 40, 130]) / np.array([250, 225, 215])))
    assert density[64, 64] == pytest.approx(expected, rel=1e-5)


def test_nucleus_nearly_vanishes_and_cell_stays_visible():
    image = stained()
    axis = (np.arange(128) - 64) / 128
    distance = np.hypot(axis, axis[:, None])
    nucleus, cytoplasm, ground = distance < 0.12, (distance > 0.18) & (distance < 0.27), distance > 0.35
    result = destain(image, np.random.default_rng(0))
    clean = result.clean
    assert michelson(result.image, nucleus, cytoplasm) < 0.1 * michelson(image.mean(2), nucleus, cytoplasm)
    assert clean[nucleus].mean() > clean[cytoplasm].mean() > clean[ground].mean() + 0.5


@pytest.mark.parametrize(
    "image",
    [np.zeros((64, 64), np.uint8), np.zeros((64, 64, 4), np.uint8), np.zeros((64, 64, 3), np.uint16)],
    ids=["grey", "rgba", "16-bit"],
)
def test_refuses_all_but_8_bit_rgb(image, raises_code):
    with raises_code("images.not_rgb"):
        destain(image, np.random.default_rng(0))


def test_accepts_black_pixels():
    image = stained()
    image[:5] = 0
    assert np.isfinite(destain(image, np.random.default_rng(0)).image).all()


@pytest.mark.real_data
def test_real_nuclei_lose_most_of_their_contrast(pbc):
    ratios = []
    for path in sorted((pbc / "neutrophil").glob("*.jpg"))[:12]:
        image = read_image(path)
        density = compute_optical_density(image)
        centre = np.zeros(density.shape, bool)
        centre[100:260, 100:260] = True
        nucleus = centre & (density > 0.8)
        cytoplasm = centre & (density > 0.25) & (density < 0.5)
        destained = destain(image, np.random.default_rng(0)).image
        ratios.append(michelson(destained, nucleus, cytoplasm) / michelson(image.mean(2), nucleus, cytoplasm))
    assert max(ratios) < 0.15

"""Brightfield optics: absorption in focus, phase out of focus, independence of the crop's size."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from urnet.images.simulation.optics import BACKGROUND, IMAGING_RANGES, Imaging, draw_imaging, simulate_brightfield


def disc(size: int, smooth: float = 4.0) -> np.ndarray:
    axis = (np.arange(size) - (size - 1) / 2) / size
    inside = np.hypot(axis, axis[:, None]) < 0.3
    return gaussian_filter(inside.astype(np.float32), smooth * size / 128)


def test_only_absorption_remains_in_focus():
    density = np.linspace(0, 2, 64 * 64, dtype=np.float32).reshape(64, 64)
    image = simulate_brightfield(disc(64), density, Imaging(absorption=0.06), np.random.default_rng(0))
    np.testing.assert_allclose(image, BACKGROUND * np.exp(-0.06 * density), rtol=1e-5)


def test_sign_of_defocus_inverts_the_rim():
    phase, nothing = disc(128), np.zeros((128, 128), np.float32)
    above = simulate_brightfield(phase, nothing, Imaging(defocus=2), np.random.default_rng(0)) - BACKGROUND
    below = simulate_brightfield(phase, nothing, Imaging(defocus=-2), np.random.default_rng(0)) - BACKGROUND
    np.testing.assert_allclose(above, -below, atol=1e-5)
    assert above.max() > 0.005
    assert abs(above.mean()) < 1e-5, "phase moves light about, it takes none away"


def test_image_is_independent_of_crop_size():
    imaging = Imaging(defocus=2.5, blur=1.5)
    contrast = []
    for size in (64, 128, 200):
        image = simulate_brightfield(disc(size), np.zeros((size, size), np.float32), imaging, np.random.default_rng(0))
        contrast.append(np.ptp(image))
    assert max(contrast) / min(contrast) < 1.15


def test_field_has_the_scale_of_its_crops():
    imaging = Imaging(defocus=2.5, blur=1.5)
    crop = disc(64)
    field = np.pad(crop, 64)
    alone = simulate_brightfield(crop, np.zeros_like(crop), imaging, np.random.default_rng(0))
    within = simulate_brightfield(field, np.zeros_like(field), imaging, np.random.default_rng(0), crop=64)
    np.testing.assert_allclose(within[64:128, 64:128], alone, atol=1e-5)


def test_ramp_and_gain_have_the_given_size():
    flat = np.zeros((50, 80), np.float32)
    image = (
        simulate_brightfield(flat, flat, Imaging(ramp=0.1, angle=0.0, gain=1.1), np.random.default_rng(0)) / BACKGROUND
    )
    assert image.mean() == pytest.approx(1.1, rel=1e-3)
    assert image[:, -1].mean() - image[:, 0].mean() == pytest.approx(0.11, rel=1e-3)


def test_noise_has_the_given_size_and_repeats_with_the_seed():
    flat = np.zeros((200, 200), np.float32)
    first, again = (simulate_brightfield(flat, flat, Imaging(noise=0.02), np.random.default_rng(3)) for _ in range(2))
    other = simulate_brightfield(flat, flat, Imaging(noise=0.02), np.random.default_rng(4))
    assert first.std() == pytest.approx(0.02 * BACKGROUND, rel=0.05)
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.9


def test_extreme_phase_stays_in_range():
    steep = np.random.default_rng(0).random((64, 64)).astype(np.float32) * 20
    image = simulate_brightfield(steep, steep, Imaging(defocus=3, gain=1.15), np.random.default_rng(0))
    assert image.min() >= 0
    assert image.max() <= 1


def test_drawn_conditions_lie_in_range_and_near_the_donor():
    rng = np.random.default_rng(0)
    donor = draw_imaging(rng)
    free = [draw_imaging(rng) for _ in range(300)]
    near = [draw_imaging(rng, around=donor, spread=0.05) for _ in range(300)]
    for name, (low, high) in IMAGING_RANGES.items():
        values, close = (np.array([getattr(i, name) for i in drawn]) for drawn in (free, near))
        assert low <= min(values.min(), close.min())
        assert max(values.max(), close.max()) <= high
        assert close.std() < 0.4 * values.std()

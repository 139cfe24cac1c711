"""The shift between brightfield and nuclei is measured to less than a pixel, or refused with a reason."""

from functools import lru_cache

import numpy as np
import pytest
from scipy.ndimage import shift as moved

from urnet.fields.preprocessing.registration import Shift, register
from urnet.images.simulation.phantom import PhantomField, draw_donor, draw_field

PAD = 40


@lru_cache
def phantom(donor: int, cells: int = 60, edge: int = 768) -> PhantomField:
    return draw_field(1, donor, 0, shape=(edge + 2 * PAD, edge + 2 * PAD), cells=cells)


def pair(field: PhantomField, down: float, right: float, noise: float = 0.03) -> tuple[np.ndarray, np.ndarray]:
    """Brightfield, and nuclei that lie (down, right) px above and left of where they belong."""
    glow = moved(field.nuclei.astype(np.float32), (-down, -right), order=3, mode="reflect")
    glow += np.random.default_rng(0).normal(0, noise * np.ptp(glow), glow.shape).astype(np.float32)
    return tuple(image[PAD:-PAD, PAD:-PAD] for image in (field.brightfield, glow))


@pytest.mark.slow
@pytest.mark.parametrize("donor", [0, 1, 2, 3])  # even ones above the focus, odd ones below it
def test_known_shifts_are_found_to_less_than_a_pixel(donor):
    assert draw_donor(1, donor).imaging.defocus * (-1) ** donor > 0
    errors = []
    for down, right, noise in [(0, 0, 0.03), (7.3, -12.6, 0.03), (-25.4, 18.9, 0.03), (3.5, 2.2, 0.15)]:
        found = register(*pair(phantom(donor), down, right, noise), limit=38)
        errors.append(np.hypot(found.down - down, found.right - right))
        assert 0 < found.error < 0.5
    assert np.median(errors) < 0.7, errors
    assert max(errors) < 1.2, errors


@pytest.mark.slow
def test_shifts_differ_by_parts_of_a_pixel():
    """The position of nuclei in their cells shifts all results equally; the rest is the error of the method."""
    field = phantom(0)
    base = register(*pair(field, 0, 0), limit=20)
    for down, right in [(0.5, 0), (0.25, -0.75), (4.4, 9.1)]:
        found = register(*pair(field, down, right), limit=20)
        assert found.down - base.down == pytest.approx(down, abs=0.12)
        assert found.right - base.right == pytest.approx(right, abs=0.12)


@pytest.mark.slow
def test_large_images_are_reduced_and_the_shift_is_in_their_own_pixels():
    bright, glow = (np.kron(image, np.ones((3, 3))) for image in pair(phantom(1), 6, -4))
    found = register(bright, glow, limit=60)
    assert np.hypot(found.down - 18, found.right + 12) < 3.5


def test_uneven_illumination_and_haze_do_not_matter():
    bright, glow = pair(phantom(0), 5, 5)
    ramp = np.linspace(0.6, 1.4, bright.shape[1])
    found = register(bright * ramp, glow + np.ptp(glow) * ramp[:, None], limit=20)
    assert np.hypot(found.down - 5, found.right - 5) < 1.2


def test_a_shift_beyond_the_limit_is_refused(raises_code):
    with raises_code("fields.nuclei_shifted"):
        register(*pair(phantom(0), 30, -20), limit=10)


@pytest.mark.slow
@pytest.mark.parametrize("other", ["another field", "turned", "mirrored"])
def test_nuclei_of_another_field_are_refused(other, raises_code):
    bright, glow = pair(phantom(0), 0, 0)
    wrong = {"another field": pair(phantom(2), 0, 0)[1], "turned": np.rot90(glow), "mirrored": glow[:, ::-1]}[other]
    with raises_code("fields.nuclei_differ"):
        register(bright, wrong, limit=38)


def test_different_sizes(raises_code):
    with raises_code("fields.nuclei_size"):
        register(np.zeros((20, 30)), np.zeros((20, 40)), limit=5)


@pytest.mark.parametrize("kind", ["empty", "blank", "noise", "one cell"])
def test_too_few_cells_give_no_shift(kind):
    rng = np.random.default_rng(0)
    if kind == "empty":
        field = draw_field(0, 0, 0, shape=(300, 300), cells=0)
        bright, glow = field.brightfield, field.nuclei
    elif kind == "one cell":
        field = draw_field(0, 0, 0, shape=(300, 300), cells=1)
        bright, glow = field.brightfield, field.nuclei
    elif kind == "blank":
        bright, glow = np.full((64, 64), 7, np.uint8), np.zeros((64, 64), np.uint16)
    else:
        bright, glow = rng.normal(100, 3, (2, 256, 256))
    assert register(bright, glow, limit=10) == Shift(0.0, 0.0, 1.0)


def test_a_handful_of_cells_is_enough():
    found = register(*pair(phantom(0, cells=8, edge=512), 6.5, -3.5), limit=25)
    assert np.hypot(found.down - 6.5, found.right + 3.5) < 2.5
    assert found.error < 0.6

"""Segmentation of the cell in a crop, against true masks of phantoms and on real cells."""

import numpy as np
import pytest

from urnet.images.mask import FALLBACK_RADIUS, segment_cell
from urnet.images.montage import read_crop
from urnet.images.simulation.optics import draw_imaging
from urnet.images.simulation.particles import CROP_UM, THICKNESS, paint_other_particle, paint_white_cell
from urnet.images.simulation.phantom import (
    CLASS_FREQUENCY,
    IMAGING_SPREAD,
    Scene,
    draw_crop,
    draw_donor,
    open_random_stream,
)


def true_mask(label: str, seed: int, donor: int, index: int, size: int) -> np.ndarray:
    """Draw the true mask of the cell of `draw_crop`, without its neighbour, from the same random stream."""
    rng, traits, canvas = open_random_stream(seed, donor, label, index), draw_donor(seed, donor), Scene(size, size)
    draw_imaging(rng, around=traits.imaging, spread=IMAGING_SPREAD)
    middle = rng.normal(size / 2, 0.02 * size, 2).astype(int)
    if rng.random() < 0.25:
        rng.uniform()
        paint_other_particle(rng, CROP_UM / size)
    canvas.add(paint_white_cell(label, traits, rng, CROP_UM / size), *middle)
    return canvas.phase > 0.1 * THICKNESS


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    return (first & second).sum() / (first | second).sum()


def disc(size: int, row: float, column: float, radius: float) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    return np.hypot(y - row, x - column) < radius


@pytest.mark.slow
@pytest.mark.parametrize(("size", "least"), [(16, 0.7), (24, 0.85), (48, 0.9), (200, 0.9), (400, 0.9)])
def test_segments_phantom_cells_of_every_size(size, least):
    cells = [(label, 5, donor, 10 * donor) for donor in range(3 if size > 100 else 8) for label in CLASS_FREQUENCY]
    overlaps = [overlap(segment_cell(draw_crop(*cell, size).image)[0], true_mask(*cell, size)) for cell in cells]
    assert np.median(overlaps) > least


@pytest.mark.real_data
def test_segments_unstained_lymphocytes_in_16_bit_counts(jurkat):
    crops = [read_crop(jurkat, f"g1/brightfield.tif#r{row:02d}c{c:02d}", 40) for row in range(3) for c in range(8)]
    masks, found = zip(*(segment_cell(crop) for crop in crops), strict=True)
    assert np.mean(found) > 0.9
    assert all(mask[17:23, 17:23].all() for mask in masks)
    # About 10 to 20 of 40 px across.
    assert 8 < 2 * np.sqrt(np.median([mask.sum() for mask in masks]) / np.pi) < 28


def test_excludes_a_touching_neighbour():
    cell = disc(96, 47.5, 47.5, 24)
    image = 500 + 80.0 * (cell | disc(96, 47.5, 95, 23.5)) + np.random.default_rng(0).normal(0, 8, (96, 96))
    mask, found = segment_cell(image.astype(np.uint16))
    assert found
    assert overlap(mask, cell) > 0.9


@pytest.mark.parametrize("sign", [-1, 1])
def test_mask_is_independent_of_depth_colour_brightness_and_illumination(sign):
    cell = disc(64, 33, 30, 17)
    image = 100 + sign * 30.0 * cell + np.linspace(0, 25, 64) + np.random.default_rng(1).normal(0, 3, (64, 64))
    for crop in (
        image.astype(np.uint8),
        (200 * image).astype(np.uint16),
        (image / 255).astype(np.float32),
        np.repeat(image[..., None], 3, axis=2).astype(np.uint8),
        image.astype(np.uint8)[..., None],
    ):
        mask, found = segment_cell(crop)
        assert found
        assert mask.dtype == bool
        assert overlap(mask, cell) > 0.88


def test_mask_has_the_shape_of_a_rectangular_crop():
    cell = disc(90, 30, 44.5, 15)[:61]
    mask, found = segment_cell((120 + 40 * cell).astype(np.uint8))
    assert found
    assert mask.shape == (61, 90)
    assert overlap(mask, cell) > 0.9


def test_returns_the_central_disc_without_an_outline():
    mask, found = segment_cell(np.full((40, 40), 7, np.uint8))
    assert not found
    assert mask.sum() == pytest.approx(np.pi * (FALLBACK_RADIUS * 40) ** 2, rel=0.03)
    rng = np.random.default_rng(0)
    noise = [segment_cell(rng.normal(100, 3, (48, 48)))[1] for _ in range(40)]
    assert np.mean(noise) < 0.4


def test_refuses_arrays_that_are_no_crop(raises_code):
    with raises_code("images.shape_invalid") as caught:
        segment_cell(np.zeros((4, 40)))
    assert "(4, 40)" in str(caught.value)
    with raises_code("images.shape_invalid") as caught:
        segment_cell(np.zeros((20, 20, 2)))
    assert "(20, 20, 2)" in str(caught.value)
    with raises_code("images.not_finite"):
        segment_cell(np.full((20, 20), np.nan))

"""Phantom cells are repeatable, have plausible shapes, and are at their true positions."""

import numpy as np
import pytest
from scipy.ndimage import label as connected

from urnet.images.simulation.phantom import CLASS_FREQUENCY, CROP_UM, draw_crop, draw_donor, draw_field


def nuclear_area(nuclei: np.ndarray) -> float:
    """Area above a quarter of full brightness, in square micrometres."""
    return (nuclei > 64).sum() * (CROP_UM / len(nuclei)) ** 2


def cell_area(clean: np.ndarray) -> float:
    """Area of the particle in the middle, in square micrometres."""
    parts, _ = connected(clean > 40)
    return (parts == parts[len(clean) // 2, len(clean) // 2]).sum() * (CROP_UM / len(clean)) ** 2


@pytest.fixture(scope="module")
def crops():
    return {name: [draw_crop(name, 0, donor, i) for donor in range(6) for i in range(8)] for name in CLASS_FREQUENCY}


@pytest.mark.parametrize("size", [20, 48, 101])
@pytest.mark.parametrize("name", CLASS_FREQUENCY)
def test_a_crop_is_8_bit_and_square(name, size):
    crop = draw_crop(name, 0, 0, 0, size)
    for image in (crop.image, crop.clean, crop.nuclei):
        assert image.shape == (size, size)
        assert image.dtype == np.uint8
    assert crop.clean.max() > 100
    assert crop.nuclei.max() > 100


def test_crops_repeat_with_the_seed_in_any_order():
    first = draw_crop("monocyte", 5, 2, 7)
    draw_crop("granulocyte", 5, 2, 6)
    repeated = draw_crop("monocyte", 5, 2, 7)
    for a, b in zip(vars(first).values(), vars(repeated).values(), strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("other", [(6, 2, 7), (5, 3, 7), (5, 2, 8)], ids=["seed", "donor", "index"])
def test_seed_donor_and_index_each_change_the_cell(other):
    assert (draw_crop("monocyte", 5, 2, 7).image != draw_crop("monocyte", *other).image).mean() > 0.5


def test_donors_differ_and_defocus_has_both_signs():
    donors = [draw_donor(0, donor) for donor in range(12)]
    assert len({donor.size for donor in donors}) == 12
    assert {np.sign(donor.imaging.defocus) for donor in donors} == {-1, 1}


def test_sizes_follow_the_textbook_order(crops):
    area = {name: np.mean([cell_area(crop.clean) for crop in crops[name]]) for name in CLASS_FREQUENCY}
    assert 1.2 * area["lymphocyte"] < area["granulocyte"]
    assert 1.2 * area["granulocyte"] < area["monocyte"]
    ratio = {
        name: np.mean([nuclear_area(c.nuclei) / cell_area(c.clean) for c in crops[name]]) for name in CLASS_FREQUENCY
    }
    assert ratio["lymphocyte"] > 1.3 * max(ratio["granulocyte"], ratio["monocyte"])


def test_classes_overlap_in_size(crops):
    """Size alone must not be enough to classify the cells."""
    areas = {name: [cell_area(crop.clean) for crop in crops[name]] for name in CLASS_FREQUENCY}
    assert max(areas["lymphocyte"]) > min(areas["granulocyte"])
    assert max(areas["granulocyte"]) > min(areas["monocyte"])


def test_the_nucleus_is_bright_in_fluorescence_and_faint_in_brightfield(crops):
    for crop in crops["granulocyte"][:12]:
        nucleus, ground = crop.nuclei > 128, crop.clean < 5
        cytoplasm = (crop.clean > 100) & (crop.nuclei < 40)
        assert crop.nuclei[nucleus].mean() > 4 * crop.nuclei[cytoplasm].mean()
        assert abs(crop.image[nucleus].mean() - crop.image[cytoplasm].mean()) < 0.1 * crop.image[ground].mean()


@pytest.fixture(scope="module")
def field():
    return draw_field(0, 1, 0, shape=(500, 700), cells=40)


def test_field_has_a_12_bit_range_about_its_background(field):
    for image in (field.brightfield, field.nuclei):
        assert image.shape == (500, 700)
        assert image.dtype == np.uint16
        assert image.max() <= 4095
    assert 1400 < np.median(field.brightfield) < 2500
    assert field.brightfield.min() > 0


def test_true_positions_match_the_fluorescence(field):
    assert len(field.cells) == 40
    rows, columns = np.indices(field.nuclei.shape)
    covered = np.zeros(field.nuclei.shape, bool)
    for cell in field.cells:
        inside = np.hypot(columns - cell.x, rows - cell.y) < cell.radius
        covered |= np.hypot(columns - cell.x, rows - cell.y) < 1.2 * cell.radius
        assert (field.nuclei[inside] > 1000).mean() > 0.08, cell
    assert (field.nuclei[~covered] < 1000).all()


def test_only_pairs_touch_or_overlap(field):
    x, y, radius = (np.array([getattr(cell, name) for cell in field.cells]) for name in ("x", "y", "radius"))
    depth = (radius + radius[:, None]) - np.hypot(x - x[:, None], y - y[:, None])
    np.fill_diagonal(depth, -np.inf)
    deepest = depth.max(axis=1)
    contact = np.array([cell.contact for cell in field.cells])
    assert set(contact) == {"single", "touching", "overlapping"}
    assert (deepest[contact == "single"] < -4).all()
    assert (np.abs(deepest[contact == "touching"]) < 1.5).all()
    assert (deepest[contact == "overlapping"] > 2).all()


def test_field_holds_particles_without_a_nucleus(field):
    """Red cells and debris are in the brightfield image, but not in fluorescence and true positions."""
    rows, columns = np.indices(field.nuclei.shape)
    free = np.ones(field.nuclei.shape, bool)
    for cell in field.cells:
        free &= np.hypot(columns - cell.x, rows - cell.y) > 1.4 * cell.radius
    deviation = np.abs(field.brightfield / np.median(field.brightfield) - 1)
    # Noise is 2 %: without particles, fewer than one pixel in a million deviates by 12 %.
    assert (deviation[free] > 0.12).sum() > 100


def test_fields_repeat_with_the_seed(field):
    repeated = draw_field(0, 1, 0, shape=(500, 700), cells=40)
    assert repeated.brightfield.tobytes() == field.brightfield.tobytes()
    assert repeated.nuclei.tobytes() == field.nuclei.tobytes()
    assert repeated.cells == field.cells
    assert draw_field(0, 1, 1, shape=(500, 700), cells=40).cells != field.cells


def test_accepts_empty_and_refuses_overfull_fields(raises_code):
    assert draw_field(0, 0, 0, shape=(64, 64), cells=0).cells == ()
    with raises_code("images.field_overfull"):
        draw_field(0, 0, 0, shape=(64, 64), cells=30)

"""Detection in phantom fields, in Jurkat montages as free fields, and in fields without cells."""

import numpy as np
import pytest
import tifffile

from urnet.fields.detection import detect as module
from urnet.fields.detection.detect import Detection, detect
from urnet.fields.detection.matching import Agreement, match_positions
from urnet.fields.preprocessing.illumination import GRID_BLOCKS, Illumination
from urnet.images.simulation.phantom import draw_field

SHAPE = (512, 512)


def regions(pixels):
    def read(top, left, height, width):
        assert top >= 0
        assert left >= 0
        assert height > 0
        assert width > 0
        assert top + height <= pixels.shape[0]
        assert left + width <= pixels.shape[1]
        return pixels[top : top + height, left : left + width]

    return read


def find(pixels, nuclei=None, **options) -> list[Detection]:
    return detect(regions(pixels), pixels.shape[:2], nuclei=None if nuclei is None else regions(nuclei), **options)


def centres(cells) -> np.ndarray:
    return np.array([(cell.x, cell.y) for cell in cells]).reshape(-1, 2)


def agreement(cells, field, reach=9.0) -> Agreement:
    return Agreement(len(cells), len(field.cells), len(match_positions(centres(cells), centres(field.cells), reach)))


def iou(cell: Detection, true) -> float:
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    disc = np.hypot(y - true.y, x - true.x) <= true.radius
    mask = np.zeros(SHAPE, bool)
    mask[cell.top : cell.top + cell.mask.shape[0], cell.left : cell.left + cell.mask.shape[1]] = cell.mask
    return (mask & disc).sum() / (mask | disc).sum()


def same_cells(first: list[Detection], second: list[Detection]) -> bool:
    return len(first) == len(second) and all(
        (a.x, a.y, a.area, a.touching, a.top, a.left) == (b.x, b.y, b.area, b.touching, b.top, b.left)
        and np.array_equal(a.mask, b.mask)
        for a, b in zip(first, second, strict=True)
    )


@pytest.fixture(scope="module")
def fields():
    """Three donors: two with sharp edges of either sign, one blurred."""
    return [draw_field(5, donor, 0, shape=SHAPE, cells=20) for donor in range(3)]


@pytest.fixture(scope="module")
def field():
    return draw_field(1, 1, 0, shape=SHAPE, cells=20)


@pytest.fixture(scope="module")
def full():
    """A field with enough red cells to measure their size."""
    return draw_field(1, 1, 0)


@pytest.fixture(scope="module")
def cells(field):
    return find(field.brightfield)


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(0).normal(700, 20, SHAPE).astype(np.float32)


@pytest.mark.slow
def test_single_cells_are_detected_in_brightfield(fields):
    for field in fields:
        found = {int(true) for _, true in match_positions(centres(find(field.brightfield)), centres(field.cells), 9)}
        single = {k for k, cell in enumerate(field.cells) if cell.contact == "single"}
        assert single <= found


def test_nuclei_separate_white_cells_from_other_particles(fields):
    total = Agreement(0, 0, 0)
    for field in fields:
        total += agreement(find(field.brightfield, field.nuclei), field)
    assert total.recall >= 0.98
    assert total.precision >= 0.98


def test_masks_lie_on_the_cells(fields):
    overlaps = []
    for field in fields:
        cells = find(field.brightfield)
        pairs = match_positions(centres(cells), centres(field.cells), 9)
        overlaps += [iou(cells[i], field.cells[j]) for i, j in pairs if field.cells[j].contact == "single"]
    assert np.median(overlaps) > 0.85


@pytest.mark.slow
def test_a_separate_cluster_of_red_cells_is_left_out(full):
    counted = agreement(find(full.brightfield), full)
    assert counted.recall >= 0.95
    assert counted.precision >= 0.95


@pytest.mark.slow
def test_a_given_diameter_replaces_the_limits_of_the_field(full):
    with_red = find(full.brightfield, least=16)
    assert len(with_red) > len(full.cells) + 20
    assert min(cell.diameter for cell in with_red if not cell.on_edge) >= 16


@pytest.mark.slow
def test_lymphocytes_beside_monocytes_are_not_taken_for_red_cells(monkeypatch):
    from urnet.images.simulation import phantom

    monkeypatch.setattr(phantom, "CLASS_FREQUENCY", {"granulocyte": 0.0, "lymphocyte": 0.6, "monocyte": 0.4})
    red = phantom.paint_other_particle
    monkeypatch.setattr(phantom, "paint_other_particle", lambda rng, pixel: red(rng, 3 * pixel))  # specks, no red cells
    field = draw_field(3, 1, 0)
    assert len(find(field.brightfield)) == len(find(field.brightfield, least=14))


@pytest.mark.real_data
def test_jurkat_montages_as_free_fields(jurkat):
    montage = tifffile.imread(jurkat / "s" / "brightfield.tif")[:480, :600]
    rows, columns = np.mgrid[19.5:480:40, 19.5:600:40]
    truth = np.stack([columns.ravel(), rows.ravel()], axis=1)
    cells = find(montage)
    counted = Agreement(len(cells), len(truth), len(match_positions(centres(cells), truth, 10)))
    assert counted.recall >= 0.97
    assert counted.precision >= 0.97


def test_measures_of_a_detection(cells):
    for cell in cells:
        height, width = cell.mask.shape
        rows, columns = np.nonzero(cell.mask)
        assert cell.area == cell.mask.sum()
        assert cell.diameter == pytest.approx(2 * np.sqrt(cell.area / np.pi))
        assert (cell.y, cell.x) == pytest.approx((cell.top + rows.mean(), cell.left + columns.mean()), abs=0.01)
        assert cell.mask.any(axis=1)[[0, -1]].all()
        assert cell.mask.any(axis=0)[[0, -1]].all()
        assert 0 < cell.roundness <= 1
        assert 0 <= cell.touching <= 1
        border = 0 in (cell.top, cell.left) or cell.top + height == SHAPE[0] or cell.left + width == SHAPE[1]
        assert cell.on_edge == border
    assert [(c.y, c.x) for c in cells] == sorted((c.y, c.x) for c in cells)


@pytest.mark.slow
def test_touching_cells_are_flagged(full):
    cells = find(full.brightfield, full.nuclei)
    share = {"single": [], "touching": []}
    for i, j in match_positions(centres(cells), centres(full.cells), 9):
        share.setdefault(full.cells[j].contact, []).append(cells[i].touching)
    assert np.median(share["touching"]) > 0.05
    assert np.median(share["single"]) == 0


def test_masks_do_not_overlap(cells):
    taken = np.zeros(SHAPE, int)
    for cell in cells:
        taken[cell.top : cell.top + cell.mask.shape[0], cell.left : cell.left + cell.mask.shape[1]] += cell.mask
    assert taken.max() == 1


@pytest.mark.parametrize("tile", [128, 200, 300])
def test_tiles_do_not_matter(field, cells, tile):
    assert same_cells(find(field.brightfield, tile=tile), cells)


@pytest.mark.slow
def test_tiles_do_not_matter_with_nuclei(field):
    assert same_cells(find(field.brightfield, field.nuclei, tile=160), find(field.brightfield, field.nuclei, tile=2048))


@pytest.mark.slow
def test_no_large_region_is_read(field):
    pixels = field.brightfield
    largest = 0

    def read(top, left, height, width):
        nonlocal largest
        largest = max(largest, height * width)
        return pixels[np.ix_(np.arange(top, top + height) % 512, np.arange(left, left + width) % 512)]

    cells = detect(read, (1200, 2000), tile=512)
    assert largest <= 1280 * 1024
    assert len(cells) > 120


def test_options_leave_out(field, cells):
    assert all(not cell.on_edge for cell in find(field.brightfield, border=False))
    middle = float(np.median([cell.diameter for cell in cells]))
    assert all(cell.diameter <= middle for cell in find(field.brightfield, most=middle) if not cell.on_edge)
    assert all(cell.roundness >= 0.97 for cell in find(field.brightfield, roundness=0.97))


def test_a_cell_at_the_border_is_flagged(field):
    cell = next(c for c in field.cells if c.contact == "single" and c.x + 40 < SHAPE[1])
    cut = field.brightfield[:, cell.x :]
    near = [found for found in find(cut) if np.hypot(found.x, found.y - cell.y) < cell.radius]
    assert len(near) == 1
    assert near[0].on_edge
    assert near[0].left == 0


@pytest.mark.slow
@pytest.mark.parametrize("crop", [24, 128])
def test_any_magnification(crop):
    side = 12 * crop
    field = draw_field(3, 1, 0, shape=(side, side), cells=25, crop=crop)
    counted = agreement(find(field.brightfield, field.nuclei), field, reach=crop / 5)
    assert counted.recall > 0.75 if crop == 24 else counted.recall > 0.95
    assert counted.precision > 0.95


def test_depth_colour_scale_and_sign_do_not_matter(field, cells):
    grey = field.brightfield
    for pixels in (np.stack([grey] * 3, axis=-1), grey.astype(np.float32) / 4095, 4095 - grey):
        other = find(pixels)
        assert len(match_positions(centres(other), centres(cells), 2)) >= len(cells) - 1
        assert abs(len(other) - len(cells)) <= 1
    coarse = find((grey >> 4).astype(np.uint8))
    assert len(match_positions(centres(coarse), centres(cells), 2)) >= 0.95 * len(cells)


def test_pixels_that_are_not_finite_are_background(field, cells):
    pixels = field.brightfield.astype(np.float32)
    pixels[np.random.default_rng(0).random(pixels.shape) < 1e-3] = np.nan
    pixels[100:130, 300:400] = np.nan
    pixels[5, 5] = np.inf
    found = find(pixels)
    away = [c for c in cells if not (80 < c.y < 150 and 280 < c.x < 420)]
    assert len(match_positions(centres(found), centres(away), 3)) >= len(away) - 2
    assert find(np.full((200, 200), np.nan)) == []


def test_a_ramp_of_illumination_does_not_matter(field):
    ramp = np.linspace(0.6, 1.4, SHAPE[1])
    even, uneven = find(field.brightfield, least=14), find(field.brightfield * ramp, least=14)
    assert len(match_positions(centres(uneven), centres(even), 4)) >= len(even) - 2


@pytest.mark.parametrize("value", [0, 700])
def test_a_blank_field_has_no_cells(value):
    assert find(np.full(SHAPE, value, np.uint16)) == []


def test_noise_has_no_cells(noise):
    from scipy.ndimage import gaussian_filter

    assert find(noise) == []
    assert find(gaussian_filter(noise, 1.5)) == []
    assert find(noise, nuclei=noise[::-1] / 7) == []
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    assert find(noise + 0.5 * x) == []
    assert find(noise * np.exp(-((y - 256) ** 2 + (x - 256) ** 2) / 1.5e5)) == []


def test_nuclei_are_detected_where_brightfield_shows_nothing(field, noise):
    found = find(noise, field.nuclei)
    assert len(match_positions(centres(found), centres(field.cells), 9)) >= 0.8 * len(field.cells)
    assert find(field.brightfield, np.full(SHAPE, 100, np.uint16)) == []


def test_a_clump_is_processed():
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    rng = np.random.default_rng(0)
    clump = np.where(np.hypot(y - 256, x - 256) < 200, rng.normal(700, 150, SHAPE), rng.normal(700, 10, SHAPE))
    assert len(find(clump, most=60)) < 20


@pytest.mark.parametrize("shape", [(1, 1), (10, 12), (12, 500)])
def test_a_field_smaller_than_a_cell(field, shape):
    assert find(field.brightfield[: shape[0], : shape[1]]) == []


@pytest.mark.parametrize(
    "options", [{"least": 30, "most": 20}, {"tile": 0}, {"roundness": 1.5}, {"least": -1}, {"most": 0}]
)
def test_impossible_options_are_refused(field, options, raises_code):
    with raises_code("fields.setting_invalid"):
        find(field.brightfield, **options)


def test_clumps_fit_the_overlap_of_tiles():
    # What is larger is no cell, whatever its outline: tracing it would cost without limit.
    assert 2 * module.MAX_WIDTH_PX < module.TILE_OVERLAP_PX


@pytest.mark.parametrize(("level", "noise"), [(30000, 0.0), (65535, 0.0), (30000, 0.001)])
def test_residuals_of_the_illumination_correction_are_not_cells(level, noise):
    """A covered lamp or a saturated camera, with an illumination that was estimated on other fields."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[-1 : 1 : GRID_BLOCKS * 1j, -1 : 1 : GRID_BLOCKS * 1j]
    light = Illumination("estimated", (1.05 - 0.1 * (rows**2 + columns**2)).astype(np.float32))
    field = np.clip(level * (1 + noise * rng.standard_normal((512, 512))), 0, 65535).astype(np.uint16)
    even = light.correct(field, 0, 0, field.shape)
    assert detect(regions(even), even.shape) == []

"""Crops of any size, depth and colour fit into one array."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image

from urnet.cells.pixels import fit_input, load_pixels, survey_images
from urnet.cells.read import read_cells
from urnet.cells.table import Cells

SHAPES = st.tuples(st.integers(8, 60), st.integers(8, 60), st.sampled_from([(), (3,)])).map(lambda s: (*s[:2], *s[2]))
DEPTHS = st.sampled_from([np.uint8, np.uint16, np.float32])
VALUES = {np.uint8: st.integers(0, 255), np.uint16: st.integers(0, 65535), np.float32: st.floats(-1e6, 1e6, width=32)}
SQUARES = st.tuples(st.integers(8, 60), st.sampled_from([(), (3,)])).map(lambda s: (s[0], s[0], *s[1]))


def crops_of(shapes: st.SearchStrategy) -> st.SearchStrategy:
    return st.tuples(DEPTHS, shapes).flatmap(lambda both: npst.arrays(both[0], both[1], elements=VALUES[both[0]]))


def cells_of(root: Path, *images: np.ndarray) -> Cells:
    for number, image in enumerate(images):
        photometric = "rgb" if image.ndim == 3 else "minisblack"
        tifffile.imwrite(root / f"{number}.tif", image, photometric=photometric)
    paths = [f"{number}.tif" for number in range(len(images))]
    return Cells(root, pd.DataFrame({"path": paths, "label": "a"}), ("a",))


@settings(deadline=None)
@given(crops_of(SHAPES), st.integers(8, 64), st.sampled_from([1, 3]))
def test_fits_any_crop_to_any_input(crop, size, channels):
    fitted = fit_input(crop, size, channels)
    assert fitted.shape == (channels, size, size)
    assert fitted.dtype == crop.dtype
    assert np.isfinite(fitted).all()


@settings(deadline=None)
@given(crops_of(SQUARES))
def test_returns_a_fitting_crop_unchanged(crop):
    channels = 3 if crop.ndim == 3 else 1
    fitted = fit_input(crop, crop.shape[0], channels)
    np.testing.assert_array_equal(fitted, np.moveaxis(np.atleast_3d(crop), -1, 0))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_flat_crops_stay_flat(dtype):
    crop = np.full((33, 50), 200, dtype)
    assert (fit_input(crop, 24, 3) == 200).all()
    assert (fit_input(np.stack([crop] * 3, -1), 64, 1) == 200).all()


def test_keeps_the_aspect_and_pads_by_reflection():
    crop = np.tile(np.arange(20, dtype=np.uint8)[:, None], (1, 40))
    (fitted,) = fit_input(crop, 40, 1)
    np.testing.assert_array_equal(fitted[10:30], crop)
    np.testing.assert_array_equal(fitted[:10], crop[9::-1])
    np.testing.assert_array_equal(fitted[30:], crop[:9:-1])


def test_colour_becomes_its_mean_and_grey_is_repeated():
    colour = np.zeros((16, 16, 3), np.uint16)
    colour[..., 0], colour[..., 1] = 900, 301
    assert (fit_input(colour, 16, 1) == 400).all()
    grey = np.arange(256, dtype=np.uint16).reshape(16, 16)
    fitted = fit_input(grey, 16, 3)
    for plane in fitted:
        np.testing.assert_array_equal(plane, grey)


def test_sharp_edges_stay_in_the_depth():
    checks = (np.indices((17, 17)).sum(0) % 2).astype(np.uint16) * 65535
    fitted = fit_input(checks, 50, 1)
    assert fitted.max() == 65535
    assert fitted.min() == 0


def test_keeps_one_depth_and_converts_several_to_float32(tmp_path):
    eight, deep = np.full((16, 16), 200, np.uint8), np.full((16, 16), 50_000, np.uint16)
    assert load_pixels(cells_of(tmp_path, eight, eight), 16, 1).images.dtype == np.uint8
    assert load_pixels(cells_of(tmp_path, deep, deep), 16, 1).images.dtype == np.uint16
    for order in ((eight, deep, eight), (deep, eight, deep)):
        images = load_pixels(cells_of(tmp_path, *order), 16, 1).images
        assert images.dtype == np.float32
        assert [image.max() for image in images] == [image.max() for image in order]


def test_counts_conversions_between_grey_and_colour(tmp_path):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    colour = np.stack([grey] * 3, axis=-1)
    cells = cells_of(tmp_path, grey, colour, grey)
    assert load_pixels(cells, 16, 1).converted == 1
    assert load_pixels(cells, 16, 3).converted == 2
    np.testing.assert_array_equal(load_pixels(cells, 16, 1).images, np.stack([grey] * 3)[:, None])


def test_progress_and_a_bad_image(tmp_path, raises_code):
    cells = cells_of(tmp_path, *[np.zeros((16, 16), np.uint8)] * 3)
    progress: list[int] = []
    load_pixels(cells, 16, 1, progress=progress.append)
    assert progress == [1, 2, 3]
    (tmp_path / "1.tif").write_bytes(b"")
    with raises_code("images.empty") as caught:
        load_pixels(cells, 16, 1)
    assert "1.tif" in str(caught.value)


def test_survey_reads_headers_only(tmp_path):
    cells = cells_of(
        tmp_path,
        *[np.zeros((16, 20), np.uint8)] * 2,
        np.zeros((30, 9), np.uint16),
    )
    survey = survey_images(cells)
    assert (survey.edge, survey.colour, dict(survey.depths)) == (20, False, {"uint8": 2, "uint16": 1})
    Image.new("RGB", (64, 64)).save(tmp_path / "2.tif")
    assert survey_images(cells).colour


def test_survey_uses_the_tile_size(tmp_path):
    (tmp_path / "a").mkdir()
    tifffile.imwrite(tmp_path / "a" / "m.tif", np.zeros((40, 60), np.uint16))
    survey = survey_images(read_cells(tmp_path, tile=20))
    assert (survey.edge, dict(survey.depths)) == (20, {"uint16": 6})


@pytest.mark.real_data
def test_jurkat_and_its_pairs(jurkat):
    cells = read_cells(jurkat, tile=40, image="brightfield.tif", target="dna.tif")
    sample = cells.where(np.arange(len(cells)) % 50 == 0)
    survey = survey_images(sample)
    assert (survey.edge, survey.colour, set(survey.depths)) == (40, False, {"uint16"})
    images, targets = (load_pixels(sample, 40, 1, column=column).images for column in ("path", "target"))
    assert images.shape == targets.shape == (len(sample), 1, 40, 40)
    assert images.dtype == targets.dtype == np.uint16
    np.testing.assert_array_equal(images[3, 0], sample.read(3))


@pytest.mark.real_data
def test_pbc_at_another_size(pbc):
    cells = read_cells(pbc)
    sample = cells.where(np.arange(len(cells)) % 200 == 0)
    assert survey_images(sample).edge == 363
    pixels = load_pixels(sample, 96, 3)
    assert pixels.images.shape == (len(sample), 3, 96, 96)
    assert pixels.converted == 0
    crop = sample.read(0).astype(float)
    assert pixels.images[0].mean() == pytest.approx(crop.mean(), abs=1)

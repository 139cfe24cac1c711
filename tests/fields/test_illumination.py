"""Correction of the illumination. A stored illumination gives the same correction."""

import json

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from urnet.fields.io.read import open_field
from urnet.fields.preprocessing.illumination import (
    Illumination,
    estimate_illumination,
    measure_illumination,
    read_flat_field,
)
from urnet.images.simulation.phantom import draw_field

EDGE = 512


def vignette(edge: int = EDGE, strength: float = 0.3) -> np.ndarray:
    """Draw illumination that falls off from a point near the middle, (edge, edge): 0.45 at the darkest corner."""
    rows, columns = np.linspace(-1.05, 0.95, edge)[:, None], np.linspace(-0.9, 1.1, edge)
    return 1 / (1 + strength * (rows**2 + columns**2)) ** 2


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    """Ten phantom fields of both signs of defocus, each with a ramp of its own, seen through one vignette."""
    folder = tmp_path_factory.mktemp("batch")
    paths = []
    for index in range(10):
        field = draw_field(3, index % 2, index, shape=(EDGE, EDGE), cells=20)
        paths.append(folder / f"{index}.tif")
        tifffile.imwrite(paths[-1], np.rint(field.brightfield * vignette()).astype(np.uint16), tile=(128, 128))
    return paths


def estimated(paths) -> Illumination:
    measured = []
    for path in paths:
        with open_field(path) as field:
            measured.append(measure_illumination(field))
    return estimate_illumination(measured)


def unevenness(image: np.ndarray) -> float:
    """Compute the relative standard deviation of the background: medians of 32 px blocks without cells."""
    blocks = image[: EDGE // 32 * 32].reshape(EDGE // 32, 32, EDGE // 32, 32).swapaxes(1, 2).reshape(-1, 1024)
    noise = np.median(np.abs(blocks - np.median(blocks, axis=1, keepdims=True)), axis=1) / blocks.mean(axis=1)
    level = np.median(blocks, axis=1)[noise < np.quantile(noise, 0.5)]
    return float(level.std() / level.mean())


@pytest.mark.slow
@pytest.mark.parametrize(("count", "most"), [(1, 0.03), (3, 0.03), (10, 0.02)])
def test_the_background_is_even_after_correction(batch, count, most):
    """The unevenness falls from 0.13 to 0.02. Fields keep their own ramps; only the common part is estimated."""
    light = estimated(batch[:count])
    assert light.method == "estimated"
    assert light.flat.mean() == pytest.approx(1, abs=1e-3)
    before, after = [], []
    for path in batch[:count]:
        image = tifffile.imread(path)
        even = light.correct(image, 0, 0, image.shape)
        assert even.dtype == image.dtype
        assert np.median(even) == pytest.approx(np.median(image), rel=0.15)
        before.append(unevenness(image))
        after.append(unevenness(even))
    assert np.mean(before) > 0.10
    assert np.mean(after) < most, (before, after)


@pytest.mark.slow
def test_even_fields_are_not_changed(tmp_path):
    for index in range(3):
        field = draw_field(4, index, 0, shape=(EDGE, EDGE), cells=25)
        tifffile.imwrite(tmp_path / f"{index}.tif", field.brightfield)
    light = estimated([tmp_path / f"{index}.tif" for index in range(3)])
    assert np.abs(light.flat - 1).max() < 0.12  # ramps of up to 15 % are what they share
    assert light.flat.std() < 0.05


@pytest.mark.slow
def test_regions_are_corrected_like_the_whole_field(batch):
    light = estimated(batch[:2])
    image = tifffile.imread(batch[0])
    whole = light.correct(image, 0, 0, image.shape)
    for top, left, height, width in [(0, 0, 7, 9), (100, 200, 150, 33), (EDGE - 1, EDGE - 1, 1, 1)]:
        part = light.correct(image[top : top + height, left : left + width], top, left, image.shape)
        np.testing.assert_allclose(part.astype(int), whole[top : top + height, left : left + width], atol=1)


def test_colours_depths_and_limits():
    light = Illumination("given", np.array([[0.5, 1.5]], np.float32), np.full((1, 1), 10, np.float32))
    grey = np.full((4, 8), 110, np.uint8)
    even = light.correct(grey, 0, 0, grey.shape)
    assert even[:, 0].tolist() == [200] * 4  # (110 - 10) / 0.5
    assert even[:, -1].tolist() == [67] * 4
    assert light.correct(np.full_like(grey, 250), 0, 0, grey.shape)[0, 0] == 255
    assert light.correct(np.zeros_like(grey), 0, 0, grey.shape).max() == 0
    colour = np.stack([grey, grey // 2, grey], axis=-1)
    np.testing.assert_array_equal(light.correct(colour, 0, 0, grey.shape)[..., 0], even)
    floats = light.correct(grey.astype(np.float32), 0, 0, grey.shape)
    assert floats.dtype == np.float32
    assert floats[0, 0] == pytest.approx(200)


@pytest.mark.slow
def test_fields_of_any_size_and_colour_share_one_illumination(tmp_path):
    for name, edge in (("a", 600), ("b", 300), ("c", 20)):
        image = np.rint(2000 * vignette(edge)).astype(np.uint16)
        tifffile.imwrite(tmp_path / f"{name}.tif", image)
        tifffile.imwrite(tmp_path / f"{name}-rgb.tif", np.stack([image] * 3, axis=-1), photometric="rgb")
    light = estimated(sorted(tmp_path.glob("*.tif")))
    for name, edge in (("a", 600), ("b-rgb", 300)):
        image = tifffile.imread(tmp_path / f"{name}.tif")
        even = light.correct(image, 0, 0, (edge, edge))
        assert even.std() / even.mean() < 0.02


@pytest.mark.parametrize("level", [0, 700])
def test_blank_fields_have_even_illumination(tmp_path, level):
    tifffile.imwrite(tmp_path / "f.tif", np.full((100, 120), level, np.uint16))
    light = estimated([tmp_path / "f.tif"])
    np.testing.assert_allclose(light.flat, 1, atol=1e-4)
    with pytest.raises(ValueError, match="no fields"):
        estimate_illumination([])


@settings(deadline=None, max_examples=30)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 99),
)
def test_a_stored_illumination_gives_the_same_correction(shape, grid, seed):
    rng = np.random.default_rng(seed)
    light = Illumination("given", rng.uniform(0.5, 2, grid).astype(np.float32), rng.uniform(0, 9, grid).astype("f4"))
    again = Illumination.from_json(json.loads(json.dumps(light.to_json())))
    image = rng.uniform(10, 1000, shape).astype(np.float32)
    found, expected = (one.correct(image, 0, 0, shape) for one in (again, light))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-2)
    assert np.isfinite(expected).all()


def test_save_load_and_damage(tmp_path, raises_code):
    no_correction = Illumination("none", np.ones((1, 1), np.float32))
    no_correction.save(tmp_path / "light.json")
    assert Illumination.load(tmp_path / "light.json").method == "none"
    image = np.arange(12).reshape(3, 4)
    assert no_correction.correct(image, 0, 0, image.shape) is image
    for text in (
        "",
        "{}",
        '{"method": "x", "flat": [[1]], "dark": null}',
        '{"method":"given","flat":[[0]],"dark":null}',
        '{"flat":' + "[" * 60_000,
    ):
        (tmp_path / "light.json").write_text(text)
        with raises_code("fields.illumination_damaged") as caught:
            Illumination.load(tmp_path / "light.json")
        assert "light.json" in str(caught.value)


def test_given_flat_and_dark(tmp_path):
    dark = np.full((EDGE, EDGE), 100, np.uint16)
    light = vignette()
    tifffile.imwrite(tmp_path / "flat.tif", np.rint(3000 * light + 100).astype(np.uint16))
    tifffile.imwrite(tmp_path / "dark.tif", dark)
    field = draw_field(3, 0, 0, shape=(EDGE, EDGE), cells=20).brightfield
    seen = np.rint(field * light + 100).astype(np.uint16)
    corrected = read_flat_field(tmp_path / "flat.tif", tmp_path / "dark.tif").correct(seen, 0, 0, seen.shape)
    ratio = corrected / np.maximum(field, 1)
    assert ratio.std() / ratio.mean() < 0.005
    without = read_flat_field(tmp_path / "flat.tif").correct(seen, 0, 0, seen.shape) / np.maximum(field, 1)
    assert without.std() > 1.5 * ratio.std()


def test_invalid_flat_field_images_are_refused(tmp_path, raises_code):
    good = np.full((64, 64), 1000, np.uint16)
    images = {
        "good": good,
        "small": good[:32],
        "black": np.zeros_like(good),
        "saturated": np.full_like(good, 65535),
        "bright": good + 1,
    }
    for name, image in images.items():
        tifffile.imwrite(tmp_path / f"{name}.tif", image)
    for flat, dark, code in [
        ("black", None, "fields.flat_field_dark"),
        ("saturated", None, "fields.flat_field_saturated"),
        ("good", "small", "fields.flat_field_size"),
        ("good", "bright", "fields.flat_field_dark"),
        ("absent", None, "images.not_found"),
    ]:
        with raises_code(code):
            read_flat_field(tmp_path / f"{flat}.tif", dark and tmp_path / f"{dark}.tif")

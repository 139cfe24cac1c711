"""Copies are found in every orientation, and different cells are not taken for copies."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image
from scipy.ndimage import gaussian_filter

from urnet.cells.copies import (
    SAME_CORRELATION,
    copy_key,
    fingerprint,
    near_pairs,
    orientations,
    perceptual_hashes,
    same,
)
from urnet.cells.table import Cells, read_cells

DEPTHS = st.sampled_from([np.uint8, np.uint16, np.float32])
SHAPES = st.sampled_from([(8, 8), (8, 11), (8, 8, 3), (11, 8, 3)])
# Few different counts, so that rows and whole images tie.
CROPS = st.tuples(DEPTHS, SHAPES).flatmap(lambda both: npst.arrays(both[0], both[1], elements=st.integers(0, 2)))


def cell(seed: int, size: int = 40) -> np.ndarray:
    """A blurred blob like no other, 16 bits."""
    rng = np.random.default_rng(seed)
    texture = gaussian_filter(rng.normal(size=(size, size)), 2.5)
    return (700 + 150 * texture / texture.std()).clip(200, 1650).astype(np.uint16)


def test_there_are_eight_orientations():
    image = np.arange(6).reshape(2, 3)
    turned = orientations(image)
    assert len({(side.shape, side.tobytes()) for side in turned}) == 8
    np.testing.assert_array_equal(turned[0], image)


@settings(deadline=None)
@given(CROPS)
def test_all_orientations_share_one_key(crop):
    assert len({copy_key(turned) for turned in orientations(crop)}) == 1
    prints = [fingerprint(turned) for turned in orientations(crop)]
    assert {p.turned for p in prints} == {copy_key(crop)}
    different = {turned.tobytes() + str(turned.shape).encode() for turned in orientations(crop)}
    assert len({p.exact for p in prints}) == len(different)


@settings(deadline=None)
@given(CROPS, st.data())
def test_one_count_of_difference_is_another_key(crop, data):
    other = crop.copy()
    place = tuple(data.draw(st.integers(0, edge - 1)) for edge in crop.shape)
    other[place] += 3
    assert copy_key(other) != copy_key(crop)


def test_the_same_bytes_in_another_shape_or_depth_are_another_picture():
    crop = np.zeros((8, 16), np.uint8)
    keys = {
        copy_key(crop),
        copy_key(crop.reshape(16, 8)),
        copy_key(crop.reshape(4, 32)),
        copy_key(crop.view(np.uint16)),
    }
    assert len(keys) == 3


def test_same_groups_by_key_in_order():
    assert [members.tolist() for members in same(["b", "a", "b", "c", "a", "b"])] == [[0, 2, 5], [1, 4]]
    assert same([]) == same(["a", "b"]) == []


def test_thumbnails_do_not_know_brightness_and_contrast():
    crop = cell(0)
    for other in (crop + 300, crop * 2, (crop - 100).astype(np.float32), np.stack([crop] * 3, axis=-1)):
        np.testing.assert_allclose(fingerprint(other).thumbnail, fingerprint(crop).thumbnail, atol=1e-4)
    thumbnail = fingerprint(crop).thumbnail
    assert thumbnail.shape == (32, 32)
    assert thumbnail.mean() == pytest.approx(0, abs=1e-6)
    assert np.linalg.norm(thumbnail) == pytest.approx(1)
    assert not fingerprint(np.full((40, 40), 9, np.uint8)).thumbnail.any()


def test_perceptual_hashes_are_those_of_imagehash():
    imagehash = pytest.importorskip("imagehash")
    thumbnails = np.random.default_rng(0).integers(0, 256, (50, 32, 32), dtype=np.uint8)
    ours = perceptual_hashes(np.moveaxis(thumbnails.astype(np.float32), 0, -1))
    for thumbnail, bits in zip(thumbnails, ours, strict=True):
        theirs = imagehash.phash(Image.fromarray(thumbnail)).hash.ravel()
        np.testing.assert_array_equal(np.unpackbits(bits[None].view(np.uint8)), theirs)


def changed(crop: np.ndarray, how: str) -> np.ndarray:
    image = crop.astype(np.float32)
    if how == "noise":
        image = image + np.random.default_rng(9).normal(0, 5, crop.shape)
    elif how == "contrast":
        image = 600 + 0.8 * (image - 700)
    elif how == "blur":
        image = gaussian_filter(image, 0.7)
    elif how == "resized":
        image = np.asarray(Image.fromarray(image).resize((50, 50), Image.Resampling.BICUBIC))
    return np.rint(image).clip(0, 65535).astype(np.uint16)


@pytest.mark.parametrize("how", ["noise", "contrast", "blur", "resized"])
@pytest.mark.parametrize("orientation", range(8))
def test_altered_copies_are_near_copies_in_any_orientation(how, orientation):
    crops = [cell(seed) for seed in range(12)]
    crops.append(orientations(changed(crops[3], how))[orientation])
    (pair,) = near_pairs([fingerprint(crop) for crop in crops])
    assert pair[:2] == (3, 12)
    assert SAME_CORRELATION <= pair[2] <= 1 + 1e-6


def test_different_cells_are_no_copies():
    told = []
    assert near_pairs([fingerprint(cell(seed)) for seed in range(60)], told.append) == []
    assert told == list(range(1, 60))
    assert near_pairs([]) == near_pairs([fingerprint(cell(0))]) == []


def test_the_most_alike_pair_comes_first():
    crops = [cell(0), cell(1), changed(cell(1), "noise"), changed(cell(0), "blur"), cell(2)]
    pairs = near_pairs([fingerprint(crop) for crop in crops])
    assert [pair[:2] for pair in pairs] in ([(0, 3), (1, 2)], [(1, 2), (0, 3)])
    assert pairs[0][2] >= pairs[1][2]


def found_share(cells: Cells, chosen: range) -> float:
    """Share of real crops whose turned, noisy copy is found among them."""
    rng = np.random.default_rng(0)
    crops = [cells.read(index) for index in chosen]
    altered = []
    for crop in crops:
        noise = rng.normal(0, 0.05 * crop.std(), crop.shape)
        limit = np.iinfo(crop.dtype).max
        turned = orientations(np.clip(crop * 0.95 + noise, 0, limit).astype(crop.dtype))
        altered.append(turned[rng.integers(8)])
    pairs = near_pairs([fingerprint(crop) for crop in [*crops, *altered]])
    wrong = [pair for pair in pairs if pair[1] != pair[0] + len(crops)]
    assert not wrong
    return len(pairs) / len(crops)


def test_altered_jurkat_cells_are_found_and_different_ones_are_not(jurkat):
    cells = read_cells(jurkat, tile=40, image="brightfield.tif")
    s = cells.where((cells.table["label"] == "s").to_numpy())
    assert found_share(s, range(0, 720, 4)) > 0.94


def test_altered_pbc_cells_are_found_and_different_ones_are_not(pbc):
    assert found_share(read_cells(pbc), range(0, 1746, 30)) > 0.94

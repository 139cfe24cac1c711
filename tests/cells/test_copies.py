"""Hashes that find copies in every orientation, and no others."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy.ndimage import gaussian_filter

from urnet.cells.copies import group_equal_keys, hash_any_orientation, hash_crop, list_orientations, make_thumbnail

DEPTHS = st.sampled_from([np.uint8, np.uint16, np.float32])
SHAPES = st.sampled_from([(8, 8), (8, 11), (8, 8, 3), (11, 8, 3)])
# Few different counts, so that rows and whole images tie.
CROPS = st.tuples(DEPTHS, SHAPES).flatmap(lambda both: npst.arrays(both[0], both[1], elements=st.integers(0, 2)))


def cell(seed: int, size: int = 40) -> np.ndarray:
    """Draw a unique blurred texture, 16 bits."""
    rng = np.random.default_rng(seed)
    texture = gaussian_filter(rng.normal(size=(size, size)), 2.5)
    return (700 + 150 * texture / texture.std()).clip(200, 1650).astype(np.uint16)


def test_there_are_eight_orientations():
    image = np.arange(6).reshape(2, 3)
    turned = list_orientations(image)
    assert len({(side.shape, side.tobytes()) for side in turned}) == 8
    np.testing.assert_array_equal(turned[0], image)


@settings(deadline=None)
@given(CROPS)
def test_all_orientations_share_one_key(crop):
    assert len({hash_any_orientation(turned) for turned in list_orientations(crop)}) == 1
    prints = [hash_crop(turned) for turned in list_orientations(crop)]
    assert {p.invariant for p in prints} == {hash_any_orientation(crop)}
    different = {turned.tobytes() + str(turned.shape).encode() for turned in list_orientations(crop)}
    assert len({p.exact for p in prints}) == len(different)


@settings(deadline=None)
@given(CROPS, st.data())
def test_one_changed_count_changes_the_key(crop, data):
    other = crop.copy()
    place = tuple(data.draw(st.integers(0, edge - 1)) for edge in crop.shape)
    other[place] += 3
    assert hash_any_orientation(other) != hash_any_orientation(crop)


def test_shape_and_depth_change_the_hash():
    crop = np.zeros((8, 16), np.uint8)
    keys = {
        hash_any_orientation(crop),
        hash_any_orientation(crop.reshape(16, 8)),
        hash_any_orientation(crop.reshape(4, 32)),
        hash_any_orientation(crop.view(np.uint16)),
    }
    assert len(keys) == 3


def test_same_groups_by_key_in_order():
    assert [members.tolist() for members in group_equal_keys(["b", "a", "b", "c", "a", "b"])] == [[0, 2, 5], [1, 4]]
    assert group_equal_keys([]) == group_equal_keys(["a", "b"]) == []


def test_thumbnails_are_independent_of_brightness_and_contrast():
    crop = cell(0)
    for other in (crop + 300, crop * 2, (crop - 100).astype(np.float32), np.stack([crop] * 3, axis=-1)):
        np.testing.assert_allclose(make_thumbnail(other), make_thumbnail(crop), atol=1e-4)
    small = make_thumbnail(crop)
    assert small.shape == (32, 32)
    assert small.mean() == pytest.approx(0, abs=1e-6)
    assert np.linalg.norm(small) == pytest.approx(1)
    assert not make_thumbnail(np.full((40, 40), 9, np.uint8)).any()

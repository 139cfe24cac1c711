"""Near-copies in every orientation are found without comparing all pairs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image
from scipy.ndimage import gaussian_filter

from urnet.cells import near_copies
from urnet.cells.copies import list_orientations, make_thumbnail
from urnet.cells.near_copies import (
    MAX_HASH_DISTANCE,
    MIN_CORRELATION,
    compute_invariant_points,
    compute_perceptual_hashes,
    compute_spectra,
    correlate_pairs,
    find_near_copies,
    orient_spectra,
)
from urnet.cells.read import read_cells
from urnet.cells.table import Cells


def cell(seed: int, size: int = 40) -> np.ndarray:
    """Draw a unique blurred texture, 16 bits."""
    rng = np.random.default_rng(seed)
    texture = gaussian_filter(rng.normal(size=(size, size)), 2.5)
    return (700 + 150 * texture / texture.std()).clip(200, 1650).astype(np.uint16)


def small(crops: list[np.ndarray]) -> np.ndarray:
    return np.stack([make_thumbnail(crop) for crop in crops])


def pairs_of(crops: list[np.ndarray]) -> list[tuple[int, int, float]]:
    return find_near_copies(small(crops))


def crowd(count: int, seed: int = 0, width: float = 6) -> np.ndarray:
    """Make thumbnails of similar textures."""
    rng = np.random.default_rng(seed)
    texture = gaussian_filter(rng.normal(size=(count, 32, 32)), (0, width, width))
    texture -= texture.mean((1, 2), keepdims=True)
    return (texture / np.linalg.norm(texture, axis=(1, 2), keepdims=True)).astype(np.float32)


def all_pairs(thumbnails: np.ndarray) -> set[tuple[int, int]]:
    """Compare all pairs, by the definition."""
    i, j = np.triu_indices(len(thumbnails), 1)
    turned = np.stack([list_orientations(image) for image in thumbnails], axis=1)  # (8, N, 32, 32)
    hashes = np.stack([compute_perceptual_hashes(compute_spectra(side)) for side in turned], axis=1)
    close = np.bitwise_count(hashes[i] ^ hashes[j, :1]).min(axis=1) <= MAX_HASH_DISTANCE
    i, j = i[close], j[close]
    same = correlate_pairs(thumbnails[i], thumbnails[j]) >= near_copies.MIN_CORRELATION
    return set(zip(i[same].tolist(), j[same].tolist(), strict=True))


@pytest.mark.parametrize("least", [0.8, 0.9, 0.98])
@pytest.mark.parametrize("width", [3, 6])
def test_finds_every_pair_of_a_leaf(monkeypatch, least, width):
    monkeypatch.setattr(near_copies, "MIN_CORRELATION", least)
    thumbnails = crowd(300, width=width)
    thumbnails[250:] = crowd(50, width=width) * 0.97 + crowd(50, seed=1, width=width) * 0.15
    thumbnails[250:] = [np.rot90(t, k) / np.linalg.norm(t) for k, t in enumerate(thumbnails[250:])]
    expected = all_pairs(thumbnails)
    assert len(expected) >= 40
    assert {pair[:2] for pair in find_near_copies(thumbnails)} == expected


def test_finds_copies_among_many_crops_without_comparing_all(monkeypatch):
    """The number of compared pairs grows as n log n at most, and copies of all orientations are found."""
    monkeypatch.setattr(near_copies, "LEAF_SIZE", 128)
    leaves: list[int] = []
    inner = near_copies._find_candidates

    def counted(hashes, points, leaf):
        leaves.append(len(leaf))
        return inner(hashes, points, leaf)

    monkeypatch.setattr(near_copies, "_find_candidates", counted)
    compared = {}
    for count in (1000, 4000):
        thumbnails = crowd(count, width=3)
        noise = np.random.default_rng(1).normal(0, 0.003, (100, 32, 32))
        thumbnails[-100:] = [np.rot90(t + n, k) for k, (t, n) in enumerate(zip(thumbnails[:100], noise, strict=True))]
        leaves.clear()
        found = {pair[:2] for pair in find_near_copies(thumbnails)}
        compared[count] = sum(size * (size - 1) // 2 for size in leaves)
        assert len(found & {(k, count - 100 + k) for k in range(100)}) >= 98
    assert compared[1000] < 1000**2 / 2
    assert compared[4000] <= 4 * compared[1000] * np.log(4000) / np.log(1000)


def test_the_same_crops_give_the_same_pairs(monkeypatch):
    monkeypatch.setattr(near_copies, "LEAF_SIZE", 64)
    thumbnails = crowd(500)
    thumbnails[400:] = thumbnails[:100, ::-1]
    assert find_near_copies(thumbnails) == find_near_copies(thumbnails) != []


THUMBNAILS = npst.arrays(np.float32, (3, 32, 32), elements=st.floats(-1, 1, width=32))


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(THUMBNAILS)
def test_points_are_invariant_and_bound_distances_from_below(thumbnails):
    points = compute_invariant_points(compute_spectra(thumbnails))
    for side in range(8):
        turned = np.stack([list_orientations(image)[side] for image in thumbnails])
        np.testing.assert_allclose(
            orient_spectra(compute_spectra(thumbnails))[side], compute_spectra(turned), atol=1e-2
        )
        np.testing.assert_allclose(compute_invariant_points(compute_spectra(turned)), points, atol=1e-4)
        apart = np.linalg.norm(turned[0] - thumbnails[1:], axis=(1, 2))
        assert (np.linalg.norm(points[0] - points[1:], axis=1) <= apart + 1e-3).all()


def test_perceptual_hashes_equal_imagehash():
    imagehash = pytest.importorskip("imagehash")
    thumbnails = np.random.default_rng(0).integers(0, 256, (50, 32, 32), dtype=np.uint8)
    hashes = compute_perceptual_hashes(compute_spectra(thumbnails.astype(np.float32)))
    for image, bits in zip(thumbnails, hashes, strict=True):
        expected = imagehash.phash(Image.fromarray(image)).hash.ravel()
        np.testing.assert_array_equal(np.unpackbits(bits[None].view(np.uint8)), expected)


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
    crops.append(list_orientations(changed(crops[3], how))[orientation])
    (pair,) = pairs_of(crops)
    assert pair[:2] == (3, 12)
    assert MIN_CORRELATION <= pair[2] <= 1 + 1e-6


def test_different_cells_are_no_copies():
    progress = []
    assert find_near_copies(small([cell(seed) for seed in range(60)]), progress.append) == []
    assert progress == sorted(progress)
    assert 0 < progress[0] <= progress[-1] <= 1
    assert pairs_of([cell(0)]) == find_near_copies(np.zeros((0, 32, 32), np.float32)) == []


def test_the_most_alike_pair_comes_first():
    crops = [cell(0), cell(1), changed(cell(1), "noise"), changed(cell(0), "blur"), cell(2)]
    pairs = pairs_of(crops)
    assert [pair[:2] for pair in pairs] in ([(0, 3), (1, 2)], [(1, 2), (0, 3)])
    assert pairs[0][2] >= pairs[1][2]


def found_share(cells: Cells, chosen: range) -> float:
    """Compute the share of real crops whose turned, noisy copies are found."""
    rng = np.random.default_rng(0)
    crops = [cells.read(index) for index in chosen]
    altered = []
    for crop in crops:
        noise = rng.normal(0, 0.05 * crop.std(), crop.shape)
        limit = np.iinfo(crop.dtype).max
        turned = list_orientations(np.clip(crop * 0.95 + noise, 0, limit).astype(crop.dtype))
        altered.append(turned[rng.integers(8)])
    pairs = pairs_of([*crops, *altered])
    wrong = [pair for pair in pairs if pair[1] != pair[0] + len(crops)]
    assert not wrong
    return len(pairs) / len(crops)


@pytest.mark.real_data
def test_altered_jurkat_cells_are_found_and_different_ones_are_not(jurkat):
    cells = read_cells(jurkat, tile=40, image="brightfield.tif")
    s = cells.where((cells.table["label"] == "s").to_numpy())
    assert found_share(s, range(0, 720, 4)) > 0.94


@pytest.mark.slow
@pytest.mark.real_data
def test_altered_pbc_cells_are_found_and_different_ones_are_not(pbc):
    assert found_share(read_cells(pbc), range(0, 1746, 30)) > 0.94

"""Augmentation: exact flips, aligned pairs, balanced classes, training part only."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from urnet.cells import augment as module
from urnet.cells.audit import audit_cells
from urnet.cells.augment import augment, draw_epoch_order, make_balanced_copies, write_augmented
from urnet.cells.copies import hash_any_orientation, list_orientations
from urnet.cells.read import read_cells
from urnet.cells.table import Cells
from urnet.images.read import read_image


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=seeded(99))


def smooth(batch: int, size: int = 33) -> torch.Tensor:
    texture = np.random.default_rng(0).normal(size=(batch, 1, size, size))
    return torch.from_numpy(gaussian_filter(texture, (0, 0, 4, 4))).float()


# --- geometry


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 20), st.sampled_from([1, 3]), st.integers(1, 17), st.integers(0, 2**32))
def test_flips_are_exact_and_drawn_per_image(batch, channels, size, seed):
    images = noise(batch, channels, size, size)
    for image, turned in zip(images, augment(images, flips=True, rotation=False, generator=seeded(seed)), strict=True):
        sides = list_orientations(image.permute(1, 2, 0).numpy())
        assert any((turned.permute(1, 2, 0).numpy() == side).all() for side in sides)


def test_draws_all_eight_orientations_equally_often():
    image = noise(1, 1, 5, 5)
    turned = augment(image.expand(1600, 1, 5, 5), flips=True, rotation=False, generator=seeded(0))
    _, counts = np.unique(turned.reshape(1600, -1).numpy(), axis=0, return_counts=True)
    assert len(counts) == 8
    assert counts.min() > 150


def test_no_augmentation_returns_the_input():
    images = noise(4, 1, 9, 9)
    assert torch.equal(augment(images, flips=False, rotation=False), images)


@pytest.mark.parametrize("flips", [True, False])
@pytest.mark.parametrize("rotation", [True, False])
def test_empty_batch_stays_empty(flips, rotation):
    assert augment(torch.zeros(0, 1, 8, 8), flips=flips, rotation=rotation).shape == (0, 1, 8, 8)


@settings(deadline=None, max_examples=30)
@given(st.booleans(), st.booleans(), st.integers(0, 2**32))
def test_paired_images_stay_aligned(flips, rotation, seed):
    """A pair is two channels of one tensor, with the same geometry."""
    images = noise(6, 1, 16, 16)
    both = augment(torch.cat([images, 3 * images + 1], 1), flips=flips, rotation=rotation, generator=seeded(seed))
    torch.testing.assert_close(both[:, 1], 3 * both[:, 0] + 1)
    alone = augment(images, flips=flips, rotation=rotation, generator=seeded(seed))
    torch.testing.assert_close(both[:, :1], alone)


@pytest.mark.parametrize("size", [7, 24, 65])
@pytest.mark.parametrize("flips", [True, False])
def test_rotation_matches_affine_grid(flips, size):
    """One step gives the pixels of a right-angle rotation followed by torch's own rotation."""
    images = noise(40, 3, size, size)
    expected, generator = images, seeded(5)
    if flips:
        expected = augment(expected, flips=True, rotation=False, generator=generator)
    angle = torch.rand(40, generator=generator) * 2 * torch.pi
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros(40)
    matrix = torch.stack([cos, -sin, zero, sin, cos, zero], 1).view(40, 2, 3)
    grid = F.affine_grid(matrix, [40, 3, size, size], align_corners=False)
    expected = F.grid_sample(expected, grid, padding_mode="reflection", align_corners=False)
    turned = augment(images, flips=flips, rotation=True, generator=seeded(5))
    torch.testing.assert_close(turned, expected, atol=1e-4, rtol=0)


def test_repeats_with_the_seed_without_changing_the_input():
    images = noise(8, 3, 12, 12)
    before = images.clone()
    first, repeated, other = (augment(images, flips=True, rotation=True, generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(first, repeated)
    assert not torch.equal(first, other)
    assert torch.equal(images, before)


def test_free_rotation_by_right_angles_is_exact(monkeypatch):
    images = smooth(4)
    turns = torch.arange(4) / 4
    monkeypatch.setattr(module.torch, "rand", lambda *_, **__: turns)
    turned = augment(images, flips=False, rotation=True)
    for turn in range(4):
        sides = [torch.rot90(images[turn], k, (-2, -1)) for k in (turn, -turn)]
        assert min(float((turned[turn] - side).abs().max()) for side in sides) < 1e-5


def test_rotation_keeps_the_centre_and_adds_no_black():
    images = smooth(64) + 10
    turned = augment(images, flips=False, rotation=True, generator=seeded(0))
    torch.testing.assert_close(turned[..., 16, 16], images[..., 16, 16], atol=1e-4, rtol=0)
    assert turned.min() >= images.min() - 1e-5
    assert turned.max() <= images.max() + 1e-5
    assert (turned - images).abs().max() > 0.05


# --- the order of an epoch


LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(np.array)


@settings(deadline=None)
@given(LABELS, st.one_of(st.none(), st.integers(1, 50)), st.integers(0, 2**32 - 1), st.integers(0, 500))
def test_balanced_epoch_draws_each_class_equally_often(labels, per_class, seed, epoch):
    order = draw_epoch_order(labels, balanced=True, per_class=per_class, seed=seed, epoch=epoch)
    classes = np.unique(labels)
    draws = per_class or -(-len(labels) // len(classes))
    for label in classes:
        assert (labels[order] == label).sum() == draws
        times = np.bincount(order, minlength=len(labels))[labels == label]
        assert times.max() - times.min() <= 1
    np.testing.assert_array_equal(
        order, draw_epoch_order(labels, balanced=True, per_class=per_class, seed=seed, epoch=epoch)
    )


@settings(deadline=None)
@given(LABELS, st.integers(0, 2**32 - 1))
def test_unbalanced_epoch_shows_each_cell_once(labels, seed):
    order = draw_epoch_order(labels, balanced=False, per_class=None, seed=seed, epoch=0)
    assert sorted(order) == list(range(len(labels)))


def test_epochs_and_seeds_differ():
    labels = np.arange(40) % 2
    orders = [
        draw_epoch_order(labels, balanced=True, per_class=None, seed=s, epoch=e).tolist()
        for s in (0, 1)
        for e in (0, 1)
    ]
    assert len({tuple(order) for order in orders}) == 4


# --- copies in memory


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_balanced_copies_keep_every_original_first(dtype):
    images = np.random.default_rng(0).integers(0, 255, (9, 1, 12, 12)).astype(dtype)
    labels = np.array([0, 0, 0, 0, 0, 0, 1, 1, 2])
    out, out_labels, origin = make_balanced_copies(images, labels, 5, flips=True, rotation=True, seed=0)
    assert out.dtype == dtype
    assert np.bincount(out_labels).tolist() == [6, 5, 5]
    np.testing.assert_array_equal(out_labels, labels[origin])
    for label in range(3):
        members = np.flatnonzero(labels == label)
        first = np.flatnonzero(out_labels == label)[: len(members)]
        assert sorted(origin[first]) == members.tolist()
        np.testing.assert_array_equal(out[first], images[origin[first]])
    repeated = make_balanced_copies(images, labels, 5, flips=True, rotation=True, seed=0)
    np.testing.assert_array_equal(out, repeated[0])


def test_copies_by_flips_are_exact_also_over_many_batches(monkeypatch):
    monkeypatch.setattr(module, "BATCH_SIZE", 7)
    images = np.random.default_rng(0).integers(0, 65535, (3, 2, 9, 9)).astype(np.uint16)
    out, _, origin = make_balanced_copies(images, np.array([0, 0, 1]), 40, flips=True, rotation=False, seed=0)
    assert len(out) == 80
    for image, source in zip(out, origin, strict=True):
        assert hash_any_orientation(image.transpose(1, 2, 0)) == hash_any_orientation(images[source].transpose(1, 2, 0))


# --- copies on disk


@pytest.fixture
def cells(tmp_path) -> Cells:
    """Class a: 4 training cells of 12 x 15 px; class b: 2 in colour; one test cell each. All have a paired image."""
    rows = ["path,label,donor,split,target"]
    for index in range(8):
        label, part = ("b" if index in (2, 5, 7) else "a"), ("test" if index >= 6 else "train")
        image = np.random.default_rng(index).integers(0, 4000, (12, 15)).astype(np.uint16)
        colour = label == "b"
        image = np.stack([image, image // 2, image // 3], -1) if colour else image
        photometric = "rgb" if colour else "minisblack"
        tifffile.imwrite(tmp_path / f"{index}.tif", image, photometric=photometric)
        tifffile.imwrite(tmp_path / f"{index}_pair.tif", image * 2 + 7, photometric=photometric)
        rows.append(f"{index}.tif,../{label},d{index},{part},{index}_pair.tif")
    (tmp_path / "cells.csv").write_text("\n".join(rows), encoding="utf-8")
    return read_cells(tmp_path)


def test_writes_copies_of_the_training_part_only(cells, tmp_path):
    out = tmp_path / "out"
    written = write_augmented(cells, out, 6, seed=3)
    copies = written.table[written.table["augmented"] != ""]
    assert written.table[cells.table.columns].head(len(cells)).to_dict() == cells.table.to_dict()
    assert copies["label"].value_counts().to_dict() == {"../a": 2, "../b": 4}
    assert set(copies["split"]) == {"train"}
    assert written.part("train").table["label"].value_counts().to_dict() == {"../a": 6, "../b": 6}
    originals = cells.table.set_index("path")
    for _, copy in copies.iterrows():
        for column in ("label", "donor", "source", "split"):
            assert copy[column] == originals.loc[copy["augmented"], column]
    assert len(list(out.rglob("*.tif"))) == 12
    assert {f.parent.parent for f in out.rglob("*.tif")} == {out}


def test_written_copies_keep_depth_colour_and_the_geometry_of_their_pair(cells, tmp_path):
    written = write_augmented(cells, tmp_path / "out", 6)
    for _, copy in written.table[written.table["augmented"] != ""].iterrows():
        image, pair = read_image(Path(copy["path"])), read_image(Path(copy["target"]))
        assert image.dtype == np.uint16
        assert image.shape == ((15, 15, 3) if copy["label"] == "../b" else (15, 15))
        assert np.abs(pair.astype(int) - (2 * image.astype(int) + 7)).max() <= 2


def test_written_table_is_readable_and_clean(cells, tmp_path):
    out = tmp_path / "out"
    written = write_augmented(cells, out, 6)
    written.write(out / "cells.csv")
    repeated = read_cells(out)
    assert len(repeated) == len(written) == 14
    assert audit_cells(repeated, near_copies=False).distinct.all()
    for index in range(len(repeated)):
        np.testing.assert_array_equal(repeated.read(index), written.read(index))


def test_the_same_seed_writes_the_same_files(cells, tmp_path):
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        write_augmented(cells, tmp_path / name, 5, seed=seed)
    one, two, three = (
        [f.read_bytes() for f in sorted((tmp_path / name / "augmented").iterdir())] for name in ("one", "two", "three")
    )
    assert one == two
    assert one != three


def test_writes_nothing_if_classes_are_large_enough(cells, tmp_path):
    written = write_augmented(cells, tmp_path / "out", 1)
    assert len(written) == len(cells)
    assert not (tmp_path / "out").exists()


def test_refuses_cells_without_a_split(cells, tmp_path, raises_code):
    with raises_code("cells.no_split"):
        write_augmented(cells.with_columns(split=""), tmp_path / "out", 6)
    assert not (tmp_path / "out").exists()

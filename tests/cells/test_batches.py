"""Batches are scaled, repeat with seed and epoch, and never hold a single cell in training."""

import numpy as np
import pytest
import torch
import torch.distributed as dist

from urnet.cells.batches import CellDataset, EpochSampler, make_ordered_loader, make_training_loader
from urnet.images.rows import LazyRows
from urnet.images.scale import Scaling


def dataset(cells: int, *, paired: bool = False) -> CellDataset:
    """Make cells whose pixels are their number. Every third cell has class 1."""
    images = np.broadcast_to(np.arange(cells, dtype=np.uint16)[:, None, None, None], (cells, 1, 8, 8))
    labels = (np.arange(cells) % 3 == 0).astype(np.int64)
    scaling = Scaling(0, 1000, "uint16")
    return CellDataset(images, labels, scaling, images * 2 if paired else None, scaling if paired else None)


def numbers(images: torch.Tensor) -> list[int]:
    return (images[:, 0, 0, 0] * 1000).round().int().tolist()


def test_ordered_loader_gives_each_cell_once_and_scaled():
    batches = list(make_ordered_loader(dataset(10), 4))
    assert [len(images) for images, _, _ in batches] == [4, 4, 2]
    images, labels, targets = batches[1]
    assert images.shape == (4, 1, 8, 8)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert targets.shape == (4, 0)
    assert numbers(images) == [4, 5, 6, 7]
    assert labels.tolist() == [0, 0, 1, 0]
    assert float(images.max()) == pytest.approx(0.007)


def test_loader_gives_image_and_target_together():
    for images, _, targets in make_training_loader(dataset(30, paired=True), 7, balanced=True, per_class=None, seed=0):
        torch.testing.assert_close(targets, 2 * images)


def epoch(cells: int, seed: int, number: int, **options: object) -> list[int]:
    loader = make_training_loader(dataset(cells), 8, seed=seed, **({"balanced": True, "per_class": None} | options))
    loader.batch_sampler.sampler.set_epoch(number)
    return [n for images, _, _ in loader for n in numbers(images)]


@pytest.mark.parametrize("depth", [np.uint8, np.uint16, np.float32])
def test_batches_from_the_device_are_bit_identical(depth):
    random = np.random.default_rng(0)
    top = 1 if depth == np.float32 else np.iinfo(depth).max
    counts = (random.random((9, 2, 8, 8)) * top).astype(depth)
    scaling = Scaling(0.13 * top, 0.81 * top, np.dtype(depth).name)
    rows = LazyRows(counts, np.arange(3, 9))
    for cells in (CellDataset(counts, np.arange(9), scaling), CellDataset(rows, np.arange(6), scaling, rows, scaling)):
        before = cells.__getitems__([4, 0, 2])
        cells.move_to(torch.device("cpu"))
        assert all(torch.equal(*pair) for pair in zip(before, cells.__getitems__([4, 0, 2]), strict=True))
    assert cells.nbytes == 2 * counts[3:].nbytes


def test_order_depends_on_seed_and_epoch_alone():
    assert epoch(40, 1, 3) == epoch(40, 1, 3)
    assert len({tuple(epoch(40, seed, number)) for seed in (0, 1) for number in (0, 1)}) == 4
    loader = make_training_loader(dataset(40), 8, balanced=True, per_class=None, seed=1)
    for number in range(3):
        loader.batch_sampler.sampler.set_epoch(number)
        list(loader)
    loader.batch_sampler.sampler.set_epoch(3)
    assert [n for images, _, _ in loader for n in numbers(images)] == epoch(40, 1, 3)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [20, 20]),
        ({"per_class": 11}, [11, 11]),
        ({"balanced": False}, [26, 14]),
    ],
)
def test_number_of_cells_per_class_in_an_epoch(options, expected):
    order = epoch(40, 0, 0, **options)
    assert [sum(n % 3 != 0 for n in order), sum(n % 3 == 0 for n in order)] == expected
    settings = {"balanced": True, "per_class": None} | options
    assert len(EpochSampler(dataset(40).labels, seed=0, **settings)) == len(order)


@pytest.mark.parametrize("cells", range(2, 20))
def test_no_training_batch_is_a_single_cell(cells):
    sizes = [
        len(images) for images, _, _ in make_training_loader(dataset(cells), 4, balanced=False, per_class=None, seed=0)
    ]
    assert min(sizes) >= 2
    assert sum(sizes) >= cells - 1


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_an_epoch_without_overlap(monkeypatch, world):
    labels = np.arange(40) % 2
    alone = list(EpochSampler(labels, balanced=False, per_class=None, seed=5))
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: world)
    shares = []
    for rank in range(world):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        sampler = EpochSampler(labels, balanced=False, per_class=None, seed=5)
        shares.append(list(sampler))
        assert len(sampler) == len(shares[-1]) == 40 // world
    assert [n for step in zip(*shares, strict=True) for n in step] == alone[: 40 // world * world]


def test_drops_a_last_batch_of_one_cell_unless_batch_size_is_one() -> None:
    labels = np.arange(9) % 2
    dataset = CellDataset(np.zeros((9, 1, 4, 4), np.uint8), labels, Scaling(0, 255, "uint8"))
    for size, expected in ((4, [4, 4]), (1, [1] * 9), (5, [5, 4])):
        loader = make_training_loader(dataset, size, balanced=False, per_class=None, seed=0)
        assert [len(batch[0]) for batch in loader] == expected
        assert len(loader) == len(expected)

"""Batches of tensors from decoded cells, scaled to [0, 1]. Their order depends on seed and epoch only."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from urnet.cells.augment import draw_epoch_order
from urnet.images.rows import LazyRows
from urnet.images.scale import Scaling

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class CellDataset(Dataset[Batch]):
    """Cells as (images, labels, targets), read in whole batches.

    Args:
        images: (N, C, S, S) raw counts.
        labels: (N,) int64.
        scaling: scaling of the images to [0, 1].
        targets: (N, C, S, S) raw counts of the paired images; None for empty tensors.
        target_scaling: scaling of the paired images.
    """

    def __init__(
        self,
        images: np.ndarray | LazyRows,
        labels: np.ndarray,
        scaling: Scaling,
        targets: np.ndarray | LazyRows | None = None,
        target_scaling: Scaling | None = None,
    ):
        self.images, self.labels, self.scaling = images, labels, scaling
        self.targets, self.target_scaling = targets, target_scaling
        self.on_device: tuple[_DeviceImages, _DeviceImages | None] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: list[int]) -> Batch:
        """Read the cells at `indices`: (B, C, S, S), (B,), and (B, C, S, S) or (B, 0)."""
        labels = torch.from_numpy(self.labels[indices])
        if self.on_device is not None:
            images, targets = self.on_device[0][indices], self.on_device[1]
            return images, labels, images.new_empty(len(images), 0) if targets is None else targets[indices]
        images = torch.from_numpy(self.scaling.apply(self.images[indices]))
        if self.targets is None or self.target_scaling is None:
            return images, labels, images.new_empty(len(images), 0)
        return images, labels, torch.from_numpy(self.target_scaling.apply(self.targets[indices]))

    @property
    def nbytes(self) -> int:
        """Size of all raw counts, in bytes."""
        return sum(x.size * x.dtype.itemsize for x in (self.images, self.targets) if x is not None)

    def move_to(self, device: torch.device) -> None:
        """Copy the raw counts to a device, which then makes the batches."""
        targets = None
        if self.targets is not None and self.target_scaling is not None:
            targets = _DeviceImages(self.targets, self.target_scaling, device)
        self.on_device = _DeviceImages(self.images, self.scaling, device), targets


class _DeviceImages:
    """Raw counts, (N, C, S, S), on a device, which scales them as `Scaling.apply` does."""

    def __init__(self, counts: np.ndarray | LazyRows, scaling: Scaling, device: torch.device):
        # GPUs cannot index unsigned 16-bit numbers, so they are stored as signed ones.
        self.wraps, self.scaling = counts.dtype == np.uint16, scaling
        parts = counts.iterate_parts() if isinstance(counts, LazyRows) else [counts]
        numbers = (torch.from_numpy(part.view(np.int16) if self.wraps else part).to(device) for part in parts)
        self.counts = torch.cat(list(numbers))

    def __getitem__(self, indices: list[int]) -> torch.Tensor:
        rows = torch.tensor(indices).to(self.counts.device, non_blocking=True)
        scaled = self.counts[rows].float()
        if self.wraps:
            scaled += 65536 * (scaled < 0)
        return scaled.sub_(self.scaling.low).mul_(1 / (self.scaling.high - self.scaling.low)).clamp_(0, 1)


class EpochSampler(Sampler[int]):
    """The order of `draw_epoch_order`, divided among the processes of a distributed run.

    Lightning calls `set_epoch`. The order depends on seed and epoch only, so resumed training sees the same cells as
    uninterrupted training.
    """

    def __init__(self, labels: np.ndarray, *, balanced: bool, per_class: int | None, seed: int):
        self.labels, self.balanced, self.per_class, self.seed = labels, balanced, per_class, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next order."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = draw_epoch_order(
            self.labels, balanced=self.balanced, per_class=self.per_class, seed=self.seed, epoch=self.epoch
        )
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        length = len(order) // world
        return iter(order[rank : length * world : world].tolist())

    def __len__(self) -> int:
        if self.balanced:
            classes = len(np.unique(self.labels))
            total = classes * (self.per_class or -(-len(self.labels) // classes))
        else:
            total = len(self.labels)
        return total // (dist.get_world_size() if dist.is_initialized() else 1)


class _NoSingleCellBatches(BatchSampler):
    """Batches without a last batch of one cell, which batch norm cannot use. A batch size of one keeps all batches."""

    def __iter__(self) -> Iterator[list[int]]:
        return (batch for batch in super().__iter__() if len(batch) > 1 or self.batch_size == 1)

    def __len__(self) -> int:
        return super().__len__() - (self.batch_size > 1 and len(self.sampler) % self.batch_size == 1)


def _return_batch(batch: Batch) -> Batch:
    return batch


def make_training_loader(
    dataset: CellDataset, batch_size: int, *, balanced: bool, per_class: int | None, seed: int
) -> DataLoader[Batch]:
    """Make a loader of shuffled batches, without a last batch of one cell."""
    sampler = EpochSampler(dataset.labels, balanced=balanced, per_class=per_class, seed=seed)
    return DataLoader(
        dataset, batch_sampler=_NoSingleCellBatches(sampler, batch_size, drop_last=False), collate_fn=_return_batch
    )


def make_ordered_loader(dataset: CellDataset, batch_size: int) -> DataLoader[Batch]:
    """Make a loader of all cells in order."""
    return DataLoader(dataset, batch_size, shuffle=False, collate_fn=_return_batch)

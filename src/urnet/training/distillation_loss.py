"""Learning from a teacher: the label, the logits of a trained model, and the image that its enhancer paints.

G. Hinton, O. Vinyals and J. Dean, "Distilling the knowledge in a neural network", 2015,
https://arxiv.org/abs/1503.02531. The image is ours: of a joint model, what the enhancer does can be learnt as well.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from urnet.bundle.model import Model
from urnet.cells.batches import Batch, CellDataset
from urnet.cells.cache.arrays import load_cached_pixels
from urnet.cells.table import Cells
from urnet.images.rows import LazyRows
from urnet.recipe import Distill
from urnet.training.data import TrainingData
from urnet.training.lightning_modules import JointModule, get_target


class DistillModule(JointModule):
    """Joint training of a student: of the batch, the teacher sees the same cells in the same turn.

    Args:
        teacher: the trained networks; they stay as they are, and are in no checkpoint.
        distill: how what it says is weighed.
        arguments: of `JointModule`; its loss is of the student's and the teacher's enhanced image.
    """

    def __init__(self, teacher: nn.Module, distill: Distill, *arguments: Any):
        super().__init__(*arguments)
        self.taught = (teacher.requires_grad_(False).eval(),)  # in a tuple, so that it is no part of this module
        self.distill = distill

    def on_fit_start(self) -> None:
        """The teacher goes where the student is."""
        self.taught[0].to(self.device, memory_format=torch.channels_last)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment the teacher's images, (B, C', S', S'), by the same draws, whatever their size."""
        images, labels, theirs = batch
        if not self.trainer.training or theirs.ndim == 2:
            return super().on_after_batch_transfer(batch, dataloader_idx)
        none = images.new_empty(len(images), 0)
        turned, _, _ = super().on_after_batch_transfer((images, labels, none), dataloader_idx)
        theirs, _, _ = super().on_after_batch_transfer((theirs, labels, none), dataloader_idx)  # seeded alike
        return turned, labels, theirs

    def objective(self, batch: Batch, logits: torch.Tensor, enhanced: torch.Tensor) -> torch.Tensor:
        """(1 − a)·CE + a·T²·KL of the probabilities at temperature T, and b·MSE of the enhanced images."""
        with torch.no_grad():
            wanted, painted = self.taught[0].enhance_and_classify(get_target(batch))  # (B, K), (B, C', S', S')
        share, temperature = self.distill.logits, self.distill.temperature
        towards_label = F.cross_entropy(logits, batch[1], weight=self.class_weights)
        towards_teacher = F.kl_div(
            (logits.float() / temperature).log_softmax(dim=1),
            (wanted.float() / temperature).log_softmax(dim=1),
            reduction="batchmean",
            log_target=True,
        )
        loss = (1 - share) * towards_label + share * temperature**2 * towards_teacher
        return loss + self.distill.image * self.loss(enhanced.float(), shaped_as(painted.float(), enhanced))


def shaped_as(images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Images (B, C', S', S') at the colour and size of others, (B, C, S, S)."""
    channels, size = others.shape[1], others.shape[-2:]
    if images.shape[1] != channels:
        images = images.mean(dim=1, keepdim=True) if channels == 1 else images.expand(-1, channels, -1, -1)
    if images.shape[-2:] == size:
        return images
    return F.interpolate(images, size=size, mode="bilinear", antialias=True)


def seen_by_both(teacher: Model, data: TrainingData, cells: Cells) -> CellDataset:
    """The student's training part; with the crops as the teacher sees them as paired images, where that differs.

    Args:
        teacher: says at which size, colour and scale it sees crops.
        data: the student's.
        cells: that `data` was prepared of.

    Raises:
        ImageError: an image cannot be read.
    """
    config, own = teacher.config, data.train
    if (config.size, config.channels, config.scaling) == (data.size, data.channels, data.scaling):
        return CellDataset(own.images, own.labels, own.scaling)
    used = cells.where(cells.table["split"] != "")  # as `prepare` decodes them
    theirs = LazyRows(
        load_cached_pixels(used, config.size, config.channels), np.flatnonzero(used.table["split"] == "train")
    )
    return CellDataset(own.images, own.labels, own.scaling, theirs, config.scaling)

"""The two trainings as Lightning modules: the enhancer towards an image, both networks towards the label."""

import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import nn
from torchmetrics.classification import MulticlassConfusionMatrix

from urnet.cells.augment import augment
from urnet.cells.batches import Batch, CellDataset
from urnet.errors import TrainingError
from urnet.nets.joint import JointModel
from urnet.nets.pixel_range import PixelRange
from urnet.recipe import Augment, Optimisation, Pretrain, Train
from urnet.training.allocator import keep_large_blocks, return_large_blocks

FINITE_CHECK_INTERVAL = 50
"""Batches after which a GPU is asked whether the loss still is a number."""

logger = logging.getLogger(__name__)


class TrainingModule(L.LightningModule):
    """What both trainings share: randomness by step, augmentation on the device, the optimiser, the watch for NaN."""

    def __init__(self, settings: Optimisation, geometry: Augment, seed: int):
        super().__init__()
        self.settings, self.geometry, self.seed = settings, geometry, seed
        self.rate = settings.lr
        self.compiling = self.checkpointing = False
        self.compiled: Callable[[torch.Tensor], Any] | None = None
        self.last_loss: torch.Tensor | None = None  # the newest loss, or the first that was no number

    def setup(self, stage: str) -> None:
        """In every process."""
        if self.checkpointing:
            return_large_blocks()
        elif self.trainer.strategy.root_device.type == "cpu":
            keep_large_blocks()

    def on_train_start(self) -> None:
        """Keep the cells on the GPU, where they fit beside the training."""
        for dataset in self._datasets():
            if self.device.type == "cuda" and 4 * dataset.nbytes <= torch.cuda.mem_get_info(self.device)[0]:
                dataset.move_to(self.device)

    def on_train_end(self) -> None:
        """What comes after the training goes on with the CPU."""
        for dataset in self._datasets():
            dataset.on_device = None

    def _datasets(self) -> list[CellDataset]:
        loaders = (self.trainer.train_dataloader, self.trainer.val_dataloaders)
        return [loader.dataset for loader in loaders if loader is not None]

    def run_network(self, network: Callable[[torch.Tensor], Any], images: torch.Tensor) -> Any:
        """`network(images)`; compiled where the recipe says so and the batch is a whole one."""
        if not (self.compiling and self.training and len(images) == self.settings.batch_size):
            return network(images)
        if self.compiled is None:
            self.compiled = torch.compile(network, dynamic=False)
        return self.compiled(images)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment training batches where they are.

        Augmentation, and dropout after it, depend on seed and step alone, so that a resumed run repeats them.
        """
        if not self.trainer.training:
            images, labels, targets = batch
            return to_channels_last(images), labels, targets
        torch.manual_seed((self.seed * 1_000_003 + self.trainer.global_step) * 1_009 + self.global_rank)
        images, labels, targets = batch
        channels = images.shape[1]
        both = torch.cat([images, targets], dim=1) if targets.ndim == 4 else images  # (B, C or 2C, S, S)
        both = augment(both, flips=self.geometry.flips, rotation=self.geometry.rotation)
        return to_channels_last(both[:, :channels]), labels, both[:, channels:] if targets.ndim == 4 else targets

    def check_loss(self, loss: torch.Tensor, index: int = 0) -> torch.Tensor:
        """Return the loss if it is finite. On a GPU, check it only every `FINITE_CHECK_INTERVAL` batches.

        Args:
            loss: of a batch.
            index: of the batch in its epoch.

        Raises:
            TrainingError: it is not, or one since the last look was not.
        """
        now = loss.detach()
        self.last_loss = now if self.last_loss is None else torch.where(self.last_loss.isfinite(), now, self.last_loss)
        if not now.is_cuda or index % FINITE_CHECK_INTERVAL == 0:
            self._raise_if_not_finite()
        return loss

    def _raise_if_not_finite(self) -> None:
        if self.last_loss is not None and not self.last_loss.isfinite():
            raise TrainingError(
                f"the loss became {self.last_loss.item()} in epoch {self.current_epoch + 1}; the last whole epoch is "
                f"kept. Start again with a smaller learning rate (now {self.settings.lr:g}), for instance a tenth, "
                "or with train.precision=32"
            )

    def optimiser(self, groups: list[dict[str, Any]]) -> dict[str, Any]:
        """SGD or AdamW over parameter groups, with the schedule."""
        s = self.settings
        shared = {"lr": s.lr, "weight_decay": s.weight_decay, "fused": True}
        if s.optimizer == "sgd":
            optimizer: torch.optim.Optimizer = torch.optim.SGD(groups, momentum=s.momentum, **shared)
        else:
            optimizer = torch.optim.AdamW(groups, betas=(s.momentum, 0.999), **shared)
        if s.schedule == "constant":
            return {"optimizer": optimizer}
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(one_cycle, steps=steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Note the rate of the step (of the classifier, where it has one of its own)."""
        self.rate = optimizer.param_groups[-1]["lr"]

    def on_train_epoch_end(self) -> None:
        """Log the rate of the epoch's last step; the schedule has moved on. Nothing is kept of an epoch that failed."""
        self._raise_if_not_finite()
        self.log("lr", self.rate)


class PretrainModule(TrainingModule):
    """The enhancer learns to paint an image: its input (paper, section 3.3), or the batch's paired images.

    The error of the identity is logged after each epoch as a share of the images' own variance (`identity_error`): of
    the validation part, or of the training part where there is none. A mean squared error says little by itself,
    because unstained cells differ little from a grey area.

    Args:
        enhancer: the network.
        loss: of painted and wanted images, (B, C, H, W) each.
        settings: the recipe's section.
        geometry: augmentation of the training part.
        seed: of the training.
    """

    def __init__(self, enhancer: nn.Module, loss: nn.Module, settings: Pretrain, geometry: Augment, seed: int):
        super().__init__(settings, geometry, seed)
        self.enhancer = enhancer
        self.loss = loss
        self.identity: dict[str, torch.Tensor] = {}  # by part: squared error and variance, summed over the epoch

    def _loss(self, batch: Batch, part: str) -> torch.Tensor:
        painted, wanted = self.run_network(self.enhancer, batch[0]), get_target(batch)
        if wanted is batch[0]:
            sums = identity_error(painted.detach(), wanted)  # (2,)
            self.identity[part] = self.identity[part] + sums if part in self.identity else sums
        return self.loss(painted, wanted)

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        """One step."""
        loss = self.check_loss(self._loss(batch, "train"), index)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch[0]), sync_dist=True)
        return loss

    def validation_step(self, batch: Batch, index: int) -> None:
        """Loss on the validation part."""
        self.log("validation_loss", self.check_loss(self._loss(batch, "validation"), index), batch_size=len(batch[0]))

    def on_train_epoch_end(self) -> None:
        """Log the error of the identity."""
        super().on_train_epoch_end()
        if self.identity:
            error, variance = self.identity.get("validation", self.identity.get("train"))
            self.log("identity_error", error / variance, sync_dist=True)
        self.identity = {}

    def configure_optimizers(self) -> dict[str, Any]:
        """All parameters at one rate; a loss may have some of its own."""
        learnt = [p for p in (*self.enhancer.parameters(), *self.loss.parameters()) if p.requires_grad]
        return self.optimiser([{"params": learnt, "lr": self.settings.lr}])


def identity_error(painted: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Sum the squared differences of two sets of images (B, C, H, W), and those of the second to each one's mean: (2,).

    The ratio of the two sums is the error as a share of the variance within an image and channel.
    """
    images = images.float()
    spread = images - images.mean(dim=(2, 3), keepdim=True)
    return torch.stack([(painted.float() - images).square().sum(), spread.square().sum()])


def get_target(batch: Batch) -> torch.Tensor:
    """What the enhancer should paint, (B, C, H, W): the paired images, else the images themselves."""
    images, _, targets = batch
    return images if targets.ndim == 2 else targets


class JointModule(TrainingModule):
    """Enhancer and classifier learn together from the label, by cross-entropy (paper, Eq. 3).

    The pre-training's loss can be kept beside it (`auxiliary`), and the enhancer kept as it is, for the first epochs
    (`frozen`) or for all of them (`enhancer_lr` 0): it is then in evaluation mode and no gradient reaches it.

    Args:
        model: the joint model.
        loss: of enhanced and wanted images, (B, C, H, W) each; counts by `settings.auxiliary`.
        settings: the recipe's section.
        geometry: augmentation of the training part.
        seed: of the training.
        classes: number of classes, K.
        class_weights: (K,) weights of the loss, or none.
    """

    def __init__(
        self,
        model: JointModel,
        loss: nn.Module,
        settings: Train,
        geometry: Augment,
        seed: int,
        classes: int,
        class_weights: torch.Tensor | None = None,
    ):
        super().__init__(settings, geometry, seed)
        self.model, self.loss = model, loss
        if settings.enhancer_lr == 0:
            model.enhancer.requires_grad_(False)
        self.register_buffer("class_weights", class_weights)
        # Every process validates the whole part, so nothing is summed across them.
        self.confusion = MulticlassConfusionMatrix(classes, sync_on_compute=False, validate_args=False)
        self.pixels, self.warned = PixelRange(), False

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        """One step."""
        images, labels, _ = batch
        logits, enhanced = self.run_network(self.model.enhance_and_classify, images)  # (B, K), (B, C, H, W)
        loss = self.check_loss(self.objective(batch, logits, enhanced), index)
        accuracy = (logits.argmax(dim=1) == labels).float().mean()
        size = len(labels)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=size, sync_dist=True)
        self.log("train_accuracy", accuracy, on_step=False, on_epoch=True, batch_size=size, sync_dist=True)
        return loss

    def objective(self, batch: Batch, logits: torch.Tensor, enhanced: torch.Tensor) -> torch.Tensor:
        """What is minimised, of a batch's logits (B, K) and enhanced images (B, C, H, W)."""
        loss = F.cross_entropy(logits, batch[1], weight=self.class_weights)
        if self.settings.auxiliary:
            loss = loss + self.settings.auxiliary * self.loss(enhanced, get_target(batch))
        return loss

    @property
    def frozen(self) -> bool:
        """Whether the enhancer is kept as it is in this epoch."""
        return self.settings.enhancer_lr == 0 or self.current_epoch < self.settings.frozen

    def on_train_epoch_start(self) -> None:
        """Batch norm of a frozen enhancer must not follow the batches either."""
        self.model.enhancer.train(not self.frozen)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Without a gradient the optimiser passes a parameter over, its momentum and decay too."""
        super().on_before_optimizer_step(optimizer)
        if self.frozen:
            for parameter in self.model.enhancer.parameters():
                parameter.grad = None

    def validation_step(self, batch: Batch, index: int) -> None:
        """Collect decisions on the validation part."""
        images, labels, _ = batch
        logits, enhanced = self.model.enhance_and_classify(images)
        self.pixels.add(enhanced.detach())
        self.confusion.update(logits, labels)
        self.log("validation_loss", self.check_loss(F.cross_entropy(logits, labels), index), batch_size=len(labels))

    def on_validation_epoch_end(self) -> None:
        """Accuracy, the mean recall of the classes that the part has, and once a warning about the enhanced images."""
        matrix = self.confusion.compute().double()  # (K, K), rows truth
        support = matrix.sum(dim=1)
        recall = matrix.diagonal()[support > 0] / support[support > 0]
        self.log("validation_accuracy", float(matrix.trace() / matrix.sum()))
        self.log("validation_macro_recall", float(recall.mean()))
        self.confusion.reset()
        if (warning := self.pixels.warning) and not self.warned and self.global_rank == 0:
            logger.warning("epoch %d: %s", self.current_epoch + 1, warning)
            self.warned = True
        self.pixels = PixelRange()

    def configure_optimizers(self) -> dict[str, Any]:
        """The enhancer may have a rate of its own."""
        rate = self.settings.lr if self.settings.enhancer_lr is None else self.settings.enhancer_lr
        enhancer = [p for p in (*self.model.enhancer.parameters(), *self.loss.parameters()) if p.requires_grad]
        groups = [{"params": enhancer, "lr": rate}] if enhancer else []
        return self.optimiser([*groups, {"params": self.model.classifier.parameters(), "lr": self.settings.lr}])


def to_channels_last(images: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) with the channels of a pixel beside each other in memory, which convolutions are faster on."""
    return images.contiguous(memory_format=torch.channels_last)


def set_memory_format(module: nn.Module, layout: torch.memory_format) -> None:
    """Put the kernels of 2D convolutions into a memory layout, and leave what has other dimensions."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=layout)


def compute_class_weights(counts: torch.Tensor) -> torch.Tensor:
    """Class weights whose mean over the cells is one: N / (K · n_k), (K,)."""
    total = math.fsum(counts.tolist())
    return total / (len(counts) * counts.float())


def one_cycle(step: int, steps: int) -> float:
    """The share of the peak rate at a step: a cosine up from 1/25 over a fifth of the steps, then one down to nothing.

    L. N. Smith and N. Topin, "Super-convergence", 2018, https://arxiv.org/abs/1708.07120, in the form that torch's
    OneCycleLR has; that one divides by zero where five steps or fewer are all there is.
    """
    top = max(1.0, 0.2 * steps - 1)
    if step <= top:
        low, way = 1 / 25, step / top
    else:
        low, way = 1 / 25e4, 1 - min(1.0, (step - top) / max(1.0, steps - 1 - top))
    return low + (1 - low) * (1 - math.cos(math.pi * way)) / 2

"""The two stages of the training as Lightning modules: pre-training (section 3.3), and joint training (Eq. 3)."""

import logging
import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from urnet.cells.augment import augment
from urnet.cells.batches import Batch, CellDataset
from urnet.errors import TrainingError
from urnet.nets.checkpointing import fixed_running_statistics
from urnet.nets.joint import JointModel
from urnet.nets.pixel_range import PixelRange
from urnet.recipe import Augment, Optimisation, Pretrain, Train
from urnet.training.losses import classification_loss, get_target, sum_identity_errors

FINITE_CHECK_INTERVAL = 50
"""Number of batches between two checks that the loss is finite, on a GPU."""

logger = logging.getLogger(__name__)


class TrainingModule(L.LightningModule):
    """Base class of both stages: augmentation on the device, optimiser, schedule, and a check that the loss is finite.

    Args:
        settings: section of the recipe for this stage.
        augmentation: section of the recipe.
        seed: seed of the training.
    """

    stage: str
    """Name of the stage in the history and the checkpoints."""
    network_name: str
    """Attribute that holds the trained network."""

    def __init__(self, settings: Optimisation, augmentation: Augment, seed: int):
        super().__init__()
        self.settings, self.augmentation, self.seed = settings, augmentation, seed
        self.last_lr = settings.lr
        self.compiling = self.checkpointing = False
        self.compiled: Callable[[Tensor], Any] | None = None
        self.last_loss: Tensor | None = None  # the newest loss, or the first that was not finite

    @property
    def network(self) -> nn.Module:
        """The trained network, without the networks of its loss."""
        return getattr(self, self.network_name)

    def run_network(self, network: Callable[[Tensor], Any], images: Tensor) -> Any:
        """Return `network(images)`; compiled if the recipe asks for it and the batch is full."""
        if not (self.compiling and self.training and len(images) == self.settings.batch_size):
            return network(images)
        if self.compiled is None:
            self.compiled = torch.compile(network, dynamic=False)
        return self.compiled(images)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment training batches on the device (section 3.1).

        Augmentation, and dropout after it, depend only on the seed and the step, so that a resumed run repeats them.
        """
        images, labels, targets = batch
        if not self.trainer.training:
            return to_channels_last(images), labels, targets
        torch.manual_seed((self.seed * 1_000_003 + self.trainer.global_step) * 1_009 + self.global_rank)
        channels = images.shape[1]
        both = torch.cat([images, targets], dim=1) if targets.ndim == 4 else images  # (B, C or 2C, S, S)
        both = augment(both, flips=self.augmentation.flips, rotation=self.augmentation.rotation)
        return to_channels_last(both[:, :channels]), labels, both[:, channels:] if targets.ndim == 4 else targets

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Compute the gradients. Recomputed batch norms must not count the batch twice."""
        with fixed_running_statistics(self.network) if self.checkpointing else nullcontext():
            super().backward(loss, *args, **kwargs)

    def check_loss(self, loss: Tensor, index: int = 0) -> Tensor:
        """Return the loss if it is finite. On a GPU, check only every `FINITE_CHECK_INTERVAL` batches.

        Args:
            loss: loss of a batch.
            index: number of the batch in its epoch.

        Raises:
            TrainingError: this loss, or one since the last check, is not finite.
        """
        now = loss.detach()
        self.last_loss = now if self.last_loss is None else torch.where(self.last_loss.isfinite(), now, self.last_loss)
        if not now.is_cuda or index % FINITE_CHECK_INTERVAL == 0:
            self._raise_if_not_finite()
        return loss

    def _raise_if_not_finite(self) -> None:
        if self.last_loss is not None and not self.last_loss.isfinite():
            raise TrainingError(
                f"the loss became {self.last_loss.item()} in epoch {self.current_epoch + 1}. The run keeps the last "
                f"complete epoch. Train again with a lower learning rate (now {self.settings.lr:g}), for instance a "
                "tenth, or with train.precision=32",
                code="training.loss_not_finite",
            )

    def build_optimiser(self, groups: list[dict[str, Any]]) -> dict[str, Any]:
        """Build SGD with momentum (the paper's Table 1) or AdamW, with the learning rate schedule."""
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
        """Store the learning rate of the step (that of the classifier, if there are two)."""
        self.last_lr = optimizer.param_groups[-1]["lr"]

    def on_train_epoch_end(self) -> None:
        """Log the learning rate of the last step. Raise before a checkpoint if the loss is not finite."""
        self._raise_if_not_finite()
        self.log("lr", self.last_lr)

    def on_train_start(self) -> None:
        """Move the cells to the GPU if they fit beside the training."""
        for dataset in self._datasets():
            if self.device.type == "cuda" and 4 * dataset.nbytes <= torch.cuda.mem_get_info(self.device)[0]:
                dataset.move_to(self.device)

    def on_train_end(self) -> None:
        """Free the cells on the GPU."""
        for dataset in self._datasets():
            dataset.on_device = None

    def _datasets(self) -> list[CellDataset]:
        loaders = (self.trainer.train_dataloader, self.trainer.val_dataloaders)
        return [loader.dataset for loader in loaders if loader is not None]


class PretrainModule(TrainingModule):
    """Pre-training: the enhancer learns to reproduce its input (section 3.3), or to produce the paired images.

    After each epoch, `identity_error` is logged: the error of the identity as a share of the images' own variance, on
    the validation part, or on the training part if there is none.

    Args:
        enhancer: the network.
        loss: loss between enhanced images and targets, (B, C, H, W) each.
        settings: section of the recipe.
        augmentation: section of the recipe.
        seed: seed of the training.
    """

    stage, network_name = "pretrain", "enhancer"

    def __init__(self, enhancer: nn.Module, loss: nn.Module, settings: Pretrain, augmentation: Augment, seed: int):
        super().__init__(settings, augmentation, seed)
        self.enhancer, self.loss = enhancer, loss
        self.identity_sums: dict[str, Tensor] = {}  # by part: squared error and variance, summed over the epoch

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Compute the loss of a training batch."""
        loss = self.check_loss(self._compute_loss(batch, "train"), index)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch[0]), sync_dist=True)
        return loss

    def validation_step(self, batch: Batch, index: int) -> None:
        """Log the loss of a validation batch."""
        loss = self.check_loss(self._compute_loss(batch, "validation"), index)
        self.log("validation_loss", loss, batch_size=len(batch[0]))

    def _compute_loss(self, batch: Batch, part: str) -> Tensor:
        images, target = batch[0], get_target(batch)
        enhanced = self.run_network(self.enhancer, images)
        if target is images:
            sums = sum_identity_errors(enhanced.detach(), images)  # (2,)
            self.identity_sums[part] = self.identity_sums[part] + sums if part in self.identity_sums else sums
        return self.loss(enhanced, target)

    def on_train_epoch_end(self) -> None:
        """Log the error of the identity."""
        super().on_train_epoch_end()
        if self.identity_sums:
            error, variance = self.identity_sums.get("validation", self.identity_sums.get("train"))
            self.log("identity_error", error / variance, sync_dist=True)
        self.identity_sums = {}

    def configure_optimizers(self) -> dict[str, Any]:
        """Train the enhancer, and the parameters of the loss if it has any, at one learning rate."""
        trained = [p for p in (*self.enhancer.parameters(), *self.loss.parameters()) if p.requires_grad]
        return self.build_optimiser([{"params": trained, "lr": self.settings.lr}])


class JointModule(TrainingModule):
    """Joint training: enhancer and classifier learn together from the label (Eq. 3).

    Two options are not in the paper, and off by default. `auxiliary` adds the loss of the pre-training to the
    cross-entropy. `frozen` freezes the enhancer in the first epochs, and `enhancer_lr` 0 in all of them. A frozen
    enhancer is in evaluation mode and receives no gradient.

    Args:
        model: the joint model.
        loss: loss between enhanced images and targets, (B, C, H, W) each; its weight is `settings.auxiliary`.
        settings: section of the recipe.
        augmentation: section of the recipe.
        seed: seed of the training.
        classes: number of classes, K.
        class_weights: (K,) weights of the classes in the loss, or None.
    """

    stage, network_name = "train", "model"

    def __init__(
        self,
        model: JointModel,
        loss: nn.Module,
        settings: Train,
        augmentation: Augment,
        seed: int,
        classes: int,
        class_weights: Tensor | None = None,
    ):
        super().__init__(settings, augmentation, seed)
        self.model, self.loss = model, loss
        if settings.enhancer_lr == 0:
            model.enhancer.requires_grad_(False)
        self.register_buffer("class_weights", class_weights)
        # Every process validates the whole part, so no sum across processes is needed.
        self.confusion = MulticlassConfusionMatrix(classes, sync_on_compute=False, validate_args=False)
        self.pixel_range, self.warned = PixelRange(), False

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Compute the loss of a training batch: Eq. 3, and the auxiliary loss if the recipe has one."""
        images, labels, _ = batch
        logits, enhanced = self.run_network(self.model.enhance_and_classify, images)  # (B, K), (B, C, H, W)
        loss = classification_loss(logits, labels, self.class_weights)
        if self.settings.auxiliary:
            loss = loss + self.settings.auxiliary * self.loss(enhanced, get_target(batch))
        self.check_loss(loss, index)
        accuracy = (logits.argmax(dim=1) == labels).float().mean()
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(labels), sync_dist=True)
        self.log("train_accuracy", accuracy, on_step=False, on_epoch=True, batch_size=len(labels), sync_dist=True)
        return loss

    @property
    def frozen(self) -> bool:
        """Whether the enhancer is frozen in this epoch."""
        return self.settings.enhancer_lr == 0 or self.current_epoch < self.settings.frozen

    def on_train_epoch_start(self) -> None:
        """Put a frozen enhancer into evaluation mode, so that its batch norms do not change."""
        self.model.enhancer.train(not self.frozen)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Remove the gradients of a frozen enhancer: the optimiser skips parameters without one, decay included."""
        super().on_before_optimizer_step(optimizer)
        if self.frozen:
            for parameter in self.model.enhancer.parameters():
                parameter.grad = None

    def validation_step(self, batch: Batch, index: int) -> None:
        """Collect the predictions on a validation batch."""
        images, labels, _ = batch
        logits, enhanced = self.model.enhance_and_classify(images)
        self.pixel_range.add(enhanced.detach())
        self.confusion.update(logits, labels)
        loss = self.check_loss(classification_loss(logits, labels), index)
        self.log("validation_loss", loss, batch_size=len(labels))

    def on_validation_epoch_end(self) -> None:
        """Log accuracy and macro recall over the classes of the part. Warn once if enhanced images leave [0, 1]."""
        matrix = self.confusion.compute().double()  # (K, K), rows truth
        support = matrix.sum(dim=1)
        recall = matrix.diagonal()[support > 0] / support[support > 0]
        self.log("validation_accuracy", float(matrix.trace() / matrix.sum()))
        self.log("validation_macro_recall", float(recall.mean()))
        self.confusion.reset()
        if (warning := self.pixel_range.warning) and not self.warned and self.global_rank == 0:
            logger.warning("epoch %d: %s", self.current_epoch + 1, warning)
            self.warned = True
        self.pixel_range = PixelRange()

    def configure_optimizers(self) -> dict[str, Any]:
        """Train the classifier, and the enhancer with its own learning rate if it has one."""
        rate = self.settings.lr if self.settings.enhancer_lr is None else self.settings.enhancer_lr
        enhancer = [p for p in (*self.model.enhancer.parameters(), *self.loss.parameters()) if p.requires_grad]
        groups = [{"params": enhancer, "lr": rate}] if enhancer else []
        return self.build_optimiser([*groups, {"params": self.model.classifier.parameters(), "lr": self.settings.lr}])


def to_channels_last(images: Tensor) -> Tensor:
    """Store (B, C, H, W) with the channels of a pixel side by side in memory, which makes convolutions faster."""
    return images.contiguous(memory_format=torch.channels_last)


def set_memory_format(module: nn.Module, layout: torch.memory_format) -> None:
    """Set the memory format of the kernels of 2D convolutions, and of no other tensor."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=layout)


def one_cycle(step: int, steps: int) -> float:
    """Return the share of the peak learning rate at a step of a one-cycle schedule.

    A cosine rises from 1/25 over a fifth of the steps, and another one falls to almost 0 over the rest (L. N. Smith and
    N. Topin, "Super-convergence", 2018, https://arxiv.org/abs/1708.07120). torch's OneCycleLR has the same form, but
    divides by zero for five steps or fewer.
    """
    top = max(1.0, 0.2 * steps - 1)
    if step <= top:
        low, way = 1 / 25, step / top
    else:
        low, way = 1 / 25e4, 1 - min(1.0, (step - top) / max(1.0, steps - 1 - top))
    return low + (1 - low) * (1 - math.cos(math.pi * way)) / 2

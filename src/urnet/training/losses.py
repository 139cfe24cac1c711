"""Losses of UR-Net: Eq. 3 of the joint training, and the reconstruction error of the pre-training (section 3.3)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from urnet.cells.batches import Batch
from urnet.errors import RecipeError
from urnet.nets.baselines.huang2018_loss import HuangLoss


def classification_loss(logits: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Compute the classification loss of Eq. 3, L = -1/|X| Σ log P(y_i | X_i): the cross-entropy.

    Args:
        logits: (B, K).
        labels: (B,) class indices.
        class_weights: (K,) weights of the classes, or None. The paper has none.
    """
    return F.cross_entropy(logits, labels, weight=class_weights)


def compute_class_weights(counts: Tensor) -> Tensor:
    """Compute weights inversely proportional to the cells of each class, N / (K · n_k), with mean 1 over the cells."""
    return counts.sum().item() / (len(counts) * counts.float())


def build_enhancement_loss(
    name: str, *, channels: int, size: int, perceptual: str | None = None, adversarial: float = 0.0
) -> nn.Module:
    """Build the loss between enhanced images and target images.

    The paper does not name the loss of its pre-training. Here it is the mean squared error. The loss of Huang et al.
    is for RSGUNet.

    Args:
        name: "mse" or "huang2018".
        channels: C of the images.
        size: H and W of the images, px.
        perceptual: Perceptual term of "huang2018": a file with the weights of VGG19, "packaged", or None.
        adversarial: Weight of the adversarial term of "huang2018".

    Returns:
        A module that maps enhanced and target images, (B, C, H, W) each, to a scalar. The optimiser of the enhancer
        must train its parameters too, if it has any.

    Raises:
        RecipeError: The name is unknown, the images are too small, or "mse" has a term that it does not know.
        WeightsError: The weights of the perceptual network cannot be loaded.
    """
    if name == "mse":
        if perceptual is not None or adversarial:
            raise RecipeError(
                f"pretrain.loss=mse has no perceptual and no adversarial term (found {perceptual=}, {adversarial=}). "
                "Leave both keys out, or set pretrain.loss=huang2018",
                code="recipe.loss_options",
            )
        return nn.MSELoss()
    if name != "huang2018":
        raise RecipeError(
            f"pretrain.loss={name!r} is unknown; choose one of: mse, huang2018", code="recipe.loss_unknown"
        )
    return HuangLoss(channels, size, perceptual=perceptual, adversarial=adversarial)


def get_target(batch: Batch) -> Tensor:
    """Return the images that the enhancer should produce, (B, C, H, W): the paired images, else the input itself."""
    images, _, targets = batch
    return images if targets.ndim == 2 else targets


def sum_identity_errors(enhanced: Tensor, images: Tensor) -> Tensor:
    """Sum the squared errors of enhanced images, and the squared deviations of the images from their means: (2,).

    The ratio of the two sums is the error of the identity as a share of the variance within an image and channel. A
    mean squared error alone says little, because unstained cells differ little from a grey area.

    Args:
        enhanced: (B, C, H, W).
        images: (B, C, H, W).
    """
    images = images.float()
    deviations = images - images.mean(dim=(2, 3), keepdim=True)
    return torch.stack([(enhanced.float() - images).square().sum(), deviations.square().sum()])

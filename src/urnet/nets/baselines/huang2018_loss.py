"""Loss of RSGUNet between enhanced and target images (Huang et al., ECCV Workshops 2018).

The weights of the terms are those of the authors' published code, https://github.com/MTLab/rsgunet_image_enhance. They
train on colour patches of 100 × 100 px and sum the differences. This module takes means instead, so that the weights
hold for any size: their 0.05·L1, summed over such a patch and halved, is 750 times the mean.
"""

from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure

from urnet.errors import RecipeError, WeightsError
from urnet.nets.baselines.dynamic_filters import luminance
from urnet.nets.classifier_weights import PACKAGED, PACKAGED_CLASSIFIER, read_state
from urnet.nets.classifiers import create_classifier, get_normalisation

MS_SSIM, COLOUR, PERCEPTUAL, SMOOTHNESS = 500, 0.05 * 100 * 100 * 3 / 2, 10, 100
"""Weights of the terms. PERCEPTUAL is not from the authors (see `Perceptual`)."""

BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the five scales of MS-SSIM, finest first (Wang et al., Asilomar 2003)."""

WINDOW = 11
"""Side of the window of SSIM, px."""


class HuangLoss(nn.Module):
    """Loss 500·(1 - MS-SSIM) + 750·L1 + perceptual + 100·total variation, and an adversarial term in training.

    Evaluation mode leaves out the adversarial term, because its value measures the adversary and not the enhancer.

    The parameters are those of the adversary. The optimiser of the enhancer trains them in the same step.

    Args:
        channels: C of the images.
        size: H and W of the images, px. They determine the number of scales of MS-SSIM.
        perceptual: See `Perceptual`; None for no such term.
        adversarial: Weight of the adversarial term (see `Adversary`); the authors' is 17.5. 0: no such term.

    Raises:
        RecipeError: The images are smaller than the window of SSIM.
        WeightsError: The weights of the perceptual network cannot be loaded.
    """

    def __init__(self, channels: int, size: int, *, perceptual: str | None = None, adversarial: float = 0.0) -> None:
        super().__init__()
        if size < WINDOW:
            raise RecipeError(
                f"pretrain.loss=huang2018 compares windows of {WINDOW} × {WINDOW} px, but the images have "
                f"{size} × {size} px. Set a larger input.size, or pretrain.loss=mse",
                code="recipe.loss_size",
            )
        self.scales = count_scales(size)
        self.perceptual = None if perceptual is None else Perceptual(perceptual)
        self.adversary = Adversary(adversarial) if adversarial else None

    def forward(self, enhanced: Tensor, target: Tensor) -> Tensor:
        """Compare (B, C, H, W) with (B, C, H, W), always in single precision."""
        with torch.autocast(enhanced.device.type, enabled=False):
            enhanced, target = enhanced.float(), target.float()
            loss = MS_SSIM * (1 - ms_ssim(enhanced, target, self.scales)) + COLOUR * F.l1_loss(enhanced, target)
            loss = loss + SMOOTHNESS * total_variation(enhanced)
            if self.perceptual is not None:
                loss = loss + PERCEPTUAL * self.perceptual(enhanced, target)
            if self.adversary is not None and self.training:
                loss = loss + self.adversary(enhanced, target)
            return loss


def count_scales(size: int) -> int:
    """Return the number of scales of MS-SSIM, 1 to 5. The halved image of each scale must hold a window."""
    return max(n for n in range(1, 6) if n == 1 or size // 2 ** (n - 1) >= WINDOW)


def ms_ssim(enhanced: Tensor, target: Tensor, scales: int = 5) -> Tensor:
    """Compute the multi-scale structural similarity, averaged over the images; equal images have 1.

    Fewer than five scales are the finest ones, with exponents scaled to the same sum. Contrast opposite to that of the
    target counts as 0.001: a negative number has no fractional power, and 0 has no gradient of it.

    Args:
        enhanced: (B, C, H, W). Pixels outside [0, 1] count as 0 or 1, but keep their gradient.
        target: (B, C, H, W).
        scales: Number of scales, 1 to 5.
    """
    x, y = enhanced + (enhanced.clamp(0, 1) - enhanced).detach(), target.clamp(0, 1)
    total = sum(BETAS[:scales])
    product = x.new_ones(len(x))
    for scale, beta in enumerate(BETAS[:scales], start=1):
        similarity, contrast = structural_similarity_index_measure(
            x, y, data_range=1.0, reduction="none", return_contrast_sensitivity=True
        )  # (B,) each
        factor = similarity if scale == scales else contrast
        product = product * factor.clamp(min=1e-3) ** (beta / total)
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return product.mean()


def total_variation(x: Tensor) -> Tensor:
    """Compute the mean squared difference between neighbouring rows plus that between columns, of (B, C, H, W)."""
    return x.diff(dim=2).square().mean() + x.diff(dim=3).square().mean()


class Perceptual(nn.Module):
    """Distance between the features of two images in a frozen ImageNet network.

    It compares the last feature maps at 1/1, 1/4 and 1/16 of the size in VGG19 (relu1_2, relu3_4, relu5_4, the
    authors' choice), or at 1/2, 1/8 and 1/32 in EfficientNet-Lite0. The mean squared difference of each map is divided
    by the mean square of the target. So one weight suits both networks (not from the authors).

    Args:
        weights: A `.safetensors`, `.pth` or `.pt` file with the weights of VGG19, under timm's or torchvision's names,
            or "packaged": EfficientNet-Lite0 with the weights of the `weights` extra.

    Raises:
        WeightsError: The weights are missing or of another network.
    """

    def __init__(self, weights: str) -> None:
        super().__init__()
        name, state = (PACKAGED_CLASSIFIER, _packaged()) if weights == PACKAGED else ("vgg19", _vgg19(weights))
        network = timm.create_model(name, features_only=True, out_indices=(0, 2, 4))
        own = network.state_dict()
        wrong = [key for key, x in own.items() if key not in state or state[key].shape != x.shape]
        if wrong:
            raise WeightsError(
                f"pretrain.perceptual={weights}: not the weights of {name!r}, {len(wrong)} tensors are missing or of "
                f"another shape ({', '.join(wrong[:3])}, …); name the file of a VGG19 without batch norm",
                code="weights.other_network",
            )
        network.load_state_dict({key: state[key] for key in own})
        network.eval().requires_grad_(False)
        self._network = (network,)  # in a tuple, so that it is in no optimiser and no checkpoint
        mean, std = get_normalisation(network)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, enhanced: Tensor, target: Tensor) -> Tensor:
        """Compare (B, C, H, W) with (B, C, H, W), C = 1 or 3."""
        network = self._network[0].to(enhanced.device)
        with torch.no_grad():
            wanted = network(self._normalised(target))
        terms = [
            F.mse_loss(x, y) / y.square().mean()
            for x, y in zip(network(self._normalised(enhanced)), wanted, strict=True)
        ]
        return torch.stack(terms).mean()

    def _normalised(self, x: Tensor) -> Tensor:
        return (x.expand(-1, 3, -1, -1) - self.mean) / self.std


def _packaged() -> dict[str, Tensor]:
    try:
        return create_classifier(PACKAGED_CLASSIFIER, 1000, weights=PACKAGED).state_dict()
    except WeightsError as error:
        raise WeightsError(str(error).replace("classifier.weights", "pretrain.perceptual"), code=error.code) from None


def _vgg19(path: str) -> dict[str, Tensor]:
    try:
        state = read_state(Path(path))
    except WeightsError as error:
        raise WeightsError(str(error).replace("classifier.weights", "pretrain.perceptual"), code=error.code) from None
    return {name.replace("features.", "features_"): x for name, x in state.items()}


class Adversary(nn.Module):
    """Discriminator that learns to tell enhanced images from targets, while the enhancer learns against it.

    Both learn from one loss in one step, the enhancer through a gradient reversal layer (Ganin and Lempitsky, ICML
    2015, https://arxiv.org/abs/1409.7495). Its input is the luminance, as with the authors. It is smaller than theirs.

    Args:
        weight: Factor of the reversed gradient. The gradient of the discriminator has factor 1.
    """

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight
        layers: list[nn.Module] = []
        for before, after in ((1, 32), (32, 64), (64, 128)):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True)]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(128, 1)

    def forward(self, enhanced: Tensor, target: Tensor) -> Tensor:
        """Compute the cross-entropy of the discriminator between enhanced images and targets, (B, C, H, W) each."""
        fake = self.discriminate(_Reverse.apply(enhanced, self.weight))
        return F.softplus(fake).mean() + F.softplus(-self.discriminate(target)).mean()

    def discriminate(self, x: Tensor) -> Tensor:
        """Return the log-odds that an image is a target, (B, 1)."""
        return self.head(self.features(luminance(x)).mean(dim=(2, 3)))


class _Reverse(torch.autograd.Function):
    """Identity with a reversed and weighted gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.weight * gradient, None

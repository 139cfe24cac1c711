"""What an enhanced image is measured by: how far it is from the image that it should be.

The weights of "huang2018" are those of RSGUNet's authors (Huang et al., ECCV Workshops 2018; their published code,
https://github.com/MTLab/rsgunet_image_enhance). They train on colour patches of 100 × 100 px and sum differences where
means are taken here, so that the weights hold for any size: their 0.05·L1, summed over such a patch and halved, is 750
times the mean.
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
"""Weights of the terms of "huang2018"; PERCEPTUAL is ours (see `Perceptual`)."""

BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the five scales of MS-SSIM, finest first (Wang et al., Asilomar 2003)."""

WINDOW = 11
"""Side of SSIM's window, px."""


def build_enhancement_loss(
    name: str, *, channels: int, size: int, perceptual: str | None = None, adversarial: float = 0.0
) -> nn.Module:
    """Build the loss between enhanced and target images.

    Its parameters, if any, are those of the adversary. They learn in the same step by the same optimiser as the
    enhancer (see `Adversary`), so hand them to it.

    Args:
        name: "mse", the mean squared error, or "huang2018" (see `HuangLoss`).
        channels: C of the images.
        size: H and W of the images, px.
        perceptual: For "huang2018": a file with the weights of VGG19, or "packaged" for EfficientNet-Lite0. None: no
            perceptual term.
        adversarial: For "huang2018": weight of the adversarial term; the authors' is 17.5.

    Returns:
        A module, called with enhanced and target images, both (B, C, H, W) with pixels about [0, 1]; it gives a scalar.

    Raises:
        RecipeError: The name is unknown, the size too small, or "mse" was given terms that it has not.
        WeightsError: The weights of the perceptual network cannot be had.
    """
    if name == "mse":
        if perceptual is not None or adversarial:
            raise RecipeError(
                f"pretrain.loss=mse has no perceptual and no adversarial term (found {perceptual=}, {adversarial=}); "
                "leave both keys out, or set pretrain.loss=huang2018"
            )
        return nn.MSELoss()
    if name != "huang2018":
        raise RecipeError(f"pretrain.loss={name!r} is unknown; choose one of: mse, huang2018")
    if size < WINDOW:
        raise RecipeError(
            f"pretrain.loss=huang2018 compares windows of {WINDOW} × {WINDOW} px, but images are of {size} × {size} px;"
            " set a larger input.size, or pretrain.loss=mse"
        )
    return HuangLoss(channels, size, perceptual=perceptual, adversarial=adversarial)


class HuangLoss(nn.Module):
    """500·(1 - MS-SSIM) + 750·L1 + perceptual + 100·total variation, and in training an adversary.

    In evaluation mode the adversarial term is left out, as its value says how the adversary does, not the enhancer.

    Args:
        channels: C of the images.
        size: H and W of the images, px, from which the number of scales of MS-SSIM follows.
        perceptual: See `Perceptual`; None for no such term.
        adversarial: See `Adversary`; 0 for no such term.
    """

    def __init__(self, channels: int, size: int, *, perceptual: str | None = None, adversarial: float = 0.0) -> None:
        super().__init__()
        self.scales = count_scales(size)
        self.perceptual = None if perceptual is None else Perceptual(perceptual)
        self.adversary = Adversary(adversarial) if adversarial else None

    def forward(self, enhanced: Tensor, target: Tensor) -> Tensor:
        """Compare (B, C, H, W) with (B, C, H, W), in single precision whatever the training's."""
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
    """Give the number of scales of MS-SSIM, 1 to 5: on each the image, halved every time, must hold a window."""
    return max(n for n in range(1, 6) if n == 1 or size // 2 ** (n - 1) >= WINDOW)


def ms_ssim(enhanced: Tensor, target: Tensor, scales: int = 5) -> Tensor:
    """Give the multi-scale structural similarity, averaged over the images; 1 for equal ones.

    With fewer than five scales the finest are taken and their exponents scaled to the same sum. Contrast that is
    opposite to the target's counts as (almost) none, since a negative number has no fractional power and zero no
    gradient of it.

    Args:
        enhanced: (B, C, H, W). Pixels outside [0, 1] count as 0 or 1, but keep the gradient that they would have there.
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
    """Give the mean squared step to the next row plus that to the next column, of (B, C, H, W)."""
    return x.diff(dim=2).square().mean() + x.diff(dim=3).square().mean()


class Perceptual(nn.Module):
    """Distance between the features that a frozen ImageNet network sees in two images.

    Compared are the last feature maps at 1/1, 1/4 and 1/16 of the size in VGG19 (relu1_2, relu3_4, relu5_4, the
    authors' choice), at 1/2, 1/8 and 1/32 in EfficientNet-Lite0. Each map's mean squared difference is divided by the
    target's mean square, so that one weight serves both networks (ours).

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
                f"another shape ({', '.join(wrong[:3])}, …); name the file of a VGG19 without batch norm"
            )
        network.load_state_dict({key: state[key] for key in own})
        network.eval().requires_grad_(False)
        self._network = (network,)  # in a tuple, so that neither optimiser nor checkpoint takes it for ours
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
        raise WeightsError(str(error).replace("classifier.weights", "pretrain.perceptual")) from None


def _vgg19(path: str) -> dict[str, Tensor]:
    try:
        state = read_state(Path(path))
    except WeightsError as error:
        raise WeightsError(str(error).replace("classifier.weights", "pretrain.perceptual")) from None
    return {name.replace("features.", "features_"): x for name, x in state.items()}


class Adversary(nn.Module):
    """A discriminator that learns to tell enhanced images from targets, and an enhancer that learns against it.

    Both learn from one loss in one step: the enhancer through a gradient reversal layer (Ganin and Lempitsky, ICML
    2015, https://arxiv.org/abs/1409.7495). As with the authors it sees the luminance; it is smaller than theirs.

    Args:
        weight: Factor of the reversed gradient; the discriminator's own is 1.
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
        """Give the discriminator's cross-entropy, between enhanced images and targets, (B, C, H, W) each."""
        fake = self.judge(_Reverse.apply(enhanced, self.weight))
        return F.softplus(fake).mean() + F.softplus(-self.judge(target)).mean()

    def judge(self, x: Tensor) -> Tensor:
        """Give the log-odds that an image is a target, (B, 1)."""
        return self.head(self.features(luminance(x)).mean(dim=(2, 3)))


class _Reverse(torch.autograd.Function):
    """The identity, whose gradient is turned round and weighted."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.weight * gradient, None

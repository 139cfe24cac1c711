"""Enhancer and classifier as one network, so that the enhancement is trained by the classification (paper, Fig. 2a)."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from urnet.errors import RecipeError
from urnet.nets.classifiers import create_classifier, get_normalisation
from urnet.nets.enhancers.registry import create_enhancer


class JointModel(nn.Module):
    """Pixels → enhancer → the classifier's normalisation → classifier → logits.

    An enhancer with several views of an image (`views` and `view_weights`, as the streams of `dynamic`) has each of
    them classified, and their probabilities mixed.

    Args:
        enhancer: (B, C, H, W) → (B, C, H, W), C = 1 or 3.
        classifier: (B, 3, H, W) → (B, K); with `concat_raw` (B, 6, H, W) → (B, K).
        mean: Per channel, subtracted from the enhanced pixels.
        std: Per channel, that they are then divided by.
        concat_raw: Whether the classifier sees the raw image after the enhanced one.
    """

    def __init__(
        self,
        enhancer: nn.Module,
        classifier: nn.Module,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        *,
        concat_raw: bool = False,
    ) -> None:
        super().__init__()
        self.enhancer = enhancer
        self.classifier = classifier
        self.concat_raw = concat_raw
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map pixels in [0, 1], (B, C, H, W), to logits (B, K)."""
        return self.enhance_and_classify(x)[0]

    def enhance_and_classify(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map pixels in [0, 1], (B, C, H, W), to logits (B, K) and the enhanced images (B, C, H, W)."""
        if not hasattr(self.enhancer, "views"):
            enhanced = self.enhancer(x)
            return self.classify(enhanced, x), enhanced
        views, weights = self.enhancer.views(x), self.enhancer.view_weights()  # (B, V, C, H, W), (V,)
        count = len(weights)
        logits = self.classify(views.flatten(0, 1), x.repeat_interleave(count, 0)).unflatten(0, (-1, count))
        mixed = (logits.float().log_softmax(dim=2) + weights.log()[:, None]).logsumexp(dim=1)  # (B, K)
        return mixed, (views * weights[:, None, None, None]).sum(dim=1)

    def enhance(self, x: Tensor) -> Tensor:
        """Map pixels in [0, 1] to the image that the classifier sees, (B, C, H, W), before its normalisation."""
        return self.enhancer(x)

    def classify(self, enhanced: Tensor, raw: Tensor) -> Tensor:
        """Map enhanced images and their originals, (B, C, H, W) each, to logits (B, K)."""
        images = [enhanced, raw] if self.concat_raw else [enhanced]
        return self.classifier(torch.cat([(self._to_rgb(x) - self.mean) / self.std for x in images], dim=1))

    @staticmethod
    def _to_rgb(x: Tensor) -> Tensor:
        return x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x  # (B, 3, H, W)


def build_joint(
    enhancer: str,
    classifier: str,
    classes: int,
    channels: int,
    *,
    enhancer_options: dict[str, Any] | None = None,
    classifier_options: dict[str, Any] | None = None,
    pretrained: bool = False,
    weights: str | Path | None = None,
    concat_raw: bool = False,
) -> JointModel:
    """Build both networks by their names and join them.

    Args:
        enhancer: One of `list_enhancers()`.
        classifier: Any network of timm, or `shahzad2022`.
        classes: Number of classes, K.
        channels: C of the images, 1 (grey) or 3 (RGB).
        enhancer_options: For `create_enhancer`.
        classifier_options: For `create_classifier`.
        pretrained: Fetch the classifier's weights from timm's hub.
        weights: The classifier's weights: a local file, or "packaged".
        concat_raw: Whether the classifier sees the raw image beside the enhanced one.

    Returns:
        The joint network, (B, C, H, W) → logits (B, K).

    Raises:
        RecipeError: A name or an option is unknown, or a value is outside its range.
        WeightsError: The classifier's weights cannot be had.
    """
    front = create_enhancer(enhancer, channels, **(enhancer_options or {}))
    back = create_classifier(classifier, classes, pretrained=pretrained, weights=weights, options=classifier_options)
    joint = JointModel(front, back, *get_normalisation(back), concat_raw=concat_raw)
    if concat_raw:
        _widen_first_convolution(back, classifier)
    return joint


def _widen_first_convolution(classifier: nn.Module, name: str) -> None:
    """Let a network of three channels see six, the weights halved, so that two equal images give the same features."""
    first = classifier.pretrained_cfg.get("first_conv")
    layer = classifier.get_submodule(first) if isinstance(first, str) else None
    if not isinstance(layer, nn.Conv2d) or layer.groups != 1:
        raise RecipeError(
            f"classifier.input=both: {name!r} has no single first convolution that could see the raw image as well; "
            "choose another classifier, or input=enhanced"
        )
    layer.weight = nn.Parameter(torch.cat([layer.weight.detach()] * 2, dim=1) / 2)
    layer.in_channels *= 2

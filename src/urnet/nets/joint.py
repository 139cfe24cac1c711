"""Enhancer and classifier as one network, so that the enhancement is trained by the classification (paper, Fig. 2a)."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from urnet.nets.classifiers import create_classifier, normalisation
from urnet.nets.enhancer import Enhancer
from urnet.nets.registry import create_enhancer


class JointModel(nn.Module):
    """Pixels → enhancer → the classifier's normalisation → classifier → logits.

    Args:
        enhancer: (B, C, H, W) → (B, C, H, W), C = 1 or 3.
        classifier: (B, 3, H, W) → (B, K).
        mean: Per channel, subtracted from the enhanced pixels.
        std: Per channel, that they are then divided by.
    """

    def __init__(
        self, enhancer: Enhancer, classifier: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        super().__init__()
        self.enhancer = enhancer
        self.classifier = classifier
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map pixels in [0, 1], (B, C, H, W), to logits (B, K)."""
        return self.classify(self.enhance(x))

    def enhance(self, x: Tensor) -> Tensor:
        """Map pixels in [0, 1] to the image that the classifier sees, (B, C, H, W), before its normalisation."""
        return self.enhancer(x)

    def classify(self, x: Tensor) -> Tensor:
        """Map enhanced images, (B, C, H, W), to logits (B, K)."""
        if x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)  # (B, 3, H, W)
        return self.classifier((x - self.mean) / self.std)


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
) -> JointModel:
    """Build both networks by their names and join them.

    Args:
        enhancer: One of `list_enhancers()`.
        classifier: Any network of timm.
        classes: Number of classes, K.
        channels: C of the images, 1 (grey) or 3 (RGB).
        enhancer_options: For `create_enhancer`.
        classifier_options: For `create_classifier`.
        pretrained: Fetch the classifier's weights from timm's hub.
        weights: The classifier's weights: a local file, or "packaged".

    Returns:
        The joint network, (B, C, H, W) → logits (B, K).

    Raises:
        RecipeError: A name or an option is unknown, or a value is outside its range.
        WeightsError: The classifier's weights cannot be had.
    """
    front = create_enhancer(enhancer, channels, **(enhancer_options or {}))
    back = create_classifier(classifier, classes, pretrained=pretrained, weights=weights, options=classifier_options)
    return JointModel(front, back, *normalisation(back))

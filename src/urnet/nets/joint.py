"""UR-Net: enhancer and classifier as one end-to-end network (paper, section 3.2, Fig. 2a).

The image enhancement network is embedded in the classification network. The gradient of the classification loss flows
through the classifier into the enhancer, so that the enhancement serves the classification and not the eye.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from urnet.errors import RecipeError
from urnet.nets.classifiers import create_classifier, get_normalisation
from urnet.nets.enhancers.registry import create_enhancer
from urnet.recipe import Recipe


class JointModel(nn.Module):
    """Joint model: pixels → enhancer → normalisation of the classifier → classifier → logits.

    An enhancer may return several views of an image (`views` and `view_weights`, as the streams of `dynamic` do). Each
    view is classified, and the probabilities are averaged with the weights.

    Args:
        enhancer: (B, C, H, W) → (B, C, H, W), C = 1 or 3.
        classifier: (B, 3, H, W) → (B, K); with `concat_raw` (B, 6, H, W) → (B, K).
        mean: Per channel, subtracted from the enhanced pixels.
        std: Per channel, by which they are then divided.
        concat_raw: Concatenate the raw image to the enhanced one for the classifier. Not in the paper.
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

    def enhance(self, x: Tensor) -> Tensor:
        """Map pixels in [0, 1] to the image that the classifier receives, (B, C, H, W), before its normalisation."""
        return self.enhancer(x)

    def enhance_and_classify(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map pixels in [0, 1], (B, C, H, W), to logits (B, K) and the enhanced images (B, C, H, W)."""
        if hasattr(self.enhancer, "views"):
            return self._classify_views(x)
        enhanced = self.enhancer(x)
        return self.classify(enhanced, x), enhanced

    def classify(self, enhanced: Tensor, raw: Tensor) -> Tensor:
        """Map enhanced images and their originals, (B, C, H, W) each, to logits (B, K)."""
        images = [enhanced, raw] if self.concat_raw else [enhanced]
        return self.classifier(torch.cat([(self._to_rgb(x) - self.mean) / self.std for x in images], dim=1))

    def _classify_views(self, x: Tensor) -> tuple[Tensor, Tensor]:
        views, weights = self.enhancer.views(x), self.enhancer.view_weights()  # (B, V, C, H, W), (V,)
        count = len(weights)
        logits = self.classify(views.flatten(0, 1), x.repeat_interleave(count, 0)).unflatten(0, (-1, count))
        averaged = (logits.float().log_softmax(dim=2) + weights.log()[:, None]).logsumexp(dim=1)  # (B, K)
        return averaged, (views * weights[:, None, None, None]).sum(dim=1)

    @staticmethod
    def _to_rgb(x: Tensor) -> Tensor:
        return x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x  # (B, 3, H, W)


def build_from_recipe(recipe: Recipe, classes: int, channels: int, *, load_weights: bool = False) -> JointModel:
    """Build the joint model of a recipe.

    Args:
        recipe: Its sections `enhancer` and `classifier` name the networks and their options.
        classes: Number of classes, K.
        channels: C of the images, 1 (grey) or 3 (RGB).
        load_weights: Load the classifier's weights that the recipe names. False: random weights.

    Returns:
        The joint network, (B, C, H, W) → logits (B, K).

    Raises:
        RecipeError: A name or an option is unknown, or a value is outside its range.
        WeightsError: The classifier's weights cannot be loaded.
    """
    return build_joint(
        recipe.enhancer.name,
        recipe.classifier.name,
        classes,
        channels,
        enhancer_options=recipe.enhancer.options,
        classifier_options=recipe.classifier.options,
        pretrained=load_weights and recipe.classifier.pretrained,
        weights=recipe.classifier.weights if load_weights else None,
        concat_raw=recipe.classifier.input == "both",
    )


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
    """Build an enhancer and a classifier by their names, and join them.

    Args:
        enhancer: One of `list_enhancers()`.
        classifier: Any network of timm, or `shahzad2022`.
        classes: Number of classes, K.
        channels: C of the images, 1 (grey) or 3 (RGB).
        enhancer_options: Options for `create_enhancer`.
        classifier_options: Options for `create_classifier`.
        pretrained: Download the classifier's weights from timm's hub.
        weights: The classifier's weights: a local file, or "packaged".
        concat_raw: Concatenate the raw image to the enhanced one for the classifier.

    Returns:
        The joint network, (B, C, H, W) → logits (B, K).

    Raises:
        RecipeError: A name or an option is unknown, or a value is outside its range.
        WeightsError: The classifier's weights cannot be loaded.
    """
    front = create_enhancer(enhancer, channels, **(enhancer_options or {}))
    back = create_classifier(classifier, classes, pretrained=pretrained, weights=weights, options=classifier_options)
    joint = JointModel(front, back, *get_normalisation(back), concat_raw=concat_raw)
    if concat_raw:
        _widen_first_convolution(back, classifier)
    return joint


def _widen_first_convolution(classifier: nn.Module, name: str) -> None:
    """Widen a network from three to six channels with halved weights: two equal images give the same features."""
    first = classifier.pretrained_cfg.get("first_conv")
    layer = classifier.get_submodule(first) if isinstance(first, str) else None
    if not isinstance(layer, nn.Conv2d) or layer.groups != 1:
        raise RecipeError(
            f"classifier.input=both: {name!r} has no single first convolution that can take the raw image as well. "
            "Choose another classifier, or input=enhanced",
            code="recipe.classifier_input",
        )
    layer.weight = nn.Parameter(torch.cat([layer.weight.detach()] * 2, dim=1) / 2)
    layer.in_channels *= 2

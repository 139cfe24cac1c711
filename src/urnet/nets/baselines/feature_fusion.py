"""Classifier on the joined features of several networks, in the style of Shahzad et al. (2022).

A. Shahzad, M. Raza, J. H. Shah, M. Sharif, R. S. Nayak, "Categorizing white blood cells by utilizing deep features of
proposed 4B-AdditionNet-based CNN network with ant colony optimization", Complex & Intelligent Systems 8, 3143 (2022),
https://doi.org/10.1007/s40747-021-00564-x: the paper's reference 25. The article joins the features of a CNN of four
blocks that end in additions, of ResNet50 and of EfficientNetB0. The layer table of the CNN is not public, so this is
no reproduction: the blocks here are residual, and their widths are a choice. The next steps of the article, feature
selection by an ant colony and a support vector machine, are in `urnet.nets.baselines.ant_colony`.
"""

from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from urnet.errors import RecipeError, WeightsError
from urnet.nets.classifier_weights import PACKAGED, PACKAGED_CLASSIFIER, load_weights
from urnet.nets.classifiers import create_classifier, get_normalisation, initialise_head, register_classifier
from urnet.nets.enhancers.blocks import MaxPool, ResidualBlock

ADDITIVE = "additive"
"""Name of the features of the CNN of four additive blocks."""

_BLOCKS = (1, 2, 4, 8)


class AdditiveNet(nn.Sequential):
    """Four residual blocks that each halve the image, and the mean over the last map.

    Args:
        width: Channels of the first block. The others have 2, 4 and 8 times as many.
    """

    def __init__(self, width: int) -> None:
        channels = [width * times for times in _BLOCKS]
        super().__init__()
        for before, after in zip([3, *channels], channels, strict=False):
            self.append(nn.Sequential(ResidualBlock(before, after), MaxPool(after)))
        self.num_features = channels[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to features (B, 8 · width)."""
        return super().forward(x).mean(dim=(2, 3))


class FusedClassifier(nn.Module):
    """Linear layer on the joined features of an additive CNN and of timm networks.

    It has the part of timm's interface that is used here. For Grad-CAM it names the feature map of the first backbone.
    Each network receives the pixels with its own normalisation.

    Args:
        backbones: Networks of timm without their last layers, (B, 3, H, W) → (B, F_i), by name.
        additive: The CNN, (B, 3, H, W) → (B, F_0).
        classes: Number of classes, K; 0 gives the features.
    """

    def __init__(self, backbones: dict[str, nn.Module], additive: AdditiveNet, classes: int) -> None:
        super().__init__()
        self.additive = additive
        self.names = list(backbones)
        self.backbones = nn.ModuleList(backbones.values())
        norms = [get_normalisation(backbone) for backbone in backbones.values()]
        # The CNN has no normalisation of its own, and uses that of ImageNet.
        norms.insert(0, ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        self.register_buffer("mean", torch.tensor([mean for mean, _ in norms]).view(-1, 1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([std for _, std in norms]).view(-1, 1, 3, 1, 1), persistent=False)
        self.sizes = [additive.num_features, *(_count_features(backbone) for backbone in backbones.values())]
        self.num_classes = classes
        self.num_features = sum(self.sizes)
        self.fc = nn.Linear(self.num_features, classes) if classes else nn.Identity()
        self.pretrained_cfg = {
            "architecture": shahzad2022.__name__,
            "input_size": (3, 224, 224),
            "mean": (0.0, 0.0, 0.0),
            "std": (1.0, 1.0, 1.0),
            "classifier": "fc",
        }
        last_map = self.backbones[0].feature_info[-1]
        self.feature_info = [last_map | {"module": f"backbones.0.{last_map['module']}"}]

    def get_classifier(self) -> nn.Module:
        """Return the last layer."""
        return self.fc

    def feature_names(self) -> list[str]:
        """Return the name of the network of each of the F features."""
        return [name for name, size in zip([ADDITIVE, *self.names], self.sizes, strict=True) for _ in range(size)]

    def features(self, x: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to the joined features (B, F)."""
        networks = [self.additive, *self.backbones]
        views = (x - self.mean) / self.std  # (1 + backbones, B, 3, H, W)
        return torch.cat([network(view) for network, view in zip(networks, views, strict=True)], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map pixels in [0, 1], (B, 3, H, W), to logits (B, K)."""
        return self.fc(self.features(x))


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    backbones: Annotated[list[str], Field(min_length=1)] = ["resnet50", "efficientnet_b0"]
    width: Annotated[int, Field(ge=1, le=512)] = 32


@register_classifier
def shahzad2022(
    classes: int, *, pretrained: bool, weights: str | Path | None, options: dict[str, Any]
) -> FusedClassifier:
    """Build the classifier; its options are `backbones` (a list of timm names) and `width` (of the CNN).

    Args:
        classes: Number of classes, K.
        pretrained: Download the weights of each backbone from timm's hub.
        weights: A file with the weights of the whole classifier, or "packaged" for those of `tf_efficientnet_lite0`
            among the backbones.
        options: See above.

    Returns:
        The network, (B, 3, H, W) → logits (B, K).

    Raises:
        RecipeError: An option or a backbone is unknown.
        WeightsError: Weights cannot be loaded, or no backbone fits the "packaged" ones.
    """
    checked = _check_options(options)
    if weights is not None and str(weights) == PACKAGED and PACKAGED_CLASSIFIER not in checked.backbones:
        raise WeightsError(
            f"classifier.weights=packaged: these are the weights of {PACKAGED_CLASSIFIER!r}, and the backbones are "
            f"{', '.join(checked.backbones)}. Add it to classifier.options.backbones, or name a file",
            code="weights.other_network",
        )
    backbones = {name: _backbone(name, pretrained and weights is None, weights) for name in checked.backbones}
    model = FusedClassifier(backbones, AdditiveNet(checked.width), classes)
    initialise_head(model, classes)
    if weights is not None and str(weights) != PACKAGED:
        load_weights(model, weights)
    return model


def _check_options(options: dict[str, Any]) -> _Options:
    try:
        checked = _Options(**options)
    except ValidationError as error:
        problem = error.errors()[0]
        if problem["type"] == "extra_forbidden":
            message = f"has no option {problem['loc'][0]!r}; its options are: {', '.join(_Options.model_fields)}"
        else:
            message = f"{'.'.join(map(str, problem['loc']))} = {problem['input']!r}: {problem['msg']}"
        raise RecipeError(f"classifier 'shahzad2022': {message}", code="recipe.classifier_option") from None
    twice = [name for name in checked.backbones if checked.backbones.count(name) > 1]
    if twice:
        raise RecipeError(
            f"classifier 'shahzad2022': backbone {twice[0]!r} is listed twice; list it once",
            code="recipe.classifier_option",
        )
    if "shahzad2022" in checked.backbones:
        raise RecipeError(
            "classifier 'shahzad2022' cannot be its own backbone; list networks of timm",
            code="recipe.classifier_option",
        )
    return checked


def _backbone(name: str, pretrained: bool, weights: str | Path | None) -> nn.Module:
    if name == PACKAGED_CLASSIFIER and str(weights) == PACKAGED:
        model = create_classifier(name, 1000, weights=PACKAGED)
        model.reset_classifier(0)
    else:
        model = create_classifier(name, 0, pretrained=pretrained)
    if not getattr(model, "feature_info", None):
        raise RecipeError(
            f"classifier 'shahzad2022': timm names no feature maps of backbone {name!r}; choose another",
            code="recipe.no_feature_maps",
        )
    return model


def _count_features(backbone: nn.Module) -> int:
    """Return the number of features of a timm network without its last layer."""
    return getattr(backbone, "head_hidden_size", None) or backbone.num_features

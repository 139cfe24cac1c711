"""Classifiers: any network of timm, and those registered here (paper, section 3.2 and Table 2)."""

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
from timm.data import resolve_model_data_config
from torch import nn

from urnet.errors import RecipeError, WeightsError
from urnet.nets.classifier_weights import PACKAGED_CLASSIFIER, load_weights

_RESERVED_OPTIONS = {
    "model_name": "use classifier.name",
    "num_classes": "it is the number of classes",
    "pretrained": "use classifier.pretrained",
    "checkpoint_path": "use classifier.weights",
    "in_chans": "a classifier has three channels",
    "features_only": "a classifier returns logits",
}

HEAD_STD = 0.01
"""Standard deviation of the weights of a new last layer."""

_registered: dict[str, Callable[..., nn.Module]] = {}


def register_classifier(constructor: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Register the constructor of a classifier that timm does not have, under its own name.

    It is called with the number of classes and, by keyword, `pretrained`, `weights` and `options`. The network needs
    this part of timm's interface: `pretrained_cfg`, `feature_info` and `get_classifier()`. The constructor calls
    `initialise_head` before it loads weights.
    """
    _registered[constructor.__name__] = constructor
    return constructor


def list_classifiers() -> list[str]:
    """Return the paper's four classifiers, the one with packaged weights, and those registered here.

    `create_classifier` accepts any other name in `timm.list_models()` as well.
    """
    return ["vgg16", "mobilenetv2_100", "densenet121", "resnet101", PACKAGED_CLASSIFIER, *_registered]


def create_classifier(
    name: str,
    classes: int,
    *,
    pretrained: bool = False,
    weights: str | Path | None = None,
    options: dict[str, Any] | None = None,
) -> nn.Module:
    """Build a classifier for images of three channels.

    Args:
        name: A registered classifier, or any name of timm, with or without a tag of pretrained weights
            (`resnet101.a1h_in1k`).
        classes: Number of classes, K; 0 omits the last layer, as timm does.
        pretrained: Download timm's weights from its hub; ignored if `weights` are given.
        weights: A local file, or "packaged" (see `urnet.nets.classifier_weights`).
        options: Further arguments of `timm.create_model`, such as `output_stride` or `drop_rate`, or of the registered
            classifier.

    Returns:
        The network, (B, 3, H, W) → logits (B, K). `initialise_head` initialises its last layer, unless the weights
        include one for K classes.

    Raises:
        RecipeError: timm has no network of that name, or the network does not accept the options.
        WeightsError: The hub cannot be reached or has no weights, or the file does not fit.
    """
    options = options or {}
    if name in _registered:
        return _registered[name](classes, pretrained=pretrained, weights=weights, options=options)
    if not timm.is_model(name):
        close = get_close_matches(name.lower(), [*timm.list_models(), *_registered], n=5)
        advice = f"similar: {', '.join(close)}" if close else f"choose one of: {', '.join(list_classifiers())}"
        raise RecipeError(
            f"classifier {name!r} is not in timm {timm.__version__}; {advice}", code="recipe.classifier_unknown"
        )
    for option in options.keys() & _RESERVED_OPTIONS.keys():
        raise RecipeError(
            f"classifier {name!r}: {option!r} cannot be an option: {_RESERVED_OPTIONS[option]}",
            code="recipe.classifier_option",
        )
    try:
        model = timm.create_model(name, num_classes=classes, in_chans=3, **options)
    except Exception as error:  # the networks of timm check their arguments in different ways
        raise RecipeError(
            f"timm cannot build classifier {name!r} with options {options}: {error!r}. "
            "Leave the option out, or look up the options of the network in timm's documentation",
            code="recipe.classifier_option",
        ) from error
    if weights is None and pretrained:
        model = _from_hub(name, classes, options)
        if classes != model.pretrained_cfg["num_classes"]:  # else the last layer is pretrained as well
            initialise_head(model, classes)
        return model
    initialise_head(model, classes)
    if weights is not None:
        load_weights(model, weights)
    return model


def initialise_head(model: nn.Module, classes: int) -> None:
    """Initialise the last layer with small weights and zero bias, so that the first loss is about ln K.

    timm initialises EfficientNets and MobileNetV2 uniformly in ±1/√K. That gives logits with a standard deviation of 6
    and a first loss of 5 to 8.

    Args:
        model: Classifier of timm, or one with timm's `get_classifier()`.
        classes: Number of classes, K; 0: the network has no last layer and does not change.
    """
    for layer in find_head_layers(model):
        if classes and getattr(layer, "out_features", getattr(layer, "out_channels", None)) == classes:
            nn.init.normal_(layer.weight, std=HEAD_STD)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def find_head_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers that map features to logits: one, or several in timm's distilled networks.

    Each is the last linear layer, or if there is none the last convolution, of timm's `get_classifier()`. If that has
    no layers, it is the last one of the whole network.
    """
    heads = model.get_classifier()
    heads = list(heads) if isinstance(heads, tuple | list | nn.ModuleList) else [heads]
    last_layers = [layer for head in heads if isinstance(head, nn.Module) and (layer := _last_layer(head)) is not None]
    return last_layers or [layer for layer in [_last_layer(model)] if layer is not None]


def _last_layer(module: nn.Module) -> nn.Module | None:
    layers = list(module.modules())
    for kind in (nn.Linear, nn.Conv2d):
        if matching := [layer for layer in layers if isinstance(layer, kind)]:
            return matching[-1]
    return None


def _from_hub(name: str, classes: int, options: dict[str, Any]) -> nn.Module:
    try:
        return timm.create_model(name, pretrained=True, num_classes=classes, in_chans=3, **options)
    except Exception as error:  # errors of the hub's client, the socket or the disk
        reason = str(error).partition("\n")[0]
        raise WeightsError(
            f"no pretrained weights of {name!r}: the download from timm's hub failed ({type(error).__name__}: {reason})"
            ". Set classifier.weights=FILE, or classifier.pretrained=false for random weights",
            code="weights.download",
        ) from error


def get_normalisation(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation of each channel of pixels in [0, 1] that a timm network expects."""
    config = resolve_model_data_config(model)
    return config["mean"], config["std"]


def find_cam_layer(model: nn.Module) -> nn.Module:
    """Return the layer of a timm network whose output is its last feature map, for Grad-CAM.

    Raises:
        RecipeError: timm does not name such a layer.
    """
    stages = getattr(model, "feature_info", None)
    if not stages:
        raise RecipeError(
            f"timm names no feature maps of {type(model).__name__}; Grad-CAM needs a classifier with feature maps",
            code="recipe.no_feature_maps",
        )
    return model.get_submodule(stages[-1]["module"])

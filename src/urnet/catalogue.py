"""What there is to choose from, and how large it is: the content of `urnet models`."""

from dataclasses import dataclass

import torch

from urnet.nets import (
    build_joint,
    count_macs,
    count_parameters,
    create_classifier,
    create_enhancer,
    list_classifiers,
    list_enhancers,
)
from urnet.nets.enhancers.registry import list_enhancer_options
from urnet.recipe import list_recipes, load_recipe

REFERENCE_SIZE = 200
REFERENCE_CLASSES = 3


@dataclass(frozen=True)
class Size:
    """One network or recipe: parameters, multiply-accumulates of one image, and a remark."""

    name: str
    parameters: int
    macs: int
    note: str = ""


def list_enhancer_sizes() -> list[Size]:
    """Each enhancer with its default options on colour images of 200 × 200 px."""
    rows = []
    for name in list_enhancers():
        with torch.device("meta"):
            enhancer = create_enhancer(name, 3)
        width = list_enhancer_options(name).get("width")
        note = "no parameters" if not count_parameters(enhancer) else f"width {width}" if width else ""
        rows.append(_size(name, enhancer, REFERENCE_SIZE, 3, note))
    return rows


def list_classifier_sizes() -> list[Size]:
    """The classifiers named first, with three classes, on images of 200 × 200 px."""
    with torch.device("meta"):
        return [_size(n, create_classifier(n, REFERENCE_CLASSES), REFERENCE_SIZE, 3) for n in list_classifiers()]


def list_recipe_sizes() -> list[Size]:
    """Each shipped recipe's joint model, with three classes, at its own input size."""
    rows = []
    for name in list_recipes():
        recipe = load_recipe(name)
        size, channels = recipe.input.size or REFERENCE_SIZE, recipe.input.channels or 1
        with torch.device("meta"):
            model = build_joint(
                recipe.enhancer.name,
                recipe.classifier.name,
                REFERENCE_CLASSES,
                channels,
                enhancer_options=recipe.enhancer.options,
                classifier_options=recipe.classifier.options,
            )
        note = f"{recipe.enhancer.name} + {recipe.classifier.name}, {size} px, {'grey' if channels == 1 else 'colour'}"
        rows.append(_size(name, model, size, channels, note))
    return rows


def _size(name: str, module: torch.nn.Module, size: int, channels: int, note: str = "") -> Size:
    return Size(name, count_parameters(module), count_macs(module, size, channels), note)

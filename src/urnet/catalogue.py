"""Networks and recipes to choose from, with their sizes: the content of `urnet models`."""

from dataclasses import dataclass

import torch

from urnet.nets import (
    build_from_recipe,
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
"""Side of the images for which operations are counted, px: the size of the paper."""
REFERENCE_CLASSES = 3
"""Number of classes: that of the paper."""


@dataclass(frozen=True)
class Size:
    """Size of a network or recipe.

    Attributes:
        name: name of the network or recipe.
        parameters: number of parameters.
        macs: multiply-accumulates for one image.
        note: further information.
    """

    name: str
    parameters: int
    macs: int
    note: str = ""


def list_enhancer_sizes() -> list[Size]:
    """Return the size of each enhancer with its default options, on colour images of 200 × 200 px."""
    rows = []
    for name in list_enhancers():
        with torch.device("meta"):
            enhancer = create_enhancer(name, 3)
        width = list_enhancer_options(name).get("width")
        note = "no parameters" if not count_parameters(enhancer) else f"width {width}" if width else ""
        rows.append(_measure(name, enhancer, REFERENCE_SIZE, 3, note))
    return rows


def list_classifier_sizes() -> list[Size]:
    """Return the size of each listed classifier with three classes, on images of 200 × 200 px."""
    with torch.device("meta"):
        return [_measure(n, create_classifier(n, REFERENCE_CLASSES), REFERENCE_SIZE, 3) for n in list_classifiers()]


def list_recipe_sizes() -> list[Size]:
    """Return the size of the joint model of each shipped recipe, with three classes, at the recipe's input size."""
    rows = []
    for name in list_recipes():
        recipe = load_recipe(name)
        size, channels = recipe.input.size or REFERENCE_SIZE, recipe.input.channels or 1
        with torch.device("meta"):
            model = build_from_recipe(recipe, REFERENCE_CLASSES, channels)
        note = f"{recipe.enhancer.name} + {recipe.classifier.name}, {size} px, {'grey' if channels == 1 else 'colour'}"
        rows.append(_measure(name, model, size, channels, note))
    return rows


def _measure(name: str, module: torch.nn.Module, size: int, channels: int, note: str = "") -> Size:
    return Size(name, count_parameters(module), count_macs(module, size, channels), note)

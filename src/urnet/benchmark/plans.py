"""The rows of each table, with their recipes at paper or laptop scale.

Tables 2, 3 and 4 are those of Zheng et al., Sensors 2023, 23, 7605. The ablation switches off one part of Net4 at a
time.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from urnet.errors import RecipeError
from urnet.nets import count_parameters, create_enhancer, list_enhancers
from urnet.nets.enhancers.plain import match_plain_width
from urnet.nets.enhancers.registry import ARTEFACT_FREE, artefact_free_options, list_enhancer_options
from urnet.recipe import Recipe, load_recipe

Table = Literal["table2", "table3", "table4", "ablation"]
Scale = Literal["paper", "laptop"]
TABLES: tuple[Table, ...] = get_args(Table)
SCALES: tuple[Scale, ...] = get_args(Scale)

ENHANCERS = {"unet": "UNet", "unetpp": "UNet++", "resunet": "ResUNet"}
CLASSIFIERS = {
    "vgg16": "VGG16",
    "mobilenetv2_100": "MobileNetV2",
    "densenet121": "DenseNet121",
    "resnet101": "ResNet101",
}
TRADITIONAL = {
    "clahe": "CLAHE",
    "retinex": "Retinex",
    "unsharp": "Unsharp masking",
    "guided": "Guided filter",
    "homomorphic": "Homomorphic filter",
    "wavelet": "Wavelet denoising",
}
SWITCHES = {
    "padded": "padded convolutions",
    "strided": "strided convolutions",
    "leaky": "LeakyReLU",
    "skip_conv": "convolution on skips",
    "attention": "channel attention",
}
RESERVED_KEYS = {
    "name": "the row",
    "seed": "--seeds",
    "protocol": "--protocol",
    "split.folds": "--folds",
    "split.fold": "the grid",
}
"""Keys of the recipe that a benchmark sets itself, and from what."""
PLAIN_STEM = {"depth": 18, "fold": 4}
"""Layers of the plain stem; folded so that it needs about as many multiply-accumulates as UR-Net."""

LAPTOP_SIZE = 96
LAPTOP_WIDTH = 8
RANDOM_START: dict[str, Any] = {"epochs": 24, "optimizer": "adamw", "lr": 0.001, "weight_decay": 0.05}


@dataclass(frozen=True)
class PlannedRow:
    """A row of a table: its name, its title, and the recipe to train."""

    name: str
    title: str
    recipe: Recipe


def plan_rows(
    table: Table,
    *,
    scale: Scale = "paper",
    protocol: str = "honest",
    folds: int = 5,
    channels: int = 3,
    paired: str = "",
    overrides: Iterable[str] = (),
) -> list[PlannedRow]:
    """Plan the rows of a table.

    Args:
        table: name of the table.
        scale: `paper` for the recipes as they are; `laptop` for 96 px, width 8, and EfficientNet-Lite0 with its
            packaged weights in place of ResNet101. Other classifiers start from random weights at laptop scale.
        protocol: `honest` or `paper`.
        folds: number of folds.
        channels: channels of the cells, 1 or 3.
        paired: `pretrain.target` of `huang2018`, if the cells have paired images; "" for none.
        overrides: changes to the recipes, `key=value`. Keys of `enhancer`, `pretrain` and `selection` change only the
            recipes that have them.

    Raises:
        RecipeError: an override is invalid, or no row uses its key.
    """
    overrides = list(overrides)
    for override in overrides:
        if (key := override.partition("=")[0].strip()) in RESERVED_KEYS:
            raise RecipeError(
                f"--set {override}: a benchmark takes this from {RESERVED_KEYS[key]}. Leave it out",
                code="benchmark.key_reserved",
            )
    used: dict[str, set[str]] = {}

    def row(name: str, title: str, base: str, *, packaged_weights: bool = True, **changes: Any) -> PlannedRow:
        recipe = load_recipe(base).with_changes(name=name, **changes)
        if scale == "laptop":
            recipe = shrink_to_laptop(recipe, packaged_weights=packaged_weights)
        pending = overrides
        while concerned := [override for override in pending if _applies_to(override, recipe)]:
            used.setdefault(name, set()).update(concerned)
            recipe = recipe.with_overrides(concerned)  # others may apply now
            pending = [override for override in pending if override not in concerned]
        recipe = recipe.with_changes(protocol=protocol, split={"folds": folds, "fold": None})
        if recipe.input.channels is None:
            recipe = recipe.with_changes(input={"channels": channels})
        return PlannedRow(name, title, recipe)

    rows = _build_rows(table, row, paired)
    for override in overrides:
        if not any(override in used.get(row.name, ()) for row in rows):
            known = ""
            if override.startswith("enhancer."):
                options = dict.fromkeys(key for row in rows for key in list_enhancer_options(row.recipe.enhancer.name))
                known = f" (options of its enhancers are {', '.join(options)})"
            raise RecipeError(
                f"--set {override}: no row of {table} uses this key{known}. Leave it out, or correct its spelling",
                code="benchmark.key_unused",
            )
    return rows


def _build_rows(table: Table, row: Callable[..., PlannedRow], paired: str) -> list[PlannedRow]:
    """Build the rows of a table in order."""
    net1, net4 = row("net1", "Net1", "net1"), row("net4", "Net4", "net4")
    match table:
        case "table2":
            return [
                row(
                    f"{enhancer}-{classifier}",
                    f"{ENHANCERS[enhancer]} + {CLASSIFIERS[classifier]}",
                    "net2",
                    packaged_weights=False,
                    enhancer={"name": enhancer},
                    classifier={"name": classifier},
                )
                for enhancer in ENHANCERS
                for classifier in CLASSIFIERS
            ]
        case "table3":
            return [net1, row("net2", "Net2", "net2"), row("net3", "Net3", "net3"), net4]
        case "table4":
            towards = {"pretrain": {"target": paired}} if paired else {}
            return [
                net1,
                row("jeon2021", "Jeon 2021", "jeon2021", packaged_weights=False),
                row("shahzad2022", "Shahzad 2022 (in the style of)", "shahzad2022"),
                row("huang2018", "Huang 2018", "huang2018", **towards),
                row("sharma2018", "Sharma 2018", "sharma2018"),
                *(row(name, title, "net1", enhancer={"name": name}) for name, title in TRADITIONAL.items()),
                net4,
            ]
        case "ablation":
            return [
                net4,
                *(
                    row(f"net4-no-{switch.replace('_', '-')}", f"without {title}", "net4", enhancer={switch: False})
                    for switch, title in SWITCHES.items()
                ),
                row("net3", "without pre-training (Net3)", "net3"),
                row("net4-residual", "with residual output", "net4", enhancer={"residual": True}),
                row("net3-residual", "residual output for pre-training", "net3", enhancer={"residual": True}),
                net1,
                _build_stem_row(net1, net4),
                PlannedRow(
                    "net1-long",
                    "Net1, Net4's epochs",
                    net1.recipe.with_changes(
                        name="net1-long",
                        train={"epochs": net4.recipe.train.epochs + net4.recipe.pretrain.epochs},
                    ),
                ),
            ]


def _applies_to(override: str, recipe: Recipe) -> bool:
    """Return whether a recipe has what an override changes: some sections and options belong to some methods."""
    section, _, key = override.partition("=")[0].strip().partition(".")
    if section == "enhancer" and key not in ("", "name"):
        return recipe.enhancer.name not in list_enhancers() or key in list_enhancer_options(recipe.enhancer.name)
    if section == "selection":
        return recipe.selection is not None
    if section != "pretrain":
        return True
    if key in ("perceptual", "adversarial"):
        return recipe.pretrain.loss == "huang2018"
    return bool(recipe.pretrain.epochs or (recipe.train.auxiliary and key != "epochs"))


def _build_stem_row(net1: PlannedRow, net4: PlannedRow) -> PlannedRow:
    """Build Net1 behind a plain stack of convolutions with as many parameters as Net4's enhancer."""
    picture = {key: value for key, value in net4.recipe.enhancer.options.items() if key in ARTEFACT_FREE}
    width = match_plain_width(_count_channels(net4.recipe), _count_enhancer_parameters(net4.recipe), **PLAIN_STEM)
    recipe = net1.recipe.with_changes(
        name="net1-stem",
        enhancer={"name": "plain", "width": width, **PLAIN_STEM, **picture},
        train={"enhancer_lr": net4.recipe.train.enhancer_lr},
    )
    return PlannedRow("net1-stem", "Net1 behind a plain stem", recipe)


def _count_channels(recipe: Recipe) -> int:
    return recipe.input.channels or 3


def _count_enhancer_parameters(recipe: Recipe) -> int:
    """Count the parameters of the enhancer; a traditional one has none."""
    import torch

    enhancer = recipe.enhancer
    with torch.device("meta"):  # counts need no weights
        return count_parameters(create_enhancer(enhancer.name, _count_channels(recipe), **enhancer.options))


def shrink_to_laptop(recipe: Recipe, *, packaged_weights: bool = True) -> Recipe:
    """Shrink a paper-scale recipe to what two cores can train.

    The output of U-shaped enhancers is bounded by a sigmoid, without checkerboard and edge artefacts
    (`artefact_free_options`). They start at random, not as the identity: otherwise pre-training towards the identity
    would have nothing to learn, and Net3 would equal Net4. At paper scale they have the paper's linear output.

    Trainable enhancers have the learning rate of `net4-laptop`: that of the classifier is too high for them.

    Args:
        recipe: the recipe.
        packaged_weights: whether EfficientNet-Lite0, whose weights are in a package, replaces ResNet101. Otherwise the
            classifier stays, and starts from random weights with AdamW and more epochs.
    """
    small, pretrained = load_recipe("net1-laptop"), load_recipe("net4-laptop")
    swapped = packaged_weights and recipe.classifier.name == "resnet101"
    changes: dict[str, Any] = {
        "input": {"size": LAPTOP_SIZE, "channels": None},
        "augment": {"per_class": None},
        "classifier": small.classifier.model_dump() if swapped else {"pretrained": False},
        "train": _training_settings(
            small.train.model_dump(), RANDOM_START if not packaged_weights else {}, recipe.train
        ),
    }
    if recipe.classifier.name == "shahzad2022":
        changes["classifier"] = {
            "pretrained": False,
            "weights": small.classifier.weights,
            "options": {"backbones": [small.classifier.name], "width": LAPTOP_WIDTH},
        }
    enhancer = artefact_free_options(recipe.enhancer.name)
    if recipe.enhancer.options.get("width") == 64:
        enhancer["width"] = LAPTOP_WIDTH
    if enhancer:
        changes["enhancer"] = enhancer
    if recipe.pretrain.epochs:
        method = {key: getattr(recipe.pretrain, key) for key in ("target", "loss", "perceptual", "adversarial")}
        changes["pretrain"] = pretrained.pretrain.model_dump() | method
    train, gentle = changes["train"], pretrained.train.enhancer_lr
    if train["enhancer_lr"] is None and train["lr"] > gentle and _count_enhancer_parameters(recipe):
        train["enhancer_lr"] = gentle
    return recipe.with_changes(**changes)


def _training_settings(small: dict[str, Any], start: dict[str, Any], paper: Any) -> dict[str, Any]:
    """Combine the training settings of laptop scale with those that belong to the method."""
    method = {key: getattr(paper, key) for key in ("balance", "enhancer_lr", "frozen", "auxiliary")}
    return small | start | method

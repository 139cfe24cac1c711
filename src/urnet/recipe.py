"""Everything that defines an experiment, as one validated object and one YAML file.

A recipe is read from a shipped name (`net1` … `net4`, `quick`, …) or a YAML file, changed key by key
(`train.lr=0.01`), checked whole, and written into the run folder as it was resolved.
"""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import reduce
from importlib import resources
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from urnet.errors import RecipeError

Fraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[int, Field(ge=1, le=10**6)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


def _text(value: object) -> object:
    """`precision: 32` is a number in YAML."""
    return str(value) if type(value) is int else value


class Section(BaseModel):
    """A part of the recipe: unknown keys are errors, values are fixed once checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Input(Section):
    """How crops become the network's input."""

    size: Annotated[int, Field(ge=16, le=2048)] | None = None
    """Edge of the square input in pixels; crops are resized to it. Not given: the crops' own most common edge."""
    channels: Literal[1, 3] | None = None
    """1 grey, 3 colour. Not given: 3 as soon as any crop has colour."""
    limits: tuple[FiniteFloat, FiniteFloat] | None = None
    """Raw counts that become 0 and 1. Not given: percentiles 0.1 and 99.9 of the training part and a 2 % margin."""

    @model_validator(mode="after")
    def _ordered(self) -> "Input":
        if self.limits is not None and not self.limits[0] < self.limits[1]:
            raise ValueError("limits must be [low, high] with low < high")
        return self


class Split(Section):
    """How cells are divided into training, validation and test parts."""

    test: Fraction = 0.2
    """Share of the cells in the test part."""
    validation: Fraction = 0.1
    """Share of the training part that is cut off for validation."""
    seed: Seed = 0
    """Fixes the split, whatever the training's seed."""
    folds: Annotated[int, Field(ge=2, le=100)] | None = None
    """Number of folds of a cross-validation; each fold is the test part once."""
    fold: Annotated[int, Field(ge=0)] | None = None
    """The one fold to train, from 0. Not given: all of them."""

    @model_validator(mode="after")
    def _fold_exists(self) -> "Split":
        if self.fold is not None and (self.folds is None or self.fold >= self.folds):
            raise ValueError(f"fold {self.fold} needs folds to be at least {self.fold + 1}")
        return self


class Augment(Section):
    """Random geometry of the training part."""

    flips: bool = True
    """The eight rotations by right angles and mirrorings."""
    rotation: bool = True
    """Rotation by any angle, with reflected borders."""
    per_class: Positive | None = None
    """Cells of each class shown in an epoch. Not given: an equal share of the training part."""


class Enhancer(Section):
    """The image enhancer in front of the classifier; further keys are options of the network."""

    model_config = ConfigDict(extra="allow")

    name: str = "urnet"
    """A registered enhancer; `urnet models` lists them."""

    @property
    def options(self) -> dict[str, Any]:
        """The keys other than the name: `width`, `residual` and the switches of the network."""
        return dict(self.__pydantic_extra__ or {})


class Classifier(Section):
    """The classifier: any timm name."""

    name: str = "resnet101"
    """A timm model."""
    pretrained: bool = True
    """Start from timm's ImageNet weights, downloaded through its hub."""
    weights: str | None = None
    """A local .safetensors or .pth file, or `packaged` for the EfficientNet-Lite0 weights of the `weights` extra."""
    options: dict[str, Any] = {}
    """Further arguments of the network."""
    input: Literal["enhanced", "both"] = "enhanced"
    """What it sees: the enhanced image alone, or the raw one beside it (first layer doubled, its weights halved)."""


class Optimisation(Section):
    """What pre-training and joint training share."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, or AdamW."""
    lr: Annotated[float, Field(gt=0, le=10)] = 1e-4
    """Learning rate; the peak of a one-cycle schedule."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD; AdamW's first beta."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Weight decay."""
    schedule: Literal["constant", "onecycle"] = "constant"
    """Learning rate over time."""
    batch_size: Positive = 32
    """Cells in a step."""


class Pretrain(Optimisation):
    """Pre-training of the enhancer by itself."""

    epochs: Annotated[int, Field(ge=0, le=10**6)] = 0
    """Passes over the training part; 0 for none."""
    target: Literal[  # type: ignore[valid-type]  # a computed Literal
        *("identity", "target", "nuclei", "stain", "clean"),
        *("clahe", "retinex", "unsharp", "guided", "homomorphic", "wavelet", "bilateral", "equalise", "wls"),
    ] = "identity"
    """What the enhancer learns to paint: its own input (the paper); a paired image of the table (column `target`, or
    `target_nuclei`, `target_stain`, `target_clean` and `target` where that is not there); or what a fixed enhancer
    makes of the input."""
    loss: Literal["mse", "huang2018"] = "mse"
    """Mean squared error, or the weighted sum of MS-SSIM, L1, total variation and more of Huang et al., 2018."""
    perceptual: str | None = None
    """Of loss huang2018: weights file of a VGG19, or `packaged` for EfficientNet-Lite0, whose features are compared."""
    adversarial: Annotated[float, Field(ge=0, le=10**6)] = 0.0
    """Of loss huang2018: weight of the adversarial term."""

    @model_validator(mode="after")
    def _loss_takes_options(self) -> "Pretrain":
        if self.loss == "mse" and (self.perceptual is not None or self.adversarial):
            raise ValueError("perceptual and adversarial are terms of loss: huang2018; set that, or leave them out")
        return self


class Train(Optimisation):
    """Joint training of enhancer and classifier."""

    epochs: Positive = 200
    """Passes over the training part."""
    balance: Literal["sampling", "weights", "none"] = "sampling"
    """Against imbalance: equal draws of each class, class weights in the loss, or nothing."""
    precision: Annotated[Literal["auto", "32", "bf16", "16"], BeforeValidator(_text)] = "auto"
    """Arithmetic, of the pre-training too; auto is bf16 on a GPU that has it, else 32."""
    enhancer_lr: Annotated[float, Field(ge=0, le=10)] | None = None
    """Learning rate of the enhancer where it differs from the classifier's; 0 keeps it as pre-training left it."""
    frozen: Annotated[int, Field(ge=0, le=10**6)] = 0
    """Epochs at the start in which the enhancer is kept as it is."""
    auxiliary: Annotated[float, Field(ge=0, le=10**6)] = 0.0
    """Weight of the pre-training's loss (towards `pretrain.target`) beside the cross-entropy."""
    checkpointing: bool = False
    """Compute the maps within parts of both networks twice instead of keeping them: less memory, more time."""
    compile: bool = False
    """Compile the networks with torch.compile: minutes at the start, for long trainings on GPUs; CPUs gain little."""


class Selection(Section):
    """After joint training: ant-colony selection of features and a linear SVM in place of the last layer."""

    ants: Positive = 20
    """Subsets tried in an iteration."""
    iterations: Positive = 20
    """Rounds of the colony."""
    evaporation: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the pheromone that is lost in a round."""
    penalty: Annotated[float, Field(ge=0, le=1)] = 0.01
    """What keeping all features costs, in macro recall."""
    C: Annotated[float, Field(gt=0, le=10**6)] = 0.01
    """Inverse regularisation of the SVM."""


class Distill(Section):
    """Learning from a trained model: beside the label, its logits and the image that its enhancer paints."""

    teacher: str | None = None
    """Fingerprint of the teacher; `urnet distill` fills it in."""
    temperature: Annotated[float, Field(ge=1, le=100)] = 2.0
    """What the logits of both are divided by, so that small probabilities count."""
    logits: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the teacher's logits in the loss; the rest is the cross-entropy with the label."""
    image: Annotated[float, Field(ge=0, le=10**6)] = 1.0
    """Weight of the mean squared error to the teacher's enhanced image."""


def _labels(value: object) -> object:
    """`granulocyte: neutrophil` may stand for a list of one, and labels may be written as numbers."""
    if not isinstance(value, Mapping):
        return value
    listed = [(name, members if isinstance(members, list) else [members]) for name, members in value.items()]
    for text in (text for name, members in listed for text in (name, *members)):
        if text is None or isinstance(text, bool):
            read = "nothing" if text is None else str(text).lower()
            raise ValueError(
                f"an unquoted yes, no, on, off, null or ~ is no text in YAML, here it means {read}; put the "
                "name in quotes"
            )
    return {_text(name): list(map(_text, members)) for name, members in listed}


class Recipe(Section):
    """An experiment."""

    name: str = "custom"
    """What reports call it."""
    classes: Annotated[dict[str, list[str]], BeforeValidator(_labels)] | None = None
    """Merges labels into classes, and orders them: {granulocyte: [neutrophil, eosinophil, basophil], …}."""
    tile: Annotated[int, Field(ge=8)] | None = None
    """Images are montages of square tiles with this edge in pixels; each tile is a cell."""
    image: str | None = None
    """The file in each class folder that holds the cells."""
    target: str | None = None
    """The file in each class folder that holds the paired images."""
    input: Input = Input()
    split: Split = Split()
    augment: Augment = Augment()
    enhancer: Enhancer = Enhancer()
    classifier: Classifier = Classifier()
    pretrain: Pretrain = Pretrain()
    train: Train = Train()
    selection: Selection | None = None
    """Ant-colony feature selection and SVM after the training (Shahzad et al., 2022); none for the trained layer."""
    distill: Distill | None = None
    """How the run learns from a teacher (`urnet distill`; Hinton et al., 2015); none where it has no teacher."""
    protocol: Literal["honest", "paper"] = "honest"
    """honest: epoch chosen on a validation part, test part untouched. paper: chosen on the test part, optimistic."""
    seed: Seed = 0
    """Fixes the training: initial weights, order of cells, augmentation."""

    @model_validator(mode="after")
    def _distinct_labels(self) -> "Recipe":
        labels = [label for members in (self.classes or {}).values() for label in members]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"classes: label {twice[0]!r} belongs to more than one class")
        return self

    @model_validator(mode="after")
    def _one_image_to_paint(self) -> "Recipe":
        if self.distill is not None and self.train.auxiliary:
            raise ValueError(
                "train.auxiliary and distill both say what the enhancer should paint; set train.auxiliary=0, "
                "and weigh the teacher's image by distill.image"
            )
        return self

    @property
    def uses_target_images(self) -> bool:
        """Whether the enhancer learns to produce another image than its input, before or during joint training."""
        return self.pretrain.target != "identity" and bool(self.pretrain.epochs or self.train.auxiliary)

    def to_yaml(self) -> str:
        """The whole recipe, every key resolved."""
        return yaml.dump(self.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)

    def with_overrides(self, overrides: Iterable[str]) -> "Recipe":
        """A checked copy with `key=value` changes, dotted keys and YAML values, as `--set` takes them.

        Raises:
            RecipeError: an override is none, or does not fit.
        """
        return _validate(_overridden(self.model_dump(mode="json"), overrides), "--set")

    def with_changes(self, **sections: Any) -> "Recipe":
        """A checked copy with keys replaced: `recipe.with_changes(seed=1, split={"fold": 2})`."""
        return _validate(_merged(self.model_dump(mode="json"), sections), "recipe")


def list_recipes() -> list[str]:
    """Names of the shipped recipes."""
    folder = resources.files("urnet") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_recipe(name: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe and apply changes to it.

    Args:
        name: a shipped recipe's name, or the path of a YAML file.
        overrides: `key=value` with dotted keys and YAML values: `train.epochs=3`, `classes.b=[x, y]`.

    Raises:
        RecipeError: no such recipe, not YAML, an unknown key, a value outside its range.
    """
    source, text = _find(str(name))
    data = _parse(text, source)
    if not isinstance(data, dict):
        found = "an empty file" if data is None else type(data).__name__
        raise RecipeError(f"{source}: a recipe is a mapping of keys to values, found {found}")
    return _validate(_overridden(data, overrides), source)


def _overridden(data: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    changes = []
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key.strip():
            raise RecipeError(f"--set {override}: give key=value, for instance train.epochs=20")
        changes.append(_nested(key.strip().split("."), _parse(value, f"--set {override}")))
    return reduce(_merged, changes, _without_options(data, [change.get("classifier") for change in changes]))


def _without_options(data: dict[str, Any], changes: Iterable[Any]) -> dict[str, Any]:
    """A recipe without the options of its classifier where changes name another one, which may not know them."""
    has = data.get("classifier")
    names = {change["name"] for change in changes if isinstance(change, dict) and isinstance(change.get("name"), str)}
    if not isinstance(has, dict) or names <= {has.get("name")}:
        return data
    return data | {"classifier": {key: value for key, value in has.items() if key != "options"}}


def _find(name: str) -> tuple[str, str]:
    if name in list_recipes():
        return f"recipe {name}", (resources.files("urnet") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    path = Path(name)
    if path.is_file():
        try:
            return name, path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            raise RecipeError(f"{name}: not a text file in UTF-8; a recipe is a YAML file") from None
    raise RecipeError(f"{name}: no such recipe or file; shipped recipes are {', '.join(list_recipes())}")


class _Loader(yaml.SafeLoader):
    """YAML 1.2 floats: `1e-4` is a number, not a word. No aliases: a few lines of them stand for gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(
                problem=f"a recipe has no aliases; write out the value of *{event.anchor}",
                problem_mark=event.start_mark,
            )
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Quotes the words that `_Loader` would take for numbers, and writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _yaml in (_Loader, _Dumper):
    _yaml.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
        list("-+0123456789."),
    )


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise RecipeError(f"{source}: nested too deeply to be a recipe") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date like 2026-13-01
        raise RecipeError(f"{source}: not YAML ({' '.join(str(error).split())[:200]})") from None


def _nested(keys: list[str], value: Any) -> dict[str, Any]:
    for key in reversed(keys):
        value = {key: value}
    return value


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings are merged; anything else is replaced, and `{}` empties a mapping."""
    result = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and value and isinstance(result.get(key), Mapping)
        result[key] = _merged(result[key], value) if both else value
    return result


def _validate(data: Mapping[str, Any], source: str) -> Recipe:
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError("\n".join(_explain(source, problem) for problem in error.errors())) from None


def _explain(source: str, problem: Mapping[str, Any]) -> str:
    keys = [str(part) for part in problem["loc"]]
    key = ".".join(keys)
    if problem["type"] == "extra_forbidden":
        known = _known_keys(keys[:-1])
        near = get_close_matches(keys[-1], known, 1)
        hint = f"did you mean {'.'.join([*keys[:-1], near[0]])}? " if near else ""
        return f"{source}: unknown key {key}; {hint}allowed here: {', '.join(known)}"
    rule = problem["msg"].removeprefix("Value error, ")
    value = repr(problem["input"])
    found = "" if problem["type"] == "value_error" else f" is {value if len(value) <= 80 else value[:79] + '…'}"
    return ": ".join(filter(None, (source, key + found, rule[:1].lower() + rule[1:])))


def _known_keys(keys: list[str]) -> list[str]:
    model: Any = Recipe
    for key in keys:
        annotation = model.model_fields[key].annotation
        model = next((kind for kind in get_args(annotation) if kind is not NoneType), annotation)
    return list(model.model_fields)

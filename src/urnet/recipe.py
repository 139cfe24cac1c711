"""Recipe: everything that defines an experiment, as one validated object and one YAML file.

A recipe is a shipped one (`net1` … `net4`, `quick`, …) or a YAML file. Single keys can be changed (`train.lr=0.01`).
The run folder stores the complete recipe.
"""

import re
import warnings
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
    """Convert a number of YAML, such as `precision: 32`, to text."""
    return str(value) if type(value) is int else value


class Section(BaseModel):
    """Section of a recipe: unknown keys are errors, and values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Input(Section):
    """Input of the network."""

    size: Annotated[int, Field(ge=16, le=2048)] | None = None
    """Edge of the square input in pixels; crops are resized to it. Not given: the most common edge of the crops."""
    channels: Literal[1, 3] | None = None
    """1: grey, 3: colour. Not given: 3 if any crop has colour."""
    limits: tuple[FiniteFloat, FiniteFloat] | None = None
    """Raw counts that become 0 and 1. Not given: percentiles 0.1 and 99.9 of the training part with a margin of 2 %."""

    @model_validator(mode="after")
    def _ordered(self) -> "Input":
        if self.limits is not None and not self.limits[0] < self.limits[1]:
            raise ValueError("limits must be [low, high] with low < high")
        return self


class Split(Section):
    """Split of the cells into training, validation and test parts."""

    test: Fraction = 0.2
    """Share of the cells in the test part."""
    validation: Fraction = 0.1
    """Share of the training part that becomes the validation part."""
    seed: Seed = 0
    """Seed of the split, independent of the seed of the training."""
    folds: Annotated[int, Field(ge=2, le=100)] | None = None
    """Number of folds of a cross-validation; each fold is the test part once."""
    fold: Annotated[int, Field(ge=0)] | None = None
    """Fold to train, from 0. Not given: all folds."""

    @model_validator(mode="after")
    def _fold_exists(self) -> "Split":
        if self.fold is not None and (self.folds is None or self.fold >= self.folds):
            raise ValueError(f"fold {self.fold} needs folds to be at least {self.fold + 1}")
        return self


class Augment(Section):
    """Augmentation of the training part."""

    flips: bool = True
    """Rotate by right angles and mirror."""
    rotation: bool = True
    """Rotate by any angle, with reflected borders."""
    per_class: Positive | None = None
    """Cells of each class in an epoch. Not given: an equal share of the training part."""


class Enhancer(Section):
    """Enhancer in front of the classifier. Further keys are options of the network."""

    model_config = ConfigDict(extra="allow")

    name: str = "urnet"
    """Name of an enhancer; `urnet models` lists them."""

    @property
    def options(self) -> dict[str, Any]:
        """The keys other than the name, such as `width` and `residual`."""
        return dict(self.__pydantic_extra__ or {})


class Classifier(Section):
    """Classifier: any timm model."""

    name: str = "resnet101"
    """Name of a timm model."""
    pretrained: bool = True
    """Start from timm's ImageNet weights, downloaded from its hub."""
    weights: str | None = None
    """Local .safetensors or .pth file, or `packaged` for the EfficientNet-Lite0 weights of the `weights` extra."""
    options: dict[str, Any] = {}
    """Further options of the network."""
    input: Literal["enhanced", "both"] = "enhanced"
    """Input of the classifier: the enhanced image, or both the enhanced and the raw image (not in the paper)."""


class Optimisation(Section):
    """Optimiser settings of pre-training and joint training."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Optimiser: SGD with momentum, or AdamW."""
    lr: Annotated[float, Field(gt=0, le=10)] = 1e-4
    """Learning rate; the peak of a one-cycle schedule."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD, or first beta of AdamW."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Weight decay."""
    schedule: Literal["constant", "onecycle"] = "constant"
    """Schedule of the learning rate."""
    batch_size: Positive = 32
    """Cells in one step."""


class Pretrain(Optimisation):
    """Pre-training of the enhancer (paper, section 3.3)."""

    epochs: Annotated[int, Field(ge=0, le=10**6)] = 0
    """Epochs over the training part. 0: no pre-training."""
    target: Literal[  # type: ignore[valid-type]  # a computed Literal
        *("identity", "target", "nuclei", "stain", "clean"),
        *("clahe", "retinex", "unsharp", "guided", "homomorphic", "wavelet", "bilateral", "equalise", "wls"),
    ] = "identity"
    """Image that the enhancer learns to produce: its own input (the paper); a paired image (column `target`, or
    `target_nuclei`, `target_stain`, `target_clean`, replaced by `target` if absent); or the output of a
    traditional method."""
    loss: Literal["mse", "huang2018"] = "mse"
    """Mean squared error, or the loss of Huang et al., 2018: MS-SSIM, L1, total variation and more."""
    perceptual: str | None = None
    """Perceptual term of loss huang2018: weights file of a VGG19, or `packaged` for EfficientNet-Lite0."""
    adversarial: Annotated[float, Field(ge=0, le=10**6)] = 0.0
    """Weight of the adversarial term of loss huang2018."""

    @model_validator(mode="after")
    def _loss_takes_options(self) -> "Pretrain":
        if self.loss == "mse" and (self.perceptual is not None or self.adversarial):
            raise ValueError("perceptual and adversarial are terms of loss: huang2018; set that, or leave them out")
        return self


class Train(Optimisation):
    """Joint training of enhancer and classifier (paper, section 3.3)."""

    epochs: Positive = 200
    """Epochs over the training part."""
    balance: Literal["sampling", "weights", "none"] = "sampling"
    """Correction of class imbalance: equal sampling of the classes, class weights in the loss, or none."""
    precision: Annotated[Literal["auto", "32", "bf16", "16"], BeforeValidator(_text)] = "auto"
    """Precision of both trainings. auto: bf16 on a GPU that supports it, else 32."""
    enhancer_lr: Annotated[float, Field(ge=0, le=10)] | None = None
    """Learning rate of the enhancer if it differs from that of the classifier. 0: the enhancer does not change."""
    frozen: Annotated[int, Field(ge=0, le=10**6)] = 0
    """First epochs in which the enhancer does not change."""
    auxiliary: Annotated[float, Field(ge=0, le=10**6)] = 0.0
    """Weight of the pre-training loss (towards `pretrain.target`) beside the cross-entropy."""
    checkpointing: bool = False
    """Activation checkpointing: recompute maps instead of storing them, for less memory and more time."""
    compile: bool = False
    """Compile the networks with torch.compile. It takes minutes at the start; CPUs gain little."""


class Selection(Section):
    """Ant-colony feature selection and a linear SVM in place of the last layer, after joint training."""

    ants: Positive = 20
    """Subsets in each iteration."""
    iterations: Positive = 20
    """Number of iterations."""
    evaporation: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the pheromone that evaporates in each iteration."""
    penalty: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Penalty for using all features, in macro recall."""
    C: Annotated[float, Field(gt=0, le=10**6)] = 0.01
    """Inverse regularisation of the SVM."""


def _labels(value: object) -> object:
    """Convert `classes` to lists of texts: a single label may stand for a list, and labels may be numbers."""
    if not isinstance(value, Mapping):
        return value
    listed = [(name, members if isinstance(members, list) else [members]) for name, members in value.items()]
    for text in (text for name, members in listed for text in (name, *members)):
        if text is None or isinstance(text, bool):
            meaning = "nothing" if text is None else str(text).lower()
            raise ValueError(
                f"an unquoted yes, no, on, off, null or ~ is not text in YAML, it means {meaning} here; put the "
                "name in quotes"
            )
    return {_text(name): list(map(_text, members)) for name, members in listed}


class Recipe(Section):
    """Recipe of an experiment."""

    name: str = "custom"
    """Name in reports."""
    classes: Annotated[dict[str, list[str]], BeforeValidator(_labels)] | None = None
    """Classes in order, with their labels: {granulocyte: [neutrophil, eosinophil, basophil], …}."""
    tile: Annotated[int, Field(ge=8)] | None = None
    """Edge of the tiles in pixels, if images are montages of square tiles with one cell each."""
    image: str | None = None
    """Name of the file with the cells in each class folder."""
    target: str | None = None
    """Name of the file with the paired images in each class folder."""
    input: Input = Input()
    split: Split = Split()
    augment: Augment = Augment()
    enhancer: Enhancer = Enhancer()
    classifier: Classifier = Classifier()
    pretrain: Pretrain = Pretrain()
    train: Train = Train()
    selection: Selection | None = None
    """Feature selection and SVM after the training (Shahzad et al., 2022). Not given: the trained last layer."""
    protocol: Literal["honest", "paper"] = "honest"
    """honest: the validation part chooses the epoch. paper: the test part chooses it, which is optimistic."""
    seed: Seed = 0
    """Seed of the training: initial weights, order of cells, augmentation."""

    @model_validator(mode="before")
    @classmethod
    def _drop_removed_keys(cls, data: Any) -> Any:
        """Drop keys of earlier versions, whose run folders still open."""
        if not isinstance(data, Mapping) or "distill" not in data:
            return data
        if data["distill"] is not None:
            warnings.warn(
                "recipe key distill has no effect: distillation was removed, because the same student learns as well "
                "from labels. Leave the key out",
                DeprecationWarning,
                stacklevel=2,
            )
        return {key: value for key, value in data.items() if key != "distill"}

    @model_validator(mode="after")
    def _distinct_labels(self) -> "Recipe":
        labels = [label for members in (self.classes or {}).values() for label in members]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"classes: label {twice[0]!r} belongs to more than one class")
        return self

    @property
    def uses_target_images(self) -> bool:
        """Whether the enhancer learns to produce another image than its input, before or during joint training."""
        return self.pretrain.target != "identity" and bool(self.pretrain.epochs or self.train.auxiliary)

    def to_yaml(self) -> str:
        """Return the complete recipe as YAML."""
        return yaml.dump(self.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)

    def with_overrides(self, overrides: Iterable[str]) -> "Recipe":
        """Return a checked copy with changes `key=value`, as the option `--set` takes them.

        Args:
            overrides: dotted keys and YAML values, such as `train.lr=0.01`.

        Raises:
            RecipeError: an override has no `=`, or the changed recipe is invalid.
        """
        return _validate(_overridden(self.model_dump(mode="json"), overrides), "--set")

    def with_changes(self, **sections: Any) -> "Recipe":
        """Return a checked copy with other values: `recipe.with_changes(seed=1, split={"fold": 2})`."""
        return _validate(_merged(self.model_dump(mode="json"), sections), "recipe")


def list_recipes() -> list[str]:
    """Return the names of the shipped recipes."""
    folder = resources.files("urnet") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_recipe(name: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe and apply changes to it.

    Args:
        name: name of a shipped recipe, or path of a YAML file.
        overrides: changes `key=value` with dotted keys and YAML values: `train.epochs=3`, `classes.b=[x, y]`.

    Raises:
        RecipeError: there is no such recipe, it is not YAML, a key is unknown, or a value is outside its range.
    """
    source, text = _find(str(name))
    data = _parse(text, source)
    if not isinstance(data, dict):
        kind = "an empty file" if data is None else type(data).__name__
        raise RecipeError(f"{source}: a recipe must map keys to values, found {kind}", code="recipe.no_mapping")
    return _validate(_overridden(data, overrides), source)


def _overridden(data: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    changes = []
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key.strip():
            raise RecipeError(f"--set {override}: give key=value, for instance train.epochs=20", code="recipe.override")
        changes.append(_nested(key.strip().split("."), _parse(value, f"--set {override}")))
    return reduce(_merged, changes, _without_options(data, [change.get("classifier") for change in changes]))


def _without_options(data: dict[str, Any], changes: Iterable[Any]) -> dict[str, Any]:
    """Drop the options of the classifier if changes name another classifier, which may not know them."""
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
            raise RecipeError(
                f"{name}: not a text file in UTF-8; a recipe is a YAML file", code="recipe.not_yaml"
            ) from None
    raise RecipeError(
        f"{name}: no such recipe or file; the shipped recipes are {', '.join(list_recipes())}", code="recipe.unknown"
    )


class _Loader(yaml.SafeLoader):
    """YAML loader that reads `1e-4` as a number, and refuses aliases, a few lines of which can expand to gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(
                problem=f"aliases are not allowed in a recipe; write out the value of *{event.anchor}",
                problem_mark=event.start_mark,
            )
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """YAML writer that quotes words that `_Loader` would read as numbers, and writes no aliases."""

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
        raise RecipeError(f"{source}: nested too deeply for a recipe", code="recipe.not_yaml") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date like 2026-13-01
        raise RecipeError(
            f"{source}: not YAML ({' '.join(str(error).split())[:200]})", code="recipe.not_yaml"
        ) from None


def _nested(keys: list[str], value: Any) -> dict[str, Any]:
    for key in reversed(keys):
        value = {key: value}
    return value


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested mappings. Other values are replaced, and `{}` empties a mapping."""
    result = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and value and isinstance(result.get(key), Mapping)
        result[key] = _merged(result[key], value) if both else value
    return result


def _validate(data: Mapping[str, Any], source: str) -> Recipe:
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        problems = error.errors()
        unknown = all(problem["type"] == "extra_forbidden" for problem in problems)
        raise RecipeError(
            "\n".join(_explain(source, problem) for problem in problems),
            code="recipe.key_unknown" if unknown else "recipe.value_invalid",
        ) from None


def _explain(source: str, problem: Mapping[str, Any]) -> str:
    keys = [str(part) for part in problem["loc"]]
    key = ".".join(keys)
    if problem["type"] == "extra_forbidden":
        known = _known_keys(keys[:-1])
        near = get_close_matches(keys[-1], known, 1)
        hint = f"did you mean {'.'.join([*keys[:-1], near[0]])}? " if near else ""
        return f"{source}: unknown key {key}; {hint}allowed keys: {', '.join(known)}"
    rule = problem["msg"].removeprefix("Value error, ")
    value = repr(problem["input"])
    stated = "" if problem["type"] == "value_error" else f" is {value if len(value) <= 80 else value[:79] + '…'}"
    return ": ".join(filter(None, (source, key + stated, rule[:1].lower() + rule[1:])))


def _known_keys(keys: list[str]) -> list[str]:
    model: Any = Recipe
    for key in keys:
        annotation = model.model_fields[key].annotation
        model = next((kind for kind in get_args(annotation) if kind is not NoneType), annotation)
    return list(model.model_fields)

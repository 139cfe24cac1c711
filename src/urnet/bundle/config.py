"""Configuration of a trained model: everything but its weights, in `config.json`."""

import json
import math
import re
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, ConfigDict, Field, PlainValidator, TypeAdapter

from urnet.errors import ImageError, RunError
from urnet.files.json_files import Text, describe_error, read_canonical_json
from urnet.images.read import MIN_EDGE
from urnet.images.scale import ANY_DEPTH, Scaling
from urnet.version import __version__

if TYPE_CHECKING:
    from urnet.nets.joint import JointModel

FORMAT = 1
CONFIG_NAME = "config.json"
MAX_CLASSES = 1000
MAX_SIZE = 2048
"""Largest edge of the input, in pixels; as in recipes."""
MAX_OPTION = 8192
"""Largest number that an option of a network may have."""
_FORBIDDEN_OPTIONS = re.compile(
    r"pretrained.*|checkpoint.*|cache.*|file.*|weights.*|feature.*|model_.*|pruned|device|dtype|name"
)
"""Options of timm that name files, download weights or do not build a classifier."""


def _check_distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError("a class is listed twice")
    return names


def _check_network(options: dict[str, Any]) -> dict[str, Any]:
    """Refuse a name or an option that could be a file or an address.

    Allowed values are numbers, true and false, short words, and lists of these.
    """
    name = options.get("name")
    if type(name) is not str or not re.fullmatch(r"[A-Za-z0-9_.+-]{1,100}", name):
        raise ValueError(f"'name' is {str(name)[:80]!r}; a network's name may have letters, digits and _ . + - only")
    for key, value in options.items():
        if key == "name":
            continue
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", key) or _FORBIDDEN_OPTIONS.fullmatch(key):
            raise ValueError(f"{key[:80]!r} cannot be an option of a trained network")
        if not _is_plain_value(value):
            raise ValueError(
                f"option {key!r} is {str(value)[:60]}; options are numbers up to {MAX_OPTION}, true or false, short "
                "words without path separators, or lists of these"
            )
    return options


def _is_plain_value(value: object, depth: int = 0) -> bool:
    """Return whether an option is safe: it names no file and asks for no oversized network."""
    if isinstance(value, list | tuple):
        return depth < 3 and len(value) <= 64 and all(_is_plain_value(one, depth + 1) for one in value)
    if isinstance(value, str):
        return re.fullmatch(r"[A-Za-z0-9_.+-]{0,64}", value) is not None
    return value is None or isinstance(value, bool) or (isinstance(value, int | float) and abs(value) <= MAX_OPTION)


def parse_scaling(data: Any) -> Scaling:
    """Check a scaling: finite numbers in order, and a known data type.

    Raises:
        ValueError: a value is missing, unknown or impossible.
    """
    if isinstance(data, Scaling):
        data = asdict(data)
    known = {one.name: one for one in fields(Scaling)}
    if not isinstance(data, dict) or data.keys() - known.keys():
        raise ValueError(f"its keys are {', '.join(known)}")
    for name, one in known.items():
        value = data.get(name, one.default)
        if value is MISSING:
            raise ValueError(f"{name!r} is missing")
        if one.type in (float, "float") and not _is_number(value):
            raise ValueError(f"{name} is {str(value)[:40]}; it must be a finite number")
    scaling = Scaling(**data)
    if not scaling.high - scaling.low > 1e-12:
        raise ValueError(f"low is {scaling.low:g} and high is {scaling.high:g}; low must be below high")
    if scaling.dtype not in ("uint8", "uint16", "float32", ANY_DEPTH):
        raise ValueError(f"dtype is {str(scaling.dtype)[:40]!r}; it is uint8, uint16, float32 or {ANY_DEPTH}")
    return scaling


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and abs(value) <= 1e12


Network = Annotated[dict[str, Any], AfterValidator(_check_network)]


@dataclass(frozen=True)
class ModelConfig:
    """Configuration of a trained model.

    Attributes:
        name: name of the recipe.
        classes: class names in the order of the outputs.
        size: edge of the square input in pixels.
        channels: 1 grey, 3 colour.
        scaling: how raw counts become [0, 1].
        enhancer: name and options of the enhancer.
        classifier: name, input and options of the classifier.
        tile: edge of the tiles in pixels, if the training images were montages.
        image: name of the file that holds the cells in each folder, if the recipe gave one.
        protocol: `honest` or `paper`.
        seed: seed of the training.
        epoch: epoch of the weights, from 1.
        versions: versions of the packages at the training.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    name: Text
    classes: Annotated[
        tuple[Annotated[Text, Field(min_length=1)], ...],
        Field(min_length=1, max_length=MAX_CLASSES),
        AfterValidator(_check_distinct),
    ]
    size: Annotated[int, Field(ge=MIN_EDGE, le=MAX_SIZE)]
    channels: Literal[1, 3]
    scaling: Annotated[Scaling, PlainValidator(parse_scaling)]
    enhancer: Network
    classifier: Network
    tile: Annotated[int, Field(ge=MIN_EDGE, le=2**16)] | None = None
    image: Text | None = None
    protocol: Literal["honest", "paper"] = "honest"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    epoch: Annotated[int, Field(ge=0, le=10**6)] = 0
    versions: Annotated[dict[Text, Text], Field(max_length=100)] = field(default_factory=lambda: {"urnet": __version__})

    def build(self) -> "JointModel":
        """Build the networks with new weights."""
        from urnet.nets.joint import build_joint

        enhancer, classifier = dict(self.enhancer), dict(self.classifier)
        return build_joint(
            enhancer.pop("name"),
            classifier.pop("name"),
            len(self.classes),
            self.channels,
            enhancer_options=enhancer,
            concat_raw=classifier.pop("input", "enhanced") == "both",
            classifier_options=classifier,
        )

    def resize_crop(self, crop: np.ndarray) -> np.ndarray:
        """Bring a raw crop to the network's size and colours, still in raw counts.

        Args:
            crop: (H, W) or (H, W, 3).

        Returns:
            (C, S, S), of the crop's data type.

        Raises:
            ImageError: another shape (code `images.shape`), another data type than the training's (code
                `images.other_depth`), values that are not finite (code `images.not_finite`), or a constant image (code
                `images.constant`).
        """
        from urnet.cells.pixels import fit_input

        if crop.ndim not in (2, 3) or crop.shape[2:] not in ((), (3,)) or min(crop.shape[:2]) < MIN_EDGE:
            raise ImageError(
                f"a crop must have the shape (H, W) or (H, W, 3) and at least {MIN_EDGE} px each way, found "
                f"{crop.shape}",
                code="images.shape",
            )
        expected = self.scaling.dtype
        if expected not in (str(crop.dtype), ANY_DEPTH):
            raise ImageError(
                f"{crop.dtype} pixels, but the model was trained on {expected}. Export the images again as {expected}, "
                "without contrast adjustment",
                code="images.other_depth",
            )
        if crop.dtype.kind == "f" and not np.isfinite(crop).all():
            raise ImageError("some pixels are NaN or infinite; replace them first", code="images.not_finite")
        if crop.min() == crop.max():
            raise ImageError(
                f"every pixel is {crop.flat[0]:g}, so there is nothing to classify; leave the image out",
                code="images.constant",
            )
        return fit_input(crop, self.size, self.channels)

    def to_json(self) -> str:
        """Encode the content of `config.json`."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2, ensure_ascii=False) + "\n"


def read_config(path: Path) -> ModelConfig:
    """Read `config.json`.

    Raises:
        RunError: the file is damaged or holds impossible values (code `model.config_invalid`), or is newer than this
            program (code `model.newer`).
    """
    try:
        return parse_config(read_canonical_json(path))
    except (OSError, ValueError, RunError) as error:
        if isinstance(error, RunError) and error.code == "model.newer":
            raise RunError(f"{path}: {error}", code=error.code) from None
        raise RunError(
            f"{path}: not a model configuration of urnet ({describe_error(error)}); restore the file, or train again",
            code="model.config_invalid",
        ) from None


def check_config(config: ModelConfig) -> None:
    """Refuse a model that could not be opened after its training.

    Raises:
        RunError: a bundle may not hold one of the values; the message names it (code `model.config_invalid`).
    """
    try:
        parse_config(config.to_json().encode())
    except ValueError as error:
        raise RunError(
            f"this model could not be opened after its training ({describe_error(error)}); change the recipe or "
            "the labels",
            code="model.config_invalid",
        ) from None


def parse_config(content: bytes) -> ModelConfig:
    """Parse and check the content of `config.json`.

    Raises:
        ValueError: not a configuration; a pydantic error names the key of a wrong value.
        RunError: written by a newer program (code `model.newer`).
    """
    data = json.loads(content)
    if not isinstance(data, dict):
        raise ValueError("not an object")
    version = data.pop("format", None)
    if type(version) is not int or version < 1:
        raise ValueError(f"format is {str(version)[:40]}")
    if version > FORMAT:
        raise RunError(
            f"written by a newer urnet (format {version}, this one reads {FORMAT}); update urnet", code="model.newer"
        )
    return TypeAdapter(ModelConfig).validate_json(json.dumps(data))

"""What a trained model is, apart from its weights: `config.json` of a bundle, its reading and checking."""

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
"""Edge of the largest input, in pixels; as in recipes."""
MAX_OPTION = 8192
"""Largest number that an option of a network can have."""
_FORBIDDEN_OPTIONS = re.compile(
    r"pretrained.*|checkpoint.*|cache.*|file.*|weights.*|feature.*|model_.*|pruned|device|dtype|name"
)
"""Options of timm that name files, fetch weights or make no classifier."""


def _check_distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError("a class is named twice")
    return names


def _check_network(options: dict[str, Any]) -> dict[str, Any]:
    """Refuse a name or an option that could be a file or an address.

    Allowed values are numbers, truth values, short words and lists of these.
    """
    name = options.get("name")
    if type(name) is not str or not re.fullmatch(r"[A-Za-z0-9_.+-]{1,100}", name):
        raise ValueError(f"'name' is {str(name)[:80]!r}; a network's name has letters, digits and _ . + - only")
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
    """Whether an option is harmless: it names no file and asks for no network beyond measure."""
    if isinstance(value, list | tuple):
        return depth < 3 and len(value) <= 64 and all(_is_plain_value(one, depth + 1) for one in value)
    if isinstance(value, str):
        return re.fullmatch(r"[A-Za-z0-9_.+-]{0,64}", value) is not None
    return value is None or isinstance(value, bool) or (isinstance(value, int | float) and abs(value) <= MAX_OPTION)


def parse_scaling(data: Any) -> Scaling:
    """Read a scaling: numbers that are finite, in order, and a known data type.

    Raises:
        ValueError: it is something else.
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
    """All that a trained model is, apart from its weights.

    Attributes:
        name: the recipe's name.
        classes: class names in the order of the outputs.
        size: edge of the square input in pixels.
        channels: 1 grey, 3 colour.
        scaling: raw counts to [0, 1].
        enhancer: name and options of the enhancer.
        classifier: name, input and options of the classifier.
        tile: edge of a montage's tiles where the training images were montages.
        image: the file of each folder that held the cells, where the training named one.
        protocol: `honest` or `paper`.
        seed: of the training.
        epoch: the epoch whose weights were kept, from 1.
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
        """The networks with fresh weights."""
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
        """One raw crop, (H, W) or (H, W, 3), at the network's size and colour, still in raw counts (C, S, S).

        Raises:
            ImageError: no crop has that shape, its depth is not the one that the scale was fitted to, or not all of
                it are numbers.
        """
        from urnet.cells.pixels import fit_input

        if crop.ndim not in (2, 3) or crop.shape[2:] not in ((), (3,)) or min(crop.shape[:2]) < MIN_EDGE:
            raise ImageError(
                f"an array of shape {crop.shape}; give (H, W) or (H, W, 3) of at least {MIN_EDGE} px each way"
            )
        expected = self.scaling.dtype
        if expected not in (str(crop.dtype), ANY_DEPTH):
            raise ImageError(
                f"{crop.dtype} pixels, but the model was trained on {expected}. Export the images again as {expected}, "
                "without contrast adjustment",
                code="images.other_depth",
            )
        if crop.dtype.kind == "f" and not np.isfinite(crop).all():
            raise ImageError("some values are NaN or infinite; mask or fill them first")
        if crop.min() == crop.max():
            raise ImageError(f"every pixel is {crop.flat[0]:g}; there is nothing to classify")
        return fit_input(crop, self.size, self.channels)

    def to_json(self) -> str:
        """The content of `config.json`."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2, ensure_ascii=False) + "\n"


def read_config(path: Path) -> ModelConfig:
    """Read `config.json`.

    Raises:
        RunError: the file is damaged, newer than this program, or holds values that no model has.
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
    """Refuse a model that could not be opened again once it is trained.

    Raises:
        RunError: a value is none that a bundle may hold; the message names it (code `model.config_invalid`).
    """
    try:
        parse_config(config.to_json().encode())
    except ValueError as error:
        raise RunError(
            f"this model could not be opened again ({describe_error(error)}); change the recipe or the labels",
            code="model.config_invalid",
        ) from None


def parse_config(content: bytes) -> ModelConfig:
    """The configuration that JSON holds.

    Raises:
        ValueError: the JSON holds none; a pydantic error with the key where one is wrong.
        RunError: written by a newer program (code `model.newer`).
    """
    data = json.loads(content)
    if not isinstance(data, dict):
        raise ValueError("no table of keys")
    version = data.pop("format", None)
    if type(version) is not int or version < 1:
        raise ValueError(f"format is {str(version)[:40]}")
    if version > FORMAT:
        raise RunError(
            f"written by a newer urnet (format {version}, this one reads {FORMAT}); update urnet", code="model.newer"
        )
    return TypeAdapter(ModelConfig).validate_json(json.dumps(data))

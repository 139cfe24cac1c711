"""What a trained model is, apart from its weights: `config.json` of a bundle, its reading and checking."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from urnet import __version__
from urnet.errors import ImageError, RunError
from urnet.images.read import MAX_PIXELS, MIN_EDGE
from urnet.images.scale import ANY_DEPTH, Scaling

if TYPE_CHECKING:
    from urnet.nets.joint import JointModel

FORMAT = 1
CONFIG_NAME = "config.json"


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

    name: str
    classes: tuple[str, ...]
    size: int
    channels: int
    scaling: Scaling
    enhancer: dict[str, Any]
    classifier: dict[str, Any]
    tile: int | None = None
    image: str | None = None
    protocol: str = "honest"
    seed: int = 0
    epoch: int = 0
    versions: dict[str, str] = field(default_factory=lambda: {"urnet": __version__})

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
            beside=classifier.pop("input", "enhanced") == "both",
            classifier_options=classifier,
        )

    def fit(self, crop: np.ndarray) -> np.ndarray:
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
            raise ImageError(f"{crop.dtype} pixels, but the model was trained on {expected}; convert the image")
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
        RunError: it is damaged, newer than this program, or holds values that no model has.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version = data.pop("format")
        if version > FORMAT:
            raise RunError(
                f"{path}: written by a newer urnet (format {version}, this one reads {FORMAT}); update urnet"
            )
        data["scaling"] = Scaling(**data["scaling"])
        if type(data["classes"]) is not list:
            raise ValueError("classes is no list")
        data["classes"] = tuple(data["classes"])
        config = ModelConfig(**data)
        wrong = [key for key, right in _checked(config).items() if not right]
        if wrong:
            raise ValueError(f"{wrong[0]} is {str(getattr(config, wrong[0]))[:80]}")
        return config
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(
            f"{path}: not a model configuration of urnet ({error}); train again or restore the file"
        ) from None


def _checked(config: ModelConfig) -> dict[str, bool]:
    """Whether each key that predictions depend on has a possible value."""
    classes, size, scaling, tile = config.classes, config.size, config.scaling, config.tile
    return {
        "classes": len(classes) > 0 and all(type(c) is str for c in classes) and len(set(classes)) == len(classes),
        "size": type(size) is int and size >= MIN_EDGE and size**2 <= MAX_PIXELS,
        "channels": type(config.channels) is int and config.channels in (1, 3),
        "scaling": math.isfinite(scaling.low)
        and math.isfinite(scaling.high)
        and scaling.low < scaling.high
        and scaling.dtype in ("uint8", "uint16", "float32", ANY_DEPTH),
        "enhancer": type(config.enhancer["name"]) is str,
        "classifier": type(config.classifier["name"]) is str,
        "tile": tile is None or (type(tile) is int and tile >= MIN_EDGE),
    }

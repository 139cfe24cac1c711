"""A trained model on disk and in memory: `config.json` and `model.safetensors`, nothing that needs pickle.

The configuration holds all that turns an image file into a decision: input size and colour, the scale of raw counts,
the networks, the classes. Beside it lie the model's calibration (`calibration.json`, `calibration.safetensors`) and, of
one that was trained on crops of fields, how those were cut (`crop.json`). Training writes a bundle, everything after
training reads one.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from urnet.bundle_config import CONFIG_NAME, ModelConfig, read_config
from urnet.calibration.calibration import COVERAGE, JSON_NAME, TENSORS_NAME, Calibration
from urnet.calibration.temperature import probabilities as softmax
from urnet.errors import ImageError, RecipeError, RunError
from urnet.fields.cropping import SETTINGS_NAME, Cropping
from urnet.files import whole_file
from urnet.images.montage import expand, read_crop
from urnet.images.quality import quality

if TYPE_CHECKING:
    import pandas as pd

    from urnet.cells.table import Cells
    from urnet.nets.joint import JointModel

WEIGHTS_NAME = "model.safetensors"

BATCH = 16
"""Images that go through the networks at once; more are hardly faster on a CPU, and take more memory."""

TRUST_COLUMNS = ("rejected", "set")
"""What tables of predictions say besides, where the model is calibrated."""

SEEN = ("edge", "touching")
"""Columns of a cells table that say of a crop what its pixels do not; rejection goes by them where they are filled."""


@dataclass(frozen=True)
class Outputs:
    """What a model makes of N images.

    Attributes:
        logits: (N, K) float32, before the temperature.
        probabilities: (N, K) float64, with the temperature where the model is calibrated.
        enhanced: (N, C, S, S) float32 in about [0, 1].
        features: (N, F) float32, of several depths in one row; what rejection goes by.
        sizes: number of features at each depth; together F.
    """

    logits: np.ndarray
    probabilities: np.ndarray
    enhanced: np.ndarray
    features: np.ndarray
    sizes: tuple[int, ...]


class Model:
    """A trained model, ready to enhance and classify.

    Args:
        config: what it is.
        joint: the networks with their trained weights.
        calibration: what its answers are worth; none for a model that was not calibrated.
        cropping: how the cells that it was trained on were cut out of fields; none where `urnet crop` did not do it.
        folder: the bundle that it was read from, if it was; engines keep their graphs there.
    """

    def __init__(
        self,
        config: ModelConfig,
        joint: "JointModel",
        calibration: Calibration | None = None,
        cropping: Cropping | None = None,
        folder: Path | None = None,
    ):
        import torch

        self.config = config
        self.calibration = calibration
        self.cropping = cropping
        self.folder = folder
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.joint = joint.to(self.device).eval()

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the outputs."""
        return self.config.classes

    def save(self, folder: Path) -> None:
        """Write the bundle; the configuration last, so that it never stands without the rest."""
        from safetensors.torch import save

        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.joint.state_dict().items()}
        with whole_file(folder / WEIGHTS_NAME) as file:
            file.write(save(state))
        if self.calibration is not None:
            self.calibration.save(folder)
        else:  # one that is there belongs to other weights
            (folder / JSON_NAME).unlink(missing_ok=True)
            (folder / TENSORS_NAME).unlink(missing_ok=True)
        if self.cropping is not None:
            self.cropping.save(folder / SETTINGS_NAME)
        with whole_file(folder / CONFIG_NAME) as file:
            file.write(self.config.to_json().encode())

    def digest(self) -> str:
        """What tells this model from all others, as 32 hexadecimal digits: configuration, weights and calibration."""
        content = hashlib.sha256(self.config.to_json().encode())
        for name, tensor in self.joint.state_dict().items():
            content.update(name.encode())
            content.update(tensor.detach().cpu().contiguous().numpy())
        if self.calibration is not None:
            for array in _answers(self.calibration):
                content.update(np.ascontiguousarray(array))
        return content.hexdigest()[:32]

    @classmethod
    def load(cls, path: Path | str, *, calibrated: bool = True) -> "Model":
        """Read a bundle, or the bundle of a run folder.

        Args:
            path: the folder.
            calibrated: whether to read the calibration, where there is one.

        Raises:
            RunError: no bundle there, or one that is damaged or newer than this program.
        """
        folder = Path(path)
        if (folder / "model" / CONFIG_NAME).is_file():
            folder = folder / "model"
        if any(folder.glob(f"fold*/model/{CONFIG_NAME}")):
            raise RunError(
                f"{path}: a cross-validation has a model for each fold; name one, such as {folder / 'fold0'}"
            )
        if not (folder / CONFIG_NAME).is_file():
            raise RunError(
                f"{path}: no trained model here (looked for {CONFIG_NAME} and model/{CONFIG_NAME}); "
                "give a folder written by `urnet train`; an unfinished run goes on with --resume"
            )
        config = read_config(folder / CONFIG_NAME)
        try:
            joint = config.build()
        except (RecipeError, RuntimeError, TypeError) as error:  # RuntimeError: no memory for networks of that size
            reason = " ".join(str(error).split())[:200]
            raise RunError(f"{folder / CONFIG_NAME}: names no network that can be built here ({reason})") from None
        _load_weights(joint, folder / WEIGHTS_NAME)
        cut = folder / SETTINGS_NAME
        cropping = Cropping.load(cut) if cut.is_file() else None
        if not calibrated or not (folder / JSON_NAME).is_file():
            return cls(config, joint, cropping=cropping, folder=folder)
        calibration = Calibration.load(folder)
        if calibration.classes != config.classes:
            raise RunError(
                f"{folder / JSON_NAME}: its classes ({', '.join(calibration.classes)}) are not the model's "
                f"({', '.join(config.classes)}); make it again with `urnet calibrate`"
            )
        return cls(config, joint, calibration, cropping, folder)

    def fit(self, crop: np.ndarray) -> np.ndarray:
        """One raw crop, (H, W) or (H, W, 3), at the network's size and colour, still in raw counts (C, S, S).

        Raises:
            ImageError: no crop has that shape, its depth is not the one that the scale was fitted to, or not all of
                it are numbers.
        """
        return self.config.fit(crop)

    def prepare(self, crop: np.ndarray) -> np.ndarray:
        """One raw crop, (H, W) or (H, W, 3), as the network's input (C, S, S) in [0, 1].

        Raises:
            ImageError: as `fit`.
        """
        return self.config.scaling.apply(self.fit(crop))

    def read(self, cells: "Cells", progress: Callable[[int], None] | None = None) -> np.ndarray:
        """All cells of a table in raw counts at the network's size, (N, C, S, S).

        Args:
            cells: one cell at least.
            progress: called with the number of cells read.

        Raises:
            ImageError: a cell cannot be read or used; the message names it.
        """
        images = []
        for index, path in enumerate(cells.table["path"]):
            crop = cells.read(index)
            try:
                images.append(self.fit(crop))
            except ImageError as error:
                raise ImageError(f"{path}: {error}") from None
            if progress is not None:
                progress(index + 1)
        return np.stack(images)

    def outputs(self, inputs: np.ndarray, batch_size: int = BATCH) -> Iterator[Outputs]:
        """All that the networks say of prepared inputs (N, C, S, S), batch by batch."""
        import torch

        from urnet.nets.features import look_at_features

        temperature = 1.0 if self.calibration is None else self.calibration.temperature
        for start in range(0, len(inputs), batch_size):
            with torch.inference_mode():
                images = torch.from_numpy(inputs[start : start + batch_size]).to(self.device)
                logits, enhanced, features = look_at_features(self.joint, images)
                raw = logits.float().cpu().numpy()
                yield Outputs(
                    raw,
                    softmax(raw, temperature),
                    enhanced.cpu().numpy(),
                    torch.cat(features, dim=1).cpu().numpy(),
                    tuple(part.shape[1] for part in features),
                )

    def forward(self, inputs: np.ndarray, batch_size: int = BATCH) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Probabilities (B, K) and enhanced images (B, C, S, S) of prepared inputs (N, C, S, S), batch by batch."""
        for outputs in self.outputs(inputs, batch_size):
            yield outputs.probabilities, outputs.enhanced

    def measures(self, images: np.ndarray, seen: "pd.DataFrame | None" = None) -> list[dict[str, float]]:
        """How crops were taken, and what is known of them beside: a row of measures for each.

        Args:
            images: (N, C, S, S) raw counts, from `fit` or `read`.
            seen: N rows of their cells table; its `edge` and `touching` are used where they are filled.
        """
        scaling = self.config.scaling
        rows = [quality(np.moveaxis(image, 0, -1), scaling.low, scaling.high) for image in images]
        for column in SEEN if seen is not None else ():
            for row, value in zip(rows, seen.get(column, [""] * len(rows)), strict=True):
                row |= _number(column, value)
        return rows

    def reject(self, images: np.ndarray, features: np.ndarray, seen: "pd.DataFrame | None" = None) -> list[str]:
        """Why each crop is no countable cell; "" for those that are, and for all where the model is not calibrated.

        Args:
            images: (N, C, S, S) raw counts, from `fit` or `read`.
            features: (N, F), from `outputs`.
            seen: as `measures`.
        """
        if self.calibration is None:
            return [""] * len(images)
        return self.calibration.reject(self.measures(images, seen), features)

    def predict(self, images: "Path | str | np.ndarray | Iterable[Path | str | np.ndarray]") -> "pd.DataFrame":
        """Classify images.

        Args:
            images: one image or several; each a path, the address of a tile or page, or an array of raw counts, (H, W)
                or (H, W, 3). Files of several pages, and montages of the tiles that the model was trained on, give a
                row an image.

        Returns:
            A row an image: `path` ("" for arrays), `predicted`, `p_<class>`, and `error` with the reason where an
            image could not be used. Of a calibrated model also `rejected`, why the image shows no countable cell ("" if
            it does), and `set`, the classes that cannot be ruled out at 90 % coverage, joined by `|`.
        """
        import pandas as pd

        one = isinstance(images, str | Path) or (
            isinstance(images, np.ndarray) and (images.ndim == 2 or images.shape[2:] == (3,))
        )
        rows: list[dict[str, Any]] = []
        crops = self._crops([images] if one else images)
        while some := list(islice(crops, BATCH)):
            rows += self._classify(some)
        return pd.DataFrame(rows, columns=["path", "predicted", *self.columns, "error"])

    def _classify(self, crops: list[tuple[str, Callable[[], np.ndarray]]]) -> list[dict[str, Any]]:
        """A row for each of a few images, given by their addresses and what reads them."""
        rows, usable, pixels = [], [], []
        for address, read in crops:
            row: dict[str, Any] = {"path": address, "predicted": "", "error": "", **dict.fromkeys(TRUST_COLUMNS, "")}
            try:
                pixels.append(self.fit(read()))
                usable.append(row)
            except ImageError as error:
                row["error"] = str(error)
            rows.append(row)
        if pixels:
            images = np.stack(pixels)
            outputs = next(self.outputs(self.config.scaling.apply(images), len(images)))
            for row, told in zip(usable, self.rows(outputs.probabilities, outputs.features, images), strict=True):
                row |= told
        return rows

    @property
    def columns(self) -> list[str]:
        """What tables of predictions say of a crop besides `predicted`."""
        return [*(f"p_{name}" for name in self.classes), *(TRUST_COLUMNS if self.calibration is not None else ())]

    def rows(
        self,
        probabilities: np.ndarray,
        features: np.ndarray,
        images: np.ndarray,
        seen: "pd.DataFrame | None" = None,
        coverage: float = COVERAGE,
    ) -> Iterator[dict[str, Any]]:
        """What tables of predictions say of each crop: `predicted` and `columns`.

        Args:
            probabilities: (N, K), with the temperature.
            features: (N, F).
            images: (N, C, S, S) raw counts, from `fit` or `read`.
            seen: as `measures`.
            coverage: of the prediction sets, between 0 and 1.
        """
        reasons = self.reject(images, features, seen)
        sets = self.calibration.set_names(probabilities, coverage) if self.calibration is not None else reasons
        for values, reason, names in zip(probabilities, reasons, sets, strict=True):
            trust = () if self.calibration is None else (reason, names)
            told = zip(self.columns, (*map(float, values), *trust), strict=True)
            yield {"predicted": self.classes[int(values.argmax())], **dict(told)}

    def _crops(self, images: "Iterable[Path | str | np.ndarray]") -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
        """Address of each image, and what reads it."""
        tile = self.config.tile
        for image in images:
            if not isinstance(image, str | Path):
                yield "", partial(np.asarray, image)
                continue
            name = str(image)
            try:
                addresses = [str(address) for address in expand(Path(), name, tile)]
            except ImageError:
                addresses = [name]  # damaged, no montage, or an address: reading it tells
            for address in addresses:
                yield address, partial(read_crop, Path(), address, tile)


def _answers(calibration: Calibration) -> "Iterator[np.ndarray]":
    """All that a calibration's answers depend on."""
    rejection = calibration.rejection
    yield np.array([calibration.temperature, rejection.level, *rejection.checks])
    yield from (*calibration.scores, rejection.quantiles, rejection.tails)
    yield from (rejection.distance.centre, *rejection.distance.whiten, rejection.distance.spread)


def _number(name: str, text: object) -> dict[str, float]:
    """A table's entry as a measure; nothing where it is empty or no number."""
    try:
        value = float(str(text))
    except ValueError:
        return {}
    return {name: value} if math.isfinite(value) else {}


def _load_weights(joint: "JointModel", path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise RunError(f"{path}: the weights are missing beside {CONFIG_NAME}; restore the file or train again")
    try:
        state = load_file(path)
        joint.load_state_dict(state)
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(f"{path}: the weights cannot be loaded ({reason}); restore the file or train again") from None
    if not all(tensor.isfinite().all() for tensor in state.values()):
        raise RunError(f"{path}: some weights are NaN or infinite; restore the file or train again")

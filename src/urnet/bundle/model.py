"""A trained model in memory: load it, classify, enhance and explain images, save it.

A model on disk is a bundle, a folder of files that need no pickle:

- `config.json`: input, scaling, networks and classes.
- `model.safetensors`: weights.
- `calibration.json`, `calibration.safetensors`: the calibration.
- `crop.json`: the settings that cut crops out of fields.
- `seal.json`: the digest of the other files.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from urnet.bundle.about import model_facts
from urnet.bundle.config import CONFIG_NAME, ModelConfig, read_config
from urnet.bundle.crops import FIELD_MEASURES, CropSource, Images, find_crops, parse_measure, resize_crop
from urnet.bundle.files import (
    OPTIONAL_FILES,
    WEIGHTS_NAME,
    build_networks,
    check_calibration_fits,
    check_seal,
    find_bundle,
    hash_json_text,
    read_weights,
)
from urnet.bundle.seal import Seal, check_expected, hash_tensors
from urnet.calibration.calibration import Calibration
from urnet.calibration.conformal import COVERAGE
from urnet.calibration.files import JSON_NAME, TENSORS_NAME, encode_calibration, load_calibration
from urnet.calibration.temperature import softmax
from urnet.cpus import limit_torch
from urnet.errors import ImageError, RunError
from urnet.fields.cropping.settings import SETTINGS_NAME, CropSettings
from urnet.files.atomic import atomic_file
from urnet.images.quality import measure_quality

if TYPE_CHECKING:
    import pandas as pd

    from urnet.bundle.predictions import Predictions
    from urnet.cells.table import Cells
    from urnet.nets.joint import JointModel

BATCH_SIZE = 16
"""Images per batch; larger batches are hardly faster on a CPU and need more memory."""

CALIBRATED_COLUMNS = ("rejected", "set")
"""Columns of predictions that only a calibrated model has."""


@dataclass(frozen=True)
class Outputs:
    """Outputs of the networks for N images.

    Attributes:
        logits: (N, K) float32, before the temperature.
        probabilities: (N, K) float64, with the temperature of a calibrated model.
        enhanced: (N, C, S, S) float32 in about [0, 1].
        features: (N, F) float32, of several depths in one row; rejection uses them.
        sizes: number of features at each depth; together F.
    """

    logits: np.ndarray
    probabilities: np.ndarray
    enhanced: np.ndarray
    features: np.ndarray
    sizes: tuple[int, ...]


class Model:
    """A trained model that classifies, enhances and explains images of cells.

    Args:
        config: classes, input, scaling and networks.
        joint: the networks with their trained weights.
        calibration: calibration of the probabilities; none for a model that was not calibrated.
        cropping: settings that cut the training's crops out of fields; none for other crops.
        folder: the bundle that the model was read from; engines store their graphs there.
        seal: hashes of the files that the model was read from.

    Example:
        >>> model = urnet.load("run")
        >>> model.classes
        ('bar', 'disc', 'ring')
        >>> predictions = model.predict("cells/disc")
        >>> len(predictions)
        20
    """

    def __init__(
        self,
        config: ModelConfig,
        joint: "JointModel",
        calibration: Calibration | None = None,
        cropping: CropSettings | None = None,
        folder: Path | None = None,
        seal: Seal | None = None,
    ):
        import torch

        limit_torch()
        self.config = config
        self.calibration = calibration
        self.cropping = cropping
        self.folder = folder
        self.seal = seal
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.joint = joint.to(self.device).eval()

    def __repr__(self) -> str:
        """Describe name, networks, classes, input, calibration and digest in one line."""
        config = self.config
        colour = "grey" if config.channels == 1 else "colour"
        calibrated = "not calibrated" if self.calibration is None else "calibrated"
        return (
            f"Model {config.name!r} ({config.enhancer['name']} + {config.classifier['name']}): classes "
            f"{', '.join(self.classes)}; input {colour}, {config.size} x {config.size} px, {config.scaling.dtype}; "
            f"{calibrated}; digest {self.digest()}"
        )

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr><th style="text-align:left">{escape(name)}</th><td style="text-align:left">{escape(value)}</td></tr>'
            for name, value in model_facts(self)
        )
        return f"<table>{rows}</table>"

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the outputs."""
        return self.config.classes

    @property
    def is_sealed(self) -> bool:
        """Whether the bundle had a seal that fits its files."""
        return self.seal is not None and self.seal.stored

    def save(self, folder: Path) -> None:
        """Write the bundle with its seal.

        The configuration is written last, so that an interrupted save leaves no bundle.

        Args:
            folder: new folder, or that of an older version of this model.
        """
        from safetensors.torch import save

        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.joint.state_dict().items()}
        with atomic_file(folder / WEIGHTS_NAME) as file:
            file.write(save(state))
        contents = self._optional_files()
        for name in OPTIONAL_FILES:
            if name in contents:
                with atomic_file(folder / name) as file:
                    file.write(contents[name])
            else:  # an existing one belongs to another model
                (folder / name).unlink(missing_ok=True)
        self._hashes(contents).write(folder)
        with atomic_file(folder / CONFIG_NAME) as file:
            file.write(self.config.to_json().encode())

    def digest(self) -> str:
        """Return the digest of the model's files, 32 hexadecimal digits; a model in memory has that of its bundle."""
        return (self.seal or self._hashes(self._optional_files())).digest

    def _optional_files(self) -> dict[str, bytes]:
        """Encode the files beside configuration and weights, by name."""
        files = {} if self.calibration is None else encode_calibration(self.calibration)
        return files | ({} if self.cropping is None else {SETTINGS_NAME: self.cropping.to_json().encode()})

    def _hashes(self, files: dict[str, bytes]) -> Seal:
        from safetensors.numpy import load

        hashes = {
            CONFIG_NAME: hash_json_text(self.config.to_json().encode()),
            WEIGHTS_NAME: hash_tensors(self.joint.state_dict()),
        }
        for name, content in files.items():
            hashes[name] = hash_tensors(load(content)) if name == TENSORS_NAME else hash_json_text(content)
        return Seal(hashes)

    @classmethod
    def load(cls, path: Path | str, *, calibrated: bool = True, expect: str | None = None) -> "Model":
        """Read the bundle of a run folder, or a bundle by itself, and check its seal.

        Args:
            path: run folder or bundle.
            calibrated: whether to read the calibration.
            expect: the first 8 to 32 digits of the digest that the model must have.

        Raises:
            RunError: the folder has no bundle, or one that is damaged, newer than this program, changed after it was
                sealed, or another one than expected.

        Example:
            >>> model = Model.load("run")
            >>> copy = Model.load("run", expect=model.digest())
        """
        expected = check_expected(expect)
        folder = find_bundle(path)
        config = read_config(folder / CONFIG_NAME)
        weights = read_weights(folder / WEIGHTS_NAME)
        seal = check_seal(folder, weights, () if calibrated else (JSON_NAME, TENSORS_NAME))
        if expected is not None and not seal.digest.startswith(expected):
            raise RunError(
                f"{folder}: the digest of this model is {seal.digest}, expected {expected}. Give the right model, or "
                "compare the digest with the one that you noted",
                code="model.unexpected",
            )
        joint = build_networks(config, weights, folder)
        cut = folder / SETTINGS_NAME
        cropping = CropSettings.load(cut) if cut.is_file() else None
        calibration = load_calibration(folder) if calibrated and (folder / JSON_NAME).is_file() else None
        if calibration is not None:
            check_calibration_fits(calibration, config, joint, folder)
        return cls(config, joint, calibration, cropping, folder, seal)

    def resize_crop(self, crop: np.ndarray) -> np.ndarray:
        """Bring a raw crop to the network's size and colours, still in raw counts.

        Args:
            crop: (H, W) or (H, W, 3).

        Returns:
            (C, S, S), of the crop's data type.

        Raises:
            ImageError: the shape, the data type or the values cannot be used, or the crop is so much larger than those
                of the training that it is a whole field (code `fields.counted_as_one_cell`).
        """
        return resize_crop(self.config, self.cropping, crop)

    def prepare(self, crop: np.ndarray) -> np.ndarray:
        """Bring a raw crop, (H, W) or (H, W, 3), to the network's input, (C, S, S) in [0, 1].

        Raises:
            ImageError: as `resize_crop`.
        """
        return self.config.scaling.apply(self.resize_crop(crop))

    def read(self, cells: "Cells", progress: Callable[[int], None] | None = None) -> np.ndarray:
        """Read all cells of a table in raw counts at the network's size, (N, C, S, S), whatever the size of the crops.

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
                images.append(self.config.resize_crop(crop))
            except ImageError as error:
                raise ImageError(f"{path}: {error}", code=error.code) from None
            if progress is not None:
                progress(index + 1)
        return np.stack(images)

    def outputs(self, inputs: np.ndarray, batch_size: int = BATCH_SIZE) -> Iterator[Outputs]:
        """Run the networks on prepared inputs (N, C, S, S), batch by batch."""
        import torch

        from urnet.nets.features import extract_features

        temperature = 1.0 if self.calibration is None else self.calibration.temperature
        for start in range(0, len(inputs), batch_size):
            with torch.inference_mode():
                images = torch.from_numpy(inputs[start : start + batch_size]).to(self.device)
                logits, enhanced, features = extract_features(self.joint, images)
                raw = logits.float().cpu().numpy()
                yield Outputs(
                    raw,
                    softmax(raw, temperature),
                    enhanced.cpu().numpy(),
                    torch.cat(features, dim=1).cpu().numpy(),
                    tuple(part.shape[1] for part in features),
                )

    def forward(self, inputs: np.ndarray, batch_size: int = BATCH_SIZE) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Classify and enhance prepared inputs (N, C, S, S), batch by batch.

        Yields:
            Probabilities (B, K) and enhanced images (B, C, S, S).
        """
        for outputs in self.outputs(inputs, batch_size):
            yield outputs.probabilities, outputs.enhanced

    def measure_crops(self, images: np.ndarray, cells: "pd.DataFrame | None" = None) -> list[dict[str, float]]:
        """Measure the quality of crops, by which they may be rejected.

        Args:
            images: (N, C, S, S) raw counts, from `resize_crop` or `read`.
            cells: N rows of their cells table; `edge` and `touching` are taken from it.

        Returns:
            Measures by name, for each crop.
        """
        scaling = self.config.scaling
        rows = [measure_quality(np.moveaxis(image, 0, -1), scaling.low, scaling.high) for image in images]
        if cells is not None:
            for column in FIELD_MEASURES:
                for row, value in zip(rows, cells.get(column, [""] * len(rows)), strict=True):
                    row |= parse_measure(column, value)
        return rows

    def reject(self, images: np.ndarray, features: np.ndarray, cells: "pd.DataFrame | None" = None) -> list[str]:
        """Find crops that show no countable cell.

        Args:
            images: (N, C, S, S) raw counts, from `resize_crop` or `read`.
            features: (N, F), from `outputs`.
            cells: as for `measure_crops`.

        Returns:
            The reason for each crop; "" for a countable cell, and for all crops where the model is not calibrated.
        """
        if self.calibration is None:
            return [""] * len(images)
        return self.calibration.reject(self.measure_crops(images, cells), features)

    def predict(
        self, images: Images, *, coverage: float = COVERAGE, on_error: Literal["raise", "record"] = "raise"
    ) -> "Predictions":
        """Classify images.

        Args:
            images: one image or several: paths of images, folders, cells tables (CSV), addresses of tiles or pages
                (`stack.tif#p002`), arrays of raw counts (H, W) or (H, W, 3), an array (N, H, W), or `Cells`. Files of
                several pages, and montages of the tiles that the model was trained on, give several predictions.
            coverage: share of each class's cells whose prediction set holds the true class, between 0 and 1.
            on_error: `raise` stops at the first image that cannot be used; `record` gives it a row with the reason in
                the column `error`.

        Raises:
            CellsError: a folder holds no images, or a table is damaged.
            ImageError: an image cannot be read or used, and `on_error` is `raise`.

        Example:
            >>> predictions = urnet.load("run").predict("cells/disc")
            >>> predictions.labels[0] in ("bar", "disc", "ring")
            True
            >>> predictions.to_frame().shape
            (20, 8)
        """
        import pandas as pd

        from urnet.bundle.predictions import Predictions

        rows: list[dict[str, Any]] = []
        crops = list(find_crops(images, self.config))
        for start in range(0, len(crops), BATCH_SIZE):
            rows += self._classify(crops[start : start + BATCH_SIZE], start, coverage, on_error == "raise")
        table = pd.DataFrame(rows, columns=["path", "predicted", *self.prediction_columns, "error"])
        return Predictions(self.classes, table, crops)

    def enhance(self, images: Images) -> np.ndarray:
        """Enhance images.

        Args:
            images: as for `predict`.

        Returns:
            (N, S, S) for grey and (N, S, S, 3) for colour models, float32 in about [0, 1].

        Raises:
            CellsError, ImageError: as `predict`; there must be one image at least.

        Example:
            >>> urnet.load("run").enhance("cells/disc").shape
            (20, 24, 24)
        """
        parts = [next(self.outputs(inputs, len(inputs))).enhanced for inputs in self._read_inputs(images)]
        return _to_channels_last(np.concatenate(parts))

    def explain(self, images: Images, target: str | None = None) -> np.ndarray:
        """Compute Grad-CAM: how much each place of an image spoke for a class.

        Args:
            images: as for `predict`.
            target: name of the class; the predicted class of each image when not given.

        Returns:
            Maps (N, S, S), float32 in [0, 1]. The largest value of a map is 1, or the map is 0 where nothing spoke for
            the class. `urnet.nets.gradcam.overlay` lays a map over its image.

        Raises:
            CellsError, ImageError: as `predict`.
            RecipeError: the classifier has no feature maps, as some transformers.
            RunError: the model has no class of this name (code `model.class_unknown`).

        Example:
            >>> urnet.load("run").explain("cells/disc", "ring").shape
            (20, 24, 24)
        """
        import torch

        from urnet.nets.gradcam import grad_cam

        if target is not None and target not in self.classes:
            raise RunError(
                f"the model has no class {target!r}; choose one of: {', '.join(self.classes)}",
                code="model.class_unknown",
            )
        maps = []
        for inputs in self._read_inputs(images):
            index = None if target is None else torch.full((len(inputs),), self.classes.index(target))
            maps.append(grad_cam(self.joint, torch.from_numpy(inputs), index))
        return np.concatenate(maps)

    @property
    def prediction_columns(self) -> list[str]:
        """Columns of predictions besides `path`, `predicted` and `error`."""
        return [*(f"p_{name}" for name in self.classes), *(CALIBRATED_COLUMNS if self.calibration is not None else ())]

    def prediction_rows(
        self,
        probabilities: np.ndarray,
        features: np.ndarray,
        images: np.ndarray,
        cells: "pd.DataFrame | None" = None,
        coverage: float = COVERAGE,
    ) -> Iterator[dict[str, Any]]:
        """Make a row of predictions for each crop: `predicted` and `prediction_columns`.

        Args:
            probabilities: (N, K), with the temperature.
            features: (N, F).
            images: (N, C, S, S) raw counts, from `resize_crop` or `read`.
            cells: as for `measure_crops`.
            coverage: of the prediction sets, between 0 and 1.
        """
        reasons = self.reject(images, features, cells)
        sets = self.calibration.set_names(probabilities, coverage) if self.calibration is not None else reasons
        for values, reason, names in zip(probabilities, reasons, sets, strict=True):
            calibrated = () if self.calibration is None else (reason, names)
            row = zip(self.prediction_columns, (*map(float, values), *calibrated), strict=True)
            yield {"predicted": self.classes[int(values.argmax())], **dict(row)}

    def _classify(
        self, crops: list[CropSource], first: int, coverage: float, raise_errors: bool
    ) -> list[dict[str, Any]]:
        """Make a row for each image of a batch; errors name images without a path by number, from `first`."""
        import pandas as pd

        rows, usable, pixels, measures = [], [], [], []
        for number, crop in enumerate(crops, first):
            row = {"path": crop.name, "predicted": "", "error": "", **dict.fromkeys(CALIBRATED_COLUMNS, "")}
            try:
                pixels.append(self.resize_crop(crop.read()))
                usable.append(row)
                measures.append(crop.measures)
            except ImageError as error:
                if raise_errors:
                    raise _name_image(error, crop.name or f"image {number}") from None
                row["error"] = str(error)
            rows.append(row)
        if pixels:
            images = np.stack(pixels)
            outputs = next(self.outputs(self.config.scaling.apply(images), len(images)))
            predicted = self.prediction_rows(
                outputs.probabilities, outputs.features, images, pd.DataFrame(measures), coverage
            )
            for row, values in zip(usable, predicted, strict=True):
                row |= values
        return rows

    def _read_inputs(self, images: Images) -> Iterator[np.ndarray]:
        """Read images as inputs of the network, (B, C, S, S) in [0, 1], batch by batch."""
        crops, number = find_crops(images, self.config), 0
        while batch := list(islice(crops, BATCH_SIZE)):
            inputs = []
            for crop in batch:
                try:
                    inputs.append(self.prepare(crop.read()))
                except ImageError as error:
                    raise _name_image(error, crop.name or f"image {number}") from None
                number += 1
            yield np.stack(inputs)


def _name_image(error: ImageError, name: str) -> ImageError:
    """Add the image's name to an error that does not hold it."""
    text = str(error)
    return error if Path(name).name in text else ImageError(f"{name}: {text}", code=error.code)


def _to_channels_last(images: np.ndarray) -> np.ndarray:
    """Turn (N, C, S, S) into (N, S, S), or (N, S, S, 3) for colour."""
    return images[:, 0] if images.shape[1] == 1 else np.moveaxis(images, 1, -1)

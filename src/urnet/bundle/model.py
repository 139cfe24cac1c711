"""A trained model on disk and in memory: `config.json` and `model.safetensors`, nothing that needs pickle.

The configuration holds all that turns an image file into a decision: input size and colour, the scale of raw counts,
the networks, the classes. Beside it lie the model's calibration (`calibration.json`, `calibration.safetensors`) and, of
one that was trained on crops of fields, how those were cut (`crop.json`). Training writes a bundle, everything after
training reads one. `seal.json` holds the digest of all of them.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from urnet.bundle.config import CONFIG_NAME, ModelConfig, read_config
from urnet.bundle.crops import FIELD_MEASURES, parse_measure, resize_crop
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
from urnet.images.montage import list_images, read_crop
from urnet.images.quality import measure_quality

if TYPE_CHECKING:
    import pandas as pd

    from urnet.cells.table import Cells
    from urnet.nets.joint import JointModel

BATCH_SIZE = 16
"""Images that go through the networks at once; more are hardly faster on a CPU, and take more memory."""

CALIBRATED_COLUMNS = ("rejected", "set")
"""What tables of predictions say besides, where the model is calibrated."""


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
        seal: hashes of the files that it was read from.
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

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the outputs."""
        return self.config.classes

    @property
    def is_sealed(self) -> bool:
        """Whether the files that it was read from carried a seal, which fitted."""
        return self.seal is not None and self.seal.stored

    def save(self, folder: Path) -> None:
        """Write the bundle with its seal; the configuration last, so that it never stands without the rest."""
        from safetensors.torch import save

        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.joint.state_dict().items()}
        with atomic_file(folder / WEIGHTS_NAME) as file:
            file.write(save(state))
        contents = self._optional_files()
        for name in OPTIONAL_FILES:
            if name in contents:
                with atomic_file(folder / name) as file:
                    file.write(contents[name])
            else:  # one that is there belongs to another model
                (folder / name).unlink(missing_ok=True)
        self._hashes(contents).write(folder)
        with atomic_file(folder / CONFIG_NAME) as file:
            file.write(self.config.to_json().encode())

    def digest(self) -> str:
        """The digest of the model's files, as 32 hexadecimal digits; of a model in memory, what they would be."""
        return (self.seal or self._hashes(self._optional_files())).digest

    def _optional_files(self) -> dict[str, bytes]:
        """The content of the files beside configuration and weights, by name."""
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
        """Read a bundle, or the bundle of a run folder, and compare it with its seal.

        Args:
            path: the folder.
            calibrated: whether to read the calibration, where there is one.
            expect: the first 8 to 32 digits of the digest that the model must have.

        Raises:
            RunError: no bundle there; one that is damaged, newer than this program, or whose seal is broken; or
                another model than expected.
        """
        expected = check_expected(expect)
        folder = find_bundle(path)
        config = read_config(folder / CONFIG_NAME)
        weights = read_weights(folder / WEIGHTS_NAME)
        seal = check_seal(folder, weights, () if calibrated else (JSON_NAME, TENSORS_NAME))
        if expected is not None and not seal.digest.startswith(expected):
            raise RunError(
                f"{folder}: this is the model {seal.digest}, and {expected} was expected; give the right model, or "
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
        """One raw crop, (H, W) or (H, W, 3), at the network's size and colour, still in raw counts (C, S, S).

        Raises:
            ImageError: no crop has that shape, its depth is not the one that the scale was fitted to, not all of it are
                numbers, or it is so much larger than the crops of the training's fields that it is a field itself.
        """
        return resize_crop(self.config, self.cropping, crop)

    def prepare(self, crop: np.ndarray) -> np.ndarray:
        """One raw crop, (H, W) or (H, W, 3), as the network's input (C, S, S) in [0, 1].

        Raises:
            ImageError: as `resize_crop`.
        """
        return self.config.scaling.apply(self.resize_crop(crop))

    def read(self, cells: "Cells", progress: Callable[[int], None] | None = None) -> np.ndarray:
        """All cells of a table in raw counts at the network's size, (N, C, S, S), however large a person's crops are.

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
                raise ImageError(f"{path}: {error}") from None
            if progress is not None:
                progress(index + 1)
        return np.stack(images)

    def outputs(self, inputs: np.ndarray, batch_size: int = BATCH_SIZE) -> Iterator[Outputs]:
        """All that the networks say of prepared inputs (N, C, S, S), batch by batch."""
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
        """Probabilities (B, K) and enhanced images (B, C, S, S) of prepared inputs (N, C, S, S), batch by batch."""
        for outputs in self.outputs(inputs, batch_size):
            yield outputs.probabilities, outputs.enhanced

    def measure_crops(self, images: np.ndarray, seen: "pd.DataFrame | None" = None) -> list[dict[str, float]]:
        """How crops were taken, and what is known of them beside: a row of measures for each.

        Args:
            images: (N, C, S, S) raw counts, from `resize_crop` or `read`.
            seen: N rows of their cells table; its `edge` and `touching` are used where they are filled.
        """
        scaling = self.config.scaling
        rows = [measure_quality(np.moveaxis(image, 0, -1), scaling.low, scaling.high) for image in images]
        for column in FIELD_MEASURES if seen is not None else ():
            for row, value in zip(rows, seen.get(column, [""] * len(rows)), strict=True):
                row |= parse_measure(column, value)
        return rows

    def reject(self, images: np.ndarray, features: np.ndarray, seen: "pd.DataFrame | None" = None) -> list[str]:
        """Why each crop is no countable cell; "" for those that are, and for all where the model is not calibrated.

        Args:
            images: (N, C, S, S) raw counts, from `resize_crop` or `read`.
            features: (N, F), from `outputs`.
            seen: as `measure_crops`.
        """
        if self.calibration is None:
            return [""] * len(images)
        return self.calibration.reject(self.measure_crops(images, seen), features)

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
        while some := list(islice(crops, BATCH_SIZE)):
            rows += self._classify(some)
        return pd.DataFrame(rows, columns=["path", "predicted", *self.prediction_columns, "error"])

    def _classify(self, crops: list[tuple[str, Callable[[], np.ndarray]]]) -> list[dict[str, Any]]:
        """A row for each of a few images, given by their addresses and what reads them."""
        rows, usable, pixels = [], [], []
        for address, read in crops:
            row: dict[str, Any] = {
                "path": address,
                "predicted": "",
                "error": "",
                **dict.fromkeys(CALIBRATED_COLUMNS, ""),
            }
            try:
                pixels.append(self.resize_crop(read()))
                usable.append(row)
            except ImageError as error:
                row["error"] = str(error)
            rows.append(row)
        if pixels:
            images = np.stack(pixels)
            outputs = next(self.outputs(self.config.scaling.apply(images), len(images)))
            for row, told in zip(
                usable, self.prediction_rows(outputs.probabilities, outputs.features, images), strict=True
            ):
                row |= told
        return rows

    @property
    def prediction_columns(self) -> list[str]:
        """What tables of predictions say of a crop besides `predicted`."""
        return [*(f"p_{name}" for name in self.classes), *(CALIBRATED_COLUMNS if self.calibration is not None else ())]

    def prediction_rows(
        self,
        probabilities: np.ndarray,
        features: np.ndarray,
        images: np.ndarray,
        seen: "pd.DataFrame | None" = None,
        coverage: float = COVERAGE,
    ) -> Iterator[dict[str, Any]]:
        """What tables of predictions say of each crop: `predicted` and `prediction_columns`.

        Args:
            probabilities: (N, K), with the temperature.
            features: (N, F).
            images: (N, C, S, S) raw counts, from `resize_crop` or `read`.
            seen: as `measure_crops`.
            coverage: of the prediction sets, between 0 and 1.
        """
        reasons = self.reject(images, features, seen)
        sets = self.calibration.set_names(probabilities, coverage) if self.calibration is not None else reasons
        for values, reason, names in zip(probabilities, reasons, sets, strict=True):
            trust = () if self.calibration is None else (reason, names)
            told = zip(self.prediction_columns, (*map(float, values), *trust), strict=True)
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
                addresses = [str(address) for address in list_images(Path(), name, tile)]
            except ImageError:
                addresses = [name]  # damaged, no montage, or an address: reading it tells
            for address in addresses:
                yield address, partial(read_crop, Path(), address, tile)

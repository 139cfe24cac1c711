"""Files of a bundle: find, read, check, seal and copy them."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from urnet.bundle.config import CONFIG_NAME, ModelConfig
from urnet.bundle.seal import Seal, hash_json, hash_tensors, read_seal
from urnet.calibration.calibration import Calibration
from urnet.calibration.files import JSON_NAME, TENSORS_NAME
from urnet.errors import RecipeError, RunError
from urnet.fields.cropping.settings import SETTINGS_NAME
from urnet.files.atomic import atomic_file
from urnet.files.json_files import describe_error, read_canonical_json, to_canonical_json

if TYPE_CHECKING:
    from torch import Tensor

    from urnet.bundle.model import Model
    from urnet.nets.joint import JointModel

WEIGHTS_NAME = "model.safetensors"

OPTIONAL_FILES = (TENSORS_NAME, JSON_NAME, SETTINGS_NAME)
"""Files that not every bundle has."""
SEALED_FILES = (WEIGHTS_NAME, *OPTIONAL_FILES, CONFIG_NAME)
"""Files that the seal covers."""


def find_bundle(path: Path | str) -> Path:
    """Find the bundle at a path: the folder itself, or `model` in a run folder.

    Raises:
        RunError: no bundle (code `model.not_found`), or the folder of a cross-validation (code `model.several`).
    """
    folder = Path(path)
    if (folder / "model" / CONFIG_NAME).is_file():
        return folder / "model"
    if any(folder.glob(f"fold*/model/{CONFIG_NAME}")):
        raise RunError(
            f"{path}: a cross-validation has a model for each fold; name one, such as {folder / 'fold0'}",
            code="model.several",
        )
    if not (folder / CONFIG_NAME).is_file():
        raise RunError(
            f"{path}: no trained model here (looked for {CONFIG_NAME} and model/{CONFIG_NAME}); "
            "give the folder of a finished `urnet train`; the same command finishes an interrupted one",
            code="model.not_found",
        )
    return folder


def seal_bundle(folder: Path) -> Seal:
    """Write the seal of a bundle over its present files.

    Args:
        folder: the bundle.

    Raises:
        RunError: a file is missing or cannot be read.
    """
    seal = Seal(hash_files(folder, read_weights(folder / WEIGHTS_NAME)))
    seal.write(folder)
    return seal


def copy_bundle(model: "Model", out: Path) -> None:
    """Copy the files of a model to another folder, with a seal; the copy has the same digest.

    Args:
        model: read from a bundle.
        out: the folder.

    Raises:
        RunError: the files have changed since the model was read.
    """
    assert model.folder is not None
    for name in SEALED_FILES:
        if (model.folder / name).is_file():
            with (model.folder / name).open("rb") as source, atomic_file(out / name) as file:
                shutil.copyfileobj(source, file)
    if seal_bundle(out).digest != model.digest():
        raise RunError(
            f"{model.folder}: the files have changed since the model was read; run the command again",
            code="model.changed",
        )


def check_seal(folder: Path, weights: "Mapping[str, Tensor]", ignored: tuple[str, ...]) -> Seal:
    """Hash the files of a bundle and compare them with its seal.

    Raises:
        RunError: the seal is broken or damaged.
    """
    stored = read_seal(folder)
    hashes = hash_files(folder, weights, ignored)
    if stored is not None:
        stored.check(folder, hashes, ignored)
    return Seal(hashes, stored=stored is not None)


def hash_files(folder: Path, weights: "Mapping[str, Tensor]", ignored: tuple[str, ...] = ()) -> dict[str, str]:
    """Hash the content of each file of a bundle.

    Args:
        folder: the bundle.
        weights: the weights, which are read already.
        ignored: names of files to leave out.

    Returns:
        Hash by file name.

    Raises:
        RunError: a file is damaged (code `model.damaged`).
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    hashes = {WEIGHTS_NAME: hash_tensors(weights)}
    for name in SEALED_FILES:
        path = folder / name
        if name == WEIGHTS_NAME or name in ignored or not path.is_file():
            continue
        try:
            hashes[name] = (
                hash_tensors(load_file(path)) if name == TENSORS_NAME else hash_json(read_canonical_json(path))
            )
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            fix = "make it with `urnet calibrate`" if name in (JSON_NAME, TENSORS_NAME) else "restore the file"
            raise RunError(
                f"{path}: the file is damaged ({describe_error(error)}); {fix}", code="model.damaged"
            ) from None
    return hashes


def hash_json_text(content: bytes) -> str:
    """Hash JSON text whatever its white space and order of keys."""
    return hash_json(to_canonical_json(json.loads(content)))


def read_weights(path: Path) -> "dict[str, Tensor]":
    """Read `model.safetensors`.

    Raises:
        RunError: the file is missing, damaged, or has weights that are not finite (code `model.weights_invalid`).
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise RunError(
            f"{path}: the weights are missing beside {CONFIG_NAME}; restore the file or train again",
            code="model.weights_invalid",
        )
    try:
        weights = load_file(path)
    except (SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{path}: the weights cannot be loaded ({describe_error(error)}); restore the file or train again",
            code="model.weights_invalid",
        ) from None
    if not all(tensor.isfinite().all() for tensor in weights.values()):
        raise RunError(
            f"{path}: some weights are NaN or infinite; restore the file or train again", code="model.weights_invalid"
        )
    return weights


def build_networks(config: ModelConfig, weights: "Mapping[str, Tensor]", folder: Path) -> "JointModel":
    """Build the networks of a configuration with the weights of a file.

    Raises:
        RunError: the networks cannot be built (code `model.config_invalid`), or the weights belong to others (code
            `model.weights_invalid`).
    """
    from urnet.nets.limits import build_and_load

    try:
        return build_and_load(config.build, weights)
    except RunError as error:
        raise RunError(
            f"{folder / WEIGHTS_NAME}: the weights cannot be loaded ({error}); restore the file or train again",
            code="model.weights_invalid",
        ) from None
    except (RecipeError, RuntimeError, TypeError, ValueError, MemoryError) as error:  # RuntimeError: no memory
        raise RunError(
            f"{folder / CONFIG_NAME}: its networks cannot be built here ({describe_error(error)}); restore the file",
            code="model.config_invalid",
        ) from None


def check_calibration_fits(calibration: Calibration, config: ModelConfig, joint: "JointModel", folder: Path) -> None:
    """Refuse a calibration of other classes or of a network with other features.

    Raises:
        RunError: it does not belong to the model (code `model.calibration_invalid`).
    """
    from urnet.nets.features import count_features

    problem = ""
    if calibration.classes != config.classes:
        problem = f"its classes ({', '.join(calibration.classes)}) are not the model's ({', '.join(config.classes)})"
    else:
        sizes = count_features(joint, config.channels, config.size)
        calibrated = tuple(axes.shape[1] for axes in calibration.rejection.distance.whiten)
        if sizes is not None and sizes != calibrated:
            problem = f"it describes features of the sizes {calibrated}, and those of the networks are {sizes}"
    if problem:
        raise RunError(
            f"{folder / JSON_NAME}: {problem}; make it with `urnet calibrate`", code="model.calibration_invalid"
        )

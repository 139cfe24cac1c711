"""Files of a calibration, beside the weights of its model: `calibration.json` and `calibration.safetensors`."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from urnet.calibration.calibration import Calibration
from urnet.calibration.confusion import ReferenceCells
from urnet.calibration.mahalanobis import MahalanobisDistance
from urnet.calibration.rejection import CHECKS, Rejection
from urnet.errors import RunError
from urnet.files.atomic import atomic_file
from urnet.files.json_files import Text, describe_error, read_canonical_json

FORMAT = 2
JSON_NAME, TENSORS_NAME = "calibration.json", "calibration.safetensors"

PARTS = ("train", "validation", "test")


def encode_calibration(calibration: Calibration) -> dict[str, bytes]:
    """Encode both files, by name. The JSON, which holds the hash of the other, comes last."""
    from safetensors.numpy import save

    rejection, distance = calibration.rejection, calibration.rejection.distance
    tensors = {
        "rejection.quantiles": rejection.quantiles,
        "rejection.tails": rejection.tails,
        "distance.centre": distance.centre,
        "distance.spread": distance.spread,
        "reference.probabilities": calibration.reference.probabilities,
        "reference.truth": calibration.reference.truth,
        "reference.rejected": calibration.reference.rejected,
        "reference.donors": _known_donors(calibration.reference),
        **{f"scores.{k}": scores for k, scores in enumerate(calibration.scores)},
        **{f"distance.whiten.{depth}": axes for depth, axes in enumerate(distance.whiten)},
    }
    content = save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()})
    about = {
        "format": FORMAT,
        "classes": calibration.classes,
        "temperature": calibration.temperature,
        "false_rejection": calibration.false_rejection,
        "level": rejection.level,
        "checks": [[CHECKS[i].measure, CHECKS[i].side] for i in rejection.checks],
        "limits": rejection.limits(),
        "confusion": calibration.confusion.tolist(),
        "reference_part": calibration.reference_part,
        "scores_part": calibration.scores_part,
        "parts": calibration.parts,
        "depths": len(distance.whiten),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    return {TENSORS_NAME: content, JSON_NAME: (json.dumps(about, indent=2, ensure_ascii=False) + "\n").encode()}


def save_calibration(calibration: Calibration, folder: Path) -> None:
    """Write both files to a bundle."""
    for name, content in encode_calibration(calibration).items():
        with atomic_file(folder / name) as file:
            file.write(content)


def load_calibration(folder: Path) -> Calibration:
    """Read both files of a bundle.

    Raises:
        RunError: a file is missing, damaged or holds impossible values, the files do not belong together (code
            `model.calibration_invalid`), or they are newer than this program (code `model.newer`).
    """
    from safetensors.numpy import load

    path = folder / JSON_NAME
    try:
        content = read_canonical_json(path)
        about = _parse_json(content)
        packed = (folder / TENSORS_NAME).read_bytes()
        if hashlib.sha256(packed).hexdigest() != about.sha256:
            raise ValueError(f"{TENSORS_NAME} belongs to another calibration")
        return _assemble(about, load(packed))
    except RunError as error:
        raise RunError(f"{path}: {error}", code=error.code) from None
    except Exception as error:  # of JSON, safetensors and pydantic, without a common base
        raise RunError(
            f"{path}: the calibration is damaged ({describe_error(error)}); make it with `urnet calibrate`",
            code="model.calibration_invalid",
        ) from None


def _known_donors(reference: ReferenceCells) -> np.ndarray:
    return np.full(len(reference.truth), -1) if reference.donors is None else reference.donors


class _JsonContent(BaseModel):
    """The content of `calibration.json`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: Literal[1, 2]
    classes: Annotated[list[Text], Field(min_length=1, max_length=1000)]
    temperature: Annotated[float, Field(ge=0.01, le=1100)]
    false_rejection: Annotated[float, Field(gt=0, le=0.5)]
    level: Annotated[float, Field(gt=0, le=1)]
    checks: Annotated[
        list[tuple[Literal[*dict.fromkeys(check.measure for check in CHECKS)], Literal[-1, 1]]],  # type: ignore[valid-type]  # a computed Literal
        Field(min_length=1, max_length=len(CHECKS)),
    ]
    limits: Annotated[dict[Text, float], Field(max_length=len(CHECKS))]
    confusion: Annotated[list[list[Annotated[int, Field(ge=0)]]], Field(max_length=1000)]
    reference_part: Literal["test", "validation"]
    scores_part: Literal["test", "validation"] = "validation"  # not in format 1
    parts: dict[Literal[PARTS], Annotated[int, Field(ge=0)]]  # type: ignore[valid-type]  # a computed Literal
    depths: Annotated[int, Field(ge=1, le=1000)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _parse_json(content: bytes) -> _JsonContent:
    data = json.loads(content)
    if isinstance(data, dict) and type(data.get("format")) is int and data["format"] > FORMAT:
        raise RunError(
            f"written by a newer urnet (format {data['format']}, this one reads {FORMAT}); update urnet",
            code="model.newer",
        )
    return _JsonContent.model_validate_json(content)


def _assemble(about: _JsonContent, tensors: dict[str, np.ndarray]) -> Calibration:
    """Make the calibration that both files hold.

    Raises:
        ValueError: a tensor is missing, unknown, of another shape or type, or holds impossible values.
    """
    K = len(about.classes)
    order = [(check.measure, check.side) for check in CHECKS]
    checks = tuple(order.index(check) for check in about.checks)
    names = [f"scores.{k}" for k in range(K)] + [f"distance.whiten.{depth}" for depth in range(about.depths)]
    names += ["rejection.quantiles", "rejection.tails", "distance.centre", "distance.spread"]
    names += ["reference.probabilities", "reference.truth", "reference.rejected"]
    names += ["reference.donors"] if about.format > 1 else []
    for name in sorted(set(names) ^ tensors.keys()):
        raise ValueError(f"tensor {name[:80]} is {'missing' if name in names else 'unknown'} in {TENSORS_NAME}")

    def floats(name: str, *shape: int | None) -> np.ndarray:
        """Get a tensor of finite numbers with a shape; None stands for any length but 0."""
        array = tensors[name]
        fits = array.ndim == len(shape) and all(
            n == want or (want is None and n) for n, want in zip(array.shape, shape, strict=True)
        )
        if array.dtype not in (np.float32, np.float64) or not fits or not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite numbers of shape {shape}, found {array.dtype}, {array.shape}")
        return array

    def require(holds: bool, what: str) -> None:
        if not holds:
            raise ValueError(what)

    require(len(set(checks)) == len(checks), "a check is listed twice")
    require(len(set(about.classes)) == K, "a class is listed twice")
    quantiles, tails = floats("rejection.quantiles", len(checks), None), floats("rejection.tails", len(checks), 3)
    slack = 1e-9 * np.abs(quantiles).max(axis=1, keepdims=True)
    require(bool((np.diff(quantiles, axis=1) >= -slack).all()), "rejection.quantiles must ascend")
    require(bool((tails[:, 1:] > 0).all() and (tails[:, 1] <= 1).all()), "rejection.tails has a share outside 0 to 1")
    whiten = tuple(floats(f"distance.whiten.{depth}", None, None) for depth in range(about.depths))
    centre, spread = floats("distance.centre", None), floats("distance.spread", about.depths, 2)
    require(sum(axes.shape[1] for axes in whiten) == len(centre), "distance.whiten and distance.centre do not fit")
    require(bool((spread[:, 1] > 0).all()), "distance.spread has a deviation that is not above 0")
    scores = []
    for name in (f"scores.{k}" for k in range(K)):
        values = floats(name, None) if tensors[name].shape != (0,) else tensors[name]
        within = values.size == 0 or (values.min() >= -1e-6 and values.max() <= 1 + 1e-6)
        require(within and bool((np.diff(values) >= 0).all()), f"{name} must be ascending scores from 0 to 1")
        scores.append(values)
    probabilities = floats("reference.probabilities", None, K)
    truth, rejected = tensors["reference.truth"], tensors["reference.rejected"]
    require(
        bool((probabilities >= 0).all()) and bool(np.allclose(probabilities.sum(axis=1), 1, atol=1e-3)),
        "reference.probabilities must be probabilities",
    )
    require(
        truth.dtype == np.int64 and truth.shape == probabilities.shape[:1] and bool(((truth >= 0) & (truth < K)).all()),
        "reference.truth must be class numbers",
    )
    require(rejected.dtype == bool and rejected.shape == truth.shape, "reference.rejected must be true or false")
    donors = tensors.get("reference.donors")
    require(
        donors is None or (donors.dtype == np.int64 and donors.shape == truth.shape and bool((donors >= -1).all())),
        "reference.donors must be numbers of donors",
    )
    calibration = Calibration(
        classes=tuple(about.classes),
        temperature=about.temperature,
        scores=tuple(scores),
        rejection=Rejection(checks, quantiles, tails, about.level, MahalanobisDistance(centre, whiten, spread)),
        reference=ReferenceCells(probabilities, truth, rejected, donors),
        reference_part=about.reference_part,
        scores_part=about.scores_part,
        parts={part: about.parts[part] for part in PARTS if part in about.parts},
        false_rejection=about.false_rejection,
    )
    require(calibration.confusion.tolist() == about.confusion, "the confusion is not that of the reference cells")
    return calibration

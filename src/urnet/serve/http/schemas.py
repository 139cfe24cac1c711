"""Schemas of the API's answers."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from urnet.calibration.conformal import COVERAGE, split_set
from urnet.serve.http.errors import FileProblem
from urnet.serve.results import ImageResult, SampleCount
from urnet.serve.services import Services
from urnet.serve.uploads.receive import Upload
from urnet.version import __version__


class Prediction(BaseModel):
    """Prediction for one image, or the reason for which the image is unusable."""

    file: str
    """Name of the file, as it was sent."""
    image: str
    """The image in the file: the file itself, a page (`stack.tif#p001`) or a tile (`montage.tif#r00c01`)."""
    predicted: str | None = None
    probabilities: dict[str, float] | None = None
    rejected: str | None = None
    """Reason for which the image shows no countable cell; empty for a countable one, absent without calibration."""
    set: list[str] | None = None
    """Prediction set at 90 % coverage; absent without calibration."""
    error: str | None = None
    """Reason for which the image is unusable."""
    code: str | None = None
    """Stable code of the error, such as `images.too_large`."""

    @classmethod
    def from_result(cls, services: Services, upload: Upload, result: ImageResult) -> "Prediction":
        """Describe the result of one image."""
        if result.error:
            return cls(file=upload.name, image=result.path, error=result.error, code=result.code)
        calibrated: dict[str, Any] = {}
        if services.is_calibrated:
            calibrated = {"rejected": result.row["rejected"], "set": split_set(result.row["set"])}
        return cls(
            file=upload.name,
            image=result.path,
            predicted=result.row["predicted"],
            probabilities={name: result.row[f"p_{name}"] for name in services.model.classes},
            **calibrated,
        )


class Predictions(BaseModel):
    """The answer of `/v1/predict`."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "model": "0f3a…",
                "engine": "onnx",
                "results": [
                    {
                        "file": "cell.png",
                        "image": "cell.png",
                        "predicted": "lymphocyte",
                        "probabilities": {"granulocyte": 0.021, "lymphocyte": 0.958, "monocyte": 0.021},
                        "rejected": "",
                        "set": ["lymphocyte"],
                    },
                    {
                        "file": "half.png",
                        "image": "half.png",
                        "error": "half.png: damaged or incomplete image",
                        "code": "images.damaged",
                    },
                ],
            }
        }
    )
    model: str
    """Digest of the model: configuration, weights and calibration."""
    engine: str
    """Engine that ran the networks."""
    results: list[Prediction]
    """One result for each image, in the order of the files."""


class ClassCount(BaseModel):
    """Count of one class; percentages are of the accepted cells."""

    count: int
    raw_percent: float | None
    percent: float | None
    """Corrected for the confusion of the classifier."""
    interval: list[float | None]
    """95 % interval of `percent`."""
    em_percent: float | None
    em_interval: list[float | None] | None


class Differential(BaseModel):
    """The answer of `/v1/differential`: the entry of a sample in `differential.json`."""

    model: str
    engine: str
    sample: str
    fields: bool
    """Whether the cells were cropped from fields of view."""
    cells: int
    accepted: int
    rejected: dict[str, int]
    """Number of rejected cells by reason."""
    rejected_percent: float
    classes: dict[str, ClassCount]
    interval_method: str
    """What the intervals account for."""
    warnings: list[str]
    more_cells_needed: int | None
    more_calibration_cells_needed: int | None
    notes: list[str]
    failed: list[FileProblem]
    """Images that could not be used."""

    @classmethod
    def from_count(cls, services: Services, count: SampleCount) -> "Differential":
        """Describe the count of a sample."""
        return cls(
            model=services.digest,
            engine=services.engine,
            fields=count.fields,
            notes=count.notes,
            failed=[FileProblem.from_result(result) for result in count.failed],
            **count.sample.to_json(),
        )


class Limits(BaseModel):
    """Limits of one request."""

    max_bytes: int
    max_files: int
    max_pixels: int
    max_images: int
    file_pixels: int
    field_pixels: int
    request_seconds: float


class About(BaseModel):
    """The answer of `/v1/model`."""

    name: str
    model: str
    """Digest of the model's files, as `urnet about` shows it."""
    sealed: bool
    """Whether the files carry a valid seal."""
    classes: list[str]
    size: int
    """Edge of the network's input, in pixels; images are resized to it."""
    channels: Literal[1, 3]
    depth: str
    """Data type of the pixels: `uint8`, `uint16`, `float32` or `any`."""
    tile: int | None
    """Edge of the tiles of montages, in pixels, for a model that was trained on montages."""
    seed: int
    epoch: int
    protocol: str
    calibrated: bool
    coverage: float | None
    """Coverage of the prediction sets."""
    cuts_fields: bool
    """Whether `/v1/differential` accepts fields of view."""
    engine: str
    version: str
    use: Literal["research use only"] = "research use only"
    limits: Limits

    @classmethod
    def of(cls, services: Services) -> "About":
        """Describe the model of a server."""
        config = services.model.config
        return cls(
            name=config.name,
            model=services.digest,
            sealed=services.model.is_sealed,
            classes=list(config.classes),
            size=config.size,
            channels=config.channels,
            depth=config.scaling.dtype,
            tile=config.tile,
            seed=config.seed,
            epoch=config.epoch,
            protocol=config.protocol,
            calibrated=services.is_calibrated,
            coverage=COVERAGE if services.is_calibrated else None,
            cuts_fields=services.can_crop_fields,
            engine=services.engine,
            version=__version__,
            limits=Limits(**services.settings.model_dump(include=set(Limits.model_fields))),
        )


class Health(BaseModel):
    """State of the server."""

    status: Literal["ok"] = "ok"

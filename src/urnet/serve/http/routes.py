"""The API for instruments: `/v1/predict`, `/v1/differential`, `/v1/model`, and whether the server is well."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import APIRouter, File, Form, UploadFile
from pydantic import BaseModel, ConfigDict

from urnet.calibration.conformal import COVERAGE, split_set
from urnet.serve.http.errors import FileProblem, RequestError, problem_responses
from urnet.serve.services import ImageResult, SampleCount, Services, UnreadableError
from urnet.serve.uploads.receive import Upload, store_uploads
from urnet.serve.uploads.storage import UploadFolder
from urnet.version import __version__

EVERYWHERE = problem_responses(401, 403, 413, 429)
WITH_FILES = EVERYWHERE | problem_responses(400, 408, 413, 422, 503, 507)

Files = Annotated[
    list[UploadFile],
    File(min_length=1, description="Images: PNG, JPEG, BMP or TIFF, of 8 bits, 16 bits or float, at their own depth."),
]

PixelSize = Annotated[
    float | None,
    Form(
        gt=0,
        le=1000,
        allow_inf_nan=False,
        description="µm a pixel of the fields of view, all of them; stands before what the files say.",
    ),
]

UNUSED_PIXEL_SIZE = "pixel_size_um was not used: these are crops, which are classified as they are."


class Prediction(BaseModel):
    """What is said of one image: a class, or why it could not be used."""

    file: str
    """Name of the file, as it was sent."""
    image: str
    """The image in it: the file itself, a page (`stack.tif#p001`) or a tile (`montage.tif#r00c01`)."""
    predicted: str | None = None
    probabilities: dict[str, float] | None = None
    rejected: str | None = None
    """Why the image shows no countable cell; empty where it does, absent where the model is not calibrated."""
    set: list[str] | None = None
    """Classes that cannot be ruled out at 90 % coverage; absent where the model is not calibrated."""
    error: str | None = None
    """Why the image could not be used."""


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
                    {"file": "half.png", "image": "half.png", "error": "half.png: damaged or incomplete image"},
                ],
            }
        }
    )
    model: str
    """Digest of the model: configuration, weights and calibration."""
    engine: str
    """What ran the networks."""
    results: list[Prediction]
    """A result an image, in the order of the files."""


class ClassCount(BaseModel):
    """The count of one class, in per cent of the accepted cells."""

    count: int
    raw_percent: float | None
    percent: float | None
    """Corrected for the classifier's confusion."""
    interval: list[float | None]
    """95 % interval of it."""
    em_percent: float | None
    em_interval: list[float | None] | None


class Differential(BaseModel):
    """The answer of `/v1/differential`: what `differential.json` holds of a sample."""

    model: str
    engine: str
    sample: str
    fields: bool
    """Whether cells were cut out of fields of view."""
    cells: int
    accepted: int
    rejected: dict[str, int]
    """By reason."""
    rejected_percent: float
    classes: dict[str, ClassCount]
    warnings: list[str]
    more_cells_needed: int | None
    more_calibration_cells_needed: int | None
    notes: list[str]
    failed: list[FileProblem]
    """Images that could not be used."""


class Limits(BaseModel):
    """What one request may hold."""

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
    """Whether the files carried a seal, which fitted."""
    classes: list[str]
    size: int
    """Edge of the network's input, px; images are brought to it."""
    channels: Literal[1, 3]
    depth: str
    """Of the pixels that it takes: `uint8`, `uint16`, `float32` or `any`."""
    tile: int | None
    """Edge of the tiles of montages, px, if it was trained on those."""
    seed: int
    epoch: int
    protocol: str
    calibrated: bool
    coverage: float | None
    """Of the prediction sets."""
    cuts_fields: bool
    """Whether `/v1/differential` takes fields of view."""
    engine: str
    version: str
    use: Literal["research use only"] = "research use only"
    limits: Limits


class Health(BaseModel):
    """That the server is well."""

    status: Literal["ok"] = "ok"


def api_routes(services: Services) -> APIRouter:
    """The API of a web application."""
    router = APIRouter()

    @router.post("/v1/predict", responses=WITH_FILES, tags=["classify"], response_model_exclude_none=True)
    async def predict(files: Files) -> Predictions:
        """Classify images, as `urnet predict` does: a result an image; 422 where none of them can be used."""
        results: list[Prediction] = []
        async with _received(services, files) as (_, uploads), aclosing(services.classify(uploads)) as parts:
            number = 0
            async for part in parts:
                results += [
                    _prediction(services, uploads[number].name, answer) for answer in part if not answer.is_padding
                ]
                number += 1
        if all(result.error for result in results):
            _refuse_all([FileProblem(file=one.image, error=one.error or "") for one in results])
        return Predictions(model=services.digest, engine=services.engine, results=results)

    @router.post("/v1/differential", responses=WITH_FILES, tags=["count"])
    async def differential(
        files: Files,
        sample: Annotated[str, Form(description="Name of the sample.", max_length=200)] = "sample",
        partial: Annotated[bool, Form(description="Count the other fields of view where some cannot be read.")] = False,
        pixel_size_um: PixelSize = None,
    ) -> Differential:
        """Count the cells of one sample, as `urnet differential` does, from fields of view or from crops."""
        async with _received(services, files, pixel_um=pixel_size_um) as (folder, uploads):
            refused = [FileProblem(file=upload.name, error=upload.error) for upload in uploads if upload.error]
            if len(refused) == len(uploads):
                _refuse_all(refused)
            try:
                counted = await services.count(sample, folder, uploads, partial=partial)
                unused = pixel_size_um is not None and not counted.fields
                return _differential(services, counted, [UNUSED_PIXEL_SIZE] if unused else [])
            except UnreadableError as error:
                lost = [FileProblem(file=one.path, error=one.error) for one in error.unreadable]
                raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, str(error), files=lost, code=error.code) from None

    @router.get("/v1/model", responses=EVERYWHERE | problem_responses(503), tags=["server"])
    async def model() -> About:
        """Which model answers, on what it was trained to work, and what a request may hold."""
        return _about(services)

    @router.get("/healthz", responses=problem_responses(403), tags=["server"])
    async def healthz() -> Health:
        """Whether the process lives."""
        return Health()

    @router.get("/readyz", responses=problem_responses(403, 503), tags=["server"])
    async def readyz() -> Health:
        """Whether it can classify."""
        if not services.is_ready:
            raise RequestError(HTTPStatus.SERVICE_UNAVAILABLE, "the networks are not running; start the server again")
        return Health()

    return router


@asynccontextmanager
async def _received(
    services: Services, files: list[UploadFile], *, pixel_um: float | None = None
) -> AsyncIterator[tuple[UploadFolder, list[Upload]]]:
    """The files of a request, put aside for as long as it may take."""
    settings, _ = services.settings, services.model
    if len(files) > settings.max_files:
        raise RequestError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"{len(files)} files, but {settings.max_files} are allowed in one request; send several requests",
            code="request.too_many_files",
        )
    folder = await asyncio.to_thread(UploadFolder, services.storage)
    try:
        async with asyncio.timeout(settings.request_seconds):
            named = [(file.filename or "", file.file) for file in files]
            yield folder, await asyncio.to_thread(store_uploads, folder, named, pixel_um=pixel_um)
    except TimeoutError:
        raise RequestError(
            HTTPStatus.SERVICE_UNAVAILABLE,
            f"this took longer than the {settings.request_seconds:g} s that a request may take; send fewer files",
            retry_after=services.decoders.backlog_seconds() + services.network.backlog_seconds(),
            code="request.too_long",
        ) from None
    finally:
        await asyncio.to_thread(folder.close)


def _refuse_all(problems: list[FileProblem]) -> None:
    first = (
        f"{problems[0].file}: {problems[0].error.removeprefix(f'{problems[0].file}: ')}" if problems else "no images"
    )
    raise RequestError(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        f"none of the images can be used; the first: {first}",
        files=problems or None,
        code="images.none_usable",
    )


def _prediction(services: Services, file: str, answer: ImageResult) -> Prediction:
    if answer.error:
        return Prediction(file=file, image=answer.path, error=answer.error)
    trust: dict[str, Any] = {}
    if services.model.calibration is not None:
        trust = {"rejected": answer.row["rejected"], "set": split_set(answer.row["set"])}
    return Prediction(
        file=file,
        image=answer.path,
        predicted=answer.row["predicted"],
        probabilities={name: answer.row[f"p_{name}"] for name in services.model.classes},
        **trust,
    )


def _differential(services: Services, counted: SampleCount, notes: list[str]) -> Differential:
    return Differential(
        model=services.digest,
        engine=services.engine,
        fields=counted.fields,
        notes=[*counted.notes, *notes],
        failed=[FileProblem(file=answer.path, error=answer.error) for answer in counted.failed],
        **counted.sample.to_json(),
    )


def _about(services: Services) -> About:
    config, calibrated = services.model.config, services.model.calibration is not None
    return About(
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
        calibrated=calibrated,
        coverage=COVERAGE if calibrated else None,
        cuts_fields=calibrated and services.model.cropping is not None,
        engine=services.engine,
        version=__version__,
        limits=Limits(**services.settings.model_dump(include=set(Limits.model_fields))),
    )

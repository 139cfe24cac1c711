"""Routes of the API for instruments: predictions, differential, model, and health."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, File, Form, UploadFile

from urnet.serve.http.errors import RequestError, problem_responses
from urnet.serve.http.schemas import About, Differential, Health, Prediction, Predictions
from urnet.serve.services import Services
from urnet.serve.uploads.receive import Upload, store_uploads
from urnet.serve.uploads.storage import UploadFolder

ALL_ROUTES = problem_responses(401, 403, 413, 429)
MODEL_ROUTES = ALL_ROUTES | problem_responses(503)
FILE_ROUTES = MODEL_ROUTES | problem_responses(400, 408, 413, 422, 507)

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
        description="Pixel size of all fields of view, in µm; replaces the pixel sizes in the files.",
    ),
]


def api_routes(services: Services) -> APIRouter:
    """Create the routes of the API."""
    router = APIRouter()

    @router.post("/v1/predict", responses=FILE_ROUTES, tags=["classify"], response_model_exclude_none=True)
    async def predict(files: Files) -> Predictions:
        """Classify images, as `urnet predict` does: one result for each image; 422 if no image can be used."""
        async with _receive(services, files) as (_, uploads):
            results = await services.classify_all(uploads)
        predictions = [Prediction.from_result(services, upload, result) for upload, result in results]
        return Predictions(model=services.digest, engine=services.engine, results=predictions)

    @router.post("/v1/differential", responses=FILE_ROUTES, tags=["count"])
    async def differential(
        files: Files,
        sample: Annotated[str, Form(description="Name of the sample.", max_length=200)] = "sample",
        partial: Annotated[bool, Form(description="Count the other fields of view where some cannot be read.")] = False,
        pixel_size_um: PixelSize = None,
    ) -> Differential:
        """Count the cells of one sample, as `urnet differential` does, from fields of view or from crops."""
        async with _receive(services, files, pixel_um=pixel_size_um) as (folder, uploads):
            has_pixel_size = pixel_size_um is not None
            count = await services.count(sample, folder, uploads, partial=partial, has_pixel_size=has_pixel_size)
        return Differential.from_count(services, count)

    @router.get("/v1/model", responses=MODEL_ROUTES, tags=["server"])
    async def model() -> About:
        """Describe the model and the limits of a request."""
        return About.of(services)

    @router.get("/healthz", responses=problem_responses(403), tags=["server"])
    async def healthz() -> Health:
        """Report that the process runs."""
        return Health()

    @router.get("/readyz", responses=problem_responses(403, 503), tags=["server"])
    async def readyz() -> Health:
        """Report whether the server can classify."""
        if not services.is_ready:
            raise RequestError(HTTPStatus.SERVICE_UNAVAILABLE, "the networks are not running; restart the server")
        return Health()

    return router


@asynccontextmanager
async def _receive(
    services: Services, files: list[UploadFile], *, pixel_um: float | None = None
) -> AsyncIterator[tuple[UploadFolder, list[Upload]]]:
    """Store the files of a request for as long as its answer takes.

    Raises:
        NoModelError: the server runs without a model.
        RequestError: there are too many files, or the answer takes too long.
    """
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

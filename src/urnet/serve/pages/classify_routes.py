"""Routes of the page Classify: uploads, pictures and exports. Each browser sees only its own sample."""

import asyncio
import io
from http import HTTPStatus
from typing import Annotated, Literal

import numpy as np
from fastapi import APIRouter, File, Form, Request, UploadFile
from fastapi.responses import Response

from urnet.errors import ImageError
from urnet.serve.classification_job import MAX_JOBS, ClassificationJob
from urnet.serve.http.errors import RequestError
from urnet.serve.http.routes import PixelSize
from urnet.serve.pages.components.cell_dialog import COLORMAPS
from urnet.serve.pages.components.responses import CACHED, download
from urnet.serve.pages.sessions import Session
from urnet.serve.services import NoModelError, Services
from urnet.serve.uploads.receive import display_name
from urnet.serve.uploads.storage import StorageFullError

JOB = "classify"
"""Name of the job in the data of a session."""

REPLACED = "this sample was replaced by a newer one in this browser"


def create_router(services: Services) -> APIRouter:
    """Create the routes below `/classify`."""
    router = APIRouter(prefix="/classify", include_in_schema=False)
    slots = asyncio.Semaphore(MAX_JOBS)

    @router.post("")
    async def start_sample(
        request: Request, sample: Annotated[str, Form(max_length=200)] = "", pixel_size_um: PixelSize = None
    ) -> dict[str, str]:
        if not services.has_model:
            raise NoModelError
        session: Session = request.scope["urnet.session"]
        previous = session.data.pop(JOB, None)
        if isinstance(previous, ClassificationJob):
            previous.close()
            session.replaced_samples.append(previous.key)
        job = session.data[JOB] = ClassificationJob(
            services, slots, display_name(sample.strip() or "sample"), pixel_size_um
        )
        return {"key": job.key}

    @router.post("/{key}/files")
    async def upload(request: Request, key: str, files: Annotated[list[UploadFile], File()]) -> dict[str, int]:
        job = _find_job(request, key)
        try:
            await asyncio.to_thread(job.add, [(file.filename or "", file.file) for file in files])
        except FileNotFoundError:
            raise RequestError(HTTPStatus.CONFLICT, REPLACED) from None
        except (StorageFullError, OSError):  # a part of a sample is of no use
            data = request.scope["urnet.session"].data
            if data.get(JOB) is job:
                del data[JOB]
            job.close()
            raise
        return {"files": len(job.uploads)}

    @router.post("/{key}/start")
    async def start(request: Request, key: str) -> dict[str, int]:
        job = _find_job(request, key)
        job.start()
        return {"files": len(job.uploads)}

    @router.get("/{key}/{number:int}/{picture}.png")
    async def cell_picture(
        request: Request, key: str, number: int, picture: Literal["raw", "enhanced", "viridis", "blue-red"]
    ) -> Response:
        if _was_replaced(request, key):
            return Response(status_code=HTTPStatus.NO_CONTENT)
        job = _find_job(request, key)
        if not 0 <= number < len(job.images):
            raise RequestError(HTTPStatus.NOT_FOUND, f"image {number}: this sample has no image of this number")
        try:
            raw = pixels = await job.picture(number, "raw")
            if picture != "raw":
                pixels = await job.picture(number, "heat" if picture in COLORMAPS else "enhanced")
        except ImageError:
            if job.state == "closed":
                return Response(status_code=HTTPStatus.NO_CONTENT)
            raise
        if raw is None or pixels is None:
            raise RequestError(HTTPStatus.NOT_FOUND, f"image {number}: it has no picture of this kind")
        if picture in COLORMAPS:
            from urnet.nets.gradcam import overlay

            shown = await asyncio.to_thread(overlay, np.moveaxis(raw, 0, -1), pixels, COLORMAPS[picture])
        else:
            shown = np.rint(255 * np.moveaxis(pixels, 0, -1)).astype(np.uint8)
        content = await asyncio.to_thread(_encode_png, shown if shown.shape[2] == 3 else shown[..., 0])
        return Response(content, media_type="image/png", headers=CACHED)

    @router.get("/{key}/field/{number:int}.png")
    async def field_picture(request: Request, key: str, number: int) -> Response:
        if _was_replaced(request, key):
            return Response(status_code=HTTPStatus.NO_CONTENT)
        fields = _find_job(request, key).cropped.fields
        if not 0 <= number < len(fields):
            raise RequestError(HTTPStatus.NOT_FOUND, f"field {number}: this sample has no field of this number")
        try:
            content = await asyncio.to_thread(fields[number].image.read_bytes)
        except FileNotFoundError:
            return Response(status_code=HTTPStatus.NO_CONTENT)
        return Response(content, media_type="image/png", headers=CACHED)

    @router.get("/{key}/predictions.csv")
    async def predictions(request: Request, key: str) -> Response:
        return download("predictions.csv", _encode_text(_find_job(request, key).to_csv()), "text/csv")

    @router.get("/{key}/report.html")
    async def report(request: Request, key: str) -> Response:
        page = _find_job(request, key).report()
        if page is None:
            raise RequestError(
                HTTPStatus.NOT_FOUND, "this sample has no differential yet, or the model is not calibrated"
            )
        return download("report.html", _encode_text(page), "text/html")

    return router


def _was_replaced(request: Request, key: str) -> bool:
    """Return whether a newer sample of this browser has replaced the sample.

    The page may still request pictures of it, until it shows the newer one.
    """
    session: Session = request.scope["urnet.session"]
    return key in session.replaced_samples


def _find_job(request: Request, key: str) -> ClassificationJob:
    session: Session = request.scope["urnet.session"]
    job = session.data.get(JOB)
    if not isinstance(job, ClassificationJob) or job.key != key:
        raise RequestError(HTTPStatus.NOT_FOUND, "this browser has no such sample; a newer one may have replaced it")
    return job


def _encode_png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _encode_text(content: str) -> bytes:
    """Encode as UTF-8. File names may contain surrogates, which UTF-8 cannot encode."""
    return content.encode("utf-8", "backslashreplace")

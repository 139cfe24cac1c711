"""What the page's script asks for besides the page: to take files, to show pictures, to hand out results."""

import asyncio
import io
from http import HTTPStatus
from typing import Annotated, Literal

import numpy as np
from fastapi import APIRouter, File, Form, Request, UploadFile
from fastapi.responses import Response

from urnet.errors import ImageError
from urnet.serve.classification_job import AT_ONCE, ClassificationJob
from urnet.serve.http.errors import RequestError
from urnet.serve.http.routes import PixelSize
from urnet.serve.pages.components.responses import CACHED, saved_as
from urnet.serve.pages.sessions import Session
from urnet.serve.services import Services
from urnet.serve.uploads.receive import display_name
from urnet.serve.uploads.storage import StorageFullError

KEPT = "classify"
REPLACED = "this sample is gone; another one was begun since"
MAPS = {"viridis": "viridis", "blue-red": "jet"}
"""Colours of Grad-CAM: legible to everybody, and as the paper has them."""


def routes(services: Services) -> APIRouter:
    """The addresses below `/classify`; each browser sees only what it sent itself."""
    router = APIRouter(prefix="/classify", include_in_schema=False)
    turn = asyncio.Semaphore(AT_ONCE)

    @router.post("")
    async def begin(
        request: Request, sample: Annotated[str, Form(max_length=200)] = "", pixel_size_um: PixelSize = None
    ) -> dict[str, str]:
        session: Session = request.scope["urnet.session"]
        before = session.kept.pop(KEPT, None)
        if before is not None:
            before.close()
        made = session.kept[KEPT] = ClassificationJob(
            services, turn, display_name(sample.strip() or "sample"), pixel_size_um
        )
        return {"key": made.key}

    @router.post("/{key}/files")
    async def take(request: Request, key: str, files: Annotated[list[UploadFile], File()]) -> dict[str, int]:
        mine = _mine(request, key)
        try:
            await asyncio.to_thread(mine.add, [(file.filename or "", file.file) for file in files])
        except FileNotFoundError:
            raise RequestError(HTTPStatus.CONFLICT, "this sample was given up; begin a new one") from None
        except (StorageFullError, OSError):  # nobody can do anything with the part that had room
            kept = request.scope["urnet.session"].kept
            if kept.get(KEPT) is mine:
                del kept[KEPT]
            mine.close()
            raise
        return {"files": len(mine.uploads)}

    @router.post("/{key}/start")
    async def start(request: Request, key: str) -> dict[str, int]:
        mine = _mine(request, key)
        mine.start()
        return {"files": len(mine.uploads)}

    @router.get("/{key}/{number:int}/{what}.png")
    async def picture(
        request: Request, key: str, number: int, what: Literal["raw", "enhanced", "viridis", "blue-red"]
    ) -> Response:
        mine = _mine(request, key)
        if not 0 <= number < len(mine.seen):
            raise RequestError(HTTPStatus.NOT_FOUND, f"image {number}: there is none of this number")
        try:
            raw = await mine.picture(number, "raw")
            pixels = raw if what == "raw" else await mine.picture(number, "heat" if what in MAPS else "enhanced")
        except ImageError:
            if mine.state == "closed":
                raise RequestError(HTTPStatus.GONE, REPLACED) from None
            raise
        if raw is None or pixels is None:
            raise RequestError(HTTPStatus.NOT_FOUND, f"image {number}: there is no such picture of it")
        if what in MAPS:
            from urnet.nets.gradcam import overlay

            return _png(overlay(np.moveaxis(raw, 0, -1), pixels, MAPS[what]))
        eight = np.rint(255 * np.moveaxis(pixels, 0, -1)).astype(np.uint8)
        return _png(eight if eight.shape[2] == 3 else eight[..., 0])

    @router.get("/{key}/field/{number:int}.png")
    async def field(request: Request, key: str, number: int) -> Response:
        fields = _mine(request, key).cut.fields
        if not 0 <= number < len(fields):
            raise RequestError(HTTPStatus.NOT_FOUND, f"field {number}: there is none of this number")
        try:
            content = await asyncio.to_thread(fields[number].image.read_bytes)
        except FileNotFoundError:
            raise RequestError(HTTPStatus.GONE, REPLACED) from None
        return Response(content, media_type="image/png", headers=CACHED)

    @router.get("/{key}/predictions.csv")
    async def predictions(request: Request, key: str) -> Response:
        return saved_as("predictions.csv", _encoded(_mine(request, key).to_csv()), "text/csv")

    @router.get("/{key}/report.html")
    async def report(request: Request, key: str) -> Response:
        page = _mine(request, key).report()
        if page is None:
            raise RequestError(HTTPStatus.NOT_FOUND, "nothing is counted yet, or the model is not calibrated")
        return saved_as("report.html", _encoded(page), "text/html")

    return router


def _mine(request: Request, key: str) -> ClassificationJob:
    session: Session = request.scope["urnet.session"]
    mine = session.kept.get(KEPT)
    if not isinstance(mine, ClassificationJob) or mine.key != key:
        raise RequestError(HTTPStatus.NOT_FOUND, "this browser has no such sample; another one was begun since")
    return mine


def _png(pixels: np.ndarray) -> Response:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return Response(file.getvalue(), media_type="image/png", headers=CACHED)


def _encoded(content: str) -> bytes:
    """Names of files may hold what is no text."""
    return content.encode("utf-8", "backslashreplace")

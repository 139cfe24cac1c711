"""Errors as problem details (RFC 9457): what was found, the rule, what to do, and the request that it was."""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import Scope

from urnet.errors import UrnetError
from urnet.serve.scratch import DISK_FULL, FullError, is_disk_full

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"

FULL_SECONDS = 30
"""After which it is worth trying again where the server holds as much as it may."""


class FileProblem(BaseModel):
    """What is wrong with one file."""

    file: str
    error: str


class Problem(BaseModel):
    """An error, as RFC 9457 has it."""

    type: str = "about:blank"
    title: str
    """The status in words."""
    status: int
    detail: str
    """What was found, what the rule is, what to do."""
    request_id: str
    """As in the header X-Request-ID."""
    files: list[FileProblem] | None = None
    """File by file, where that says more."""


class Refused(HTTPException):
    """A request that is not answered as it was meant to be.

    Args:
        status: the HTTP status.
        detail: what was found, the rule, what to do.
        files: what is wrong with each file.
        retry_after: seconds after which it is worth trying again.
    """

    def __init__(
        self, status: int, detail: str, *, files: list[FileProblem] | None = None, retry_after: float | None = None
    ):
        headers = None if retry_after is None else {"Retry-After": str(max(1, round(retry_after)))}
        super().__init__(status, detail, headers)
        self.files = files


def problem(
    scope: Scope,
    status: int,
    detail: str,
    *,
    files: list[FileProblem] | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """The answer."""
    request_id = scope.get("urnet.request_id", "")
    body = Problem(
        title=HTTPStatus(status).phrase, status=status, detail=detail, request_id=request_id, files=files
    ).model_dump(exclude_none=True)
    about = {"X-Request-ID": request_id, **(headers or {})}
    return JSONResponse(body, status, about, media_type=MEDIA_TYPE)


def answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What the OpenAPI says of them."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {"schema": schema}}}
        for status in statuses
    }


def install(app: FastAPI) -> None:
    """Let every error of an app be answered so."""
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(FullError, _full)
    app.add_exception_handler(UrnetError, _mistaken)
    app.add_exception_handler(Exception, _failed)


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    detail = str(error.detail)
    if error.status_code == HTTPStatus.NOT_FOUND and detail == HTTPStatus.NOT_FOUND.phrase:
        detail = f"{request.url.path}: there is nothing here; /openapi.json says what there is"
    files = getattr(error, "files", None)
    return problem(request.scope, error.status_code, detail, files=files, headers=error.headers)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    found = [f"{'.'.join(str(part) for part in one['loc'][1:])}: {one['msg']}" for one in error.errors()]
    detail = "; ".join(found)
    if any("files" in one["loc"] or len(one["loc"]) < 2 for one in error.errors()):
        detail += "; send the images as multipart/form-data, each in a field 'files'"
    return problem(request.scope, HTTPStatus.UNPROCESSABLE_ENTITY, detail)


async def _full(request: Request, error: Exception) -> JSONResponse:
    about = {"Retry-After": str(FULL_SECONDS)}
    return problem(request.scope, HTTPStatus.TOO_MANY_REQUESTS, str(error), headers=about)


async def _mistaken(request: Request, error: Exception) -> JSONResponse:
    return problem(request.scope, HTTPStatus.UNPROCESSABLE_ENTITY, str(error))


async def _failed(request: Request, error: Exception) -> JSONResponse:
    if is_disk_full(error):
        return problem(request.scope, HTTPStatus.INSUFFICIENT_STORAGE, DISK_FULL)
    request_id = request.scope.get("urnet.request_id", "")
    logger.error("request %s failed", request_id, exc_info=error)
    return problem(
        request.scope,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        f"the server failed at this; its log says why, under request {request_id}",
    )

"""Errors as problem details (RFC 9457), each with a stable code and the id of the request."""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.types import Scope

from urnet.errors import UrnetError, list_first
from urnet.serve.results import ImageResult
from urnet.serve.uploads.storage import DISK_FULL, StorageFullError, is_disk_full

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"

FULL_SECONDS = 30
"""Time after which a client may try again when the upload storage is full, in seconds."""

CODES = {
    HTTPStatus.BAD_REQUEST: "request.malformed",
    HTTPStatus.UNAUTHORIZED: "access.token_needed",
    HTTPStatus.FORBIDDEN: "access.forbidden",
    HTTPStatus.NOT_FOUND: "request.not_found",
    HTTPStatus.METHOD_NOT_ALLOWED: "request.method_not_allowed",
    HTTPStatus.REQUEST_TIMEOUT: "request.body_too_slow",
    HTTPStatus.CONFLICT: "request.conflict",
    HTTPStatus.GONE: "request.gone",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "request.too_large",
    HTTPStatus.UNPROCESSABLE_ENTITY: "request.invalid",
    HTTPStatus.TOO_MANY_REQUESTS: "server.busy",
    HTTPStatus.INTERNAL_SERVER_ERROR: "server.failed",
    HTTPStatus.SERVICE_UNAVAILABLE: "server.unavailable",
    HTTPStatus.INSUFFICIENT_STORAGE: "server.disk_full",
}
"""Codes of problems without a code of their own, by status."""


STATUS_BY_CODE = {"server.no_model": HTTPStatus.SERVICE_UNAVAILABLE}
"""Statuses of errors that are not 422, by code."""


class FileProblem(BaseModel):
    """Problem of one file."""

    file: str
    error: str
    code: str
    """Stable code of the error, such as `images.too_large`."""

    @classmethod
    def from_result(cls, result: ImageResult) -> "FileProblem":
        """Describe an image that cannot be used."""
        return cls(file=result.path, error=result.error, code=result.code)


class Problem(BaseModel):
    """Problem details, as RFC 9457 defines them."""

    type: str = "about:blank"
    title: str
    """The status in words."""
    status: int
    detail: str
    """The problem, the rule and the fix."""
    code: str
    """Stable code of the problem, such as `request.too_large`; match this, not the detail."""
    request_id: str
    """Value of the header X-Request-ID."""
    files: list[FileProblem] | None = None
    """Problems of single files, if any."""


class RequestError(HTTPException):
    """A request that cannot be answered as intended.

    Args:
        status: HTTP status.
        detail: the problem, the rule and the fix.
        retry_after: time after which the client may try again, in seconds.
        code: stable code of the problem; by default that of the status.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        retry_after: float | None = None,
        code: str = "",
    ):
        headers = None if retry_after is None else {"Retry-After": str(max(1, round(retry_after)))}
        super().__init__(status, detail, headers)
        self.code = code


def problem_response(
    scope: Scope,
    status: int,
    detail: str,
    *,
    files: list[FileProblem] | None = None,
    headers: Mapping[str, str] | None = None,
    code: str = "",
) -> JSONResponse:
    """Create the answer to a request with a problem."""
    request_id = scope.get("urnet.request_id", "")
    body = Problem(
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        code=code or CODES.get(HTTPStatus(status), "request.failed"),
        request_id=request_id,
        files=files,
    ).model_dump(exclude_none=True)
    about = {"X-Request-ID": request_id, **(headers or {})}
    return JSONResponse(body, status, about, media_type=MEDIA_TYPE)


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe the answers of these statuses for the OpenAPI."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {"schema": schema}}}
        for status in statuses
    }


def add_error_handlers(app: FastAPI) -> None:
    """Make an app answer all errors with problem details."""
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(RequestValidationError, _answer_invalid_request)
    app.add_exception_handler(StorageFullError, _answer_full_storage)
    app.add_exception_handler(UrnetError, _answer_urnet_error)
    app.add_exception_handler(Exception, _answer_failure)


def describe_error(error: Exception, what: str) -> str:
    """Describe an error of a background task for a page; log an unexpected one.

    Args:
        error: the error.
        what: name of the task, for the log.
    """
    if is_disk_full(error):
        return DISK_FULL
    if isinstance(error, UrnetError):
        return str(error)
    logger.error("%s failed", what, exc_info=error)
    return "see the log of the server for the reason"


async def _answer_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, OSError) and not isinstance(
        error, RequestError
    ):  # storing the body failed, which is not the client's fault
        return await _answer_failure(request, error.__cause__)
    detail = str(error.detail)
    if error.status_code == HTTPStatus.NOT_FOUND and detail == HTTPStatus.NOT_FOUND.phrase:
        detail = f"{request.url.path}: no such address; /openapi.json lists all addresses"
    code = getattr(error, "code", "")
    return problem_response(request.scope, error.status_code, detail, headers=error.headers, code=code)


_EXAMPLE = "curl -F files=@cell1.png -F files=@cell2.png"


async def _answer_invalid_request(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    field_errors = [one for one in error.errors() if "files" not in one["loc"] and len(one["loc"]) > 1]
    details = [f"{'.'.join(str(part) for part in one['loc'][1:])}: {one['msg']}" for one in field_errors]
    code = "request.invalid"
    if len(field_errors) < len(error.errors()):
        given = error.body.multi_items() if isinstance(error.body, FormData) else []
        nameless = [name for name, value in given if name == "files" and isinstance(value, str)]
        others = sorted({name for name, _ in given if name != "files"})
        if nameless:
            why = f"{len(nameless)} part(s) 'files' have no file name, so they are text, not files"
            code = "request.file_name_missing"
        else:
            sent = f"; it has {list_first([repr(name[:50]) for name in others])}" if others else ""
            why = f"the request has no part 'files'{sent}"
            code = "request.files_missing"
        how = f"{_EXAMPLE} {request.url.path}"
        details.append(
            f"files: {why}; send each image as a part 'files' of multipart/form-data, with a file name, for "
            f"instance: {how}"
        )
    return problem_response(request.scope, HTTPStatus.UNPROCESSABLE_ENTITY, "; ".join(details), code=code)


async def _answer_full_storage(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, StorageFullError)
    about = {"Retry-After": str(FULL_SECONDS)}
    return problem_response(request.scope, HTTPStatus.TOO_MANY_REQUESTS, str(error), headers=about, code=error.code)


async def _answer_urnet_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, UrnetError)
    if is_disk_full(error):
        return await _answer_failure(request, error)
    status = STATUS_BY_CODE.get(error.code, HTTPStatus.UNPROCESSABLE_ENTITY)
    results = getattr(error, "results", None)
    files = [FileProblem.from_result(result) for result in results] if results else None
    return problem_response(request.scope, status, str(error), files=files, code=error.code)


async def _answer_failure(request: Request, error: Exception) -> JSONResponse:
    if is_disk_full(error):
        logger.error("request %s failed: the disk is full (%s)", request.scope.get("urnet.request_id", ""), error)
        return problem_response(request.scope, HTTPStatus.INSUFFICIENT_STORAGE, DISK_FULL)
    request_id = request.scope.get("urnet.request_id", "")
    logger.error("request %s failed", request_id, exc_info=error)
    return problem_response(
        request.scope,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        f"the server failed; see its log for the reason, under request {request_id}",
    )

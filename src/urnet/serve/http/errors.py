"""Errors as problem details (RFC 9457): what is wrong, the rule, the fix, a stable code and the id of the request."""

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
from urnet.serve.uploads.storage import DISK_FULL, StorageFullError, is_disk_full

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"

FULL_SECONDS = 30
"""Time after which to try again where the server stores as many uploads as it may, in seconds."""

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
"""Codes of problems that have none of their own, by status."""


STATUS_BY_CODE = {"server.no_model": HTTPStatus.SERVICE_UNAVAILABLE}
"""Statuses of errors that are not 422, by code."""


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
    """What is wrong, the rule, the fix."""
    code: str
    """Stable name of the kind of problem, such as `request.too_large`; match this, not the words."""
    request_id: str
    """As in the header X-Request-ID."""
    files: list[FileProblem] | None = None
    """File by file, where that says more."""


class RequestError(HTTPException):
    """A request that is not answered as it was meant to be.

    Args:
        status: the HTTP status.
        detail: what was found, the rule, what to do.
        files: what is wrong with each file.
        retry_after: seconds after which it is worth trying again.
        code: stable name of the kind of problem; by the status where there is none.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        files: list[FileProblem] | None = None,
        retry_after: float | None = None,
        code: str = "",
    ):
        headers = None if retry_after is None else {"Retry-After": str(max(1, round(retry_after)))}
        super().__init__(status, detail, headers)
        self.files, self.code = files, code


def problem_response(
    scope: Scope,
    status: int,
    detail: str,
    *,
    files: list[FileProblem] | None = None,
    headers: Mapping[str, str] | None = None,
    code: str = "",
) -> JSONResponse:
    """The answer."""
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
    """What the OpenAPI says of them."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {"schema": schema}}}
        for status in statuses
    }


def add_error_handlers(app: FastAPI) -> None:
    """Let every error of an app be answered so."""
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(StorageFullError, _full)
    app.add_exception_handler(UrnetError, _mistaken)
    app.add_exception_handler(Exception, _failed)


def describe_error(error: Exception, what: str) -> str:
    """What a page says of an error of work that goes on behind it; unexpected ones go to the log.

    Args:
        error: what went wrong.
        what: the work, for the log.
    """
    if is_disk_full(error):
        return DISK_FULL
    if isinstance(error, UrnetError):
        return str(error)
    logger.error("%s failed", what, exc_info=error)
    return "the server's log says why"


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, OSError) and not isinstance(
        error, RequestError
    ):  # storing the body failed: our fault
        return await _failed(request, error.__cause__)
    detail = str(error.detail)
    if error.status_code == HTTPStatus.NOT_FOUND and detail == HTTPStatus.NOT_FOUND.phrase:
        detail = f"{request.url.path}: there is nothing here; /openapi.json says what there is"
    files, code = getattr(error, "files", None), getattr(error, "code", "")
    return problem_response(request.scope, error.status_code, detail, files=files, headers=error.headers, code=code)


_EXAMPLE = "curl -F files=@cell1.png -F files=@cell2.png"


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    found = [one for one in error.errors() if "files" not in one["loc"] and len(one["loc"]) > 1]
    details = [f"{'.'.join(str(part) for part in one['loc'][1:])}: {one['msg']}" for one in found]
    code = "request.invalid"
    if len(found) < len(error.errors()):
        given = error.body.multi_items() if isinstance(error.body, FormData) else []
        nameless = [name for name, value in given if name == "files" and isinstance(value, str)]
        others = sorted({name for name, _ in given if name != "files"})
        if nameless:
            why = f"{len(nameless)} part(s) 'files' have no file name, so they are text and no files"
            code = "request.file_name_missing"
        else:
            sent = f"; it has {list_first([repr(name[:50]) for name in others])}" if others else ""
            why = f"the request has no part 'files'{sent}"
            code = "request.files_missing"
        how = f"{_EXAMPLE} {request.url.path}"
        details.append(
            f"files: {why}; send each image as a part of multipart/form-data that is called 'files' and has a file "
            f"name, for instance: {how}"
        )
    return problem_response(request.scope, HTTPStatus.UNPROCESSABLE_ENTITY, "; ".join(details), code=code)


async def _full(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, StorageFullError)
    about = {"Retry-After": str(FULL_SECONDS)}
    return problem_response(request.scope, HTTPStatus.TOO_MANY_REQUESTS, str(error), headers=about, code=error.code)


async def _mistaken(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, UrnetError)
    if is_disk_full(error):
        return await _failed(request, error)
    status = STATUS_BY_CODE.get(error.code, HTTPStatus.UNPROCESSABLE_ENTITY)
    return problem_response(request.scope, status, str(error), code=error.code)


async def _failed(request: Request, error: Exception) -> JSONResponse:
    if is_disk_full(error):
        logger.error("request %s failed: the disk is full (%s)", request.scope.get("urnet.request_id", ""), error)
        return problem_response(request.scope, HTTPStatus.INSUFFICIENT_STORAGE, DISK_FULL)
    request_id = request.scope.get("urnet.request_id", "")
    logger.error("request %s failed", request_id, exc_info=error)
    return problem_response(
        request.scope,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        f"the server failed at this; its log says why, under request {request_id}",
    )

"""What is said where there is no page, or where one fails: to people in words, to programs as elsewhere."""

from http import HTTPMethod, HTTPStatus

import nicegui
from fastapi import FastAPI, Request
from nicegui import Client, ui
from starlette.responses import Response
from starlette.routing import Match

from urnet.serve.http.errors import problem_response
from urnet.serve.http.proxy import route_path
from urnet.serve.pages.components.layout import frame, link, text


def answer_missing(app: FastAPI) -> None:
    """Put our answers in the place of NiceGUI's own.

    Args:
        app: the one around.
    """
    nicegui.app.state.api = app
    nicegui.app.add_exception_handler(404, _missing)
    nicegui.app.add_exception_handler(Exception, _failed)


async def _missing(request: Request, error: Exception) -> Response:
    path = route_path(request.scope)
    if allowed := _methods(request):  # NiceGUI stands behind all routes, and so also gets their other methods
        detail = f"{path} takes {allowed}, not {request.method}"
        return problem_response(request.scope, HTTPStatus.METHOD_NOT_ALLOWED, detail, headers={"Allow": allowed})
    if "text/html" not in request.headers.get("accept", "") or path.startswith("/v1/"):
        detail = f"{path}: there is nothing here; /openapi.json says what there is"
        return problem_response(request.scope, HTTPStatus.NOT_FOUND, detail)
    with Client(ui.page(""), request=request) as client, frame("There is no such page", ""):
        text("p", f"Nothing is at {path}.")
        link("Go to Classify", "/")
    return client.build_response(request, HTTPStatus.NOT_FOUND)


def _methods(request: Request) -> str:
    """What can be done at an address that does not take what was asked; "" where there is nothing."""
    here = [route for route in nicegui.app.state.api.routes if route.matches(request.scope)[0] == Match.PARTIAL]
    tried = {method: {**request.scope, "method": method} for method in HTTPMethod}
    return ", ".join(
        method for method, scope in tried.items() if any(route.matches(scope)[0] == Match.FULL for route in here)
    )


async def _failed(request: Request, error: Exception) -> Response:
    raise error  # said by the app around, and kept in its log

"""Error pages: HTML for people, problem_response details for programs."""

from http import HTTPMethod, HTTPStatus

import nicegui
from fastapi import FastAPI, Request
from nicegui import Client, ui
from starlette.responses import Response
from starlette.routing import Match

from urnet.serve.http.errors import problem_response
from urnet.serve.http.proxy import route_path
from urnet.serve.pages.components.layout import link, page_frame, text


def install_error_pages(app: FastAPI) -> None:
    """Replace NiceGUI's error pages.

    Args:
        app: the app that contains NiceGUI's.
    """
    nicegui.app.state.api = app
    nicegui.app.add_exception_handler(404, _not_found)
    nicegui.app.add_exception_handler(Exception, _server_error)


async def _not_found(request: Request, error: Exception) -> Response:
    path = route_path(request.scope)
    if allowed := _allowed_methods(request):  # NiceGUI also receives requests with a wrong method for our routes
        detail = f"{path} takes {allowed}, not {request.method}"
        return problem_response(request.scope, HTTPStatus.METHOD_NOT_ALLOWED, detail, headers={"Allow": allowed})
    if "text/html" not in request.headers.get("accept", "") or path.startswith("/v1/"):
        detail = f"there is no address {path}; /openapi.json lists all addresses"
        return problem_response(request.scope, HTTPStatus.NOT_FOUND, detail)
    with Client(ui.page(""), request=request) as client, page_frame("Page not found", ""):
        text("p", f"There is no page at {path}.")
        link("Go to Classify", "/")
    return client.build_response(request, HTTPStatus.NOT_FOUND)


def _allowed_methods(request: Request) -> str:
    """List the methods of an address that does not accept the request's method; empty if there is no such address."""
    routes = [route for route in nicegui.app.state.api.routes if route.matches(request.scope)[0] == Match.PARTIAL]
    scopes = {method: {**request.scope, "method": method} for method in HTTPMethod}
    return ", ".join(
        method for method, scope in scopes.items() if any(route.matches(scope)[0] == Match.FULL for route in routes)
    )


async def _server_error(request: Request, error: Exception) -> Response:
    raise error  # handled and logged by the app that contains NiceGUI's

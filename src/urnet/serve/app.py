"""Assemble the app: routes, pages, middleware and error handlers."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI

from urnet.serve.http.auth import AuthMiddleware, FailedLogins, login_routes
from urnet.serve.http.errors import Problem, add_error_handlers
from urnet.serve.http.middleware import LimitMiddleware, RequestIdMiddleware
from urnet.serve.http.proxy import ForwardedHeadersMiddleware, ProxySettings
from urnet.serve.http.routes import api_routes
from urnet.serve.services import Services
from urnet.version import __version__

DESCRIPTION = """Classify and count white blood cells without stain. For research use only.

Errors are problem details (RFC 9457); every answer has an `X-Request-ID`. On any host but loopback, send
`Authorization: Bearer TOKEN`."""


def create_app(
    services: Services,
    *,
    token: str | None = None,
    pages: Callable[[FastAPI, Services], None] | None = None,
    proxy: ProxySettings | None = None,
    instance: str = "",
) -> FastAPI:
    """Create the app.

    Args:
        services: services of the routes and pages; started and stopped with the app.
        token: token that clients need; none on loopback.
        pages: adds the pages to the app, after the API's routes.
        proxy: root path, trusted proxies and allowed hosts.
        instance: identifier of the server in the names of its cookies.
    """
    proxy = proxy or ProxySettings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(services.start)
        try:
            yield
        finally:
            await asyncio.to_thread(services.stop)

    app = FastAPI(
        title="urnet",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # these pages would load scripts from the internet
        redoc_url=None,
    )
    app.state.instance = instance
    add_error_handlers(app)
    app.include_router(api_routes(services))
    attempts = FailedLogins(services.settings)
    if token is not None:
        app.include_router(login_routes(token, attempts, instance))
    if pages is not None:
        pages(app, services)
    # The last one handles a request first: no body is read before its sender is authorized.
    app.add_middleware(LimitMiddleware, settings=services.settings)
    app.add_middleware(AuthMiddleware, token=token, attempts=attempts, instance=instance, proxy=proxy)
    app.add_middleware(RequestIdMiddleware)
    app.add_middleware(ForwardedHeadersMiddleware, proxy=proxy)
    _describe(app)
    return app


def _describe(app: FastAPI) -> None:
    """Add the schema of problem details to the OpenAPI."""
    made = app.openapi

    def openapi() -> dict:
        described = made()
        schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        parts = described.setdefault("components", {}).setdefault("schemas", {})
        parts |= schema.pop("$defs", {}) | {"Problem": schema}
        return described

    app.openapi = openapi  # type: ignore[method-assign]

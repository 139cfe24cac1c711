"""One app for the API and the pages, and what stands in front of both."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI

from urnet.serve.http.auth import Access, Attempts, login
from urnet.serve.http.errors import Problem, install
from urnet.serve.http.middleware import Gate, RequestId
from urnet.serve.http.proxy import ForwardedHeaders, Reach
from urnet.serve.http.routes import routes
from urnet.serve.services import Bench
from urnet.version import __version__

DESCRIPTION = """Classifies white blood cells without stain, and counts them. For research use only.

Errors are problem details (RFC 9457); every answer has an `X-Request-ID`. On any host but loopback, send
`Authorization: Bearer TOKEN`."""


def create_app(
    bench: Bench,
    *,
    token: str | None = None,
    pages: Callable[[FastAPI, Bench], None] | None = None,
    reach: Reach | None = None,
    instance: str = "",
) -> FastAPI:
    """The app.

    Args:
        bench: what it serves; started and stopped with the app.
        token: that has to be shown; none on loopback.
        pages: adds the pages to the app, after the API's routes.
        reach: root path, trusted proxies and allowed hosts.
        instance: identifier of the server in the names of its cookies.
    """
    reach = reach or Reach()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(bench.start)
        try:
            yield
        finally:
            await asyncio.to_thread(bench.stop)

    app = FastAPI(
        title="urnet",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # these pages would load scripts from elsewhere
        redoc_url=None,
    )
    app.state.instance = instance
    install(app)
    app.include_router(routes(bench))
    attempts = Attempts(bench.settings)
    if token is not None:
        app.include_router(login(token, attempts, instance))
    if pages is not None:
        pages(app, bench)
    # The last one added is the first to see a request: nothing of a body is read before its sender has access.
    app.add_middleware(Gate, settings=bench.settings)
    app.add_middleware(Access, token=token, attempts=attempts, instance=instance, reach=reach)
    app.add_middleware(RequestId)
    app.add_middleware(ForwardedHeaders, reach=reach)
    _describe(app)
    return app


def _describe(app: FastAPI) -> None:
    """Put the schema of problems into the OpenAPI, which the answers name."""
    made = app.openapi

    def openapi() -> dict:
        described = made()
        schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        parts = described.setdefault("components", {}).setdefault("schemas", {})
        parts |= schema.pop("$defs", {}) | {"Problem": schema}
        return described

    app.openapi = openapi  # type: ignore[method-assign]

"""What stands in front of every request: its id, its size, the time it may take to arrive, and how many there are."""

import asyncio
import re
import uuid
from collections.abc import Callable
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from urnet.serve.problems import Refused, problem
from urnet.serve.proxy import route_path
from urnet.serve.settings import Settings

_OWN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

SAFE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class RequestId:
    """Names each request, by the client's `X-Request-ID` where it has a decent one, and says so in the answer."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        own = Headers(scope=scope).get("x-request-id", "")
        scope["urnet.request_id"] = own if _OWN_ID.fullmatch(own) else uuid.uuid4().hex

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = scope["urnet.request_id"]
                for name, value in SAFE_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, named)


class Gate:
    """Refuses what is too large, too slow or too much, before any of it is read.

    Args:
        app: what stands behind.
        settings: the limits.
        expected: seconds until the next place is free, about.
    """

    def __init__(self, app: ASGIApp, settings: Settings, expected: Callable[[int], float]):
        self.app, self.settings, self.expected = app, settings, expected
        self.inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        most = self.settings.max_bytes
        length = Headers(scope=scope).get("content-length", "")
        if length.isdecimal() and int(length) > most:
            answer = problem(scope, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, self._too_large)
            return await answer(scope, receive, send)
        bounded = self._bounded(receive)
        if scope["method"] != "POST" or not route_path(scope).startswith("/v1/"):
            return await self.app(scope, bounded, send)
        if self.inside >= self.settings.max_requests:
            seconds = str(round(min(60, max(1, self.expected(self.inside)))))
            detail = (
                f"{self.inside} requests are being worked on, as many as the server takes at once; try again in "
                f"{seconds} s"
            )
            answer = problem(scope, HTTPStatus.TOO_MANY_REQUESTS, detail, headers={"Retry-After": seconds})
            return await answer(scope, receive, send)
        self.inside += 1
        try:
            await self.app(scope, bounded, send)
        finally:
            self.inside -= 1

    @property
    def _too_large(self) -> str:
        return f"the request is larger than the {self.settings.max_bytes:,} bytes allowed; send fewer files at once"

    def _bounded(self, receive: Receive) -> Receive:
        """What the client sends, until it is too much or takes too long."""
        got, complete = 0, False
        deadline = asyncio.get_running_loop().time() + self.settings.body_seconds

        async def bounded() -> Message:
            nonlocal got, complete
            if complete:  # what comes now is only that the client has gone
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                seconds = self.settings.body_seconds
                raise Refused(HTTPStatus.REQUEST_TIMEOUT, f"the files did not arrive within {seconds:g} s") from None
            complete = not message.get("more_body", False)
            got += len(message.get("body", b""))
            if got > self.settings.max_bytes:
                raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, self._too_large)
            return message

        return bounded

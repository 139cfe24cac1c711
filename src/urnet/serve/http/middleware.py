"""Middleware that limits each request: size, time and concurrency; it gives each an id and ends what nobody awaits."""

import asyncio
import re
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from urnet.serve.http.errors import RequestError, problem_response
from urnet.serve.http.proxy import route_path
from urnet.serve.settings import Settings

_OWN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

_WITH_FILES = re.compile(r"/v1/(predict|differential)|/classify/[^/]+/files")
"""Paths to which files are sent; a request to any other has a small body."""

SAFE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class RequestIdMiddleware:
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


class RequestSlots:
    """The requests with files that are being processed.

    Args:
        most: number of them at once.
        seconds: time that each is allowed.
        clock: seconds that only grow.
    """

    def __init__(self, most: int, seconds: float, clock: Callable[[], float] = time.monotonic):
        self.most, self.seconds, self.clock = most, seconds, clock
        self._since: dict[object, float] = {}
        self._mean = 0.0

    def __len__(self) -> int:
        return len(self._since)

    @property
    def is_full(self) -> bool:
        """Whether a further request has to wait."""
        return len(self._since) >= self.most

    def acquire(self) -> object:
        """Take a place; returns a key for `release`."""
        key = object()
        self._since[key] = self.clock()
        return key

    def release(self, key: object) -> None:
        """Give a place back."""
        took = self.clock() - self._since.pop(key)
        self._mean += (took - self._mean) * (0.1 if self._mean else 1.0)

    def wait_seconds(self) -> float:
        """Expected time until a place is free, in seconds.

        A request is expected to take the mean of those before it; one that has taken longer, as long again as so far.
        None takes longer than it is allowed.
        """
        now, left = self.clock(), []
        for since in self._since.values():
            took = now - since
            left.append(min(max(self._mean - took, took if took >= self._mean else 0.0), self.seconds - took))
        return max(0.0, min(left, default=0.0))


class LimitMiddleware:
    """Refuses what is too large, too slow or too much, before any of it is read.

    Only requests to which files belong may have a large body, and only so many of them are let in at once. The work on
    a request of the API is cancelled when its client leaves.

    Args:
        app: the application behind it.
        settings: the limits.
    """

    def __init__(self, app: ASGIApp, settings: Settings):
        self.app, self.settings = app, settings
        self.slots = RequestSlots(settings.max_requests, settings.request_seconds)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        has_files = scope["method"] == "POST" and _WITH_FILES.fullmatch(route_path(scope)) is not None
        most = self.settings.max_bytes if has_files else self.settings.form_bytes
        length = Headers(scope=scope).get("content-length", "")
        if length.isdecimal() and int(length) > most:
            close = {"Connection": "close"}  # else the rest of the body would still be received, and thrown away
            answer = problem_response(
                scope, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, _too_large(most, has_files), headers=close
            )
            return await answer(scope, receive, send)
        seconds = self.settings.body_seconds if has_files else self.settings.header_seconds
        body = _Body(receive, most, seconds, _too_large(most, has_files))
        if not has_files:
            return await self.app(scope, body.receive, send)
        if self.slots.is_full:
            seconds = str(max(1, round(self.slots.wait_seconds() + 0.5)))
            detail = (
                f"{len(self.slots)} requests are being worked on, as many as the server takes at once "
                f"(max_requests); try again in {seconds} s"
            )
            answer = problem_response(scope, HTTPStatus.TOO_MANY_REQUESTS, detail, headers={"Retry-After": seconds})
            return await answer(scope, receive, send)
        place = self.slots.acquire()
        try:
            await _while_connected(self.app, scope, body, send)
        finally:
            self.slots.release(place)


def _too_large(most: int, has_files: bool) -> str:
    if has_files:
        return f"the request is larger than the {most:,} bytes allowed (max_bytes); send fewer files at once"
    return (
        f"the request is larger than the {most:,} bytes allowed here (form_bytes); send files to /v1/predict or "
        "/v1/differential"
    )


class _Body:
    """The body of a request, until it is too large or takes too long.

    Args:
        receive: of ASGI.
        most: allowed size, in bytes.
        seconds: time in which it has to arrive.
        too_large: detail of the answer where it is larger.
    """

    def __init__(self, receive: Receive, most: int, seconds: float, too_large: str):
        self._receive, self.most, self.seconds, self.too_large = receive, most, seconds, too_large
        self._size = 0
        self._deadline = asyncio.get_running_loop().time() + seconds
        self._complete = asyncio.Event()

    async def receive(self) -> Message:
        """As ASGI has it."""
        if self._complete.is_set():  # only a disconnect can follow
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            detail = f"the request did not arrive within {self.seconds:g} s; send less at once"
            raise RequestError(HTTPStatus.REQUEST_TIMEOUT, detail) from None
        self._size += len(message.get("body", b""))
        if self._size > self.most:
            raise RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, self.too_large)
        if not message.get("more_body", False):
            self._complete.set()
        return message

    async def left(self) -> None:
        """Wait until the client has left, after its body has arrived."""
        await self._complete.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass


async def _while_connected(app: ASGIApp, scope: Scope, body: _Body, send: Send) -> None:
    """Let an app answer a request, and cancel that if the client leaves before it has the answer."""
    answered = False

    async def noting(message: Message) -> None:
        nonlocal answered
        answered |= message["type"] == "http.response.body" and not message.get("more_body", False)
        await send(message)

    working = asyncio.create_task(app(scope, body.receive, noting))
    leaving = asyncio.create_task(body.left())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if answered or working.done():
            await working
    finally:
        leaving.cancel()
        if not working.done():
            working.cancel()
            with suppress(asyncio.CancelledError):
                await working

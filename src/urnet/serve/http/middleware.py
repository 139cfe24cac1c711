"""Middleware that limits each request (size, time and concurrency) and gives it an id."""

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
"""Paths that accept files; requests to other paths have small bodies."""

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class RequestIdMiddleware:
    """Middleware that gives each request an id: the client's `X-Request-ID` if it is valid, else a random one."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection, as ASGI requires."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        own = Headers(scope=scope).get("x-request-id", "")
        scope["urnet.request_id"] = own if _OWN_ID.fullmatch(own) else uuid.uuid4().hex

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = scope["urnet.request_id"]
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, send_with_id)


class RequestSlots:
    """Slots for requests with files, which are processed at the same time.

    Args:
        slots: number of slots.
        seconds: time limit of each request, in seconds.
        clock: monotonic clock, in seconds.
    """

    def __init__(self, slots: int, seconds: float, clock: Callable[[], float] = time.monotonic):
        self.slots, self.seconds, self.clock = slots, seconds, clock
        self._since: dict[object, float] = {}
        self._mean = 0.0

    def __len__(self) -> int:
        return len(self._since)

    @property
    def is_full(self) -> bool:
        """Whether all slots are taken."""
        return len(self._since) >= self.slots

    def acquire(self) -> object:
        """Take a slot; return its key for `release`."""
        key = object()
        self._since[key] = self.clock()
        return key

    def release(self, key: object) -> None:
        """Free a slot."""
        took = self.clock() - self._since.pop(key)
        self._mean += (took - self._mean) * (0.1 if self._mean else 1.0)

    def wait_seconds(self) -> float:
        """Estimate the time until a slot is free, in seconds.

        A request is expected to take the mean time so far. One that has taken longer is expected to take as long again,
        within its time limit.
        """
        now, left = self.clock(), []
        for since in self._since.values():
            took = now - since
            left.append(min(max(self._mean - took, took if took >= self._mean else 0.0), self.seconds - took))
        return max(0.0, min(left, default=0.0))


class LimitMiddleware:
    """Middleware that refuses requests that are too large, too slow or too many, before it reads their bodies.

    Only requests with files may have a large body, and only as many as there are slots are processed at once. The work
    on such a request is cancelled when its client disconnects.

    Args:
        app: the next app.
        settings: limits of the server.
    """

    def __init__(self, app: ASGIApp, settings: Settings):
        self.app, self.settings = app, settings
        self.slots = RequestSlots(settings.max_requests, settings.request_seconds)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection, as ASGI requires."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        has_files = scope["method"] == "POST" and _WITH_FILES.fullmatch(route_path(scope)) is not None
        max_bytes = self.settings.max_bytes if has_files else self.settings.form_bytes
        length = Headers(scope=scope).get("content-length", "")
        if length.isdecimal() and int(length) > max_bytes:
            close = {"Connection": "close"}  # else the rest of the body would still be received
            answer = problem_response(
                scope, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, _too_large(max_bytes, has_files), headers=close
            )
            return await answer(scope, receive, send)
        seconds = self.settings.body_seconds if has_files else self.settings.header_seconds
        body = _Body(receive, max_bytes, seconds, _too_large(max_bytes, has_files))
        if not has_files:
            return await self.app(scope, body.receive, send)
        if self.slots.is_full:
            wait = str(max(1, round(self.slots.wait_seconds() + 0.5)))
            detail = (
                f"the server processes {len(self.slots)} requests, the most at once (max_requests); try again in "
                f"{wait} s"
            )
            answer = problem_response(scope, HTTPStatus.TOO_MANY_REQUESTS, detail, headers={"Retry-After": wait})
            return await answer(scope, receive, send)
        slot = self.slots.acquire()
        try:
            await _while_connected(self.app, scope, body, send)
        finally:
            self.slots.release(slot)


def _too_large(max_bytes: int, has_files: bool) -> str:
    if has_files:
        return f"the request is larger than the {max_bytes:,} bytes allowed (max_bytes); send fewer files at once"
    return (
        f"the request is larger than the {max_bytes:,} bytes allowed here (form_bytes); send files to /v1/predict or "
        "/v1/differential"
    )


class _Body:
    """Body of a request, with limits on its size and time.

    Args:
        receive: receives messages, as ASGI defines it.
        max_bytes: largest size, in bytes.
        seconds: time in which the body has to arrive, in seconds.
        too_large: detail of the answer to a larger body.
    """

    def __init__(self, receive: Receive, max_bytes: int, seconds: float, too_large: str):
        self._receive, self.max_bytes, self.seconds, self.too_large = receive, max_bytes, seconds, too_large
        self._size = 0
        self._deadline = asyncio.get_running_loop().time() + seconds
        self._complete = asyncio.Event()

    async def receive(self) -> Message:
        """Handle one connection, as ASGI requires."""
        if self._complete.is_set():  # only a disconnect follows
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            detail = f"the request did not arrive within {self.seconds:g} s; send less at once"
            raise RequestError(HTTPStatus.REQUEST_TIMEOUT, detail) from None
        self._size += len(message.get("body", b""))
        if self._size > self.max_bytes:
            raise RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, self.too_large)
        if not message.get("more_body", False):
            self._complete.set()
        return message

    async def wait_for_disconnect(self) -> None:
        """Wait until the client disconnects, after its body has arrived."""
        await self._complete.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass


async def _while_connected(app: ASGIApp, scope: Scope, body: _Body, send: Send) -> None:
    """Let an app answer a request; cancel it if the client disconnects before the answer."""
    answered = False

    async def send_and_note(message: Message) -> None:
        nonlocal answered
        answered |= message["type"] == "http.response.body" and not message.get("more_body", False)
        await send(message)

    working = asyncio.create_task(app(scope, body.receive, send_and_note))
    leaving = asyncio.create_task(body.wait_for_disconnect())
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

"""Browser sessions: the state that the server keeps for each browser, so that a reopened page continues."""

import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from nicegui import ui
from starlette.requests import cookie_parser
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from urnet.serve.http.auth import cookie_attributes, cookie_name
from urnet.serve.http.proxy import route_path
from urnet.serve.uploads.storage import UploadStorage

MAX_SESSIONS = 200
"""Maximum number of sessions. Beyond it, idle sessions end, the longest unused first."""

UNUSED_S = 7 * 86_400.0
"""Time after which an unused, idle session ends, in seconds."""

UNUSED_SCARCE_S = 3600.0
"""The same time when more than half of the space for uploads is in use, in seconds."""

MAX_REPLACED_SAMPLES = 16
"""Number of replaced samples of a browser whose keys are stored."""


class SessionData(Protocol):
    """Data that a page keeps in a session between two visits."""

    @property
    def is_busy(self) -> bool:
        """Whether work is in progress; the session does not end meanwhile."""
        return False

    def close(self) -> None:
        """Release the data when the session ends. Called in the event loop, so it must not block."""
        return None


@dataclass
class Session:
    """The state of one browser.

    Attributes:
        key: secret value of the session's cookie.
        id: name of the session in the database; not secret.
        user: name of the signed-in person; empty before sign-in.
        data: data of the pages, by name.
        replaced_samples: keys of the latest samples that a newer one replaced.
        used: time of the last request, by the clock of the middleware.
    """

    key: str
    user: str = ""
    data: dict[str, SessionData] = field(default_factory=dict)
    replaced_samples: deque[str] = field(default_factory=lambda: deque(maxlen=MAX_REPLACED_SAMPLES))
    used: float = 0.0
    id: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def is_busy(self) -> bool:
        """Whether work of this session is in progress."""
        return any(entry.is_busy for entry in self.data.values())

    def close(self) -> None:
        """Release all data."""
        for entry in self.data.values():
            entry.close()
        self.data.clear()


class SessionMiddleware:
    """Middleware that gives each browser a session under a random key. Keys made up by clients are not accepted.

    Args:
        app: the wrapped app; it reads the session from the scope.
        storage: temporary storage of the uploaded files.
        instance: identifier of the server in the name of the cookie.
        clock: monotonic clock, in seconds.
    """

    def __init__(
        self, app: ASGIApp, storage: UploadStorage, instance: str = "", clock: Callable[[], float] = time.monotonic
    ):
        self.app, self.storage, self.clock = app, storage, clock
        self.cookie = cookie_name("browser", instance)
        self.sessions: dict[str, Session] = {}  # least recently used first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request (ASGI)."""
        if scope["type"] == "lifespan":
            return await self.app(scope, self._close_on_shutdown(receive), send)
        if scope["type"] != "http" or route_path(scope).startswith(("/v1/", "/_nicegui")):
            self._end_unused(None)
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        given = cookie_parser(headers.get(b"cookie", b"").decode("latin-1")).get(self.cookie, "")
        session = scope["urnet.session"] = self.sessions.pop(given, None) or Session(secrets.token_urlsafe(24))
        session.used = self.clock()
        self.sessions[session.key] = session
        self._end_unused(session)

        async def send_with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start" and session.key != given:
                cookie = Response()
                cookie.set_cookie(self.cookie, session.key, **cookie_attributes(scope))
                set_cookie = [pair for pair in cookie.raw_headers if pair[0] == b"set-cookie"]
                message = {**message, "headers": [*message.get("headers", ()), *set_cookie]}
            await send(message)

        await self.app(scope, receive, send_with_cookie)

    def _close_on_shutdown(self, receive: Receive) -> Receive:
        """Close all sessions before the services that they use stop."""

        async def receive_shutdown() -> Message:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                for session in self.sessions.values():
                    session.close()
            return message

        return receive_shutdown

    def _end_unused(self, current: Session | None) -> None:
        """End unused sessions, except the current one and those with work in progress."""
        limit_s, now = UNUSED_SCARCE_S if self.storage.is_scarce else UNUSED_S, self.clock()
        for oldest in list(self.sessions.values()):
            if len(self.sessions) <= MAX_SESSIONS and now - oldest.used < limit_s:
                return
            if oldest is not current and not oldest.is_busy:
                del self.sessions[oldest.key]
                oldest.close()


def current_session() -> Session:
    """Return the session of the browser that shows the current page."""
    return ui.context.client.request.scope["urnet.session"]

"""Browser sessions: what the server keeps for each browser, so that it finds its place again."""

import secrets
import time
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

MOST = 200
"""Maximum number of sessions; beyond it, idle ones end, the longest unused first."""

SECONDS = 7 * 86_400.0
"""How long one is kept that nobody uses."""

SCARCE_SECONDS = 3600.0
"""The same where more than half of the room for what was sent is taken: others need it, instruments too."""


class SessionData(Protocol):
    """What a page keeps between two visits."""

    @property
    def is_busy(self) -> bool:
        """Whether something of it goes on, so that the session is not forgotten meanwhile."""
        return False

    def close(self) -> None:
        """Let go of it: the session is forgotten. Called in the server's loop, which must not be held up."""


@dataclass
class Session:
    """One browser.

    Attributes:
        key: what its cookie holds; secret.
        id: its name in the database; not secret.
        name: of the person in front of it; "" until it was asked for.
        kept: what pages keep, by their names.
        used: when it was last used, by the clock.
    """

    key: str
    name: str = ""
    kept: dict[str, SessionData] = field(default_factory=dict)
    used: float = 0.0
    id: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def is_busy(self) -> bool:
        """Whether work of it goes on."""
        return any(one.is_busy for one in self.kept.values())

    def close(self) -> None:
        """Let go of all that is kept."""
        for one in self.kept.values():
            one.close()
        self.kept.clear()


class SessionMiddleware:
    """Gives each browser a session, under a random key of ours: one that a client made up is not taken.

    Args:
        app: what stands behind; it finds the session in the scope.
        storage: where what was sent lies.
        instance: identifier of the server in the name of its cookie.
        clock: seconds that only grow.
    """

    def __init__(
        self, app: ASGIApp, storage: UploadStorage, instance: str = "", clock: Callable[[], float] = time.monotonic
    ):
        self.app, self.storage, self.clock = app, storage, clock
        self.cookie = cookie_name("bench", instance)
        self.sessions: dict[str, Session] = {}  # the one used last at the end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] == "lifespan":
            return await self.app(scope, self._until_the_end(receive), send)
        if scope["type"] != "http" or route_path(scope).startswith(("/v1/", "/_nicegui")):
            self._forget(None)
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        given = cookie_parser(headers.get(b"cookie", b"").decode("latin-1")).get(self.cookie, "")
        session = scope["urnet.session"] = self.sessions.pop(given, None) or Session(secrets.token_urlsafe(24))
        session.used = self.clock()
        self.sessions[session.key] = session
        self._forget(session)

        async def with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start" and session.key != given:
                cookie = Response()
                cookie.set_cookie(self.cookie, session.key, **cookie_attributes(scope))
                set_cookie = [pair for pair in cookie.raw_headers if pair[0] == b"set-cookie"]
                message = {**message, "headers": [*message.get("headers", ()), *set_cookie]}
            await send(message)

        await self.app(scope, receive, with_cookie)

    def _until_the_end(self, receive: Receive) -> Receive:
        """Lets go of all sessions before what they work with is stopped."""

        async def receiving() -> Message:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                for session in self.sessions.values():
                    session.close()
            return message

        return receiving

    def _forget(self, current: Session | None) -> None:
        """Forget the sessions that nobody uses, but none at work: what it needs goes when that is done."""
        seconds, now = SCARCE_SECONDS if self.storage.is_scarce else SECONDS, self.clock()
        for oldest in list(self.sessions.values()):
            if len(self.sessions) <= MOST and now - oldest.used < seconds:
                return
            if oldest is not current and not oldest.is_busy:
                del self.sessions[oldest.key]
                oldest.close()


def this_session() -> Session:
    """The session of the browser that shows this page."""
    return ui.context.client.request.scope["urnet.session"]

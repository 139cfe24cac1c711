"""Who may ask: on loopback, whoever sits at this machine; anywhere else, whoever has the token.

On loopback a page of some other site must not be able to use the browser that shows it: its name for this address
(DNS rebinding) shows in Host, its own in Origin. On other hosts a token is asked for, as Jupyter does.
"""

import hashlib
import hmac
import ipaddress
import secrets
import time
from collections.abc import Callable
from html import escape
from http import HTTPStatus
from urllib.parse import urlsplit

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Receive, Scope, Send

from urnet.serve.problems import problem
from urnet.serve.settings import Settings

COOKIE = "urnet-session"
OPEN = ("/healthz", "/readyz", "/login")
"""Asked for without a token: by what watches over the server, and by the page that asks for the token."""

SHORTEST_TOKEN = 16
REMEMBERED = 10_000
"""Addresses whose wrong attempts are kept; beyond, the oldest are forgotten."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host's name or address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def new_token() -> str:
    """A token that nobody guesses."""
    return secrets.token_urlsafe(32)


class Attempts:
    """Counts wrong tokens by address.

    Args:
        settings: how many are allowed in which time.
        clock: seconds that only grow.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic):
        self.settings, self.clock = settings, clock
        self.wrong: dict[str, tuple[int, float]] = {}  # how many, and since when

    def wait(self, address: str) -> float:
        """Seconds that an address has to wait; 0 for none."""
        count, since = self.wrong.get(address, (0, 0.0))
        left = since + self.settings.lockout_seconds - self.clock()
        return left if left > 0 and count >= self.settings.attempts else 0.0

    def failed(self, address: str) -> None:
        """Note a wrong one."""
        now = self.clock()
        count, since = self.wrong.pop(address, (0, now))
        if now - since >= self.settings.lockout_seconds:
            count, since = 0, now
        count += 1
        self.wrong[address] = (count, now if count >= self.settings.attempts else since)
        if len(self.wrong) > REMEMBERED:
            self.wrong.pop(next(iter(self.wrong)))


class Access:
    """Refuses whoever may not ask.

    Args:
        app: what stands behind.
        token: what has to be shown; none on loopback, where Host is checked instead.
        attempts: of those who try.
    """

    def __init__(self, app: ASGIApp, token: str | None, attempts: Attempts):
        self.app, self.token, self.attempts = app, token, attempts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        refusal = self._stranger(scope, headers) or self._without_token(scope, headers)
        if refusal is None:
            return await self.app(scope, receive, send)
        if scope["type"] == "websocket":
            await receive()
            return await send({"type": "websocket.close", "code": 1008})
        await refusal(scope, receive, send)

    def _stranger(self, scope: Scope, headers: Headers) -> Response | None:
        """Refuses requests that another site made a browser send."""
        host = headers.get("host", "")
        if self.token is None and not is_loopback(_name(host)):
            detail = f"Host is {host!r}; this server listens on this machine only: ask for http://localhost"
            return problem(scope, HTTPStatus.FORBIDDEN, detail)
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            detail = f"Origin is {origin[:100]!r}; pages of other sites may not use this server"
            return problem(scope, HTTPStatus.FORBIDDEN, detail)
        return None

    def _without_token(self, scope: Scope, headers: Headers) -> Response | None:
        """Refuses requests without the token or the cookie that stands for it."""
        if self.token is None or scope["path"] in OPEN:
            return None
        address = address_of(scope)
        if wait := self.attempts.wait(address):
            return _locked(scope, wait)
        scheme, _, shown = headers.get("authorization", "").partition(" ")
        cookie = cookie_parser(headers.get("cookie", "")).get(COOKIE, "")
        if _same(shown.strip(), self.token) and scheme.lower() == "bearer":
            return None
        if _same(cookie, session(self.token)):
            return None
        if shown:  # a cookie left by an earlier server is no attempt, and nobody guesses one
            self.attempts.failed(address)
        if scope["type"] == "http" and scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
            return RedirectResponse("/login", HTTPStatus.SEE_OTHER)
        detail = "the token that was printed when the server started is needed: Authorization: Bearer TOKEN"
        return problem(scope, HTTPStatus.UNAUTHORIZED, detail, headers={"WWW-Authenticate": "Bearer"})


def session(token: str) -> str:
    """What the cookie holds in the token's place: the token itself stays off the browser's disk."""
    return hmac.new(token.encode(), b"urnet session", hashlib.sha256).hexdigest()


def address_of(scope: Scope) -> str:
    """The client's address."""
    return scope["client"][0] if scope.get("client") else ""


def login(token: str, attempts: Attempts) -> APIRouter:
    """The page that asks for the token once."""
    router = APIRouter(include_in_schema=False)

    @router.get("/login")
    async def ask() -> HTMLResponse:
        return _page("")

    @router.post("/login")
    async def enter(request: Request, given: str = Form("", alias="token")) -> Response:
        address = address_of(request.scope)
        if wait := attempts.wait(address):
            return _locked(request.scope, wait)
        if not _same(given.strip(), token):
            attempts.failed(address)
            return _page("That is not the token. It stands where the server was started.", HTTPStatus.UNAUTHORIZED)
        answer = RedirectResponse("/", HTTPStatus.SEE_OTHER)
        secure = request.url.scheme == "https"
        answer.set_cookie(COOKIE, session(token), httponly=True, samesite="strict", secure=secure)
        return answer

    return router


def _name(host: str) -> str:
    """Host without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _same(given: str, right: str) -> bool:
    """Compared in a time that does not tell how much of it is right."""
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), right.encode())


def _locked(scope: Scope, wait: float) -> Response:
    seconds = str(round(wait) + 1)
    detail = f"too many wrong tokens from this address; try again in {seconds} s"
    return problem(scope, HTTPStatus.TOO_MANY_REQUESTS, detail, headers={"Retry-After": seconds})


def _page(message: str, status: int = HTTPStatus.OK) -> HTMLResponse:
    return HTMLResponse(
        f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>urnet: token</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root {{ color-scheme: light dark }} body {{ font: 1rem/1.5 system-ui, sans-serif; margin: 15vh auto; width: 20rem }}
input, button {{ font: inherit; width: 100%; box-sizing: border-box; padding: .5rem; margin-top: .5rem }}
</style></head><body><main><h1>urnet</h1>
<form method="post" action="/login"><label for="token">Token, as printed when the server was started</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
<button>Go on</button></form><p role="alert">{escape(message)}</p></main></body></html>
""",
        status,
    )

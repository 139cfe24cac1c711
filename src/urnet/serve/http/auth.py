"""Authentication: open on loopback, by token everywhere else.

On loopback, pages of other sites must not reach the server through the browser: a name that they give to this address
(DNS rebinding) is in Host, and their own name in Origin. On other hosts a token is required, as in Jupyter.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from functools import cache
from html import escape
from http import HTTPStatus
from importlib.resources import files
from ipaddress import ip_address, ip_network
from typing import Any
from urllib.parse import parse_qs, urlsplit

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Receive, Scope, Send

from urnet.serve.http.errors import problem_response
from urnet.serve.http.proxy import ProxySettings, is_secure, route_path
from urnet.serve.settings import Settings

LOGIN_PATH = "/login"
PUBLIC_PATHS = ("/healthz", "/readyz", LOGIN_PATH)
"""Paths without authentication: health checks, and the login."""

FORM_CONTENT_TYPE = "application/x-www-form-urlencoded"
MAX_LOGIN_BYTES = 4096
"""Largest body of a login request, in bytes."""

MIN_TOKEN_LENGTH = 16
"""Shortest token, in characters."""

MAX_ADDRESSES = 10_000
"""Most addresses with counted failures; the oldest are dropped."""


def cookie_name(base: str, instance: str) -> str:
    """Name a cookie of one server. Browsers send cookies to all ports of a host, so each server needs its own name.

    Args:
        base: purpose of the cookie.
        instance: identifier of the server, the same at each start; not secret.
    """
    return f"urnet-{base}-{instance}" if instance else f"urnet-{base}"


def cookie_attributes(scope: Scope) -> dict[str, Any]:
    """Return the attributes of all cookies, for `Response.set_cookie`."""
    path = scope.get("root_path") or "/"
    return {"path": path, "httponly": True, "samesite": "strict", "secure": is_secure(scope)}


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is reachable from this machine only."""
    try:
        return host == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def new_token() -> str:
    """Create a random token."""
    return secrets.token_urlsafe(32)


class FailedLogins:
    """Count of wrong tokens by address.

    Args:
        settings: number of allowed failures, and time of the lockout.
        clock: monotonic clock, in seconds.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic):
        self.settings, self.clock = settings, clock
        self.wrong: dict[str, tuple[int, float]] = {}  # number and time of the first

    def wait_seconds(self, address: str) -> float:
        """Return the remaining lockout of an address, in seconds; 0 without one."""
        count, since = self.wrong.get(address, (0, 0.0))
        left = since + self.settings.lockout_seconds - self.clock()
        return left if left > 0 and count >= self.settings.attempts else 0.0

    def record(self, address: str) -> None:
        """Record a wrong token."""
        now = self.clock()
        count, since = self.wrong.pop(address, (0, now))
        if now - since >= self.settings.lockout_seconds:
            count, since = 0, now
        count += 1
        self.wrong[address] = (count, now if count >= self.settings.attempts else since)
        if len(self.wrong) > MAX_ADDRESSES:
            self.wrong.pop(next(iter(self.wrong)))


class AuthMiddleware:
    """Middleware that refuses requests without the token, and requests that a page of another site made.

    Args:
        app: the next app.
        token: the token; none on loopback, where Host is checked instead.
        attempts: failed logins.
        instance: identifier of the server in the names of its cookies.
        proxy: allowed host names.
    """

    def __init__(
        self,
        app: ASGIApp,
        token: str | None,
        attempts: FailedLogins,
        instance: str = "",
        proxy: ProxySettings | None = None,
    ):
        self.app, self.token, self.attempts = app, token, attempts
        self.cookie = cookie_name("session", instance)
        self.hosts = (proxy or ProxySettings()).allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection, as ASGI requires."""
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        refusal = self._refuse_other_sites(scope, headers) or self._refuse_unauthorized(scope, headers)
        if refusal is None:
            return await self.app(scope, receive, send)
        if scope["type"] == "websocket":
            await receive()
            return await send({"type": "websocket.close", "code": 1008})
        if scope["method"] not in ("GET", "HEAD"):
            refusal.headers["Connection"] = "close"  # the body is not read
        await refusal(scope, receive, send)

    def _refuse_other_sites(self, scope: Scope, headers: Headers) -> Response | None:
        """Refuse requests that a page of another site made."""
        host = headers.get("host", "")
        name = _name(host)
        if (self.token is None or self.hosts) and not is_loopback(name) and name not in self.hosts:
            known = ", ".join(("localhost", *sorted(self.hosts)))
            detail = (
                f"Host is {host[:100]!r}; this server answers to {known} only. On this machine open "
                "http://localhost; elsewhere start the server with --allowed-host and the name"
            )
            return problem_response(scope, HTTPStatus.FORBIDDEN, detail)
        origin = headers.get("origin")
        if origin is not None and (not host or _authority(origin) != host.lower()):
            detail = (
                f"Origin is {origin[:100]!r} and Host {host[:100]!r}; pages of other sites may not use this server. A "
                "reverse proxy must forward the browser's Host"
            )
            return problem_response(scope, HTTPStatus.FORBIDDEN, detail)
        return None

    def _refuse_unauthorized(self, scope: Scope, headers: Headers) -> Response | None:
        """Refuse requests without the token or its cookie; a valid one is accepted even during a lockout."""
        if self.token is None or route_path(scope) in PUBLIC_PATHS:
            return None
        scheme, _, shown = headers.get("authorization", "").partition(" ")
        is_bearer = scheme.lower() == "bearer"
        if is_bearer and _is_equal(shown.strip(), self.token):
            return None
        if _is_equal(cookie_parser(headers.get("cookie", "")).get(self.cookie, ""), session_value(self.token)):
            return None
        if is_bearer:  # an old cookie or a proxy's password is not an attempt
            address = address_of(scope)
            if wait := self.attempts.wait_seconds(address):
                return _locked_response(scope, wait)
            self.attempts.record(address)
        if scope["type"] == "http" and scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
            return RedirectResponse(scope.get("root_path", "") + LOGIN_PATH, HTTPStatus.SEE_OTHER)
        detail = "send the token that the server printed at its start: Authorization: Bearer TOKEN"
        return problem_response(scope, HTTPStatus.UNAUTHORIZED, detail, headers={"WWW-Authenticate": "Bearer"})


def session_value(token: str) -> str:
    """Derive the value of the cookie from the token, so that the token is not stored by the browser."""
    return hmac.new(token.encode(), b"urnet session", hashlib.sha256).hexdigest()


def address_of(scope: Scope) -> str:
    """Return the client's address; for IPv6 its network, since one client has all addresses of it."""
    address = scope["client"][0] if scope.get("client") else ""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address[:100]
    return str(ip_network((parsed, 64), strict=False)) if parsed.version == 6 else address


def login_routes(token: str, attempts: FailedLogins, instance: str = "") -> APIRouter:
    """Create the routes of the login page.

    Args:
        token: the token.
        attempts: failed logins.
        instance: identifier of the server in the name of its cookie.
    """
    router = APIRouter(include_in_schema=False)

    @router.get(LOGIN_PATH)
    async def show_form(request: Request) -> HTMLResponse:
        return _page(request.scope, "")

    @router.post(LOGIN_PATH)
    async def log_in(request: Request) -> Response:
        scope, address = request.scope, address_of(request.scope)
        wait = attempts.wait_seconds(address)
        length = request.headers.get("content-length", "")
        if wait and not (length.isdecimal() and int(length) <= MAX_LOGIN_BYTES):
            return _locked_response(scope, wait)
        given = await _token_of(request)
        if given is None:
            detail = f"the login is a form of at most {MAX_LOGIN_BYTES:,} bytes (application/x-www-form-urlencoded)"
            return problem_response(scope, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail)
        if not _is_equal(given.strip(), token):
            if wait:
                return _locked_response(scope, wait)
            attempts.record(address)
            return _page(scope, "Wrong token. The server prints the token at its start.", HTTPStatus.UNAUTHORIZED)
        answer = RedirectResponse(f"{scope.get('root_path', '')}/", HTTPStatus.SEE_OTHER)
        answer.set_cookie(cookie_name("session", instance), session_value(token), **cookie_attributes(scope))
        return answer

    return router


async def _token_of(request: Request) -> str | None:
    """Read the token of a login form; none where the body is larger than `MAX_LOGIN_BYTES`."""
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > MAX_LOGIN_BYTES:
        return None
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_LOGIN_BYTES:
            return None
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != FORM_CONTENT_TYPE:
        return ""
    try:
        return parse_qs(body.decode("ascii", "replace"), max_num_fields=10).get("token", [""])[0]
    except ValueError:
        return ""


def _authority(origin: str) -> str:
    """Return host and port of an Origin; "" for an invalid one."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _name(host: str) -> str:
    """Return the host without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_equal(given: str, right: str) -> bool:
    """Compare in constant time, so that the duration reveals nothing about the token."""
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), right.encode())


def _locked_response(scope: Scope, wait: float) -> Response:
    seconds = str(round(wait) + 1)
    detail = f"too many wrong tokens from this address; try again in {seconds} s"
    return problem_response(
        scope, HTTPStatus.TOO_MANY_REQUESTS, detail, headers={"Retry-After": seconds}, code="access.locked_out"
    )


@cache
def _styles() -> str:
    return files("urnet").joinpath("templates", "style.css").read_text(encoding="utf-8")


def _page(scope: Scope, message: str, status: int = HTTPStatus.OK) -> HTMLResponse:
    root_path = scope.get("root_path", "")
    return HTMLResponse(
        f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Sign in · urnet</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">
<style>{_styles()}
body {{ display: grid; place-items: start center; padding: 15vh 1rem 1rem }}
main {{ background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 1.25rem 1.5rem 1.5rem }}
main {{ width: 100%; max-width: 24rem; box-sizing: border-box; margin: 0 }}
h1 {{ font-size: 1.3rem; margin: 0 0 .75rem }} label {{ display: block }}
input, button {{ font: inherit; width: 100%; box-sizing: border-box; padding: .5rem .6rem; margin-top: .6rem }}
input, button {{ border: 1px solid var(--soft); border-radius: 6px; color: var(--ink); background: var(--card) }}
button {{ background: var(--accent); border-color: var(--accent); color: var(--card); font-weight: 600 }}
[role="alert"] {{ border-left: 3px solid var(--warn-line); background: var(--warn-page); color: var(--warn-ink) }}
[role="alert"] {{ padding: .5rem .75rem; margin: .9rem 0 0 }} [role="alert"]:empty {{ display: none }}
</style></head><body><main><h1>urnet</h1>
<form method="post" action="{root_path}{LOGIN_PATH}"><label for="token">
Token (printed by the server at its start)</label>
<input id="token" name="token" type="password" autocomplete="current-password" maxlength="1000" required autofocus>
<button>Sign in</button></form><p role="alert">{escape(message)}</p></main></body></html>
""",
        status,
    )

"""Reverse proxies: forwarded headers from trusted addresses, and the root path under which the server is reached."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from urnet.errors import RunError

_ROOT_PATH = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~-]{1,100}){1,10}")
_HOST_NAME = r"[a-z0-9](?:[a-z0-9._-]{0,251}[a-z0-9])?|\[[0-9a-f:.]{2,45}\]"
_HOST = re.compile(rf"(?:{_HOST_NAME})(?::[0-9]{{1,5}})?", re.IGNORECASE)

_PAGES = ("about", "label", "login", "review", "runs")
_OTHER_PATHS = ("_nicegui", "_nicegui_ws", "classify", "favicon.ico", "healthz", "openapi.json", "readyz", "v1")
OWN_PATHS = frozenset((*_PAGES, *_OTHER_PATHS))
"""First parts of the server's own paths. None can be the root path, which would be ambiguous: `/label` is a page."""

FORWARDED = ("for", "proto", "host", "prefix", "port", "server")
"""Headers `X-Forwarded-…` that only a trusted proxy may set."""

_DROPPED = frozenset((b"forwarded", *(f"x-forwarded-{name}".encode() for name in FORWARDED)))


@dataclass(frozen=True)
class ProxySettings:
    """Root path, trusted proxies and allowed hosts of a server behind a reverse proxy.

    Attributes:
        root_path: path prefix of all addresses, such as "/urnet"; "" for none.
        trusted_proxies: addresses or networks whose forwarded headers are used.
        allowed_hosts: host names besides loopback that requests may have in Host, in lower case.
    """

    root_path: str = ""
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    allowed_hosts: frozenset[str] = frozenset()

    @classmethod
    def parse(
        cls, root_path: str = "", trusted_proxies: Iterable[str] = (), allowed_hosts: Iterable[str] = ()
    ) -> "ProxySettings":
        """Check the options of the command line.

        Raises:
            RunError: not a path, address or host name.
        """
        path = root_path.rstrip("/")
        if path and not _ROOT_PATH.fullmatch(path):
            raise RunError(
                f"--root-path {root_path}: a root path begins with '/' and has only letters, digits and '-._~'; give "
                "one such as /urnet",
                code="serve.root_path",
            )
        if path and path.split("/")[1] in OWN_PATHS:
            raise RunError(
                f"--root-path {root_path}: /{path.split('/')[1]} is an address of the server itself; choose another, "
                "such as /urnet",
                code="serve.root_path",
            )
        networks = []
        for address in trusted_proxies:
            try:
                networks.append(ip_network(address.strip(), strict=False))
            except ValueError:
                raise RunError(
                    f"--trusted-proxy {address}: not an IP address or network; give one, as 127.0.0.1 or 10.0.0.0/8",
                    code="serve.trusted_proxy",
                ) from None
        names = [name.strip().lower() for name in allowed_hosts]
        for name in names:
            if not re.fullmatch(_HOST_NAME, name):
                raise RunError(
                    f"--allowed-host {name}: not a host name; give the name alone, such as cells.lab.example, without "
                    "scheme, port and path",
                    code="serve.allowed_host",
                )
        return cls(path, tuple(networks), frozenset(names))

    @property
    def is_behind_proxy(self) -> bool:
        """Whether a proxy on this machine may forward requests of other machines."""
        return bool(self.root_path or self.trusted_proxies or self.allowed_hosts)

    def trusts(self, address: str) -> bool:
        """Return whether an address belongs to a trusted proxy."""
        parsed = _address(address)
        return parsed is not None and any(parsed in network for network in self.trusted_proxies)

    def client(self, forwarded_for: str) -> str | None:
        """Find the client in `X-Forwarded-For`: the last address that is not a trusted proxy.

        Each proxy appends the address that connected to it; values from the client come before.
        """
        client = None
        for entry in reversed(forwarded_for.split(",")):
            parsed = _address(entry)
            if parsed is None:
                break
            client = str(parsed)
            if not self.trusts(client):
                break
        return client


class ForwardedHeadersMiddleware:
    """Middleware that sets client, scheme, Host and root path from forwarded headers, and removes these headers.

    The headers count only where the connection comes from a trusted proxy. Those of any other client are dropped.

    Args:
        app: the next app.
        proxy: root path and trusted proxies.
    """

    def __init__(self, app: ASGIApp, proxy: ProxySettings):
        self.app, self.proxy = app, proxy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection, as ASGI requires."""
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        given = Headers(scope=scope)
        scope = {**scope, "headers": [(name, value) for name, value in scope["headers"] if name not in _DROPPED]}
        root_path = self.proxy.root_path
        if scope.get("client") and self.proxy.trusts(scope["client"][0]):
            root_path = self._apply(scope, given) or root_path
        _set_root_path(scope, root_path)
        await self.app(scope, receive, send)

    def _apply(self, scope: Scope, given: Headers) -> str:
        """Apply the headers of a trusted proxy, and return its path prefix; ignore malformed headers."""
        client = self.proxy.client(",".join(given.getlist("x-forwarded-for")))
        if client is not None:
            scope["client"] = (client, 0)
        scheme = _last(given, "proto").lower()
        if scheme in ("http", "https"):
            secure = scheme == "https"
            plain = "ws" if scope["type"] == "websocket" else "http"
            scope["scheme"] = f"{plain}s" if secure else plain
        host = _last(given, "host")
        if _HOST.fullmatch(host):
            others = [(name, value) for name, value in scope["headers"] if name != b"host"]
            scope["headers"] = [*others, (b"host", host.encode("ascii"))]
        prefix = _last(given, "prefix").rstrip("/")
        return prefix if _ROOT_PATH.fullmatch(prefix) else ""


def route_path(scope: Scope) -> str:
    """Return the path of a request without the root path."""
    path, root_path = scope["path"], scope.get("root_path", "")
    inside = root_path and (path == root_path or path.startswith(f"{root_path}/"))
    return path[len(root_path) :] or "/" if inside else path


def is_secure(scope: Scope) -> bool:
    """Return whether the client speaks TLS to the server, or to the proxy in front of it."""
    return scope.get("scheme") in ("https", "wss")


def _set_root_path(scope: Scope, root_path: str) -> None:
    """Set the root path, and put it before `path` if the proxy has removed it there."""
    if not root_path:
        return
    path = scope["path"]
    scope["root_path"] = root_path
    if path == root_path:
        scope["path"] = f"{root_path}/"
    elif not path.startswith(f"{root_path}/"):
        scope["path"] = root_path + path
    scope["raw_path"] = None


def _last(given: Headers, name: str) -> str:
    """Return the last value of a forwarded header, from the nearest proxy."""
    values = given.getlist(f"x-forwarded-{name}")
    return values[-1].rpartition(",")[2].strip() if values else ""


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """Parse an IP address, with or without a port; none for anything else."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        parsed = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(parsed, "ipv4_mapped", None) or parsed

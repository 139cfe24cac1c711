"""Reverse proxies: forwarded headers, root path, host names and cookies."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from urnet.serve.http.proxy import OWN_PATHS, ProxySettings, route_path

PROXY, CLIENT = "10.0.0.7", "203.0.113.5"
TOKEN = "a token of the test's own"
FORWARDED = {
    "X-Forwarded-For": CLIENT,
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "cells.lab.example",
    "X-Forwarded-Prefix": "/urnet",
}


@pytest.fixture(scope="module")
def behind(open_client):
    """Open a client that is a reverse proxy: `behind(root_path="/urnet")`."""
    from contextlib import ExitStack

    with ExitStack() as opened:

        def behind(address=PROXY, root_path="", hosts=("cells.lab.example",), **more):
            proxy = ProxySettings.parse(root_path, ["10.0.0.0/24", "::1"], hosts)
            more = {"token": TOKEN, "instance": "1234abcd", "attempts": 2, "host": "127.0.0.1:8000"} | more
            return opened.enter_context(open_client(address=address, proxy=proxy, decode=False, **more))

        yield behind


def test_headers_of_a_trusted_proxy_set_client_and_scheme(behind):
    client = behind()
    answer = client.post("/login", data={"token": TOKEN}, headers=FORWARDED, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/urnet/")
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("urnet-session-1234abcd=")
    assert {"HttpOnly", "SameSite=strict", "Secure", "Path=/urnet"} <= set(cookie.split("; "))
    origin = {"Origin": "https://cells.lab.example"}
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    assert client.get("/v1/model", headers={**FORWARDED, **origin, **bearer}).status_code == 200
    assert client.get("/v1/model", headers={**FORWARDED, "Origin": "https://evil.example", **bearer}).status_code == 403
    assert client.get("/v1/model", headers={**FORWARDED, "X-Forwarded-Host": "evil.example"}).status_code == 403
    sent_on = client.get("/label", headers={**FORWARDED, "Accept": "text/html"}, follow_redirects=False)
    assert sent_on.headers["location"] == "/urnet/login"
    assert 'action="/urnet/login"' in client.get("/login", headers=FORWARDED).text


def test_attempts_are_counted_for_each_client_of_a_proxy(behind):
    client = behind()
    wrong = {"Authorization": "Bearer wrong"}
    one, two = ({**FORWARDED, "X-Forwarded-For": f"198.51.100.{k}", **wrong} for k in (1, 2))
    assert [client.get("/v1/model", headers=one).status_code for _ in range(3)] == [401, 401, 429]
    assert client.get("/v1/model", headers=two).status_code == 401
    spoofed = {**one, "X-Forwarded-For": "198.51.100.99, 198.51.100.1"}  # the proxy appends, the client comes before
    assert client.get("/v1/model", headers=spoofed).status_code == 429
    chain = {**one, "X-Forwarded-For": "198.51.100.1, 10.0.0.9"}  # two trusted proxies
    assert client.get("/v1/model", headers=chain).status_code == 429


def test_forwarded_headers_of_other_clients_are_ignored(behind, open_client):
    client = behind(address="192.0.2.1")
    for number in range(3):  # one address, whatever it says
        headers = {**FORWARDED, "X-Forwarded-For": f"198.51.100.{number}", "Authorization": "Bearer wrong"}
        assert client.get("/v1/model", headers=headers).status_code == (401 if number < 2 else 429)
    answer = client.post("/login", data={"token": TOKEN}, headers=FORWARDED, follow_redirects=False)
    assert answer.headers["location"] == "/"
    assert "Secure" not in answer.headers["set-cookie"]
    assert "Path=/;" in answer.headers["set-cookie"]
    allowed = {"Host": "evil.example", "X-Forwarded-Host": "cells.lab.example"}
    assert client.get("/healthz", headers=allowed).status_code == 403
    with open_client(decode=False) as plain:  # without any trusted proxy
        assert (
            plain.get("/healthz", headers={"Host": "evil.example", "X-Forwarded-Host": "localhost"}).status_code == 403
        )


@pytest.mark.parametrize("path", ["/{}", "/urnet/{}"])
def test_a_root_path_works_whether_or_not_the_proxy_removes_it(behind, path):
    client = behind(root_path="/urnet/")
    bearer = {"Authorization": f"Bearer {TOKEN}", "Host": "cells.lab.example"}
    for known in ("healthz", "v1/model", "openapi.json", "login"):
        assert client.get(path.format(known), headers=bearer).status_code == 200
    assert client.get("/urnetlogin", headers=bearer).status_code == 404
    assert client.get("/urnet/urnet/login", headers=bearer).status_code == 404
    missing = client.get(path.format("v1/nowhere"), headers=bearer)
    assert missing.status_code == 404
    assert client.post(path.format("v1/predict"), headers=bearer).status_code == 422
    assert client.get("/openapi.json", headers=bearer).json()["servers"] == [{"url": "/urnet"}]


def test_names_of_hosts_are_allowed_one_by_one(behind, open_client):
    client = behind()
    for host, status in (
        ("cells.lab.example", 200),
        ("CELLS.lab.example:8443", 200),
        ("localhost", 200),
        ("lab.example", 403),
        ("cells.lab.example.evil.example", 403),
    ):
        assert client.get("/healthz", headers={"Host": host}).status_code == status, host
    with open_client(proxy=ProxySettings.parse(allowed_hosts=["Server.Lab"]), decode=False) as plain:
        assert plain.get("/healthz", headers={"Host": "server.lab:80"}).status_code == 200
        detail = plain.get("/healthz", headers={"Host": "evil.example"}).json()["detail"]
        assert "localhost, server.lab" in detail


@given(
    st.dictionaries(
        st.sampled_from(
            ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-prefix", "forwarded"]
        ),
        st.text(st.characters(max_codepoint=255, blacklist_characters="\r\n\0"), max_size=60)
        | st.sampled_from(['"><script>', "/a/../b", "//evil.example", "/a b", "unknown, 1", "[::1", "::ffff:10.0.0.7"]),
    )
)
def test_any_forwarded_headers_give_a_valid_request(headers):
    import asyncio

    from urnet.serve.http.proxy import ForwardedHeadersMiddleware

    seen = []

    async def app(scope, receive, send):
        seen.append(scope)

    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    scope = {"type": "http", "path": "/label", "scheme": "http", "client": (PROXY, 1), "headers": raw}
    asyncio.run(
        ForwardedHeadersMiddleware(app, ProxySettings.parse("", [PROXY]))({**scope, "root_path": ""}, None, None)
    )
    (got,) = seen
    assert got["scheme"] in ("http", "https")
    assert re.fullmatch(r"[0-9a-f.:]+", got["client"][0])
    assert re.fullmatch(r"(/[A-Za-z0-9._~-]+)*", got["root_path"])
    assert ".." not in got["root_path"].split("/")
    assert route_path(got) == "/label"
    assert not [name for name, _ in got["headers"] if b"forwarded" in name]


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"root_path": "urnet"}, "serve.root_path"),
        ({"root_path": "/a b"}, "serve.root_path"),
        ({"root_path": "/../etc"}, "serve.root_path"),
        ({"root_path": "//evil.example"}, "serve.root_path"),
        ({"root_path": "/label"}, "serve.root_path"),
        ({"root_path": "/v1/urnet"}, "serve.root_path"),
        ({"trusted_proxies": ["proxy.lab"]}, "serve.trusted_proxy"),
        ({"trusted_proxies": ["*"]}, "serve.trusted_proxy"),
        ({"allowed_hosts": ["https://cells.lab"]}, "serve.allowed_host"),
        ({"allowed_hosts": ["*"]}, "serve.allowed_host"),
        ({"allowed_hosts": [""]}, "serve.allowed_host"),
    ],
)
def test_invalid_proxy_options_are_refused(given, code, raises_code):
    with raises_code(code):
        ProxySettings.parse(**given)


@pytest.mark.parametrize(
    "options", [{"root_path": "/urnet"}, {"trusted_proxies": ["::1"]}, {"allowed_hosts": ["a.lab"]}]
)
def test_each_option_of_a_proxy_means_a_server_behind_one(options):
    assert ProxySettings.parse(**options).is_behind_proxy
    assert not ProxySettings.parse().is_behind_proxy


@pytest.mark.slow
def test_paths_of_the_server_are_refused_as_root_path(open_client, pages):
    with open_client(pages=pages, token=TOKEN, decode=False) as client:

        def parts(routes):
            for route in routes:
                path = getattr(route, "path", "")
                router = getattr(route, "original_router", route)  # FastAPI keeps included routers as routes
                yield from [path.split("/")[1]] if path.strip("/") else parts(getattr(router, "routes", None) or ())

        found = set(parts(client.app.routes)) - {""}
    assert found <= OWN_PATHS
    assert {"label", "_nicegui_ws", "v1", "login"} <= found

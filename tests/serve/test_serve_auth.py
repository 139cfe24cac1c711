"""Authentication: open on loopback, by token elsewhere, closed to pages of other sites."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.websockets import WebSocketDisconnect

from urnet.serve.http.auth import (
    MAX_ADDRESSES,
    MAX_LOGIN_BYTES,
    AuthMiddleware,
    FailedLogins,
    address_of,
    is_loopback,
    new_token,
)
from urnet.serve.http.proxy import ProxySettings
from urnet.serve.settings import Settings

TOKEN = "a token of the test's own"
COOKIE = "urnet-session-1234abcd"


@pytest.fixture(scope="module")
def guarded(open_client):
    with open_client(
        decode=False, token=TOKEN, host="server.lab:8000", attempts=3, lockout_seconds=3600, instance="1234abcd"
    ) as client:
        yield client


@pytest.fixture(autouse=True)
def forget(request):
    if "guarded" in request.fixturenames:
        client = request.getfixturevalue("guarded")
        client.cookies.clear()
        attempts_of(client).wrong.clear()


def attempts_of(client) -> FailedLogins:
    layer = client.app.middleware_stack
    while not hasattr(layer, "attempts"):
        layer = layer.app
    return layer.attempts


@pytest.mark.slow
@pytest.mark.parametrize("host", ["localhost", "localhost:1", "127.0.0.1:8000", "[::1]:80", "LOCALHOST"])
def test_loopback_accepts_its_own_names(client, host):
    assert client.get("/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "", "[", "10.0.0.1"])
def test_loopback_refuses_other_names(client, host):
    answer = client.get("/v1/model", headers={"Host": host})
    assert answer.status_code == 403
    assert "answers to localhost only" in answer.json()["detail"]


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://localhost:9999", "https://localhost.evil", "http://["]
)
def test_other_sites_may_not_post(client, send_files, shapes, origin):
    answer = send_files(client, shapes / "disc" / "000.png", headers={"Origin": origin})
    assert answer.status_code == 403
    assert "other sites" in answer.json()["detail"]
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/any", headers={"Origin": origin}):
        pass


def test_its_own_page_may_post(client, send_files, shapes):
    assert send_files(client, shapes / "disc" / "000.png", headers={"Origin": "http://localhost"}).status_code == 200


def test_other_hosts_need_the_token(guarded, send_files, shapes):
    answer = send_files(guarded, shapes / "disc" / "000.png")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    assert send_files(guarded, shapes / "disc" / "000.png", headers=bearer).status_code == 200
    assert guarded.get("/openapi.json").status_code == 401
    assert guarded.get("/healthz").status_code == 200
    for wrong in (f"Basic {TOKEN}", f"Bearer {TOKEN}x"):
        assert guarded.get("/v1/model", headers={"Authorization": wrong}).status_code == 401
    assert guarded.get("/v1/model", headers={"Authorization": "Bearer ü".encode("latin-1")}).status_code == 401


def test_wrong_tokens_are_limited_and_the_right_one_is_accepted(guarded):
    wrong, right = {"Authorization": "Bearer wrong"}, {"Authorization": f"Bearer {TOKEN}"}
    assert [guarded.get("/v1/model", headers=wrong).status_code for _ in range(4)] == [401, 401, 401, 429]
    locked = guarded.get("/v1/model", headers=wrong)
    assert 3500 < int(locked.headers["retry-after"]) <= 3601
    assert guarded.post("/login", data={"token": "wrong"}).status_code == 429
    # Everybody behind a proxy has the same address.
    assert guarded.get("/v1/model", headers=right).status_code == 200
    assert guarded.post("/login", data={"token": TOKEN}, follow_redirects=False).status_code == 303
    assert guarded.get("/v1/model").status_code == 200
    assert guarded.get("/v1/model", headers=wrong).status_code == 200  # signed in
    guarded.cookies.clear()
    assert guarded.get("/v1/model", headers=wrong).status_code == 429


def test_a_password_for_the_proxy_is_not_an_attempt(guarded):
    for _ in range(10):
        assert guarded.get("/v1/model", headers={"Authorization": "Basic dTpw"}).status_code == 401
    assert guarded.get("/v1/model", headers={"Authorization": "Bearer wrong"}).status_code == 401


@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_a_large_login_is_not_read(guarded, kind, locked, monkeypatch):
    monkeypatch.setattr("starlette.formparsers.MultiPartParser.parse", None)  # writes to the disk
    for _ in range(3 if locked else 0):
        guarded.get("/v1/model", headers={"Authorization": "Bearer wrong"})
    too_large = 429 if locked else 413
    sent = guarded.post("/login", content=bytes(MAX_LOGIN_BYTES + 1), headers={"Content-Type": kind})
    assert sent.status_code == too_large
    answer, parts = in_parts(guarded, "/login", kind, 5000)
    assert answer == too_large
    assert parts <= (0 if locked else MAX_LOGIN_BYTES // 1000 + 1)
    small = guarded.post("/login", content=b"--x", headers={"Content-Type": kind})
    assert small.status_code == (429 if locked else 401)


def test_no_body_is_read_without_the_token(guarded):
    assert in_parts(guarded, "/v1/predict", "multipart/form-data; boundary=x", 5000) == (401, 0)
    assert in_parts(guarded, "/classify", "application/x-www-form-urlencoded", 5000) == (401, 0)


def in_parts(client, path, kind, size) -> tuple[int, int]:
    """Send a body of unknown length in parts of 1000 bytes; return the status and the number of parts read."""
    asked, answers = [], []

    async def receive():
        asked.append(1)
        return {"type": "http.request", "body": bytes(1000), "more_body": len(asked) * 1000 < size}

    async def send(message):
        answers.append(message)

    headers = [(b"host", b"server.lab:8000"), (b"content-type", kind.encode())]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b"", "scheme": "http"}
    scope |= {"client": ("testclient", 50000), "server": ("server.lab", 8000), "http_version": "1.1", "root_path": ""}
    client.portal.call(client.app, {**scope, "asgi": {"version": "3.0"}}, receive, send)
    return answers[0]["status"], len(asked)


def test_malformed_logins_are_refused(guarded):
    for content in (b"", b"token", b"token=%ff%fe", b"&" * 3000, b"token=" + "é".encode(), b"token=a&token=b"):
        attempts_of(guarded).wrong.clear()
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        assert guarded.post("/login", content=content, headers=headers).status_code == 401


def test_a_request_without_a_token_is_not_an_attempt(guarded):
    for _ in range(10):
        assert guarded.get("/v1/model").status_code == 401
    assert guarded.get("/v1/model", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_the_login_sets_a_cookie(guarded):
    sent_on = guarded.get("/", headers={"Accept": "text/html"}, follow_redirects=False)
    assert (sent_on.status_code, sent_on.headers["location"]) == (303, "/login")
    assert 'type="password"' in guarded.get("/login").text
    assert guarded.post("/login", data={"token": "guess"}).status_code == 401
    entered = guarded.post("/login", data={"token": f" {TOKEN} "}, follow_redirects=False)
    assert entered.status_code == 303
    cookie = entered.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "Path=/;" in cookie
    assert "Secure" not in cookie
    assert TOKEN not in cookie
    assert guarded.cookies[COOKIE]
    assert guarded.get("/v1/model").status_code == 200
    stolen = guarded.post("/v1/predict", headers={"Origin": "http://evil.example"})
    assert stolen.status_code == 403


def test_old_attempts_are_dropped():
    clock = [0.0]
    attempts = FailedLogins(Settings(attempts=2, lockout_seconds=10), lambda: clock[0])
    attempts.record("a")
    clock[0] = 11.0
    attempts.record("a")
    assert attempts.wait_seconds("a") == 0
    attempts.record("a")
    assert attempts.wait_seconds("a") == 10
    assert attempts.wait_seconds("b") == 0
    assert address_of({"client": ("2001:db8::1", 1)}) == address_of({"client": ("2001:db8::ffff:1", 2)})
    assert address_of({"client": ("10.0.0.1", 1)}) != address_of({"client": ("10.0.0.2", 1)})
    assert len(address_of({"client": ("x" * 10_000, 1)})) <= 100
    clock[0] = 21.5
    assert attempts.wait_seconds("a") == 0
    for number in range(MAX_ADDRESSES + 5):
        attempts.record(str(number))
    assert len(attempts.wrong) == MAX_ADDRESSES


def test_loopback_addresses_are_recognized():
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.8.8.8", "::1", "[::1]")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.4", "server.lab", "localhost.lab", "")))
    assert len(new_token()) > 40
    assert new_token() != new_token()


def test_an_old_cookie_is_not_an_attempt(guarded):
    guarded.cookies.set(COOKIE, "0" * 64)
    for _ in range(20):
        assert guarded.get("/v1/model").status_code == 401
    assert guarded.post("/login", data={"token": TOKEN}, follow_redirects=False).status_code == 303


WILD = st.text(st.characters(max_codepoint=255), max_size=80)


@given(
    st.lists(
        st.tuples(st.sampled_from(["host", "origin", "authorization", "cookie", "accept"]), WILD)
        | st.tuples(st.just("origin"), st.sampled_from(["http://[", "http://[::1", "//", "http://a:b@c:99999", "null"]))
        | st.tuples(st.just("host"), st.sampled_from(["[", "[::1", "localhost:x", "localhost@evil", "localhost/.."])),
        max_size=6,
    ),
    st.sampled_from([None, TOKEN]),
    st.sampled_from(["http", "websocket"]),
)
def test_any_headers_are_answered_and_none_gives_access(headers, token, kind):
    inside, answers = [], []

    async def app(scope, receive, send):
        inside.append(scope)

    async def receive():
        return {"type": "websocket.connect"}

    async def send(message):
        answers.append(message)

    access = AuthMiddleware(
        app, token, FailedLogins(Settings()), "1234abcd", ProxySettings.parse(allowed_hosts=["server.lab"])
    )
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    scope = {"type": kind, "method": "GET", "path": "/v1/model", "headers": raw, "client": ("10.0.0.1", 1)}
    asyncio.run(access(scope, receive, send))
    if token is not None:
        assert not inside
    assert inside or answers[0].get("status") in (303, 401, 403, 429) or answers[0]["type"] == "websocket.close"

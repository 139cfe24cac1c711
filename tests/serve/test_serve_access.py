"""Who may ask: this machine's user on loopback, whoever has the token elsewhere, and no other site's page."""

import pytest
from starlette.websockets import WebSocketDisconnect

from urnet.serve.access import COOKIE, REMEMBERED, Attempts, is_loopback, new_token
from urnet.serve.settings import Settings

TOKEN = "a token of the test's own"


@pytest.fixture(scope="module")
def guarded(serving):
    with serving(token=TOKEN, host="bench.lab:8000", attempts=3, lockout_seconds=3600) as client:
        yield client


@pytest.fixture(autouse=True)
def forget(request):
    if "guarded" in request.fixturenames:
        client = request.getfixturevalue("guarded")
        client.cookies.clear()
        attempts_of(client).wrong.clear()


def attempts_of(client) -> Attempts:
    layer = client.app.middleware_stack
    while not hasattr(layer, "attempts"):
        layer = layer.app
    return layer.attempts


@pytest.mark.parametrize("host", ["localhost", "localhost:1", "127.0.0.1:8000", "[::1]:80", "LOCALHOST"])
def test_loopback_answers_to_its_own_names(client, host):
    assert client.get("/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "", "[", "10.0.0.1"])
def test_loopback_answers_to_no_other_name(client, host):
    answer = client.get("/v1/model", headers={"Host": host})
    assert answer.status_code == 403
    assert "this machine only" in answer.json()["detail"]


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:9999", "https://localhost.evil"])
def test_other_sites_may_not_post(client, send, shapes, origin):
    answer = send(client, shapes / "disc" / "000.png", headers={"Origin": origin})
    assert answer.status_code == 403
    assert "other sites" in answer.json()["detail"]
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/any", headers={"Origin": origin}):
        pass


def test_its_own_page_may(client, send, shapes):
    assert send(client, shapes / "disc" / "000.png", headers={"Origin": "http://localhost"}).status_code == 200


def test_elsewhere_the_token_is_needed(guarded, send, shapes):
    answer = send(guarded, shapes / "disc" / "000.png")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    assert send(guarded, shapes / "disc" / "000.png", headers=bearer).status_code == 200
    assert guarded.get("/openapi.json").status_code == 401
    assert guarded.get("/healthz").status_code == 200
    for wrong in (f"Basic {TOKEN}", f"Bearer {TOKEN}x"):
        assert guarded.get("/v1/model", headers={"Authorization": wrong}).status_code == 401
    assert guarded.get("/v1/model", headers={"Authorization": "Bearer ü".encode("latin-1")}).status_code == 401


def test_wrong_tokens_are_limited(guarded):
    wrong, right = {"Authorization": "Bearer wrong"}, {"Authorization": f"Bearer {TOKEN}"}
    assert [guarded.get("/v1/model", headers=wrong).status_code for _ in range(4)] == [401, 401, 401, 429]
    locked = guarded.get("/v1/model", headers=right)
    assert locked.status_code == 429
    assert 3500 < int(locked.headers["retry-after"]) <= 3601
    assert guarded.post("/login", data={"token": TOKEN}).status_code == 429


def test_asking_without_a_token_is_no_attempt(guarded):
    for _ in range(10):
        assert guarded.get("/v1/model").status_code == 401
    assert guarded.get("/v1/model", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_the_page_asks_for_the_token_once(guarded):
    sent_on = guarded.get("/", headers={"Accept": "text/html"}, follow_redirects=False)
    assert (sent_on.status_code, sent_on.headers["location"]) == (303, "/login")
    assert 'type="password"' in guarded.get("/login").text
    assert guarded.post("/login", data={"token": "guess"}).status_code == 401
    entered = guarded.post("/login", data={"token": f" {TOKEN} "}, follow_redirects=False)
    assert entered.status_code == 303
    cookie = entered.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert TOKEN not in cookie
    assert guarded.cookies[COOKIE]
    assert guarded.get("/v1/model").status_code == 200
    stolen = guarded.post("/v1/predict", headers={"Origin": "http://evil.example"})
    assert stolen.status_code == 403


def test_attempts_are_forgotten_in_time_and_in_number():
    clock = [0.0]
    attempts = Attempts(Settings(attempts=2, lockout_seconds=10), lambda: clock[0])
    attempts.failed("a")
    clock[0] = 11.0
    attempts.failed("a")
    assert attempts.wait("a") == 0
    attempts.failed("a")
    assert attempts.wait("a") == 10
    assert attempts.wait("b") == 0
    clock[0] = 21.5
    assert attempts.wait("a") == 0
    for number in range(REMEMBERED + 5):
        attempts.failed(str(number))
    assert len(attempts.wrong) == REMEMBERED


def test_what_loopback_is():
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.8.8.8", "::1", "[::1]")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.4", "bench.lab", "localhost.lab", "")))
    assert len(new_token()) > 40
    assert new_token() != new_token()


def test_the_cookie_of_an_earlier_server_locks_nobody_out(guarded):
    guarded.cookies.set(COOKIE, "0" * 64)
    for _ in range(20):
        assert guarded.get("/v1/model").status_code == 401
    assert guarded.post("/login", data={"token": TOKEN}, follow_redirects=False).status_code == 303

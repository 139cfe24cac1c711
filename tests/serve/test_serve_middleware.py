"""Limits on bodies and on the number of requests."""

import tempfile

import pytest

from urnet.serve.http.middleware import RequestSlots

TOKEN = "a token of the test's own"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
FORM = {"Content-Type": "multipart/form-data; boundary=x"}
PART = b"--x\r\nContent-Disposition: form-data; name=token; filename=a\r\n\r\n"


class Sent:
    """Body in parts, which counts the parts that are read."""

    def __init__(self, parts: int, size: int):
        self.left, self.size, self.read = parts, size, 0

    async def receive(self) -> dict:
        self.read += 1
        self.left -= 1
        return {"type": "http.request", "body": b"x" * self.size, "more_body": self.left > 0}


def ask(client, method, path, body, headers):
    """Send a request with the given body, and return the status."""

    async def ask() -> int:
        messages = []

        async def send(message):
            messages.append(message)

        given = [(b"host", b"server.lab")] + [(k.lower().encode(), v.encode()) for k, v in headers.items()]
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "headers": given,
            "query_string": b"",
            "scheme": "http",
        }
        scope |= {"server": ("server.lab", 80), "client": ("10.0.0.9", 1), "root_path": "", "http_version": "1.1"}
        await client.app(scope, body.receive, send)
        return messages[0]["status"]

    return client.portal.call(ask)


@pytest.fixture(scope="module")
def guarded(open_client):
    with open_client(token=TOKEN, host="server.lab", attempts=1000, decode=False) as client:
        yield client


@pytest.fixture
def nothing_stored(monkeypatch):
    """Fail if a temporary file is created."""

    def refused(*_, **__):
        raise AssertionError("a temporary file is made")

    for name in ("TemporaryFile", "NamedTemporaryFile", "mkstemp", "mkdtemp"):
        monkeypatch.setattr(tempfile, name, refused)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
@pytest.mark.parametrize(
    "path",
    [
        *("/login", "/healthz", "/readyz", "/v1/predict", "/v1/differential", "/v1/model", "/nothing", "/openapi.json"),
        *("/classify/x/files", "/_nicegui/x.js", "/_nicegui_ws/socket.io/", "/"),
    ],
)
def test_without_a_token_no_body_is_read_beyond_a_few_kilobytes(guarded, nothing_stored, method, path):
    body = Sent(1000, 2**16)
    headers = FORM | ({"Authorization": "Bearer wrong"} if path == "/v1/predict" else {})
    assert ask(guarded, method, path, body, headers) in (200, 401, 404, 405, 413)
    assert body.read <= 1
    declared = Sent(1000, 2**16)
    assert ask(guarded, method, path, declared, FORM | {"Content-Length": "65536000"}) in (401, 413)
    assert declared.read == 0


@pytest.mark.parametrize("path", ["/login", "/v1/model", "/nothing"])
def test_with_a_token_only_files_may_be_large(guarded, path):
    assert ask(guarded, "POST", path, Sent(1, 10), FORM | BEARER | {"Content-Length": "8193"}) == 413
    body = Sent(1000, 2**16)
    ask(guarded, "POST", path, body, FORM | BEARER)
    assert body.read <= 1


def test_uploads_of_a_page_take_slots_too(open_client, pages):
    with open_client(max_requests=1, decode=False) as client:
        layer = client.app.middleware_stack
        while not hasattr(layer, "slots"):
            layer = layer.app
        layer.slots.acquire()
        for path in ("/v1/predict", "/v1/differential", "/classify/x/files"):
            assert client.post(path, headers=FORM, content=PART).status_code == 429
        assert client.get("/healthz").status_code == 200


def test_the_waiting_time_is_estimated_from_running_requests():
    now = [0.0]
    slots = RequestSlots(2, 100.0, lambda: now[0])
    first, second = slots.acquire(), slots.acquire()
    assert slots.is_full
    now[0] = 8.0
    assert slots.wait_seconds() == 8.0  # nothing has ended yet: as long again
    now[0] = 80.0
    assert slots.wait_seconds() == 20.0  # no longer than allowed
    slots.release(first)
    third = slots.acquire()
    now[0] = 110.0
    assert slots.wait_seconds() == 0.0
    slots.release(second)
    fourth = slots.acquire()
    assert not slots.wait_seconds() < 50.0  # of the mean, less what the third has taken
    slots.release(third)
    slots.release(fourth)
    assert len(slots) == 0


def test_a_refusal_before_the_body_closes_the_connection(guarded):
    for path, content in (("/login", b"x" * 9000), ("/v1/predict", b"x" * 9000)):
        answer = guarded.post(path, headers=FORM, content=content)
        assert answer.status_code in (401, 413)
        assert answer.headers["Connection"] == "close"

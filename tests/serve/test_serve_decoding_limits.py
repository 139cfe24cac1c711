"""Limits on decoding: small files that are large or slow to decode are refused."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hostile_files import many_scans, shared_strip, slow_and_large

from urnet.serve.uploads.decoders import _Process

pytestmark = pytest.mark.slow


HOSTILE = slow_and_large()
LIMITS = {"decode_seconds": 2, "file_seconds": 3, "field_seconds": 8, "decode_memory": 2**28}


@pytest.fixture(scope="module")
def careful(open_client):
    with open_client(**LIMITS) as client:
        yield client


@pytest.mark.parametrize("to", ["/v1/predict", "/v1/differential"])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_quickly_and_the_next_one_is_answered(careful, send_files, shapes, name, to):
    began = time.monotonic()
    answer = send_files(careful, (name, HOSTILE[name]), to=to)
    took = time.monotonic() - began
    assert answer.status_code in (200, 422), answer.text
    if answer.status_code == 422:
        assert name in answer.json()["detail"]
    assert took < 10
    assert send_files(careful, shapes / "disc" / "000.png").status_code == 200


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("shared_strip.tif", "49,965,005,000 px in 1999 pages, more than the 400,000,000 px"),
        ("late_page.tif", "108,000,000 px in the largest of 2 pages, more than the 25,000,000 px"),
        ("sparse_tiles.tif", "3,619,225,600 px, more than the 25,000,000 px"),
        ("many_scans.jpg", "(decode_seconds)"),
    ],
)
def test_the_error_names_the_limit(careful, send_files, name, words):
    assert words in send_files(careful, (name, HOSTILE[name])).json()["detail"]


def test_the_time_limit_applies_to_all_pieces_of_a_file_together(open_client, send_files, monkeypatch):
    allowed, ask = [], _Process.ask

    def asked(process, order, seconds, given_up):
        allowed.append(seconds)
        time.sleep(0.1)
        return ask(process, order, seconds, given_up)

    monkeypatch.setattr(_Process, "ask", asked)
    pieces = shared_strip(48, 100, 100)
    with open_client(decode_seconds=20, file_seconds=20, sample_seconds=19) as client:
        send_files(client, ("a.tif", pieces), ("b.tif", pieces))
    assert len(allowed) == 6
    assert max(allowed) == 19
    assert min(allowed) < 18.75  # at least three pieces of 0.1 s before
    with open_client(decode_seconds=20, file_seconds=0.3) as client:
        late = send_files(client, ("a.tif", shared_strip(48, 2800, 2800))).text
        assert "decoding it takes longer than the 0.3 s that the server allows (file_seconds)" in late


def test_a_request_with_slow_files_does_not_delay_others(open_client, send_files, shapes):
    slow = many_scans(4900, 4900, 20_000)
    with open_client(decode_seconds=1) as client, ThreadPoolExecutor(4) as pool:
        one = pool.submit(send_files, client, *[(f"{number}.jpg", slow) for number in range(4)])
        others = [pool.submit(send_files, client, ("4.jpg", slow)) for _ in range(3)]
        wait_until(lambda: len(client.services.decoders._queue) > 4)
        began = time.monotonic()
        assert send_files(client, shapes / "disc" / "000.png").status_code == 200
        assert time.monotonic() - began < 6
        assert not one.done()
        assert client.services.decoders.backlog_seconds() > 0.5
        answers = [answer.result().json()["files"] for answer in (one, *others)]
        assert [len(files) for files in answers] == [4, 1, 1, 1]
        assert all(file["error"].endswith("(decode_seconds)") for files in answers for file in files)
        assert client.services.decoders.backlog_seconds() == 0


def wait_until(there) -> None:
    until = time.monotonic() + 20
    while not there():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_decoding_ends_when_the_client_disconnects(open_client, shapes, send_files):
    slow = many_scans(4900, 4900, 20_000)
    boundary = b"--x\r\nContent-Disposition: form-data; name=files; filename=a.jpg\r\n\r\n" + slow + b"\r\n--x--\r\n"

    async def leave(app) -> list:
        """Send a request, and disconnect while it is worked on."""
        sent, answers = False, []

        async def receive():
            nonlocal sent
            if sent:
                await asyncio.sleep(1)
                return {"type": "http.disconnect"}
            sent = True
            return {"type": "http.request", "body": boundary}

        async def answer(message):
            answers.append(message)

        headers = [(b"host", b"localhost"), (b"content-type", b"multipart/form-data; boundary=x")]
        scope = {"type": "http", "method": "POST", "path": "/v1/predict", "headers": headers, "query_string": b""}
        scope |= {
            "scheme": "http",
            "server": ("localhost", 80),
            "client": ("127.0.0.1", 1),
            "root_path": "",
            "http_version": "1.1",
        }
        await app(scope, receive, answer)
        return answers

    with open_client(decode_seconds=60, file_seconds=60) as client:
        decoders = client.services.decoders
        before = decoders.processes[0].process.pid
        began = time.monotonic()
        assert client.portal.call(leave, client.app) == []
        assert time.monotonic() - began < 5
        wait_until(lambda: not decoders._running)
        assert time.monotonic() - began < 5
        assert client.services.storage.used_bytes == 0
        assert send_files(client, shapes / "disc" / "000.png").status_code == 200
        assert decoders.processes[0].process.pid != before

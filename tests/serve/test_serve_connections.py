"""Connections that never complete are closed, and other clients are answered meanwhile."""

import base64
import os
import socket
import threading
import time
from contextlib import contextmanager, suppress

import httpx
import pytest
import uvicorn

from urnet.serve.http.connections import connection_options
from urnet.serve.settings import Settings

LARGE = 64 * 2**20


async def app(scope, receive, send) -> None:
    """Answer "ok", a large answer at `/large`, and the size of the body at `/body`; accept websockets."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            pass
        return
    if scope["path"] == "/body":
        while (await receive()).get("more_body"):
            pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": bytes(LARGE) if scope["path"] == "/large" else b"ok"})


@contextmanager
def running(**limits):
    """Run a server in a thread; give its port and its open connections."""
    config = uvicorn.Config(app, lifespan="off", log_config=None, **connection_options(Settings(**limits)))
    server = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield listening.getsockname()[1], server.server_state.connections
    finally:
        server.should_exit = server.force_exit = True
        thread.join(20)
        listening.close()


QUICK = {"header_seconds": 0.6, "idle_seconds": 0.6, "write_seconds": 0.6}


@pytest.fixture(scope="module")
def quick():
    with running(**QUICK) as (port, _):
        yield port


def connect(port: int, content: bytes = b"") -> socket.socket:
    made = socket.create_connection(("127.0.0.1", port), 20)
    made.sendall(content)
    return made


def seconds_open(made: socket.socket, dribble: bytes = b"") -> float:
    """Measure the time until the server closes a connection on which data arrives now and then."""
    began = time.monotonic()
    made.settimeout(0.1)
    while time.monotonic() - began < 20:
        try:
            if dribble:
                made.sendall(dribble)
            if not made.recv(2**16):
                break
        except TimeoutError:
            continue
        except OSError:
            break
    made.close()
    return time.monotonic() - began


GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
WEBSOCKET = GET + b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"


@pytest.mark.slow
@pytest.mark.parametrize("dribble", [b"", b"X-A: b\r\n"])
@pytest.mark.parametrize("begun", [b"", b"G", GET, WEBSOCKET, GET + b"\r\n" + GET], ids=["", "G", "GET", "ws", "next"])
def test_a_connection_with_endless_headers_is_closed(quick, begun, dribble):
    if not begun and dribble:
        pytest.skip("no beginning of a request")
    took = seconds_open(connect(quick, begun), dribble)
    assert 0.3 < took < 5


def test_an_idle_connection_is_closed(quick):
    assert 0.3 < seconds_open(connect(quick, GET + b"\r\n")) < 5


@pytest.mark.slow
def test_a_connection_with_an_unread_answer_is_closed(quick):
    made = connect(quick, GET.replace(b"/ ", b"/large ") + b"\r\n")
    time.sleep(2)
    got = 0
    with made:
        while part := made.recv(2**20):
            got += len(part)
    assert got < LARGE


def test_large_headers_are_refused(quick):
    made = connect(quick)
    sent = 0
    with made, suppress(OSError):
        while sent < LARGE:
            sent += made.send(b"x" * 2**16)
    assert sent < LARGE


@pytest.mark.slow
def test_slow_clients_within_the_time_limits_are_answered(quick):
    made = connect(quick, GET.replace(b"GET / ", b"POST /body ") + b"Content-Length: 12\r\n\r\n")
    for _ in range(12):
        time.sleep(0.1)
        made.sendall(b"x")
    assert b"200 OK" in made.recv(1000)
    made.close()
    read = 0
    with httpx.stream("GET", f"http://127.0.0.1:{quick}/large") as answer:
        for part in answer.iter_raw(2**22):
            read += len(part)
            time.sleep(0.1)
    assert read == LARGE


@pytest.mark.slow
def test_an_open_websocket_stays(quick):
    key = base64.b64encode(os.urandom(16))
    made = connect(quick, WEBSOCKET + b"Sec-WebSocket-Key: " + key + b"\r\n\r\n")
    made.settimeout(2)
    assert b"101" in made.recv(1000)
    with pytest.raises(TimeoutError):
        made.recv(1)
    made.close()


@pytest.mark.parametrize(
    "held",
    [b"", GET, WEBSOCKET, GET + b"\r\n", GET.replace(b"GET / ", b"POST /body ") + b"Content-Length: 9\r\n\r\n"],
    ids=["", "headers", "ws", "idle", "body"],
)
def test_many_open_connections_do_not_block_other_clients(held):
    limits = {"header_seconds": 60, "idle_seconds": 60, "max_connections": 20}
    with running(**limits) as (port, connections):
        holding = [connect(port, held) for _ in range(60)]
        for _ in range(5):
            assert httpx.get(f"http://127.0.0.1:{port}/", timeout=5).text == "ok"
        assert len(connections) <= 21
        for made in holding:
            made.close()

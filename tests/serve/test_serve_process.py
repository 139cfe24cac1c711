"""`urnet serve` as a process: start, requests, stop and kill."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from urnet.cli import run as run_command
from urnet.serve.database.labels import Labeller
from urnet.serve.database.store import Store

pytestmark = [pytest.mark.server, pytest.mark.slow]


COMMAND = [sys.executable, "-c", "from urnet.cli import main; main()", "serve"]


@contextmanager
def server(*arguments, env=None):
    """Start a server on a free port; give its process, address, and first lines."""
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | (env or {}),
    )
    lines = []
    try:
        for line in process.stdout:
            lines.append(line.strip())
            if "Ctrl+C" in line:
                break
        address = next((found[0] for line in lines if (found := re.search(r"http://\S+", line))), None)
        assert address, lines
        until = time.monotonic() + 60
        while not answers(address):
            assert time.monotonic() < until
            assert process.poll() is None, process.stdout.read()
        yield process, address, lines
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/readyz").status_code == 200
    except httpx.TransportError:
        time.sleep(0.05)
        return False


def post(address: str, file: Path, times: int = 1, **more) -> httpx.Response:
    files = [("files", (file.name, file.read_bytes()))] * times
    return httpx.post(f"{address}/v1/predict", files=files, timeout=60, **more)


def test_a_stopped_server_finishes_running_requests(served_run, shapes, tmp_path):
    with server(served_run, "--database", tmp_path / "labels.db", "--cells", shapes) as (process, address, lines):
        assert lines[0].startswith(f"Starting the web application: model {served_run}, cells {shapes}, database ")
        assert lines[1] == f"tiny, engine onnx: {address}"
        assert not any("token" in line for line in lines)
        assert post(address, shapes / "disc" / "000.png").json()["results"][0]["predicted"]
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(post, address, shapes / "disc" / "000.png", 200)
            time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
            try:
                assert len(running.result().json()["results"]) == 200
            except httpx.TransportError:
                pytest.skip("the request had not arrived when the server was told to stop")
        assert process.stdout.read().strip() == "stopped"
    store = Store(tmp_path / "labels.db")
    queue = shapes.resolve().as_posix()
    assert store.labels.progress(queue).cells == 60
    assert Path(store.labels.claim(queue, Labeller("Ada"))[0].path).is_file()
    store.close()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 on this system")
def test_after_kill_9_under_load_the_next_start_cleans_up_and_works(served_run, shapes, tmp_path):
    arguments, temporary = (served_run, "--database", tmp_path / "labels.db"), tmp_path / "temporary"
    temporary.mkdir()
    env = {"TMPDIR": str(temporary)}
    with server(*arguments, env=env) as (process, address, _), ThreadPoolExecutor(4) as pool:
        send_to_page(address, shapes / "disc" / "000.png")
        going = threading.Event()

        def load():
            while not going.is_set():
                try:
                    assert post(address, shapes / "ring" / "001.png", 5).status_code == 200
                except httpx.TransportError:
                    return

        running = [pool.submit(load) for _ in range(4)]
        time.sleep(0.5)
        children = children_of(process.pid)
        process.kill()
        process.wait()
        going.set()
        [one.result() for one in running]
        until = time.monotonic() + 20
        while any(is_alive(child) for child in children):
            assert time.monotonic() < until
            time.sleep(0.05)
    assert len(list(temporary.rglob("000000.png"))) >= 1
    with server(*arguments, "--host", "0.0.0.0", env=env) as (_, address, lines):
        assert list(temporary.rglob("000000.png")) == []
        assert len([path for path in temporary.glob("urnet-*") if path.is_dir()]) == 1
        token = next(line.removeprefix("token: ") for line in lines if line.startswith("token: "))
        address, file = address.replace("0.0.0.0", "127.0.0.1"), shapes / "disc" / "000.png"
        assert post(address, file).status_code == 401
        assert post(address, file, headers={"Authorization": f"Bearer {token}"}).status_code == 200


def send_to_page(address: str, file: Path) -> None:
    with httpx.Client(base_url=address) as browser:
        key = browser.post("/classify").json()["key"]
        sent = browser.post(f"/classify/{key}/files", files=[("files", (file.name, file.read_bytes()))])
        assert sent.json() == {"files": 1}


def children_of(pid: int) -> list[int]:
    place = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in place.read_text(encoding="ascii").split()] if place.is_file() else []


def is_alive(pid: int) -> bool:
    place = Path(f"/proc/{pid}/stat")
    try:
        return place.read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 on this system")
def test_a_database_is_refused_while_another_server_has_it(shapes, tmp_path, capfd):
    arguments = ("--cells", shapes, "--database", tmp_path / "labels.db")
    with server(*arguments) as (process, _, _):
        assert run_command(["serve", *map(str, arguments), "--port", "0"]) == 2
        assert "another urnet server uses this database" in capfd.readouterr().err
        process.kill()
        process.wait()
    with server(*arguments) as (process, _, lines):
        assert not any("another" in line for line in lines)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["labels.db"]


def test_a_server_behind_a_proxy_needs_a_token(served_run, tmp_path):
    with server(served_run, "--database", tmp_path / "labels.db", "--root-path", "/urnet") as (_, address, lines):
        assert any(line.startswith("token: ") for line in lines)
        assert httpx.get(f"{address}/v1/model").status_code == 401


def test_errors_at_the_start_are_one_line(served_run, tmp_path, capfd, monkeypatch):
    def mistake(*arguments) -> str:
        capfd.readouterr()
        assert run_command(["serve", *map(str, arguments), "--database", str(tmp_path / "labels.db")]) == 2
        err = capfd.readouterr().err
        assert err.count("\n") == 1
        return err

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port} cannot be used" in mistake(served_run, "--port", port)
    assert "no trained model here" in mistake(tmp_path, "--port", 0)
    assert "--host no.such.host.invalid: no such host" in mistake(served_run, "--host", "no.such.host.invalid")
    assert "did you mean max_files" in mistake(served_run, "--set", "max_file=3")
    assert "no such file or folder" in mistake(served_run, "--port", 0, "--cells", tmp_path / "gone")
    assert "--root-path label" in mistake(served_run, "--port", 0, "--root-path", "label")
    assert "--trusted-proxy x" in mistake(served_run, "--port", 0, "--trusted-proxy", "x")
    assert "--allowed-host *" in mistake(served_run, "--port", 0, "--allowed-host", "*")
    monkeypatch.setenv("URNET_TOKEN", "short")
    assert "give 16 or more" in mistake(served_run, "--host", "0.0.0.0", "--port", 0)
    assert list(tmp_path.iterdir()) == []  # no database of a server that never was
    (tmp_path / "labels.db").write_text("a letter, not a database " * 50, encoding="utf-8")
    assert "not a database" in mistake(served_run, "--port", 0)

"""Routes of the page Classify: shared storage for uploads, sessions, and pictures of a replaced sample."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from starlette.testclient import TestClient

from urnet.serve.app import create_app
from urnet.serve.classification_job import ClassificationJob
from urnet.serve.results import CellPosition, FieldPreview, ImageResult, UploadedCells
from urnet.serve.services import Services
from urnet.serve.settings import Settings
from urnet.serve.uploads.receive import Upload


@pytest.fixture
def page(served_run, pages):
    """Open the app with its pages: `with page(sample_files=3) as (browser, services)`."""

    @contextmanager
    def page(**limits):
        services = Services.open(served_run, Settings(decoders=1, **limits), "onnx")
        with TestClient(create_app(services, pages=pages), base_url="http://localhost") as browser:
            yield browser, services

    return page


def begin(browser) -> str:
    return f"/classify/{browser.post('/classify').json()['key']}"


def put(browser, at, content, files=1):
    return browser.post(f"{at}/files", files=[("files", ("a.png", content))] * files)


def empty(services) -> None:
    until = time.monotonic() + 20
    while services.storage.used_bytes:
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.slow
def test_browsers_share_the_storage_and_a_new_sample_frees_the_old_one(page, shapes):
    content = (shapes / "disc" / "000.png").read_bytes() + bytes(2000)
    with page(upload_bytes=3 * len(content)) as (one, services):
        two = TestClient(one.app, base_url="http://localhost")
        first, second = begin(one), begin(two)
        assert put(one, first, content, 2).json() == {"files": 2}
        refused = put(two, second, content, 2)
        assert refused.status_code == 429
        assert refused.json()["code"] == "server.uploads_full"
        assert put(two, second, content).status_code == 404  # what had room does not stay
        begin(one)
        empty(services)
        assert put(two, begin(two), content, 3).json() == {"files": 3}


@pytest.mark.slow
def test_pixel_size_is_set_for_the_whole_sample(page, shapes):
    with page() as (browser, _):
        key = browser.post("/classify", data={"sample": "a", "pixel_size_um": "0.25"}).json()["key"]
        put(browser, f"/classify/{key}", (shapes / "disc" / "000.png").read_bytes(), 2)
        (session,) = sessions_of(browser).sessions.values()
        assert [upload.pixel_um for upload in session.data["classify"].uploads] == [0.25, 0.25]
        refused = browser.post("/classify", data={"pixel_size_um": "-1"})
    assert refused.status_code == 422
    assert refused.json()["code"] == "request.invalid"


@pytest.mark.slow
def test_unused_samples_make_room_for_instruments(page, shapes, send_files, monkeypatch):
    from urnet.serve.pages import sessions

    file = shapes / "disc" / "000.png"
    content = file.read_bytes() + bytes(2000)
    with page(upload_bytes=3 * len(content)) as (browser, services):
        at = begin(browser)
        put(browser, at, content, 3)
        instrument = TestClient(browser.app, base_url="http://localhost")
        assert send_files(instrument, file).status_code == 429
        assert browser.get(f"{at}/predictions.csv").status_code == 200
        monkeypatch.setattr(sessions, "UNUSED_SCARCE_S", 0.0)
        send_files(instrument, file)
        empty(services)
        assert send_files(instrument, file).status_code == 200


class Work:
    """Session data that can be busy."""

    is_busy, closed = False, False

    def close(self) -> None:
        self.closed = True


def test_busy_session_stays_when_storage_is_scarce():
    pytest.importorskip("nicegui", reason="NiceGUI is not installed")
    from urnet.serve.pages.sessions import MAX_SESSIONS, UNUSED_SCARCE_S, SessionMiddleware

    async def app(scope, receive, send):
        scope["urnet.session"].data.setdefault("work", Work())

    now, storage = [0.0], SimpleNamespace(is_scarce=True)
    sessions = SessionMiddleware(app, storage, "x", lambda: now[0])

    def visit(path="/", key=""):
        cookie = (b"cookie", f"urnet-browser-x={key}".encode())
        scope = {"type": "http", "scheme": "http", "path": path, "headers": [cookie]}
        asyncio.run(sessions(scope, None, None))
        return scope.get("urnet.session")

    running, idle = visit(), visit()
    work, other = running.data["work"], idle.data["work"]
    work.is_busy = True
    now[0] = UNUSED_SCARCE_S + 1
    visit()
    assert (work.closed, other.closed) == (False, True)
    assert visit(key=running.key) is running
    for _ in range(MAX_SESSIONS + 10):
        visit()
    assert not work.closed
    assert len(sessions.sessions) == MAX_SESSIONS
    work.is_busy = False
    visit()
    assert work.closed
    assert running.key not in sessions.sessions


@pytest.mark.slow
def test_session_is_busy_until_the_sample_is_counted(page, shapes):
    with page() as (browser, _):
        at = begin(browser)
        put(browser, at, (shapes / "disc" / "000.png").read_bytes())
        found = next(one for one in sessions_of(browser).sessions.values())
        assert not found.is_busy
        browser.post(f"{at}/start")
        assert found.is_busy
        until = time.monotonic() + 20
        while found.is_busy:
            assert time.monotonic() < until
            time.sleep(0.05)
        assert browser.get(f"{at}/predictions.csv").text.count("disc") >= 1


def sessions_of(browser):
    """Find the session middleware of the app."""
    layer = browser.app.middleware_stack
    while not hasattr(layer, "sessions"):
        layer = layer.app
    return layer


@pytest.mark.slow
def test_partial_count_is_made_if_requested_at_the_end(page, tmp_path):
    with page() as (_, services):
        assert asyncio.run(count_late(services.storage, tmp_path)) == ("done", 1)


async def count_late(storage, folder) -> tuple:
    """Classify one cell of one field; another field is unreadable. Ask for the count while the notes are made."""
    noting, asked = asyncio.Event(), asyncio.Event()

    async def extract_cells(*_):
        return UploadedCells(
            [Upload("cells", folder)],
            [],
            [FieldPreview("a", folder, 9, 9)],
            [CellPosition(0, 1, 1)],
            [ImageResult("b", error="b")],
        )

    async def classify_file(*_, **__):
        yield [ImageResult("0.png")]

    async def collect_notes(_):
        noting.set()
        await asked.wait()
        return []

    services = SimpleNamespace(
        storage=storage,
        settings=Settings(),
        model=SimpleNamespace(calibration=True),
        extract_cells=extract_cells,
        classify_file=classify_file,
        collect_notes=collect_notes,
        count_results=lambda name, answers: len(answers),
    )
    job = ClassificationJob(services, asyncio.Semaphore(1))
    job.uploads = [Upload("a", folder), Upload("b", folder)]
    job.start()
    await asyncio.wait_for(noting.wait(), 20)
    job.count_partial()
    asked.set()
    while job.is_running:
        await asyncio.sleep(0.01)
    result = job.state, job.differential
    job.close()
    return result


@pytest.mark.slow
def test_picture_of_a_replaced_sample_is_gone(page, shapes, monkeypatch):
    with page() as (browser, services), ThreadPoolExecutor(1) as threads:
        at = begin(browser)
        put(browser, at, (shapes / "disc" / "000.png").read_bytes())
        browser.post(f"{at}/start")
        until = time.monotonic() + 20
        while browser.get(f"{at}/0/raw.png").status_code != 200:
            assert time.monotonic() < until
            time.sleep(0.05)
        read, asked, replaced = services.decoders.read, threading.Event(), threading.Event()

        async def late(upload, *span, **how):
            asked.set()
            while not replaced.is_set() or upload.path.exists():
                await asyncio.sleep(0.01)
            return await read(upload, *span, **how)

        monkeypatch.setattr(services.decoders, "read", late)
        request = threads.submit(browser.get, f"{at}/0/enhanced.png")
        assert asked.wait(20)
        begin(browser)
        replaced.set()
        assert request.result().status_code == 204
        assert browser.get(f"{at}/0/enhanced.png").status_code == 204

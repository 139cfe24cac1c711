"""What the script of the page asks for: room for files that all browsers share, pictures of a sample that is there."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from starlette.testclient import TestClient

from urnet.serve.app import create_app
from urnet.serve.services import CellPosition, FieldPreview, ImageResult, Services, UploadedCells
from urnet.serve.settings import Settings
from urnet.serve.uploads.receive import Upload


@pytest.fixture
def page(served_run, pages):
    """The app with its pages: `with page(sample_files=3) as (browser, services)`."""

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


def test_browsers_share_the_room_and_a_new_sample_gives_back_that_of_the_old_one(page, shapes):
    content = (shapes / "disc" / "000.png").read_bytes() + bytes(2000)
    with page(upload_bytes=3 * len(content)) as (one, services):
        two = TestClient(one.app, base_url="http://localhost")
        first, second = begin(one), begin(two)
        assert put(one, first, content, 2).json() == {"files": 2}
        refused = put(two, second, content, 2)
        assert refused.status_code == 429
        assert "ask who runs it" in refused.json()["detail"]
        assert put(two, second, content).status_code == 404  # what had room does not stay
        begin(one)
        empty(services)
        assert put(two, begin(two), content, 3).json() == {"files": 3}


def test_the_pixel_size_of_fields_comes_with_their_sample(page, shapes):
    with page() as (browser, _):
        key = browser.post("/classify", data={"sample": "a", "pixel_size_um": "0.25"}).json()["key"]
        put(browser, f"/classify/{key}", (shapes / "disc" / "000.png").read_bytes(), 2)
        (session,) = sessions_of(browser).sessions.values()
        assert [upload.pixel_um for upload in session.kept["classify"].uploads] == [0.25, 0.25]
        refused = browser.post("/classify", data={"pixel_size_um": "-1"})
    assert refused.status_code == 422
    assert refused.json()["detail"] == "pixel_size_um: Input should be greater than 0"


def test_samples_that_nobody_looks_at_make_room_for_instruments(page, shapes, send_files, monkeypatch):
    from urnet.serve.pages import sessions

    file = shapes / "disc" / "000.png"
    content = file.read_bytes() + bytes(2000)
    with page(upload_bytes=3 * len(content)) as (browser, services):
        at = begin(browser)
        put(browser, at, content, 3)
        instrument = TestClient(browser.app, base_url="http://localhost")
        assert send_files(instrument, file).status_code == 429
        assert browser.get(f"{at}/predictions.csv").status_code == 200
        monkeypatch.setattr(sessions, "SCARCE_SECONDS", 0.0)
        send_files(instrument, file)
        empty(services)
        assert send_files(instrument, file).status_code == 200


class Work:
    """What a page keeps, at work or not."""

    is_busy, closed = False, False

    def close(self) -> None:
        self.closed = True


def test_a_session_at_work_is_not_forgotten_however_scarce_the_room_is():
    pytest.importorskip("nicegui", reason="NiceGUI is not installed")
    from urnet.serve.pages.sessions import MOST, SCARCE_SECONDS, SessionMiddleware

    async def app(scope, receive, send):
        scope["urnet.session"].kept.setdefault("work", Work())

    now, storage = [0.0], SimpleNamespace(is_scarce=True)
    sessions = SessionMiddleware(app, storage, "x", lambda: now[0])

    def visit(path="/", key=""):
        cookie = (b"cookie", f"urnet-bench-x={key}".encode())
        scope = {"type": "http", "scheme": "http", "path": path, "headers": [cookie]}
        asyncio.run(sessions(scope, None, None))
        return scope.get("urnet.session")

    running, idle = visit(), visit()
    work, other = running.kept["work"], idle.kept["work"]
    work.is_busy = True
    now[0] = SCARCE_SECONDS + 1
    visit()
    assert (work.closed, other.closed) == (False, True)
    assert visit(key=running.key) is running
    for _ in range(MOST + 10):
        visit()
    assert not work.closed
    assert len(sessions.sessions) == MOST
    work.is_busy = False
    visit()
    assert work.closed
    assert running.key not in sessions.sessions


def test_a_sample_is_at_work_until_it_is_counted(page, shapes):
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
    """The middleware within the app that keeps the sessions."""
    layer = browser.app.middleware_stack
    while not hasattr(layer, "sessions"):
        layer = layer.app
    return layer


def test_a_count_that_is_asked_for_at_the_very_end_is_made(page, tmp_path):
    with page() as (_, services):
        from urnet.serve.classification_job import ClassificationJob

        went = asyncio.run(count_late(ClassificationJob, services.storage, tmp_path))
    assert went == ("done", 1)


async def count_late(classification, storage, folder) -> tuple:
    """One cell of one field is classified, another field is lost; the count is asked for while notes are made."""
    making, asked = asyncio.Event(), asyncio.Event()

    async def cut(*_):
        return UploadedCells(
            [Upload("cells", folder)],
            [],
            [FieldPreview("a", folder, 9, 9)],
            [CellPosition(0, 1, 1)],
            [ImageResult("b", error="b")],
        )

    async def classify_file(*_, **__):
        yield [ImageResult("0.png")]

    async def notes_on(_):
        making.set()
        await asked.wait()
        return []

    mine = classification(
        SimpleNamespace(
            storage=storage,
            settings=Settings(),
            model=SimpleNamespace(calibration=True),
            cut=cut,
            classify_file=classify_file,
            notes_on=notes_on,
            sample=lambda name, answers: len(answers),
        ),
        asyncio.Semaphore(1),
    )
    mine.uploads = [Upload("a", folder), Upload("b", folder)]
    mine.start()
    await making.wait()
    mine.count_readable()
    asked.set()
    while mine.is_running:
        await asyncio.sleep(0.01)
    went = mine.state, mine.counted
    mine.close()
    return went


def test_a_picture_whose_sample_was_replaced_meanwhile_is_gone(page, shapes, monkeypatch):
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
        waiting = threads.submit(browser.get, f"{at}/0/enhanced.png")
        assert asked.wait(20)
        begin(browser)
        replaced.set()
        answer = waiting.result()
        assert answer.status_code == 410
        assert "another one was begun since" in answer.json()["detail"]
        assert browser.get(f"{at}/0/enhanced.png").status_code == 404

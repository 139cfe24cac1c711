"""Fixtures for the web application: a small trained model, in-memory clients, servers, and a browser."""

import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

from urnet.bundle.model import Model
from urnet.export import engine_graph
from urnet.export.engine import choose_engine
from urnet.serve.app import create_app
from urnet.serve.services import Services
from urnet.serve.settings import Settings


def pytest_collection_modifyitems(items) -> None:
    """Mark the tests that start a browser, a server or decoding processes; all of them are slow."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        for marker, fixture in (("browser", "browser"), ("server", "start_server"), ("slow", "open_client")):
            if fixture in fixtures:
                item.add_marker(marker)
                item.add_marker("slow")


@pytest.fixture(scope="session")
def served_run(trained, trained_graph, tmp_path_factory) -> Path:
    """Copy of a finished run with its graph, which the server may write to."""
    run = Path(shutil.copytree(trained.folder, tmp_path_factory.mktemp("served") / "run"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_graph, "to_onnx", lambda model: trained_graph)
        engine_graph.CachedGraph(Model.load(run)).export()
    return run


@pytest.fixture(scope="session")
def open_client(served_run):
    """Open an in-memory client: `with open_client(max_files=3) as client`; `client.services` are its services.

    With `decode=False`, no decoding process is started.
    """

    loaded = {}  # models and engines by run

    @contextmanager
    def open_client(
        run=served_run, token=None, host="localhost", address="testclient", pages=None, decode=True, **limits
    ):
        about = {key: limits.pop(key) for key in ("proxy", "instance") if key in limits}
        if run not in loaded:
            model = Model.load(run)
            loaded[run] = (model, choose_engine(model, "onnx"))
        services = Services(Settings(decoders=1, **limits), Path(run), *loaded[run])
        if not decode:  # a process would start with the first file
            services.decoders.start = lambda: None
        app = create_app(services, token=token, pages=pages, **about)
        client = TestClient(app, base_url=f"http://{host}", raise_server_exceptions=False, client=(address, 50000))
        with client:
            client.services = services
            yield client

    return open_client


@pytest.fixture(scope="module")
def client(open_client):
    with open_client() as client:
        yield client


@pytest.fixture
def pages():
    """Function that adds the pages to an app; NiceGUI has one app for the whole process."""
    added = pytest.importorskip("urnet.serve.pages", reason="NiceGUI is not installed").add_pages

    def pages(app, services) -> None:
        from nicegui import core

        core.app.middleware_stack = None  # as before it first started
        added(app, services)

    return pages


@pytest.fixture(scope="session")
def send_files():
    """Send files, as paths or as (name, content)."""

    def send_files(client, *files, to="/v1/predict", **more):
        parts = [(f.name, f.read_bytes()) if isinstance(f, Path) else f for f in files]
        return client.post(to, files=[("files", part) for part in parts], **more)

    return send_files


@pytest.fixture(scope="session")
def start_server():
    """Start `urnet serve` in a process: `with start_server(run, folder) as address`; the folder gets its log."""

    @contextmanager
    def start_server(run, folder, *arguments, **environment):
        main = [sys.executable, "-c", "from urnet.cli import main; main()", "serve"]
        arguments = [run, "--database", folder / "bench.db", "--port", "0", "--engine", "onnx", *arguments]
        log = folder / "log.txt"
        with log.open("w", encoding="utf-8") as out:
            process = subprocess.Popen(
                [*main, *map(str, arguments)],
                stdout=out,
                stderr=out,
                env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
            )
        try:
            until = time.monotonic() + 120
            while not (address := _ready(log.read_text(encoding="utf-8"))):
                assert process.poll() is None, log.read_text(encoding="utf-8")
                assert time.monotonic() < until
                time.sleep(0.1)
            yield Address(address, process.pid, folder / "bench.db")
        finally:
            process.kill()
            process.wait()
        assert "Traceback" not in log.read_text(encoding="utf-8")

    return start_server


@pytest.fixture(scope="module")
def server_url(start_server, served_run, shapes, tmp_path_factory):
    """Address of a server with cells to be labelled and a new database."""
    with start_server(served_run, tmp_path_factory.mktemp("bench"), "--cells", shapes) as address:
        yield address


class Address(str):
    """Address of a server, with its process and database."""

    def __new__(cls, address, pid, database):
        made = super().__new__(cls, address)
        made.pid, made.database = pid, database
        return made


def _ready(log: str) -> str | None:
    found = re.search(r"http://[^\s]+", log)
    try:
        return found[0] if found and httpx.get(f"{found[0]}/readyz").status_code == 200 else None
    except httpx.TransportError:
        return None


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def disk_full(server_url):
    """Stop the server from writing to its files: `with disk_full():`."""
    resource = pytest.importorskip("resource", reason="no limits of processes on this system")
    if not hasattr(resource, "prlimit"):
        pytest.skip("no limits of other processes on this system")

    @contextmanager
    def disk_full():
        before = resource.prlimit(server_url.pid, resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))
        try:
            yield
        finally:
            resource.prlimit(server_url.pid, resource.RLIMIT_FSIZE, before)

    return disk_full


@pytest.fixture(scope="module")
def server_store(server_url):
    """The database of the server, opened in this process too."""
    from urnet.serve.database.store import Store

    store = Store(server_url.database)
    yield store
    store.close()


@pytest.fixture
def open_page(browser, server_url):
    """Open pages as a person does: `open_page("/label", width=400, scheme="dark")`; fails on errors in the console."""
    contexts, wrong = [], []

    def open_page(path="/", *, width=1280, height=900, scheme="light", context=None):
        if context is None:
            context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
            contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        own = (server_url, "data:", "blob:")
        page.on("request", lambda request: None if request.url.startswith(own) else wrong.append(request.url))
        page.goto(server_url + path)
        page.wait_for_selector("h1")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture(scope="session")
def axe():
    """List the serious problems that axe-core finds on a page: `assert axe(page) == []`."""
    package = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-core is not installed")

    def axe(page):
        found = package.Axe().run(page).response["violations"]
        return [
            (one["id"], [node["html"][:150] for node in one["nodes"]][:3])
            for one in found
            if one["impact"] in ("serious", "critical")
        ]

    return axe

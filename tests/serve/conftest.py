"""A small trained model behind an app, spoken to in memory."""

import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from urnet.serve.app import create_app
from urnet.serve.bench import Bench
from urnet.serve.settings import Settings


@pytest.fixture(scope="session")
def served(trained, tmp_path_factory) -> Path:
    """A copy of a finished run, beside whose weights the server may keep its graph."""
    return Path(shutil.copytree(trained.folder, tmp_path_factory.mktemp("served") / "run"))


@pytest.fixture(scope="session")
def serving(served):
    """Serves the run: `with serving(max_files=3) as client`; `client.bench` is what answers."""

    @contextmanager
    def serving(run=served, token=None, host="localhost", **limits):
        bench = Bench.open(run, Settings(decoders=1, **limits), "onnx")
        app = create_app(bench, token=token)
        with TestClient(app, base_url=f"http://{host}", raise_server_exceptions=False) as client:
            client.bench = bench
            yield client

    return serving


@pytest.fixture(scope="module")
def client(serving):
    with serving() as client:
        yield client


@pytest.fixture(scope="session")
def send():
    """Sends files, as paths or as (name, content)."""

    def send(client, *files, to="/v1/predict", **more):
        parts = [(f.name, f.read_bytes()) if isinstance(f, Path) else f for f in files]
        return client.post(to, files=[("files", part) for part in parts], **more)

    return send

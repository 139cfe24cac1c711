"""Temporary storage for uploads: cleanup and limit."""

import asyncio
import io
import subprocess
import sys
import tempfile
import threading
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from urnet.serve.settings import Settings
from urnet.serve.uploads.decoders import DecoderPool
from urnet.serve.uploads.receive import store_uploads
from urnet.serve.uploads.storage import StorageFullError, UploadFolder, UploadStorage, measure_bytes

OWNER = """
import sys, time
from urnet.serve.uploads.storage import UploadFolder, UploadStorage
storage = UploadStorage(100)
storage.start()
(UploadFolder(storage).files / "cell.png").write_bytes(b"sent")
print(storage.root, flush=True)
time.sleep(60)
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Empty temporary folder of the system."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def owner() -> tuple[subprocess.Popen, str]:
    process = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
    return process, process.stdout.readline().strip()


@contextmanager
def started(most: int):
    storage = UploadStorage(most)
    storage.start()
    try:
        yield storage
    finally:
        storage.stop()


def test_folders_of_killed_servers_are_removed_and_others_stay(place):
    (dead, left), (living, in_use) = owner(), owner()
    dead.kill()
    dead.wait()
    (place / "urnet-serve-strange").mkdir()  # nobody knows whose
    (place / "urnet-other").mkdir()
    with started(100) as own:
        there = {path.name for path in place.iterdir() if path.is_dir()}
        assert there == {Path(in_use).name, own.root.name, "urnet-serve-strange", "urnet-other"}
        assert not list(place.glob(f"{Path(left).name}*"))
        assert measure_bytes(Path(in_use)) == 4
    living.kill()
    living.wait()
    with started(100):
        pass
    assert {path.name for path in place.iterdir()} == {"urnet-serve-strange", "urnet-other"}
    for process in (dead, living):
        process.stdout.close()


def test_without_locks_a_server_removes_its_own_folder_only(place, monkeypatch):
    monkeypatch.setattr("urnet.serve.uploads.storage.lock_file", lambda path: None)
    (place / "urnet-serve-other").mkdir()
    (place / "urnet-serve-other.lock").touch()
    with started(100) as own:
        assert own.new_folder().is_dir()
    assert sorted(path.name for path in place.iterdir()) == ["urnet-serve-other", "urnet-serve-other.lock"]


def test_the_storage_limit_applies_to_all_uploads_together(place, raises_code):
    with started(100) as storage:
        with closing(UploadFolder(storage)) as first, closing(UploadFolder(storage)) as second:
            first.reserve(60)
            with raises_code("server.uploads_full") as caught:
                second.reserve(41)
            for number in ("60 bytes", "41 more", "100 (upload_bytes)"):
                assert number in str(caught.value)
            second.reserve(40)
            first.close()
            first.close()
            second.reserve(60)
        assert storage.used_bytes == 0
        with closing(UploadFolder(storage)) as folder, pytest.raises(StorageFullError):
            store_uploads(folder, [("a.png", io.BytesIO(b"a" * 101))])
        assert storage.used_bytes == 0
        assert list(storage.root.iterdir()) == []
        storage.root.rmdir()  # as systems tidy up
        with closing(UploadFolder(storage)) as folder:
            assert folder.files.is_dir()


def test_cells_cropped_for_a_closed_folder_are_deleted(place, monkeypatch):
    begun, go = threading.Event(), threading.Event()

    def ask(process, order, seconds, given_up):
        begun.set()
        assert go.wait(20)
        out = Path(order["out"])
        out.mkdir(parents=True)
        (out / "cells.csv").write_bytes(b"path")
        return {"fields": False}, []

    monkeypatch.setattr("urnet.serve.uploads.decoders._Process.ask", ask)
    decoders = DecoderPool(SimpleNamespace(cropping=None, config=None), Settings(decoders=1))

    async def give_up(folder: UploadFolder) -> None:
        cutting = asyncio.create_task(decoders.extract_cells(folder, folder.root / "cells", []))
        await asyncio.to_thread(begun.wait, 20)
        cutting.cancel()
        folder.close()
        go.set()

    with started(100) as storage:
        asyncio.run(give_up(UploadFolder(storage)))
        decoders.stop()
        assert list(storage.root.iterdir()) == []


@pytest.mark.slow
def test_a_full_storage_is_answered_429_with_retry_after(open_client, send_files, shapes):
    file = shapes / "disc" / "000.png"
    with open_client(upload_bytes=2 * file.stat().st_size + 1024) as client:
        answer = send_files(client, *[file] * 40)
        assert answer.status_code == 429
        assert answer.headers["Retry-After"] == "30"
        assert "try again later" in answer.json()["detail"]
        assert send_files(client, file).status_code == 200
        assert client.services.storage.used_bytes == 0

"""Uploads that are too large, damaged or hostile."""

import asyncio
import io
import pickle
import struct
import zipfile
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from hostile_files import png
from PIL import Image

from urnet.bundle.model import Model
from urnet.errors import ImageError
from urnet.images.read import read_image
from urnet.serve.settings import Settings
from urnet.serve.uploads.decoders import DecoderPool
from urnet.serve.uploads.receive import Upload, display_name, store_uploads
from urnet.serve.uploads.storage import UploadFolder, UploadStorage, Usage


def tiff(pages: int, width: int = 24, height: int = 24, endless: bool = False) -> bytes:
    """Write a TIFF whose pages share the same pixels."""
    tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, height), (279, 576)]
    size = 2 + 12 * len(tags) + 4
    first = 8 + 576
    content = b"II*\0" + struct.pack("<I", first) + bytes(576)
    for page in range(pages):
        following = 0 if page == pages - 1 and not endless else first + (page + 1) % pages * size
        content += struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", t, 4, 1, v) for t, v in tags)
        content += struct.pack("<I", following)
    return content


def deflated(shape: tuple[int, int]) -> bytes:
    """Write a TIFF that is tiny until it is decoded."""
    file = io.BytesIO()
    tifffile.imwrite(file, np.zeros(shape, np.uint8), compression="zlib", rowsperstrip=shape[0])
    return file.getvalue()


class Evil:
    def __reduce__(self):
        return (print, ("unpickled",))


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("cell.png", bytes(100))
    return file.getvalue()


BOMBS = {
    "pixels.png": (png(50_000, 50_000, bytes(1000)), "100,000,000 px"),
    "large.png": (png(6000, 6000, bytes(1000)), "more than the 25,000,000 px"),
    "data.png": (png(24, 24, bytes(10**8)), ""),
    "large.tif": (deflated((5200, 5200)), "more than the 25,000,000 px"),
    "pages.tif": (tiff(5000), "more than the 50 pages"),
    "endless.tif": (tiff(3, endless=True), ""),
    "wide.tif": (tiff(1, width=2**31, height=2**31), "px"),
    "vector.svg": (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "no PNG, JPEG, BMP or TIFF"),
    "model.png": (pickle.dumps(Evil()), "no PNG, JPEG, BMP or TIFF"),
    "weights.pt": (zipped(), "no PNG, JPEG, BMP or TIFF"),
    "page.html": (b"<!doctype html><script>alert(1)</script>", "no PNG, JPEG, BMP or TIFF"),
    "loop.gif": (b"GIF89a" + bytes(30), "no PNG, JPEG, BMP or TIFF"),
    "cells.csv": (b"path\n/etc/passwd\n", "no PNG, JPEG, BMP or TIFF"),
    "nothing.png": (b"", "the file is empty"),
    "small.png": (png(1, 1, bytes(2)), "at least 8 px"),
    "grey.png": (png(24, 24, bytes(25 * 24)), "nothing to classify"),
}


@pytest.fixture(scope="module")
def careful(open_client):
    with open_client(max_images=50) as client:
        yield client


@pytest.mark.slow
@pytest.mark.parametrize("to", ["/v1/predict", "/v1/differential"])
@pytest.mark.parametrize("name", BOMBS)
def test_bombs_and_files_of_other_formats_are_refused_with_a_reason(careful, send_files, capfd, name, to):
    content, words = BOMBS[name]
    answer = send_files(careful, (name, content), to=to)
    assert answer.status_code == 422, answer.text
    detail = answer.json()["detail"]
    assert name in detail
    assert words in detail
    assert "urnet-" not in answer.text  # no path of ours
    assert "unpickled" not in capfd.readouterr().out


def whole_images() -> dict[str, bytes]:
    rng, found = np.random.default_rng(0), {}
    pixels = rng.integers(60, 200, (24, 24)).astype(np.uint8)
    for kind in ("png", "jpg", "bmp"):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG" if kind == "jpg" else kind.upper())
        found[f"cell.{kind}"] = file.getvalue()
    for compression in ("none", "zlib", "lzw"):
        file = io.BytesIO()
        tifffile.imwrite(file, pixels, compression=compression)
        found[f"{compression}.tif"] = file.getvalue()
    return found


def damaged(rng: np.random.Generator, images: dict[str, bytes]) -> tuple[str, bytes]:
    """Damage an image: truncate it, flip bits, insert bytes, or change its signature."""
    names = sorted(images)
    name = names[rng.integers(len(names))]
    content = bytearray(images[name])
    how = rng.integers(4)
    if how == 0:
        del content[rng.integers(len(content)) :]
    elif how == 1:
        for _ in range(rng.integers(1, 20)):
            content[rng.integers(min(len(content), 400))] ^= 1 << rng.integers(8)
    elif how == 2:
        start = rng.integers(len(content))
        content[start : start + 40] = rng.bytes(rng.integers(80))
    else:
        content[:8] = images[names[rng.integers(len(names))]][:8]
    return name, bytes(content)


def memory(process) -> int:
    """Return the memory of a process in pages; 0 where it is unknown."""
    place = Path(f"/proc/{process.process.pid}/statm")
    return int(place.read_text(encoding="ascii").split()[1]) if place.is_file() else 0


@pytest.mark.slow
def test_damaged_uploads_get_a_reason_each_and_the_server_stays_up(careful, send_files, tmp_path):
    rng, images, refused, before = np.random.default_rng(5), whole_images(), 0, 0
    path, fit = tmp_path / "cell", careful.services.model.resize_crop
    for number in range(500):
        name, content = damaged(rng, images)
        answer = send_files(careful, (name, content))
        path.write_bytes(content)
        try:
            fit(read_image(path))
        except ImageError:
            expected = answer.json()
            assert answer.status_code == 422, (number, expected)
            assert len(expected["files"][0]["error"]) > 20
            refused += 1
        else:  # what the damage left is an image, of one page or more
            assert answer.status_code in (200, 422), (number, answer.text)
        if number == 100:
            before = memory(careful.services.decoders.processes[0])
    assert refused > 250
    assert memory(careful.services.decoders.processes[0]) < before + 20_000  # 80 MB
    assert send_files(careful, ("cell.png", images["cell.png"])).status_code == 200


@pytest.mark.slow
def test_decoding_that_takes_too_long_is_ended_and_the_next_file_is_decoded(open_client, send_files):
    images = whole_images()
    with open_client(decode_seconds=1e-7) as client:
        answer = send_files(client, ("cell.png", images["cell.png"]))
        assert answer.status_code == 422
        assert "longer than the 1e-07 s" in answer.json()["detail"]
        client.services.decoders.settings = client.services.settings.model_copy(update={"decode_seconds": 20})
        assert send_files(client, ("cell.png", images["cell.png"])).status_code == 200


@pytest.mark.slow
def test_a_crashed_decoder_is_replaced(open_client, send_files):
    images = whole_images()
    with open_client() as client:
        client.services.decoders.processes[0].process.kill()
        answers = [send_files(client, ("cell.png", images["cell.png"])).status_code for _ in range(2)]
        assert answers[-1] == 200


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="only Linux bounds the memory of a process")
def test_memory_of_decoding_is_limited(open_client, send_files):
    pixels = np.random.default_rng(0).integers(0, 255, (4900, 4900)).astype(np.float32)
    file = io.BytesIO()
    tifffile.imwrite(file, pixels)
    with open_client(max_bytes=2**28, decode_memory=2**26) as client:
        answer = send_files(client, ("large.tif", file.getvalue()))
        assert answer.status_code == 422
        images = whole_images()
        assert send_files(client, ("cell.png", images["cell.png"])).status_code == 200


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("cell.png", "cell.png"),
        ("../../etc/passwd", "passwd"),
        ("C:\\lab\\zelle µ.tif", "zelle µ.tif"),
        ("a\nb\x00.png", "a_b_.png"),
        ("\u202egnp.exe", "_gnp.exe"),
        ("..", ".."),
        ("", "unnamed"),
        ("x" * 999, "x" * 200),
    ],
)
def test_names_of_clients_are_for_display_only(given, expected):
    assert display_name(given) == expected
    storage = UploadStorage(2**20)
    storage.start()
    with closing(UploadFolder(storage)) as folder:
        uploads = store_uploads(folder, [(given, io.BytesIO(whole_images()["cell.png"]))])
        assert [path.name for path in folder.files.iterdir()] == ["000000.png"]
        assert uploads[0].path == folder.files / "000000.png"
        assert uploads[0].name == expected
    assert not folder.root.exists()
    storage.stop()


def test_messages_carry_the_names_of_the_client(tmp_path, monkeypatch, raises_code):
    sent = [Upload(f"{number + 1:06d}.tif", tmp_path / f"{number:06d}.tif") for number in range(3)]
    message = f"000000.tif, 000001.tif: no; {tmp_path / '000002.tif'} too. No cells in 000001.tif."
    expected = "000001.tif, 000002.tif: no; 000003.tif too. No cells in 000002.tif."
    decoders, storage = DecoderPool(SimpleNamespace(cropping=None, config=None), Settings(decoders=1)), UploadStorage(1)

    def cut(answer: dict) -> dict:
        monkeypatch.setattr("urnet.serve.uploads.decoders._Process.ask", lambda *_: (answer, []))
        return asyncio.run(decoders.extract_cells(UploadFolder(storage), tmp_path, sent))

    storage.start()
    with raises_code("images.damaged") as caught:
        cut({"error": message, "code": "images.damaged"})
    assert str(caught.value) == expected
    assert cut({"fields": True, "unreadable": {"000001.tif": (message, "images.damaged")}, "notes": [message]})[
        "notes"
    ] == [expected]
    decoders.stop()
    storage.stop()


@pytest.mark.parametrize(("decoders", "most"), [(1, 1), (2, 1), (3, 2)])
def test_fields_leave_a_decoder_to_crops(served_run, tmp_path, monkeypatch, decoders, most):
    pool = DecoderPool(Model.load(served_run), Settings(decoders=decoders))
    cutting, seen = 0, []

    async def ask(*_, **__):
        nonlocal cutting
        cutting += 1
        seen.append(cutting)
        await asyncio.sleep(0.01)
        cutting -= 1
        return {"fields": False}, []

    async def cut_all() -> None:
        folder = SimpleNamespace(files=tmp_path, usage=Usage())
        await asyncio.gather(*(pool.extract_cells(folder, tmp_path / "out", []) for _ in range(5)))

    monkeypatch.setattr(pool, "_ask", ask)
    asyncio.run(cut_all())
    assert max(seen) == most

"""The API: the same answers as the command line, and problem details for everything else."""

import errno
import json
import os
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from urnet.counting.differential import count_cells
from urnet.predict import predict_files
from urnet.serve.http import middleware
from urnet.serve.http.errors import CODES, STATUS_BY_CODE
from urnet.serve.results import NoUsableImageError, UnreadableError
from urnet.serve.settings import read_settings
from urnet.serve.uploads.storage import StorageFullError


def assert_problem(answer, status: int, *words: str) -> dict:
    """Check that an answer has problem details with these words."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert (body["status"], body["type"]) == (status, "about:blank")
    assert body["request_id"] == answer.headers["x-request-id"]
    assert re.fullmatch(r"[a-z]+\.[a-z_]+", body["code"])
    for word in words:
        assert word in body["detail"]
    return body


def test_predictions_equal_those_of_the_command_line(client, send_files, shapes, tmp_path):
    files = sorted(shapes.rglob("*.png"))
    predict_files(client.services.model, files, tmp_path / "p.csv", engine="onnx")
    table = pd.read_csv(tmp_path / "p.csv", dtype=str, keep_default_na=False)
    alone = [send_files(client, file).json()["results"][0] for file in files[::7]]
    body = send_files(client, *files).json()
    assert body["engine"] == "onnx"
    assert body["model"] == client.services.model.digest()
    assert body["results"][::7] == alone
    for row, result in zip(table.to_dict("records"), body["results"], strict=True):
        assert result["predicted"] == row["predicted"]
        assert {f"p_{name}": f"{p:.6f}" for name, p in result["probabilities"].items()}.items() <= row.items()
        assert (result["rejected"], "|".join(result["set"])) == (row["rejected"], row["set"])


def test_the_differential_equals_that_of_the_command_line(client, served_run, send_files, shapes, tmp_path):
    files = sorted((shapes / "disc").iterdir()) + sorted((shapes / "bar").iterdir())[:7]
    folder = tmp_path / "S1"
    folder.mkdir()
    for number, file in enumerate(files):
        (folder / f"{number:02d}.png").write_bytes(file.read_bytes())
    counted = count_cells(served_run, folder, tmp_path / "out", engine="onnx")
    written = json.loads((counted.folder / "differential.json").read_text(encoding="utf-8"))
    answer = send_files(client, *files, to="/v1/differential", data={"sample": "S1"})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert {key: body[key] for key in written["samples"][0]} == written["samples"][0]
    assert body["notes"] == written["notes"]
    assert not body["fields"]


def test_an_unused_pixel_size_is_noted(client, send_files, shapes):
    answer = send_files(client, shapes / "disc" / "000.png", to="/v1/differential", data={"pixel_size_um": "0.3"})
    assert answer.status_code == 200, answer.text
    assert any(note.startswith("pixel_size_um was not used") for note in answer.json()["notes"])


def test_an_unusable_file_has_an_error_among_the_results(client, send_files, shapes):
    answer = send_files(client, ("../../etc/pass\u200bwd", b"no image"), shapes / "disc" / "000.png")
    assert answer.status_code == 200
    bad, good = answer.json()["results"]
    assert bad["file"] == "pass_wd"
    assert bad["error"].startswith("pass_wd: ")
    assert bad["code"].startswith("images.")
    assert good["predicted"] in ("bar", "disc", "ring")
    assert "error" not in good


def test_only_unusable_files_are_answered_422_with_all_reasons(client, send_files):
    body = assert_problem(send_files(client, ("a.png", b""), ("b.svg", b"<svg/>")), 422, "a.png: the file is empty")
    assert body["code"] == "images.none_usable"
    assert [one["file"] for one in body["files"]] == ["a.png", "b.svg"]
    assert all(one["code"].startswith("images.") for one in body["files"])
    assert_problem(send_files(client, ("a.png", b""), to="/v1/differential"), 422, "the file is empty")


def test_each_page_of_a_stack_is_an_image(client, send_files, shapes, tmp_path):
    pages = [Image.open(shapes / name / "000.png") for name in ("bar", "disc", "ring")]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    results = send_files(client, tmp_path / "stack.tif").json()["results"]
    assert [result["image"] for result in results] == [f"stack.tif#p{page:03d}" for page in range(3)]
    assert {result["file"] for result in results} == {"stack.tif"}


@pytest.mark.slow
def test_padding_tiles_of_a_montage_are_left_out(open_client, send_files, shapes, tmp_path):
    with open_client() as client:
        tile = np.asarray(Image.open(shapes / "bar" / "000.png"))
        cells = [tile, *(np.asarray(Image.open(shapes / "disc" / f"{k:03d}.png")) for k in range(3))]
        montage = np.block([cells, *[[np.full_like(tile, 7)] * 4] * 3])
        Image.fromarray(montage).save(tmp_path / "m.png")
        model = client.services.model
        client.services.decoders.stop()
        from urnet.bundle.model import Model
        from urnet.serve.uploads.decoders import DecoderPool

        tiled = Model(replace(model.config, tile=24), model.joint, model.calibration, folder=model.folder)
        client.services._decoders = DecoderPool(tiled, client.services.settings)
        client.services.decoders.start()
        results = send_files(client, tmp_path / "m.png").json()["results"]
        assert [result["image"] for result in results] == [f"m.png#r00c{column:02d}" for column in range(4)]


def test_the_model_route_describes_the_model(client):
    body = client.get("/v1/model").json()
    assert body["classes"] == ["bar", "disc", "ring"]
    assert body["use"] == "research use only"
    assert body["limits"]["max_files"] == client.services.settings.max_files
    assert client.get("/healthz").json() == client.get("/readyz").json() == {"status": "ok"}


def test_requests_have_ids(client):
    assert client.get("/healthz", headers={"X-Request-ID": "run-7.a"}).headers["x-request-id"] == "run-7.a"
    given = client.get("/healthz", headers={"X-Request-ID": "<script>"}).headers["x-request-id"]
    assert len(given) == 32


def code(answer) -> str:
    return answer.json()["code"]


def test_invalid_requests_are_answered_with_problem_details(client, send_files):
    assert assert_problem(client.get("/nothing"), 404, "/nothing")["code"] == "request.not_found"
    assert assert_problem(client.get("/v1/predict"), 405)["code"] == "request.method_not_allowed"
    assert_problem(client.post("/v1/predict"), 422, "files", "multipart/form-data")
    assert_problem(client.post("/v1/predict", data={"files": "text"}), 422, "files")
    wrong = client.post("/v1/predict", content=b"x", headers={"Content-Type": "multipart/form-data"})
    assert assert_problem(wrong, 400, "boundary")["code"] == "request.malformed"
    assert assert_problem(send_files(client, ("a.png", b"")), 422)["code"] == "images.none_usable"


@pytest.mark.parametrize("to", ["/v1/predict", "/v1/differential"])
@pytest.mark.parametrize(
    ("parts", "code", "words"),
    [
        ([("image", ("a.png", b"x"))], "request.files_missing", "no part 'files'; it has 'image'"),
        ([("files[]", ("a.png", b"x")), ("sample", (None, "S"))], "request.files_missing", "'files[]', 'sample'"),
        ([("files", (None, "x"))], "request.file_name_missing", "1 part(s) 'files' have no file name"),
        (
            [("files", (None, "x")), ("files", ("a.png", b"x"))],
            "request.file_name_missing",
            "1 part(s) 'files' have no",
        ),
        ([], "request.files_missing", "the request has no part 'files'; send"),
    ],
)
def test_parts_without_files_are_answered_with_an_example(client, to, parts, code, words):
    body = assert_problem(
        client.post(to, files=parts), 422, words, f"curl -F files=@cell1.png -F files=@cell2.png {to}"
    )
    assert body["code"] == code


@pytest.mark.slow
def test_limits_on_bytes_and_files(open_client, send_files, shapes):
    disc = shapes / "disc" / "000.png"
    with open_client(max_bytes=4096, max_files=2) as client:
        assert send_files(client, disc, disc).status_code == 200
        assert code(send_files(client, disc, disc, disc)) == "request.too_many_files"
        assert_problem(send_files(client, disc, disc, disc), 413, "3 files, but 2 are allowed")
        assert_problem(send_files(client, ("big.png", bytes(5000))), 413, "4,096 bytes")
        chunks = client.post("/v1/predict", content=(bytes(1000) for _ in range(9)), headers={"Content-Type": FORM})
        assert_problem(chunks, 413, "4,096 bytes")


FORM = "multipart/form-data; boundary=x"


@pytest.mark.slow
def test_an_answer_that_takes_too_long_is_cancelled(open_client, send_files, shapes):
    with open_client(request_seconds=0.05) as client:
        going = threading.Event()
        run = client.services.network.engine.run
        hold(client, lambda crops: (going.wait(5), run(crops))[1])
        answer = send_files(client, shapes / "disc" / "000.png")
        going.set()
        assert_problem(answer, 503, "0.05 s")
        assert int(answer.headers["retry-after"]) >= 1


def hold(client, run) -> None:
    """Replace the function of the engine."""
    client.services.network.engine = replace(client.services.network.engine, run=run)


def wait_until(there) -> None:
    """Wait until a condition holds; fail after 20 seconds."""
    until = time.monotonic() + 20
    while not there():
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.mark.slow
def test_batches_form_across_requests_and_too_many_requests_are_refused(open_client, send_files, shapes):
    with open_client(max_requests=6) as client, ThreadPoolExecutor(8) as pool:
        going, sizes, run = threading.Event(), [], client.services.network.engine.run

        def slow(crops):
            sizes.append(len(crops))
            assert going.wait(20)
            return run(crops)

        hold(client, slow)
        files = sorted(shapes.rglob("*.png"))[:6]
        answers = [pool.submit(send_files, client, files[0])]
        wait_until(lambda: sizes == [1])
        answers += [pool.submit(send_files, client, file) for file in files[1:]]
        wait_until(lambda: client.services.network._queue.qsize() == 5)
        turned_away = send_files(client, files[0])
        assert_problem(turned_away, 429, "6 requests", "max_requests", "try again in")
        assert 1 <= int(turned_away.headers["retry-after"]) <= 60
        assert client.get("/readyz").status_code == 200
        going.set()
        assert [answer.result().status_code for answer in answers] == [200] * 6
        assert sizes == [1, 5]
        assert send_files(client, files[0]).status_code == 200


def test_an_internal_error_is_answered_500_without_details(open_client, send_files, shapes):
    with open_client() as client:
        hold(client, lambda crops: 1 / 0)
        body = assert_problem(send_files(client, shapes / "disc" / "000.png"), 500, "see its log")
        assert "division" not in json.dumps(body)
        assert client.get("/readyz").status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize(
    "writes",
    [
        "urnet.serve.uploads.receive.shutil.copyfileobj",
        "urnet.serve.uploads.storage.tempfile.mkdtemp",
        "tempfile.TemporaryFile",
    ],
)
def test_a_full_disk_is_answered_507_wherever_it_occurs(open_client, send_files, shapes, monkeypatch, number, writes):
    """The disk fills while the request is received (`TemporaryFile`, for parts over 1 MB) or while files are stored."""

    def full(*_, **__):
        raise OSError(number, os.strerror(number))

    large = ("large.png", (shapes / "disc" / "000.png").read_bytes() + bytes(2**21))
    with open_client() as client:
        with monkeypatch.context() as patch:
            patch.setattr(writes, full)
            body = assert_problem(send_files(client, large), 507, "disk is full")
        assert body["code"] == "server.disk_full"
        assert client.services.storage.used_bytes == 0
        assert send_files(client, large).status_code == 200


def test_a_disk_error_while_receiving_is_answered_500(open_client, send_files, monkeypatch):
    def broken(*_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with open_client() as client:
        monkeypatch.setattr("tempfile.TemporaryFile", broken)
        assert assert_problem(send_files(client, ("large.png", bytes(2**21))), 500)["code"] == "server.failed"


def test_every_status_has_a_code_and_the_documentation_names_it():
    text = (Path(__file__).parents[2] / "docs" / "reference" / "http-api.md").read_text(encoding="utf-8")
    source = "".join(file.read_text(encoding="utf-8") for file in Path(middleware.__file__).parent.glob("*.py"))
    own = set(re.findall(r'code="(?!serve\.)([a-z]+\.[a-z_]+)"', source))
    listed = set(CODES.values()) | own | {one.code for one in (StorageFullError, UnreadableError, NoUsableImageError)}
    assert [code for code in sorted(listed | set(STATUS_BY_CODE)) if f"`{code}`" not in text] == []


def test_settings_are_checked(raises_code):
    assert read_settings(["max_files=3"]).max_files == 3
    for override, code, words in (
        ("maxfiles=3", "serve.setting_invalid", "did you mean max_files"),
        ("max_files=0", "serve.setting_invalid", "max_files"),
        ("max_files", "serve.setting_malformed", "max_files"),
        ("max_files=[", "serve.setting_malformed", "max_files"),
    ):
        with raises_code(code) as caught:
            read_settings([override])
        assert words in str(caught.value)

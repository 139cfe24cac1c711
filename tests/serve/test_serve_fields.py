"""Fields of view sent to the API: the results equal those of the command line."""

import asyncio
import errno
import io
import json
import os
import shutil
import time
from contextlib import closing
from pathlib import Path

import pandas as pd
import pytest
import tifffile
from hostile_files import slow_and_large
from PIL import Image
from starlette.testclient import TestClient

from urnet.counting.differential import count_cells
from urnet.fields.cropping.crop import CropSettings, crop_fields
from urnet.fields.io.read import Field
from urnet.files.outputs import staging_folder
from urnet.images.simulation.phantom import draw_field
from urnet.serve.app import create_app
from urnet.serve.services import Services
from urnet.serve.settings import Settings
from urnet.serve.uploads.receive import store_upload
from urnet.serve.uploads.storage import StorageFullError, UploadFolder, measure_bytes
from urnet.serve.uploads.worker import _Decoder, _UnreadableFiles
from urnet.training.fit import train

pytestmark = pytest.mark.slow


EDGE = 32
HOSTILE = slow_and_large()
LIMITS = {"pixels": 10**8, "field": 10**8, "file": 10**9, "images": 10, "memory": 2**30}


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    """Four fields with known positions; no pixel sizes."""
    folder = tmp_path_factory.mktemp("served_fields") / "fields"
    folder.mkdir()
    truth = []
    for donor in range(4):
        field = draw_field(1, donor, 0, shape=(420, 420), cells=24, crop=EDGE)
        tifffile.imwrite(folder / f"d{donor}.tif", field.brightfield, photometric="minisblack")
        truth += [{"field": f"d{donor}.tif", "x": c.x, "y": c.y, "label": c.label} for c in field.cells]
    table = pd.DataFrame(truth)
    table["label"] = table["label"].replace("monocyte", "granulocyte")  # too few of them in four fields
    table.to_csv(folder.parent / "truth.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def run(fields, tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served_crops")
    crop_fields(fields, folder / "cells", CropSettings(size=EDGE), labels=fields.parent / "truth.csv")
    table = pd.read_csv(folder / "cells" / "cells.csv", dtype=str, keep_default_na=False)
    table.drop(columns=["source"]).to_csv(folder / "cells" / "cells.csv", index=False)
    changes = ["augment.per_class=24", "train.epochs=3", "split.test=0.3", "split.validation=0.2"]
    return train(folder / "cells", tiny, folder / "run", overrides=changes)[0]


@pytest.fixture(scope="module")
def client(run, open_client):
    """Client of a server whose model crops fields."""
    with open_client(run.folder) as client:
        yield client


def test_fields_are_counted_as_on_the_command_line(client, run, fields, send_files, tmp_path):
    assert client.get("/v1/model").json()["cuts_fields"]
    answer = send_files(client, *sorted(fields.iterdir()), to="/v1/differential", data={"sample": "fields"})
    assert answer.status_code == 200, answer.text
    damaged = send_files(client, ("a.tif", (fields / "d0.tif").read_bytes()[:5000]), to="/v1/differential")
    counted = count_cells(run.folder, fields, tmp_path / "out", engine="onnx")
    written = json.loads((counted.folder / "differential.json").read_text(encoding="utf-8"))["samples"][0]
    result = answer.json()
    assert result["fields"]
    assert result["cells"] > 30
    assert {key: result[key] for key in written} == written
    assert result["notes"] == counted.notes
    assert any("took part in this run's training" in note for note in result["notes"])
    assert damaged.status_code == 422
    assert "a.tif" in damaged.json()["detail"]


@pytest.fixture(scope="module")
def some_damaged(fields):
    """Four fields with their client names; two are damaged, one at its start and one at its end."""
    sent = {f"my {field.name}": field.read_bytes() for field in sorted(fields.iterdir())}
    file = io.BytesIO()
    Image.fromarray(tifffile.imread(fields / "d1.tif")).save(file, "PNG")
    sent["my d1.tif"] = file.getvalue()[:-30_000]
    sent["my d2.tif"] = bytes(100) + sent["my d2.tif"]
    return sent


@pytest.fixture(scope="module")
def server_url(start_server, run, tmp_path_factory):
    """Address of a server whose model crops fields."""
    with start_server(run.folder, tmp_path_factory.mktemp("bench")) as address:
        yield address


@pytest.fixture(scope="module")
def whole(fields, tmp_path_factory):
    """The two readable fields of `some_damaged`."""
    folder = tmp_path_factory.mktemp("whole") / "fields"
    folder.mkdir()
    for name in ("d0.tif", "d3.tif"):
        (folder / name).write_bytes((fields / name).read_bytes())
    return folder


def test_damaged_fields_are_left_out_only_in_a_partial_count(client, run, some_damaged, whole, send_files, tmp_path):
    refused = send_files(client, *some_damaged.items(), to="/v1/differential")
    result = send_files(
        client, *some_damaged.items(), to="/v1/differential", data={"sample": "fields", "partial": "true"}
    )
    alone = send_files(client, ("a.tif", some_damaged["my d1.tif"]), to="/v1/differential", data={"partial": "true"})
    assert refused.status_code == 422
    assert "2 of the 4 files cannot be read" in refused.json()["detail"]
    reasons = refused.json()["files"]
    assert [one["file"] for one in reasons] == ["my d1.tif", "my d2.tif"]
    assert all(one["code"].partition(".")[0] in ("images", "fields") for one in reasons)
    assert [one["error"].split(":")[0] for one in reasons] == ["my d1.tif", "my d2.tif"]
    assert result.status_code == 200, result.text
    result = result.json()
    assert result["failed"] == reasons
    assert "2 of the 4 files are counted; my d1.tif, my d2.tif cannot be read." in result["notes"]
    counted = count_cells(run.folder, whole, tmp_path / "out", engine="onnx")
    written = json.loads((counted.folder / "differential.json").read_text(encoding="utf-8"))["samples"][0]
    assert {key: result[key] for key in written} == written
    assert alone.status_code == 422
    assert "a.tif" in alone.json()["detail"]


class Killing:
    """Pipe that kills its process when it reports a certain file."""

    def __init__(self, pipe, process, name):
        self.pipe, self.process, self.name, self.over = pipe, process, name, False

    def recv_bytes(self):
        if self.over:
            raise EOFError
        result = self.pipe.recv_bytes()
        if json.loads(result) == {"at": self.name}:
            self.process.kill()
            self.over = True
        return result

    def poll(self, seconds):
        return self.over or self.pipe.poll(seconds)

    def __getattr__(self, name):
        return getattr(self.pipe, name)


def test_a_crash_of_the_decoder_loses_one_field_only(client, run, fields, send_files, tmp_path):
    sent = sorted(fields.iterdir())

    def ask(**data):
        (process,) = client.services.decoders.processes
        process.pipe = Killing(process.pipe, process.process, "000002.tif")
        return send_files(client, *sent, to="/v1/differential", data=data)

    refused, result = ask(), ask(sample="fields", partial="true")
    assert refused.status_code == 422
    assert [one["file"] for one in refused.json()["files"]] == ["d2.tif"]
    assert refused.json()["files"][0]["error"].startswith("d2.tif: ")
    assert refused.json()["files"][0]["code"] == "images.decoder_crashed"
    assert result.status_code == 200, result.text
    result = result.json()
    assert result["failed"] == refused.json()["files"]
    (tmp_path / "fields").mkdir()
    for field in (sent[0], sent[1], sent[3]):
        (tmp_path / "fields" / field.name).write_bytes(field.read_bytes())
    counted = count_cells(run.folder, tmp_path / "fields", tmp_path / "out", engine="onnx")
    written = json.loads((counted.folder / "differential.json").read_text(encoding="utf-8"))["samples"][0]
    assert {key: result[key] for key in written} == written


def test_each_field_is_opened_once(run, fields, tmp_path, monkeypatch):
    shutil.copytree(fields, tmp_path / "files")
    model, opened = run.load_model(), []
    made = Field.__init__

    def make(self, source, *arguments):
        opened.append(source.path.name)
        made(self, source, *arguments)

    monkeypatch.setattr(Field, "__init__", make)
    decoder = _Decoder(model.config, model.cropping, LIMITS)
    at = []
    result = decoder.extract_cells(tmp_path / "files", tmp_path / "cells", {}, _UnreadableFiles(at.append, {}))
    assert result["cells"] > 30
    assert sorted(opened) == [field.name for field in sorted(fields.iterdir())]
    assert set(at) == set(opened)


def test_leftovers_of_a_crashed_process_are_removed(run, fields, tmp_path):
    shutil.copytree(fields, tmp_path / "files")
    model, out = run.load_model(), tmp_path / "cells"
    decoder = _Decoder(model.config, model.cropping, LIMITS)
    whole = decoder.extract_cells(tmp_path / "files", out, {}, _UnreadableFiles(lambda name: None, {}))
    (staging_folder(out) / "cells").mkdir(parents=True)
    again = decoder.extract_cells(
        tmp_path / "files", out, {}, _UnreadableFiles(lambda name: None, {"d2.tif": ("died", "images.decoder_crashed")})
    )
    assert again["unreadable"] == {"d2.tif": ("died", "images.decoder_crashed")}
    assert [one["name"] for one in again["seen"]] == ["d0.tif", "d1.tif", "d3.tif"]
    assert 0 < again["cells"] < whole["cells"]
    assert not staging_folder(out).exists()


def test_a_full_disk_is_not_an_error_of_a_field():
    unreadable = _UnreadableFiles(lambda name: None, {})
    with pytest.raises(OSError) as caught, unreadable(Path("d0.tif")):  # noqa: PT011
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.errno == errno.ENOSPC
    with unreadable(Path("d1.tif")):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    assert unreadable.errors["d1.tif"][1] == "images.undecodable"
    assert list(unreadable.errors) == ["d1.tif"]


@pytest.fixture(scope="module")
def measured(run, tmp_path_factory):
    """The run, as if the pixel size of its fields were known."""
    folder = shutil.copytree(run.folder, tmp_path_factory.mktemp("measured") / "run")
    for path in folder.rglob("crop.json"):
        result = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(result | {"pixel_um": 0.25}), encoding="utf-8")
        path.with_name("seal.json").unlink(missing_ok=True)
    return folder


def test_a_missing_pixel_size_can_be_sent_with_the_files(client, measured, fields, open_client, send_files):
    sent = [(f"my {field.name}", field.read_bytes()) for field in sorted(fields.iterdir())[:2]]
    with open_client(measured) as measured_client:
        unknown = send_files(measured_client, *sent, to="/v1/differential")
        known = send_files(measured_client, *sent, to="/v1/differential", data={"pixel_size_um": "0.25"})
        wrong = send_files(measured_client, *sent[:1], to="/v1/differential", data={"pixel_size_um": "500"})
        bad = send_files(measured_client, *sent[:1], to="/v1/differential", data={"pixel_size_um": "0"})
    assert unknown.status_code == 422
    assert unknown.json()["code"] == "fields.pixel_size_unknown"
    assert all(word in unknown.json()["detail"] for word in ("my d0.tif, my d1.tif", "0.25 µm", "(pixel_size_um)"))
    assert known.status_code == 200, known.text
    assert known.json()["classes"] == send_files(client, *sent, to="/v1/differential").json()["classes"]
    assert wrong.status_code == 422
    assert "my d0.tif: a crop of 8 µm" in wrong.json()["detail"]
    assert bad.status_code == 422
    assert bad.json()["detail"] == "pixel_size_um: Input should be greater than 0"


MISLABELLED = (
    '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels ID="Pixels:0" '
    'DimensionOrder="XYCZT" Type="uint16" SizeX="999" SizeY="999" SizeC="1" SizeZ="1" SizeT="1"><TiffData/></Pixels>'
    "</Image></OME>"
)


def test_a_field_is_never_counted_as_one_cell(client, run, fields, send_files, tmp_path):
    """A field that opens as an image only, alone, with other fields, and with crops."""
    pixels = tifffile.imread(fields / "d0.tif")
    tifffile.imwrite(tmp_path / "bad.tif", pixels, photometric="minisblack", description=MISLABELLED, metadata=None)
    bad, good = ("my bad.tif", (tmp_path / "bad.tif").read_bytes()), fields / "d1.tif"
    crop = io.BytesIO()
    tifffile.imwrite(crop, pixels[:EDGE, :EDGE], photometric="minisblack")
    cell = ("cell.tif", crop.getvalue())
    alone = send_files(client, bad, to="/v1/differential")
    both = send_files(client, bad, good, to="/v1/differential")
    partial = send_files(client, bad, good, to="/v1/differential", data={"partial": "true"})
    with_cell = send_files(client, cell, bad, to="/v1/differential")
    predicted = send_files(client, cell, bad, good)
    for refused in (alone, both):
        assert refused.status_code == 422
        assert "my bad.tif: mislabelled OME-TIFF" in refused.json()["detail"]
    assert partial.status_code == 200, partial.text
    assert [one["file"] for one in partial.json()["failed"]] == ["my bad.tif"]
    assert partial.json()["cells"] > 1
    assert with_cell.status_code == 200, with_cell.text
    assert with_cell.json()["cells"] == 1
    assert "not one cell" in with_cell.json()["failed"][0]["error"]
    errors = [one.get("error") for one in predicted.json()["results"]]
    assert errors[0] is None
    assert all("420 x 420 px" in error and "not one cell" in error for error in errors[1:])


def test_cells_over_the_storage_limit_are_deleted(run, fields, open_client):
    content = (fields / "d0.tif").read_bytes()
    with (
        open_client(run.folder, upload_bytes=len(content) + 1024) as client,
        closing(UploadFolder(client.services.storage)) as folder,
    ):
        sent = store_upload(folder, 0, "d0.tif", io.BytesIO(content))
        with pytest.raises(StorageFullError):
            asyncio.run(client.services.extract_cells(folder, [sent]))
        assert measure_bytes(folder.root) < len(content) + 1024


def test_the_page_has_the_position_of_each_cell(run, fields, pages):
    app = create_app(Services.open(run.folder, Settings(decoders=1), "onnx"), pages=pages)
    with TestClient(app, base_url="http://localhost") as client:
        at = f"/classify/{client.post('/classify').json()['key']}"
        for field in sorted(fields.iterdir()):
            client.post(f"{at}/files", files=[("files", (f"my {field.name}", field.read_bytes()))])
        assert client.post(f"{at}/start").json() == {"files": 4}
        until = time.monotonic() + 60
        while "was not complete when" in (report := client.get(f"{at}/report.html")).text or report.status_code == 404:
            assert time.monotonic() < until
            time.sleep(0.1)
        result = pd.read_csv(io.StringIO(client.get(f"{at}/predictions.csv").text))
        assert sorted(result["field"].unique()) == [f"my {field.name}" for field in sorted(fields.iterdir())]
        assert result["x"].between(-EDGE, 420 + EDGE).all()
        picture = Image.open(io.BytesIO(client.get(f"{at}/field/0.png").content))
        assert picture.size == (420, 420)
        assert client.get(f"{at}/0/blue-red.png").headers["content-type"] == "image/png"


@pytest.mark.browser
@pytest.mark.server
def test_the_page_asks_whether_to_count_without_the_damaged_fields(open_page, axe, some_damaged, whole, run, tmp_path):
    sent = tmp_path / "sent"
    sent.mkdir()
    for name, content in some_damaged.items():
        (sent / name).write_bytes(content)
    page = open_page("/")
    page.fill("#sample", "fields")
    page.set_input_files("#files", sorted(sent.iterdir()))
    page.wait_for_selector(".status >> text=/images? classified, 2 unusable/", timeout=60_000)
    side = page.locator(".side")
    assert "2 of 4 files cannot be read:" in side.inner_text()
    assert "my d1.tif: " in side.inner_text()
    assert "interval" not in side.inner_text()
    assert page.locator("text=Export report").count() == 0
    assert page.locator("text=Save for review").count() == 0
    assert page.locator(".cells .unusable").count() == 2
    assert axe(page) == []
    page.get_by_role("button", name="Count the other 2 files").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(".side >> text=95 % interval")
    page.reload()
    assert side.locator("dl div").first.inner_text().split("\n") == ["Files", "2 of 4"]
    assert "2 of the 4 files are counted; my d1.tif, my d2.tif cannot be read." in side.inner_text()
    with page.expect_download() as got:
        page.click("text=Export report")
    assert "2 of the 4 files are counted" in got.value.path().read_text(encoding="utf-8")
    counted = count_cells(run.folder, whole, tmp_path / "out", engine="onnx")
    written = json.loads((counted.folder / "differential.json").read_text(encoding="utf-8"))["samples"][0]
    shares = [f"{one['percent']:.1f}" for one in written["classes"].values()]
    assert page.locator(".side .shares >> nth=0").locator("td.value").all_inner_texts() == shares


@pytest.fixture(scope="module")
def careful(run, open_client):
    with open_client(run.folder, field_seconds=5, decode_memory=2**29) as client:
        yield client


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_fields_are_refused_quickly_and_the_next_one_is_counted(careful, fields, send_files, name):
    began = time.monotonic()
    answer = send_files(careful, (name, HOSTILE[name]), to="/v1/differential")
    assert time.monotonic() - began < 12
    assert answer.status_code in (200, 422), answer.text
    if answer.status_code == 422:
        assert name in answer.json()["detail"]
        assert "urnet-" not in answer.text
    assert send_files(careful, fields / "d0.tif", to="/v1/differential").status_code == 200

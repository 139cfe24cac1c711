"""Fields of view sent to the API: cut, classified and counted as the command line does it."""

import io
import json
import time

import pandas as pd
import pytest
import tifffile
from PIL import Image
from starlette.testclient import TestClient

from urnet.differential.run import count_cells
from urnet.fields.crop import Cropping, crop_fields
from urnet.images.phantom import draw_field
from urnet.serve.app import create_app
from urnet.serve.bench import Bench
from urnet.serve.settings import Settings
from urnet.training.fit import train

EDGE = 32


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
    crop_fields(fields, folder / "cells", Cropping(size=EDGE), labels=fields.parent / "truth.csv")
    table = pd.read_csv(folder / "cells" / "cells.csv", dtype=str, keep_default_na=False)
    table.drop(columns=["source"]).to_csv(folder / "cells" / "cells.csv", index=False)
    changes = ["augment.per_class=24", "train.epochs=3", "split.test=0.3", "split.validation=0.2"]
    return train(folder / "cells", tiny, folder / "run", overrides=changes)[0]


def test_fields_are_counted_as_on_the_command_line(run, fields, serving, send, tmp_path):
    with serving(run.folder) as client:
        assert client.get("/v1/model").json()["cuts_fields"]
        answer = send(client, *sorted(fields.iterdir()), to="/v1/differential", data={"sample": "fields"})
        assert answer.status_code == 200, answer.text
        damaged = send(client, ("a.tif", (fields / "d0.tif").read_bytes()[:5000]), to="/v1/differential")
    counted = count_cells(run.folder, fields, tmp_path / "out", engine="onnx")
    written = json.loads((counted.folder / "differential.json").read_text(encoding="utf-8"))["samples"][0]
    told = answer.json()
    assert told["fields"]
    assert told["cells"] > 30
    assert {key: told[key] for key in written} == written
    assert told["notes"] == counted.notes
    assert any("took part in this run's training" in note for note in told["notes"])
    assert damaged.status_code == 422
    assert "a.tif" in damaged.json()["detail"]


def test_the_page_says_where_each_cell_of_a_field_lies(run, fields):
    pages = pytest.importorskip("urnet.serve.pages", reason="NiceGUI is not installed")
    app = create_app(Bench.open(run.folder, Settings(decoders=1), "onnx"), pages=pages.add_pages)
    with TestClient(app, base_url="http://localhost") as client:
        at = f"/bench/classify/{client.post('/bench/classify').json()['key']}"
        for field in sorted(fields.iterdir()):
            client.post(f"{at}/files", files=[("files", (f"my {field.name}", field.read_bytes()))])
        assert client.post(f"{at}/start").json() == {"files": 4}
        until = time.monotonic() + 60
        while "Not all images" in (report := client.get(f"{at}/report.html")).text or report.status_code == 404:
            assert time.monotonic() < until
            time.sleep(0.1)
        told = pd.read_csv(io.StringIO(client.get(f"{at}/predictions.csv").text))
        assert sorted(told["field"].unique()) == [f"my {field.name}" for field in sorted(fields.iterdir())]
        assert told["x"].between(-EDGE, 420 + EDGE).all()
        picture = Image.open(io.BytesIO(client.get(f"{at}/field/0.png").content))
        assert picture.size == (420, 420)
        assert client.get(f"{at}/0/blue-red.png").headers["content-type"] == "image/png"

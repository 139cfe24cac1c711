"""Fields of view sent to the API: cut, classified and counted as the command line does it."""

import json

import pandas as pd
import pytest
import tifffile

from urnet.differential.run import count_cells
from urnet.fields.crop import Cropping, crop_fields
from urnet.images.phantom import draw_field
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

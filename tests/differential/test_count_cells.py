"""From fields or crops to counts: `urnet differential` as a whole."""

import json

import numpy as np
import pandas as pd
import pytest
import tifffile

from urnet.bundle import Model
from urnet.calibration.calibration import JSON_NAME
from urnet.differential.run import count_cells
from urnet.errors import CellsError, RunError
from urnet.fields.crop import Cropping, crop_fields
from urnet.images.phantom import CROP_UM, draw_field
from urnet.training.fit import train

EDGE = 32


def write_fields(folder, donors, seed):
    """A field a donor, with a field table and its truth."""
    folder.mkdir(parents=True)
    rows, truth = [], []
    for donor in donors:
        field = draw_field(seed, donor, 0, shape=(420, 420), cells=24, crop=EDGE)
        name = f"d{donor}.tif"
        tifffile.imwrite(folder / name, field.brightfield, photometric="minisblack")
        tifffile.imwrite(folder / f"n_{name}", field.nuclei, photometric="minisblack")
        pixel = CROP_UM / EDGE
        rows.append({"field": name, "nuclei": f"n_{name}", "donor": f"d{donor}", "pixel_size_um": pixel})
        truth += [{"field": name, "x": c.x, "y": c.y, "label": c.label} for c in field.cells]
    pd.DataFrame(rows).assign(simulated="phantom").to_csv(folder / "fields.csv", index=False)
    pd.DataFrame(truth).to_csv(folder / "truth.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    return write_fields(tmp_path_factory.mktemp("count") / "fields", range(4), 1)


@pytest.fixture(scope="module")
def run(fields, tiny, tmp_path_factory):
    """A run on crops of fields; not to be changed."""
    folder = tmp_path_factory.mktemp("crop_run")
    crop_fields(fields, folder / "cells", Cropping(size=EDGE), labels=fields / "truth.csv")
    table = pd.read_csv(folder / "cells" / "cells.csv", dtype=str, keep_default_na=False)
    table["label"] = table["label"].replace("monocyte", "granulocyte")  # too few of them in four fields
    table.drop(columns=["source", "donor"]).to_csv(folder / "cells" / "cells.csv", index=False)
    changes = ["augment.per_class=24", "train.epochs=3", "split.test=0.3", "split.validation=0.2"]
    return train(folder / "cells", tiny, folder / "run", overrides=changes)[0]


@pytest.fixture(scope="module")
def counted(run, tmp_path_factory):
    fields = write_fields(tmp_path_factory.mktemp("new") / "fields", (0, 1), 1)
    (fields / "truth.csv").unlink()
    return count_cells(run.folder, fields, tmp_path_factory.mktemp("out") / "count")


def test_a_model_keeps_how_its_cells_were_cut(run):
    model = Model.load(run.folder)
    assert model.cropping.size == EDGE
    assert model.cropping.pixel_um == pytest.approx(CROP_UM / EDGE, rel=1e-4)


def test_fields_are_cut_classified_and_counted_by_donor(counted):
    assert [sample.name for sample in counted.samples] == ["d0", "d1"]
    table = pd.read_csv(counted.folder / "predictions.csv", keep_default_na=False)
    assert sum(sample.cells for sample in counted.samples) == len(table)
    for sample in counted.samples:
        assert sample.accepted + sum(sample.rejected.values()) == sample.cells
        assert sample.adjusted.sum() == pytest.approx(1)
        assert (sample.adjusted_interval[:, 0] <= sample.adjusted + 1e-9).all()
        assert (sample.adjusted_interval[:, 1] >= sample.adjusted - 1e-9).all()
    data = json.loads((counted.folder / "differential.json").read_text(encoding="utf-8"))
    assert data["simulated"] == "phantom"
    assert counted.report.is_file()


def test_cells_of_the_training_are_noticed(counted):
    assert any("took part in this run's training or calibration" in note for note in counted.notes)


def test_crops_are_counted_as_they_are(run, counted, tmp_path):
    again = count_cells(run.folder, counted.folder / "cells", tmp_path / "again")
    for first, second in zip(counted.samples, again.samples, strict=True):
        assert first.counts.tolist() == second.counts.tolist()
        assert np.array_equal(first.adjusted_interval, second.adjusted_interval)


def test_a_sample_of_three_cells_says_how_little_that_is(run, counted, tmp_path):
    table = pd.read_csv(counted.folder / "cells" / "cells.csv", dtype=str, keep_default_na=False)[:3]
    table["path"] = [(counted.folder / "cells" / path).as_posix() for path in table["path"]]
    table[["path", "donor"]].to_csv(tmp_path / "three.csv", index=False)
    sample = count_cells(run.folder, tmp_path / "three.csv", tmp_path / "out").samples[0]
    assert sample.cells == 3
    width = sample.adjusted_interval[:, 1] - sample.adjusted_interval[:, 0]
    assert sample.accepted == 0 or width.max() > 0.4
    assert sample.warnings


def test_fields_without_cells_are_no_count(run, tmp_path):
    (tmp_path / "blank").mkdir()
    tifffile.imwrite(tmp_path / "blank" / "a.tif", np.full((300, 300), 900, np.uint16), photometric="minisblack")
    with pytest.raises(CellsError, match="pixel size is not known"):
        count_cells(run.folder, tmp_path / "blank", tmp_path / "out")
    (tmp_path / "blank" / "fields.csv").write_text("field,pixel_size_um\na.tif,0.625\n", encoding="utf-8")
    with pytest.raises(CellsError, match="no cells were found"):
        count_cells(run.folder, tmp_path / "blank", tmp_path / "out2")


def test_what_cannot_be_counted_is_refused(run, trained, fields, tmp_path):
    with pytest.raises(RunError, match="not trained on crops of `urnet crop`"):
        count_cells(trained.folder, fields, tmp_path / "a")
    with pytest.raises(RunError, match="exists already"):
        count_cells(run.folder, fields, run.folder)
    model = Model.load(run.folder)
    model.save(tmp_path / "bundle")
    (tmp_path / "bundle" / JSON_NAME).unlink()
    with pytest.raises(RunError, match="urnet calibrate"):
        count_cells(tmp_path / "bundle", fields, tmp_path / "b")


def test_another_kind_of_cell_is_mostly_rejected(run, tmp_path):
    """A class that the training never had must not come out as a confident count."""
    rng = np.random.default_rng(0)
    (tmp_path / "junk").mkdir()
    for number in range(12):
        pixels = rng.integers(0, 4095, (EDGE, EDGE)).astype(np.uint16)
        tifffile.imwrite(tmp_path / "junk" / f"{number}.tif", pixels, photometric="minisblack")
    sample = count_cells(run.folder, tmp_path / "junk", tmp_path / "out").samples[0]
    assert sum(sample.rejected.values()) >= 11

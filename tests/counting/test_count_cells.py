"""From fields or crops to counts: `urnet differential` as a whole."""

import json
import os
import shutil
import sys
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile

from urnet.bundle.model import Model
from urnet.cells.read import find_images
from urnet.counting.differential import count_cells
from urnet.errors import ImageError
from urnet.fields.cropping.crop import CropSettings, crop_fields
from urnet.images.simulation.phantom import CROP_UM, draw_field
from urnet.predict import predict_files
from urnet.training.fit import train

EDGE = 32


def write_fields(folder, donors, seed):
    """Write one field per donor, with a field table and the true cells."""
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
    crop_fields(fields, folder / "cells", CropSettings(size=EDGE), labels=fields / "truth.csv")
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


@pytest.mark.slow
def test_a_model_stores_the_crop_settings(run):
    model = Model.load(run.folder)
    assert model.cropping.size == EDGE
    assert model.cropping.pixel_um == pytest.approx(CROP_UM / EDGE, rel=1e-4)


@pytest.mark.slow
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


@pytest.mark.slow
def test_cells_of_the_training_give_a_note(counted):
    assert any("took part in this run's training or calibration" in note for note in counted.notes)


def test_crops_are_counted_as_they_are(run, counted, tmp_path):
    again = count_cells(run.folder, counted.folder / "cells", tmp_path / "again")
    for first, second in zip(counted.samples, again.samples, strict=True):
        assert first.counts.tolist() == second.counts.tolist()
        assert np.array_equal(first.adjusted_interval, second.adjusted_interval)


def test_three_cells_are_counted_with_wide_intervals(run, counted, tmp_path):
    table = pd.read_csv(counted.folder / "cells" / "cells.csv", dtype=str, keep_default_na=False)[:3]
    table["path"] = [(counted.folder / "cells" / path).as_posix() for path in table["path"]]
    table[["path", "donor"]].to_csv(tmp_path / "three.csv", index=False)
    sample = count_cells(run.folder, tmp_path / "three.csv", tmp_path / "out").samples[0]
    assert sample.cells == 3
    width = sample.adjusted_interval[:, 1] - sample.adjusted_interval[:, 0]
    assert sample.accepted == 0 or width.max() > 0.4
    assert sample.warnings


def blank_field(folder, name="a.tif"):
    folder.mkdir(exist_ok=True)
    tifffile.imwrite(folder / name, np.full((300, 300), 900, np.uint16), photometric="minisblack")
    return folder


def test_fields_without_cells_are_a_count_of_none(run, tmp_path, raises_code):
    fields = blank_field(tmp_path / "blank")
    with raises_code("fields.pixel_size_unknown"):
        count_cells(run.folder, fields, tmp_path / "out")
    (fields / "fields.csv").write_text("field,pixel_size_um\na.tif,0.625\n", encoding="utf-8")
    done = count_cells(run.folder, fields, tmp_path / "out2")
    assert [(sample.name, sample.cells) for sample in done.samples] == [("blank", 0)]
    assert "no cells: there is nothing to count" in done.samples[0].warnings[-1]
    assert "there is nothing to count" in done.report.read_text(encoding="utf-8")
    assert len(pd.read_csv(tmp_path / "out2" / "predictions.csv")) == 0


@pytest.mark.slow
def test_a_donor_without_cells_is_a_sample_of_none(run, tmp_path):
    fields = write_fields(tmp_path / "fields", [0], 1)
    blank_field(fields, "b.tif")
    table = pd.read_csv(fields / "fields.csv", dtype=str, keep_default_na=False)
    table.loc[1] = table.loc[0].replace({"d0.tif": "b.tif", "d0": "d9", "n_d0.tif": ""})
    table.to_csv(fields / "fields.csv", index=False)
    done = count_cells(run.folder, fields, tmp_path / "out")
    assert {sample.name: sample.cells > 0 for sample in done.samples} == {"d0": True, "d9": False}


def test_a_relative_folder_of_fields_is_counted(run, tmp_path, monkeypatch):
    pixels = draw_field(1, 0, 0, shape=(300, 300), cells=6, crop=EDGE).brightfield
    (tmp_path / "new").mkdir()
    unit = {"resolution": (1e4 / 0.625,) * 2, "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "new" / "a.tif", pixels, photometric="minisblack", **unit)
    monkeypatch.chdir(tmp_path)
    done = count_cells(run.folder, Path("new"), Path("count"))
    assert done.samples[0].cells == len(pd.read_csv("count/cells/cells.csv"))
    table = pd.read_csv("count/predictions.csv")
    assert table["path"].str.startswith("count/cells/cells/").all()
    assert all(Path(path).is_file() for path in table["path"])


@pytest.mark.slow
def test_an_interrupted_count_leaves_nothing(run, fields, tmp_path, raises_code):
    def stop(what, share):
        if what == "classify":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        count_cells(run.folder, fields, tmp_path / "out", progress=stop)
    assert list(tmp_path.iterdir()) == []
    shutil.copy(fields / "d0.tif", tmp_path / "d0.tif")
    with raises_code("fields.output_among_fields"):
        count_cells(run.folder, tmp_path, tmp_path / "out")


@pytest.mark.slow
def test_fields_of_another_depth_are_refused_and_leave_nothing(run, tmp_path, raises_code):
    fields = write_fields(tmp_path / "fields", [0], 1)
    pixels = (tifffile.imread(fields / "d0.tif") >> 4).astype(np.uint8)
    tifffile.imwrite(fields / "d0.tif", pixels, photometric="minisblack")
    with raises_code("counting.none_usable") as caught:
        count_cells(run.folder, fields, tmp_path / "out")
    assert "uint8 pixels" in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_model_of_fields_with_nuclei_counts_fields_without(run, tmp_path):
    model = Model.load(run.folder)
    model.cropping = replace(model.cropping, nuclei="*_dapi.tif", nuclei_channel="DAPI", channel="BF", scene="Well 3")
    model.save(tmp_path / "bundle")
    fields = write_fields(tmp_path / "fields", [0], 1)
    table = pd.read_csv(fields / "fields.csv").drop(columns="nuclei")
    table.to_csv(fields / "fields.csv", index=False)
    done = count_cells(tmp_path / "bundle", fields, tmp_path / "out")
    assert done.samples[0].cells > 0
    assert any("detected in brightfield alone" in note for note in done.notes)


def test_sources_and_models_that_cannot_be_counted_are_refused(run, trained, fields, tmp_path, raises_code):
    with raises_code("counting.cropping_unknown"):
        count_cells(trained.folder, fields, tmp_path / "a")
    with raises_code("run.exists"):
        count_cells(run.folder, fields, run.folder)
    Model.load(run.folder, calibrated=False).save(tmp_path / "bundle")
    with raises_code("counting.not_calibrated"):
        count_cells(tmp_path / "bundle", fields, tmp_path / "b")


@pytest.mark.slow
def test_another_kind_of_cell_is_mostly_rejected(run, tmp_path):
    """A class that the training never had must not come out as a confident count."""
    rng = np.random.default_rng(0)
    (tmp_path / "junk").mkdir()
    for number in range(12):
        pixels = rng.integers(0, 4095, (EDGE, EDGE)).astype(np.uint16)
        tifffile.imwrite(tmp_path / "junk" / f"{number}.tif", pixels, photometric="minisblack")
    sample = count_cells(run.folder, tmp_path / "junk", tmp_path / "out").samples[0]
    assert sum(sample.rejected.values()) >= 11


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_files_with_invalid_unicode_names_are_counted(run, counted, tmp_path):
    crop = next((counted.folder / "cells" / "cells").rglob("*.tif"))
    (tmp_path / "crops").mkdir()
    try:
        shutil.copy(crop, os.fsencode(tmp_path / "crops") + b"/z\xe4.tif")
    except OSError:
        pytest.skip("the file system takes only Unicode")
    assert count_cells(run.folder, tmp_path / "crops", tmp_path / "out").samples[0].cells == 1


def test_a_table_of_neither_cells_nor_fields_is_refused(run, tmp_path, raises_code):
    (tmp_path / "a.csv").write_text("file,donor\na.tif,d\n", encoding="utf-8")
    with raises_code("fields.column_missing"):
        count_cells(run.folder, tmp_path / "a.csv", tmp_path / "out")


@pytest.mark.slow
def test_images_that_could_not_be_used_are_on_the_page(run, counted, tmp_path):
    table = pd.read_csv(counted.folder / "cells" / "cells.csv", dtype=str, keep_default_na=False)[:4]
    table["path"] = [(counted.folder / "cells" / path).as_posix() for path in table["path"]]
    table.loc[:, "donor"] = ["d0", "d0", "d1", "d1"]
    table.loc[2:, "path"] = "gone.tif"
    table[["path", "donor"]].to_csv(tmp_path / "some.csv", index=False)
    done = count_cells(run.folder, tmp_path / "some.csv", tmp_path / "out")
    assert {sample.name: sample.cells for sample in done.samples} == {"d0": 2, "d1": 0}
    assert done.failed == 2
    assert "2 image(s) could not be used" in done.report.read_text(encoding="utf-8")


MISLABELLED = (
    '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels ID="Pixels:0" '
    'DimensionOrder="XYCZT" Type="uint16" SizeX="999" SizeY="999" SizeC="1" SizeZ="1" SizeT="1"><TiffData/></Pixels>'
    "</Image></OME>"
)


def mislabelled_field(path):
    """A field that opens as an image, and not as a field."""
    pixels = draw_field(1, 0, 0, shape=(300, 300), cells=6, crop=EDGE).brightfield
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, pixels, photometric="minisblack", description=MISLABELLED, metadata=None)
    return path


@pytest.mark.slow
def test_a_field_never_counts_as_one_cell(run, counted, tmp_path, raises_code):
    """The result is the same for a file, a folder and a table, even if it does not open as a field."""
    field = mislabelled_field(tmp_path / "fields" / "a.tif")
    for given in (field, field.parent):
        with raises_code("fields.mislabelled") as caught:
            count_cells(run.folder, given, tmp_path / "out")
        assert "999 x 999" in str(caught.value)
    table = tmp_path / "cells.csv"
    table.write_text("path\nfields/a.tif\n", encoding="utf-8")
    with raises_code("counting.none_usable"):
        count_cells(run.folder, table, tmp_path / "out")
    crop = next((counted.folder / "cells" / "cells").rglob("*.tif"))
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    shutil.copy(crop, mixed / "0.tif")
    tifffile.imwrite(mixed / "1.tif", tifffile.imread(field), photometric="minisblack")
    shutil.copy(field, mixed / "2.tif")
    done = count_cells(run.folder, mixed, tmp_path / "out")
    assert [sample.cells for sample in done.samples] == [1]
    assert done.failed == 2
    assert any("2 image(s) could not be used" in note and "not one cell" in note for note in done.notes)

    model = Model.load(run.folder)
    assert predict_files(model, [field.parent], tmp_path / "p.csv").failed == 1
    assert "not one cell" in pd.read_csv(tmp_path / "p.csv")["error"][0]
    with raises_code("fields.counted_as_one_cell"):
        model.predict([field])
    assert "not one cell" in model.predict([field], on_error="record")["error"][0]
    with raises_code("fields.counted_as_one_cell"):
        model.resize_crop(tifffile.imread(field))
    assert model.resize_crop(np.pad(tifffile.imread(crop), 8)).shape[1:] == (24, 24)  # one and a half times the edge


def test_a_model_of_other_crops_takes_images_of_any_size(trained):
    pixels = (np.arange(300 * 300).reshape(300, 300) % 251).astype(np.uint8)
    assert Model.load(trained.folder).resize_crop(pixels).shape[1:] == (24, 24)


@pytest.mark.slow
def test_the_scene_of_new_fields_is_chosen(run, counted, tmp_path, raises_code):
    scenes = [draw_field(1, donor, 0, shape=(420, 420), cells=24, crop=EDGE).brightfield for donor in (0, 1)]
    pixel = CROP_UM / EDGE
    size = {"PhysicalSizeX": pixel, "PhysicalSizeY": pixel, "PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"}
    with tifffile.TiffWriter(tmp_path / "two.ome.tif", ome=True) as out:
        for name, pixels in zip(("A", "B"), scenes, strict=True):
            out.write(pixels, metadata={"axes": "YX", "Name": name, **size}, photometric="minisblack")
    with tifffile.TiffWriter(tmp_path / "one.ome.tif", ome=True) as out:
        out.write(scenes[1], metadata={"axes": "YX", **size}, photometric="minisblack")
    alone = count_cells(run.folder, tmp_path / "one.ome.tif", tmp_path / "alone")
    for scene in ("1", "B"):
        done = count_cells(run.folder, tmp_path / "two.ome.tif", tmp_path / f"scene {scene}", scene=scene)
        assert done.samples[0].counts.tolist() == alone.samples[0].counts.tolist()
    for source, scene in (("two.ome.tif", None), ("two.ome.tif", "5"), ("one.ome.tif", "5")):
        with pytest.raises(ImageError) as caught:
            count_cells(run.folder, tmp_path / source, tmp_path / "none", scene=scene)
        assert "scene" in str(caught.value)
    with raises_code("counting.scene_of_crops"):
        count_cells(run.folder, counted.folder / "cells", tmp_path / "none", scene="0")
    assert not (tmp_path / "none").exists()


@pytest.fixture(scope="session")
def count_opens():
    """Count how often this process opens each file, and lists each folder: `with count_opens() as counts`."""
    counters: list[Counter] = []

    def record(event: str, arguments: tuple) -> None:
        if counters and event in ("open", "os.scandir", "os.listdir") and isinstance(arguments[0], str):
            place = (
                "list" if event != "open" else "read" if "r" in str(arguments[1] or "r") else "write",
                arguments[0],
            )
            for counter in counters:
                counter[place] += 1

    sys.addaudithook(record)

    @contextmanager
    def count_opens():
        counter: Counter = Counter()
        counters.append(counter)
        try:
            yield counter
        finally:
            counters.remove(counter)

    return count_opens


@pytest.mark.slow
def test_images_are_read_once_and_predictions_never(run, counted, tmp_path, count_opens):
    crops = shutil.copytree(counted.folder / "cells" / "cells", tmp_path / "crops")
    with count_opens() as once:
        cells = find_images([crops])
        for index in range(len(cells)):
            cells.read(index)
    with count_opens() as counts:
        count_cells(run.folder, crops, tmp_path / "out")
    files = [str(file) for file in sorted(crops.rglob("*.tif"))]
    more = [file for file in files if counts["read", file] > once["read", file]]
    assert more in ([], files[:1])  # the first one also shows whether these are fields
    assert not [path for (mode, path) in counts if mode == "read" and path.endswith("predictions.csv")]
    assert sum(n for (mode, path), n in counts.items() if mode == "list" and path == str(crops)) <= 2


def test_a_differential_has_a_frame_and_a_text(counted):
    frame = counted.to_frame()
    assert frame["sample"].unique().tolist() == ["d0", "d1"]
    assert frame.equals(pd.read_csv(counted.folder / "differential.csv"))
    assert "d0: " in repr(counted)
    assert "<table" in counted._repr_html_()

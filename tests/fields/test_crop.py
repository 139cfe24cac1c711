"""Cropping of fields: crops, table, notes and errors."""

import shutil
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
import tifffile

from urnet.cells.read import read_cells
from urnet.fields.cropping import crop, one_field
from urnet.fields.cropping.crop import CropSettings, crop_fields
from urnet.fields.cropping.pixel_size import choose_pixel_size
from urnet.fields.io import pool
from urnet.fields.table import FieldRow
from urnet.images.simulation.phantom import CROP_UM, draw_field

EDGE = 48
PIXEL = CROP_UM / EDGE


def write(path, pixels, pixel_um=PIXEL):
    path.parent.mkdir(parents=True, exist_ok=True)
    tags = {} if pixel_um is None else {"resolution": (1e4 / pixel_um,) * 2, "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, pixels, photometric="minisblack", **tags)


@pytest.fixture(scope="module")
def scene():
    return draw_field(3, 0, 0, shape=(380, 420), cells=12, crop=EDGE)


@pytest.fixture(scope="module")
def fields(scene, tmp_path_factory):
    """One phantom field with its nuclei and its truth; not to be changed."""
    folder = tmp_path_factory.mktemp("fields")
    write(folder / "a.tif", scene.brightfield)
    write(folder / "a_dapi.tif", scene.nuclei)
    truth = pd.DataFrame([{"field": "a.tif", "x": c.x, "y": c.y, "label": c.label, "donor": "d7"} for c in scene.cells])
    truth.to_csv(folder / "truth.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def cropped(fields, tmp_path_factory):
    out = tmp_path_factory.mktemp("crops") / "cells"
    how = CropSettings(size=EDGE, nuclei="*_dapi.tif")
    return crop_fields(fields, out, how, labels=fields / "truth.csv")


@pytest.mark.slow
def test_the_crops_are_the_labelled_cells(cropped, scene):
    agreement = cropped.fields[0].agreement
    assert agreement.recall >= 0.9
    assert agreement.precision >= 0.9
    cells = read_cells(cropped.folder)
    labelled = cells.table[cells.table["label"] != ""]
    assert set(labelled["donor"]) == {"d7"}
    assert set(labelled["source"]) == {"a.tif"}
    for index in range(len(cells)):
        assert cells.read(index).shape == (EDGE, EDGE)
        assert cells.read(index).dtype == np.uint16
        assert cells.read(index, "target_nuclei").shape == (EDGE, EDGE)
        mask = cells.read(index, "mask")
        assert mask[EDGE // 2 - 3 : EDGE // 2 + 3, EDGE // 2 - 3 : EDGE // 2 + 3].all(), "the cell is in the middle"
    places = {(cell.x, cell.y): cell.label for cell in scene.cells}
    for row in labelled.to_dict("records"):
        near = min(places, key=lambda place: np.hypot(place[0] - float(row["x"]), place[1] - float(row["y"])))
        assert row["label"] == places[near]
        assert np.hypot(near[0] - float(row["x"]), near[1] - float(row["y"])) < 4


def test_the_table_holds_the_measures_of_each_cell(cropped):
    table = cropped.table
    assert table["scale"].astype(float).tolist() == pytest.approx([PIXEL] * len(table), rel=1e-4)
    assert table["diameter"].astype(float).between(5, 20).all(), "micrometres"
    assert table["touching"].astype(float).between(0, 1).all()
    assert table["edge"].astype(float).between(0, 1).all()
    assert (table["focus"].astype(float) < 0).all()


def test_a_proposal_is_no_label(fields, tmp_path, raises_code):
    done = crop_fields(fields, tmp_path / "cells", CropSettings(size=EDGE, nuclei="*_dapi.tif"))
    assert (done.table["label"] == "").all()
    assert done.table["proposed"].isin(["granulocyte", "monocyte", "lymphocyte"]).mean() > 0.9
    assert any("no label" in note for note in done.notes)
    with raises_code("cells.no_labels"):
        read_cells(done.folder)


def test_cells_without_a_label_are_left_out_with_a_warning(cropped, tmp_path, caplog):
    table = pd.read_csv(cropped.folder / "cells.csv", dtype=str, keep_default_na=False)
    table["path"] = [(cropped.folder / path).as_posix() for path in table["path"]]
    table.loc[:1, "label"] = ""
    table.drop(columns=["mask", "target_nuclei"]).to_csv(tmp_path / "cells.csv", index=False)
    assert len(read_cells(tmp_path)) == (table["label"] != "").sum()
    assert "have no label" in caplog.text


def test_the_same_settings_give_the_same_crops(cropped, fields, tmp_path):
    how = CropSettings.load(cropped.folder / "crop.json")
    assert how.pixel_um == pytest.approx(PIXEL, rel=1e-4)
    again = crop_fields(fields, tmp_path / "again", how, for_prediction=True)
    assert again.table["x"].tolist() == cropped.table["x"].tolist()
    first, second = (read_cells(one.folder, labelled=False) for one in (cropped, again))
    assert np.array_equal(first.read(0), second.read(0))


def test_a_z_number_is_ignored_for_nuclei_and_new_fields_with_one_plane(scene, fields, cropped, tmp_path, raises_code):
    stack = np.stack([scene.brightfield[::-1], scene.brightfield[:, ::-1], scene.brightfield])
    write(tmp_path / "stack" / "a.tif", stack)
    write(tmp_path / "stack" / "a_dapi.tif", scene.nuclei)
    how = CropSettings(size=EDGE, nuclei="*_dapi.tif", z="2", pixel_um=PIXEL, light="none")
    first = crop_fields(tmp_path / "stack", tmp_path / "first", how)
    again = crop_fields(fields, tmp_path / "again", first.settings, for_prediction=True)
    assert len(first.table) > 0
    assert again.table[["x", "y"]].equals(first.table[["x", "y"]])
    with raises_code("fields.no_such_plane"):
        crop_fields(fields, tmp_path / "asked", how)


def test_errors_name_the_damaged_settings(cropped, tmp_path, raises_code):
    path = tmp_path / "crop.json"
    path.write_text((cropped.folder / "crop.json").read_text(encoding="utf-8")[:80], encoding="utf-8")
    with raises_code("model.cropping_invalid") as caught:
        CropSettings.load(path)
    assert "crop.json" in str(caught.value)


def test_a_blank_field_gives_an_empty_table_and_a_note(tmp_path):
    write(tmp_path / "fields" / "blank.tif", np.full((200, 220), 1000, np.uint16))
    done = crop_fields(tmp_path / "fields", tmp_path / "cells", CropSettings(size=32))
    assert len(done.table) == 0
    assert any("No cell was detected" in note for note in done.notes)
    assert (done.folder / "cells.csv").read_text(encoding="utf-8").startswith("path,label")
    assert "0 cells" in (done.folder / "report.html").read_text(encoding="utf-8")


def test_fields_of_two_objectives_are_resampled_to_one_pixel_size(tmp_path):
    for name, edge, shape in (("low.tif", 40, (300, 300)), ("high.tif", 80, (600, 600))):
        write(tmp_path / "f" / name, draw_field(5, 1, 0, shape=shape, cells=6, crop=edge).brightfield, CROP_UM / edge)
    done = crop_fields(tmp_path / "f", tmp_path / "cells", CropSettings(size=40))
    assert done.settings.pixel_um == pytest.approx(CROP_UM / 40, rel=1e-3)
    assert any("2 pixel sizes" in note for note in done.notes)
    by_field = done.table.groupby("field")["diameter"].apply(lambda d: d.astype(float).median())
    assert by_field["high.tif"] == pytest.approx(by_field["low.tif"], rel=0.25), "the same cells in micrometres"
    cells = read_cells(done.folder, labelled=False)
    assert {cells.read(index).shape for index in range(len(cells))} == {(40, 40)}


def test_an_unknown_pixel_size_is_assumed_as_in_other_fields(tmp_path):
    names = "abcde"
    rows = [FieldRow(field=f"{name}.tif", brightfield=tmp_path / f"{name}.tif") for name in names]
    how, notes = choose_pixel_size(CropSettings(size=EDGE), rows, [0.25, None, None, None, None], for_prediction=False)
    assert how.pixel_um == 0.25
    assumed = "the pixel size is unknown; 0.25 µm is assumed, as in other fields."
    assert notes == [f"b.tif, c.tif, d.tif and 1 more: {assumed}"]
    _, notes = choose_pixel_size(CropSettings(size=EDGE), rows[:2], [0.25, None], for_prediction=False)
    assert notes == [f"b.tif: {assumed}"]


def test_micrometres_need_a_pixel_size(scene, tmp_path, raises_code):
    write(tmp_path / "f" / "a.tif", scene.brightfield, None)
    with raises_code("fields.pixel_size_unknown") as caught:
        crop_fields(tmp_path / "f", tmp_path / "cells", CropSettings(size=EDGE, width_um=20.0))
    assert "a.tif" in str(caught.value)
    assert "pixel_size_um" in str(caught.value)
    done = crop_fields(tmp_path / "f", tmp_path / "cells", CropSettings(size=EDGE))
    assert len(done.table) > 8
    assert "scale" not in pd.read_csv(done.folder / "cells.csv")


def test_crops_beyond_the_border_are_flagged(cropped, scene):
    flagged = cropped.table["edge"].astype(float) > 0
    x, y = cropped.table["x"].astype(float), cropped.table["y"].astype(float)
    H, W = scene.brightfield.shape
    near = (x < EDGE / 2 - 1) | (y < EDGE / 2 - 1) | (x > W - EDGE / 2 + 1) | (y > H - EDGE / 2 + 1)
    assert flagged[near].all()


@pytest.mark.parametrize("what", ["label", "donor"])
def test_a_folder_can_name_the_label_or_the_donor(scene, tmp_path, what, raises_code):
    write(tmp_path / "f" / "one" / "a.tif", scene.brightfield)
    done = crop_fields(tmp_path / "f", tmp_path / "cells", CropSettings(size=EDGE), folder_names=what)
    assert set(done.table[what]) == {"one"}
    write(tmp_path / "f" / "loose.tif", scene.brightfield)
    with raises_code("fields.folder_missing") as caught:
        crop_fields(tmp_path / "f", tmp_path / "more", CropSettings(size=EDGE), folder_names=what)
    assert "loose.tif" in str(caught.value)


def test_nuclei_of_another_size_or_missing_are_refused(fields, scene, tmp_path, raises_code):
    shutil.copy(fields / "a.tif", tmp_path / "a.tif")
    with raises_code("fields.missing"):
        crop_fields(tmp_path / "a.tif", tmp_path / "cells", CropSettings(size=EDGE, nuclei="*_dapi.tif"))
    write(tmp_path / "a_dapi.tif", scene.nuclei[:-20])
    with raises_code("fields.nuclei_size"):
        crop_fields(tmp_path / "a.tif", tmp_path / "cells", CropSettings(size=EDGE, nuclei="*_dapi.tif"))
    assert not (tmp_path / "cells").exists()
    assert not list(tmp_path.glob(".*unfinished"))


@pytest.mark.parametrize(
    ("text", "code", "word"),
    [
        ("field,x,y,label\nb.tif,3,4,s\n", "fields.label_field_unknown", "b.tif"),
        ("field,x,y,label\na.tif,3,north,s\n", "tables.not_a_number", "'north' in row 2"),
        ("field,x,label\na.tif,3,s\n", "tables.missing_column", "'y'"),
    ],
)
def test_a_wrong_table_of_labels_is_refused(fields, tmp_path, raises_code, text, code, word):
    table = tmp_path / "labels.csv"
    table.write_text(text, encoding="utf-8")
    with raises_code(code) as caught:
        crop_fields(fields / "a.tif", tmp_path / "cells", CropSettings(size=EDGE), labels=table)
    assert word in str(caught.value)


@pytest.mark.parametrize(
    "wrong", [{"size": 4}, {"width_um": 0.0}, {"roundness": 2.0}, {"diameter_um": (9.0, 4.0)}, {"width_um": np.nan}]
)
def test_invalid_settings_are_refused(wrong, raises_code):
    with raises_code("fields.setting_invalid"):
        CropSettings(**wrong)


def test_nothing_is_overwritten(fields, tmp_path, raises_code):
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    with raises_code("run.exists"):
        crop_fields(fields / "a.tif", tmp_path, CropSettings(size=EDGE))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_invalid_labels_are_refused(fields, tmp_path, raises_code):
    for line, code, words in (
        ("a.tif,9000,20,monocyte", "fields.label_outside", ("line 2", "x 9000, y 20", "a.tif", "420 x 380 px")),
        ("a.tif,-3,20,monocyte", "fields.label_outside", ("x -3",)),
        ("a.tif,30,20,monocyte\na.tif,30,20,lymphocyte", "fields.label_twice", ("monocyte", "lymphocyte")),
        ('a.tif,"30,5",20,monocyte', "tables.not_a_number", ("30.5",)),
    ):
        table = tmp_path / "labels.csv"
        table.write_text(f"field,x,y,label\n{line}\n", encoding="utf-8")
        with raises_code(code) as caught:
            crop_fields(fields / "a.tif", tmp_path / "out", CropSettings(size=EDGE), labels=table)
        assert all(word in str(caught.value) for word in words)


def test_unmatched_labels_give_a_note(fields, scene, tmp_path):
    truth = pd.read_csv(fields / "truth.csv")
    # The corner farthest from all cells, and a field of another batch.
    corners = [(1, 1), (418, 1), (1, 378), (418, 378)]
    x, y = max(corners, key=lambda at: min(np.hypot(at[0] - c.x, at[1] - c.y) for c in scene.cells))
    truth.loc[len(truth)] = {"field": "a.tif", "x": x, "y": y, "label": "monocyte"}
    truth.loc[len(truth)] = {"field": "z.tif", "x": 5, "y": 5, "label": "monocyte"}
    truth.to_csv(tmp_path / "labels.csv", index=False)
    done = crop_fields(fields / "a.tif", tmp_path / "out", CropSettings(size=EDGE), labels=tmp_path / "labels.csv")
    assert any("labelled positions lie on no detected cell" in note for note in done.notes)
    assert "1 labelled positions are in fields that were not cropped." in done.notes


def test_an_extreme_width_is_refused_before_any_pixels_are_read(fields, tmp_path, raises_code):
    for width in (1e9, 0.001):
        with raises_code("fields.crop_span"):
            crop_fields(fields / "a.tif", tmp_path / "out", CropSettings(size=EDGE, width_um=width))


def test_the_pixel_size_is_that_of_the_scene(scene, tmp_path):
    with tifffile.TiffWriter(tmp_path / "s.ome.tif", ome=True) as file:
        for pixel in (2.0, PIXEL):
            about = {"axes": "YX", "PhysicalSizeX": pixel, "PhysicalSizeY": pixel}
            file.write(scene.brightfield, metadata=about, photometric="minisblack")
    done = crop_fields(tmp_path / "s.ome.tif", tmp_path / "out", CropSettings(size=EDGE, scene="1"))
    assert done.settings.pixel_um == pytest.approx(PIXEL, rel=1e-4)


def test_a_flat_field_of_another_camera_area_is_refused(fields, tmp_path, raises_code):
    write(tmp_path / "binned.tif", np.full((190, 210), 900, np.uint16))
    write(tmp_path / "half.tif", np.full((380, 210), 900, np.uint16))
    how = CropSettings(size=EDGE)
    crop_fields(fields / "a.tif", tmp_path / "out", how, flat=tmp_path / "binned.tif")
    with raises_code("fields.flat_field_shape"):
        crop_fields(fields / "a.tif", tmp_path / "out2", how, flat=tmp_path / "half.tif")
    with raises_code("fields.flat_without_light"):
        crop_fields(fields / "a.tif", tmp_path / "out3", CropSettings(light="none"), flat=tmp_path / "binned.tif")


def test_crops_are_not_written_among_the_fields(fields, raises_code):
    with raises_code("fields.output_among_fields"):
        crop_fields(fields, fields / "cells", CropSettings(size=EDGE))
    assert not (fields / "cells").exists()


def test_fields_of_two_pixel_types_give_a_note(scene, tmp_path):
    write(tmp_path / "in" / "a.tif", scene.brightfield)
    write(tmp_path / "in" / "b.tif", (scene.brightfield >> 4).astype(np.uint8))
    done = crop_fields(tmp_path / "in", tmp_path / "out", CropSettings(size=EDGE))
    assert any("uint16 and uint8" in note for note in done.notes)


def test_the_report_of_a_blank_field_states_that_no_cell_was_detected(tmp_path):
    write(tmp_path / "in" / "a.tif", np.full((300, 300), 900, np.uint16))
    done = crop_fields(tmp_path / "in", tmp_path / "out", CropSettings(size=EDGE))
    assert len(done.notes) == 1
    assert done.notes[0].startswith("No cell was detected in any field. Check the fields in the report: ")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "No cell was detected in the fields shown here." in page
    assert "Labels and proposals" not in page


def test_crops_are_not_taken_for_fields(cropped, scene, tmp_path, raises_code):
    crops = cropped.folder / "cells"
    with raises_code("fields.are_crops"):
        crop_fields(crops, tmp_path / "out", CropSettings(size=EDGE))
    with raises_code("fields.are_crops"):
        crop_fields(next(crops.rglob("*.tif")), tmp_path / "out", CropSettings(size=EDGE))
    assert not (tmp_path / "out").exists()
    write(tmp_path / "small" / "a.tif", scene.brightfield[:60, :60])
    (tmp_path / "small" / "fields.csv").write_text("field\na.tif\n", encoding="utf-8")  # who says so must know
    assert crop_fields(tmp_path / "small", tmp_path / "out", CropSettings(size=EDGE)).folder == tmp_path / "out"


@pytest.fixture(scope="module")
def six(scene, tmp_path_factory):
    """Six fields, enough to estimate their illumination."""
    folder = tmp_path_factory.mktemp("six")
    for number in range(6):
        write(folder / f"{number}.tif", np.roll(scene.brightfield, 60 * number, axis=1))
    return folder


@pytest.fixture(scope="module")
def without_third(cropped, six, tmp_path_factory):
    """The six fields without the third, cropped."""
    folder = tmp_path_factory.mktemp("five")
    shutil.copytree(six, folder / "fields", ignore=shutil.ignore_patterns("2.tif"))
    settings = CropSettings.load(cropped.folder / "crop.json")
    return crop_fields(folder / "fields", folder / "cells", settings, for_prediction=True)


@pytest.mark.slow
@pytest.mark.parametrize("step", ["describe_source", "measure_illumination", "detect"])
def test_a_failing_field_does_not_change_the_other_fields(
    cropped, six, without_third, tmp_path, monkeypatch, raises_code, step
):
    module = {"describe_source": pool, "measure_illumination": crop, "detect": one_field}[step]
    settings, current, errors = CropSettings.load(cropped.folder / "crop.json"), [], []

    @contextmanager
    def guard(row):
        current.append(row.field)
        try:
            yield
        except Exception as error:
            errors.append((row.field, str(error)))

    original = getattr(module, step)

    def fail_at_third(*arguments, **more):
        if current[-1] == "2.tif":
            raise RuntimeError("no decoder expects this")
        return original(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(module, step, fail_at_third)
        done = crop_fields(six, tmp_path / "done", settings, for_prediction=True, guard=guard)
        if step != "measure_illumination":  # a single field gets the illumination of the model
            with raises_code("fields.none_usable"):
                crop_fields(six / "2.tif", tmp_path / "none", settings, for_prediction=True, guard=guard)
    assert set(errors) == {("2.tif", "no decoder expects this")}
    assert not (done.folder / "cells" / "2").exists()
    assert not (tmp_path / "none").exists()
    if step == "detect":  # the failing field counts for the illumination
        assert [one.row.field for one in done.fields] == ["0.tif", "1.tif", "3.tif", "4.tif", "5.tif"]
        return
    assert done.table.equals(without_third.table)
    assert done.settings.illumination.to_json() == without_third.settings.illumination.to_json()

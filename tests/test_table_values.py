"""Numbers and paths in every table: invalid numbers are refused with their row, files outside the folder not opened."""

import io
import os
import unicodedata
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from urnet.bundle.crops import FIELD_MEASURES
from urnet.cells.read import find_images, read_cells
from urnet.fields.labels.positions import read_labels
from urnet.fields.table import FieldRow, find_fields
from urnet.files.user_tables import INTEGER_COLUMNS, NUMERIC_COLUMNS

NO_NUMBERS = {
    "12,5": "Use a decimal point: 12.5",
    "1,234.5": "thousands separators",
    "1 234 567": "thousands separators",
    "1.234.567": "thousands separators",
    "12 px": "Remove the unit: 12",
    "0,5µm": "Remove the unit: 0.5",
    "nan": "Leave the cell empty",
    "NA": "Leave the cell empty",
    "inf": "Leave the cell empty",
    "-Infinity": "Leave the cell empty",
    "north": "Write digits",
    "1_000": "Write digits",
    "−3": "Write digits",
    "0x10": "Write digits",
    "5 %": "Write digits",
    "=1+1": "Write digits",
    "١٢": "Write digits",
}


def draw(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(len(path.name)).integers(0, 255, (24, 24), dtype=np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    """A folder with two images."""
    for name in ("a.png", "b.png"):
        draw(tmp_path / "in" / name)
    return tmp_path / "in"


def to_train(folder, column, value):
    (folder / "cells.csv").write_text(f'path,label,{column}\na.png,x,\nb.png,y,"{value}"\n', encoding="utf-8")
    return read_cells(folder).table


def to_predict(folder, column, value):
    to_train_text = f'path,{column}\na.png,\nb.png,"{value}"\n'
    (folder / "p.csv").write_text(to_train_text, encoding="utf-8")
    return find_images([folder / "p.csv"]).table


def to_label(folder, column, value):
    (folder / "q.csv").write_text(f'path,proposed,{column}\na.png,,\nb.png,,"{value}"\n', encoding="utf-8")
    return read_cells(folder / "q.csv", labelled=False).table


def as_fields(folder, column, value):
    (folder / "f.csv").write_text(f'field,{column}\na.png,\nb.png,"{value}"\n', encoding="utf-8")
    return find_fields(folder / "f.csv")[1]


def as_positions(folder, column, value):
    other = "y" if column == "x" else "x"
    (folder / "l.csv").write_text(f'field,label,{other},{column}\na.png,x,1,2\na.png,x,2,"{value}"\n', encoding="utf-8")
    info = SimpleNamespace(width=9999, height=9999)
    return read_labels(folder / "l.csv", [FieldRow("a.png", folder / "a.png")], [info])


CELLS = sorted(set(NUMERIC_COLUMNS) - {"pixel_size_um"})
TABLES = [
    *((form, column) for form in (to_train, to_predict, to_label) for column in CELLS),
    (as_fields, "pixel_size_um"),
    *((as_positions, column) for column in ("x", "y")),
]


@pytest.mark.parametrize(("form", "column"), TABLES)
def test_refuses_text_in_number_columns_with_its_row(folder, raises_code, form, column):
    for value, advice in NO_NUMBERS.items():
        with raises_code("tables.not_a_number") as caught:
            form(folder, column, value)
        message = str(caught.value)
        assert message.startswith(f"{column} must be {NUMERIC_COLUMNS[column]}, found {value!r} in row 3 of ")
        assert advice in message or (column in INTEGER_COLUMNS and "Use a whole number" in message)


@pytest.mark.parametrize(("form", "column"), TABLES)
def test_numbers_are_read(folder, form, column):
    for value in ("12", *(() if column in INTEGER_COLUMNS else ("12.5", "1e1", "0.30", "+9."))):
        form(folder, column, value)


def test_columns_used_by_rejection_are_numbers():
    assert set(FIELD_MEASURES) <= set(NUMERIC_COLUMNS)


def test_error_shows_how_to_write_a_whole_number(folder, raises_code):
    with raises_code("tables.not_a_number") as caught:
        to_train(folder, "tile", "40.0")
    assert ": 40" in str(caught.value)


# --- paths


def in_other_form(name):
    composed = unicodedata.normalize("NFC", name)
    return composed if composed != name else unicodedata.normalize("NFD", name)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_finds_a_file_in_another_unicode_form(tmp_path, form, monkeypatch):
    on_disk = unicodedata.normalize(form, "Größe/é/Zürich é.png")
    named = in_other_form(on_disk)
    for name in ("Größe/é/Zürich é.png", "plain/é.png"):
        draw(tmp_path / unicodedata.normalize(form, name))
    other = unicodedata.normalize(form, "plain/é.png")
    if (tmp_path / named).exists():
        pytest.skip("this file system takes both forms for one name")
    (tmp_path / "cells.csv").write_text(f"path,label,target\n{named},a,{named}\n{other},b,\n", encoding="utf-8")
    cells = read_cells(tmp_path)
    assert cells.table["path"].tolist() == [on_disk, other]
    assert cells.table["target"].tolist() == [on_disk, ""]
    assert cells.read(0).shape == (24, 24)
    images = find_images([tmp_path / "cells.csv"])
    assert images.read(0).shape == (24, 24)
    (tmp_path / "fields.csv").write_text(f"field,nuclei\n{named},{named}\n", encoding="utf-8")
    (row,) = find_fields(tmp_path / "fields.csv")[1]
    assert row.brightfield.is_file()
    assert row.nuclei.is_file()
    (tmp_path / "labels.csv").write_text(f"field,x,y,label\n{named},3,4,a\n{on_disk},5,4,a\n", encoding="utf-8")
    rows = find_fields(tmp_path / "plain")[1]
    assert [one.field for one in rows] == ["é.png"]
    info = SimpleNamespace(width=24, height=24)
    assert len(read_labels(tmp_path / "labels.csv", [row], [info])) == 2


def test_finds_a_page_in_another_unicode_form(tmp_path):
    import tifffile

    name = unicodedata.normalize("NFD", "é.tif")
    tifffile.imwrite(tmp_path / name, np.zeros((3, 24, 24), np.uint8), photometric="minisblack")
    if (tmp_path / in_other_form(name)).exists():
        pytest.skip("this file system takes both forms for one name")
    (tmp_path / "cells.csv").write_text("path,label\né.tif#p001,a\n", encoding="utf-8")
    assert read_cells(tmp_path).table["path"].tolist() == [f"{name}#p001"]


OUTSIDE = ("/etc/hosts", "../out/secret.png", "sub/../../out/a.png", "C:/x.png", "\\\\host\\x.png", "..\\x.png")


@pytest.mark.parametrize("part", ["", "#p000", "#r00c00"])
@pytest.mark.parametrize("path", [*OUTSIDE, "link.png", "folder/secret.png"])
def test_uploaded_table_cannot_name_files_outside_its_folder(folder, raises_code, path, part):
    draw(folder.parent / "out" / "secret.png")
    try:
        (folder / "link.png").symlink_to("../out/secret.png")
        (folder / "folder").symlink_to("../out", target_is_directory=True)
    except OSError:
        pytest.skip("links are not allowed here")
    for column in ("path", "target", "mask"):
        rows = {"path": "a.png", column: path + part}
        (folder / "cells.csv").write_text(f"{','.join(rows)}\n{','.join(rows.values())}\n", encoding="utf-8")
        for read in (
            lambda: find_images([folder], contained=True),
            lambda: find_images([folder / "cells.csv"], contained=True),
        ):
            with raises_code("cells.path_outside"):
                read()
    assert len(find_images([folder])) == 1  # who names the table may point anywhere


def test_uploaded_table_can_name_files_below_its_folder(folder):
    draw(folder / "sub" / "c.png")
    (folder / "cells.csv").write_text("path\na.png\nsub/c.png\n./b.png\n", encoding="utf-8")
    assert len(find_images([folder], contained=True)) == 3


def test_decoding_of_uploads_stays_in_their_folder(folder, raises_code):
    from urnet.serve.uploads.worker import _Decoder

    config = SimpleNamespace(tile=None, image=None)
    (folder / "cells.csv").write_text(f"path\n{os.devnull}\n", encoding="utf-8")
    decoder = _Decoder(config, None, {"pixels": 10**6, "images": 10, "memory": 10**9})
    with raises_code("cells.path_outside"):
        decoder.read(folder, 0, 1, False)


@pytest.mark.parametrize("name", ["cells.csv", "fields.csv", "../../cells.csv", "cells.csv.png"])
def test_uploaded_table_is_no_image_and_is_removed(tmp_path, name):
    from urnet.serve.uploads.receive import store_upload

    folder = SimpleNamespace(files=tmp_path, reserve=lambda size: None, usage=None)
    for content in (b"path\n/etc/hosts\n", b"field\n../other_request/x.png\n"):
        upload = store_upload(folder, 0, name, io.BytesIO(content))
        assert upload.path is None
        assert upload.error
    assert not list(tmp_path.iterdir())

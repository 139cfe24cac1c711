"""Reading of cells tables and class folders, and the errors of faulty ones."""

import csv
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from urnet.cells.read import find_images, read_cells
from urnet.errors import CellsError
from urnet.files.csv_tables import escape_formula
from urnet.names import find_lookalikes, is_missing, normalize_name, unify_donor_names

quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def save(path: Path, seed: int = 0) -> np.ndarray:
    """Save a small unique crop."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 255, (10, 12), dtype=np.uint8)
    Image.fromarray(image).save(path)
    return image


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two crops of each of two classes."""
    for seed, name in enumerate(("b/1.png", "b/2.png", "a/1.png", "a/2.png")):
        save(tmp_path / "cells" / name, seed)
    return tmp_path / "cells"


def write(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    (folder / "cells.csv").write_bytes(text.encode(encoding))
    return folder / "cells.csv"


# --- folders


def test_reads_one_folder_per_class(folder):
    cells = read_cells(folder)
    assert list(cells.table["path"]) == ["a/1.png", "a/2.png", "b/1.png", "b/2.png"]
    assert list(cells.table["label"]) == ["a", "a", "b", "b"]
    assert list(cells.table["source"]) == list(cells.table["path"])
    assert cells.classes == ("a", "b")
    assert cells.labels.tolist() == [0, 0, 1, 1]
    np.testing.assert_array_equal(cells.read(2), save(folder / "b" / "1.png", 0))


def test_reads_any_alphabet_and_nested_folders(tmp_path):
    for name in ("Größe μ/Ärger/細胞 1.png", "лимфоцит/á.TIFF", "with space/x.y.png"):
        save(tmp_path / name.replace(".TIFF", ".png"))
    (tmp_path / "лимфоцит/á.png").rename(tmp_path / "лимфоцит/á.TIFF")
    cells = read_cells(tmp_path)
    assert set(cells.table["path"]) == {"Größe μ/Ärger/細胞 1.png", "лимфоцит/á.TIFF", "with space/x.y.png"}
    assert set(cells.classes) == {"Größe μ", "лимфоцит", "with space"}
    for index in range(3):
        assert cells.read(index).shape == (10, 12)


def test_ignores_hidden_files_and_folders(folder):
    for name in ("a/._1.png", "a/.ipynb_checkpoints/1-checkpoint.png", ".git/x.png"):
        save(folder / name)
    (folder / "a" / "notes.txt").write_text("x", encoding="utf-8")
    assert len(read_cells(folder)) == 4


def test_refuses_a_class_folder_without_images(folder, raises_code):
    (folder / "monocyte").mkdir()
    with raises_code("cells.class_folder_empty") as caught:
        read_cells(folder)
    assert "monocyte" in str(caught.value)


def test_refuses_a_folder_without_classes(tmp_path, raises_code):
    save(tmp_path / "1.png")
    with raises_code("cells.no_class_folders"):
        read_cells(tmp_path)
    with raises_code("cells.not_found"):
        read_cells(tmp_path / "absent")


def test_reads_a_single_class(tmp_path):
    save(tmp_path / "only" / "1.png")
    assert read_cells(tmp_path).classes == ("only",)


# --- tables


def test_reads_every_column(folder):
    write(
        folder,
        "path,label,donor,field,x,y,split,source,target,note\n"
        "a/1.png,A,d1,f1,3,4,train,s1,b/1.png,ignored\n"
        "a/2.png,B,,,,,,,,\n",
    )
    cells = read_cells(folder)
    assert cells.table.iloc[0].to_dict() == {
        **{"path": "a/1.png", "label": "A", "donor": "d1", "field": "f1", "x": "3", "y": "4"},
        **{"split": "train", "source": "s1", "target": "b/1.png"},
    }
    assert cells.table["source"].iloc[1] == "a/2.png"
    assert cells.has_split
    assert not cells.is_complete("donor")
    np.testing.assert_array_equal(cells.read(0, "target"), save(folder / "b" / "1.png", 0))


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_reads_tables_of_spreadsheets(folder, separator, encoding, end):
    lines = ["", "path,label,donor", "a\\1.png, A ,d1", "", ",,", 'a\\2.png,"B",d2,', ""]
    write(folder, end.join(lines).replace(",", separator), encoding)
    table = read_cells(folder).table
    assert list(table["path"]) == ["a/1.png", "a/2.png"]
    assert list(table["label"]) == ["A", "B"]
    assert list(table["donor"]) == ["d1", "d2"]


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"], exclude_characters="\\"), min_size=1)


@quick
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5))
def test_reads_every_written_table(tmp_path, rows):
    labels = [normalize_name(label) for label, _ in rows]
    assume(not find_lookalikes(labels) and not any(map(is_missing, labels)))
    save(tmp_path / "1.png")
    with (tmp_path / "t.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "donor"])
        writer.writerows(["1.png", escape_formula(label), escape_formula(donor)] for label, donor in rows)
    cells = read_cells(tmp_path / "t.csv")
    assert cells.table["label"].tolist() == labels
    assert cells.table["donor"].tolist() == unify_donor_names([normalize_name(donor) for _, donor in rows])[0]
    cells.write(tmp_path / "below" / "cells.csv")
    written = read_cells(tmp_path / "below")
    assert list(written.table["path"]) == ["../1.png"] * len(rows)
    expected = cells.table.drop(columns="path")
    expected = expected.loc[:, (expected != "").any()]  # empty columns are not written
    assert written.table.drop(columns="path").to_dict() == expected.to_dict()
    assert written.classes == cells.classes


BAD_TABLES = {
    "file,label\na/1.png,x\n": ("tables.missing_column", "'path'", "file, label"),
    "path,class\na/1.png,x\n": ("tables.missing_column", "'label'", "path"),
    "": ("tables.missing_column", "'path'", "none"),
    "\n\n": ("tables.missing_column", "'path'"),
    "path,label\n": ("tables.empty",),
    "path,label\na/1.png,x\n\n,x\n": ("cells.value_missing", "line 4", "path"),
    "path,label\na/1.png,x\na/2.png\na/2.png,\n": ("cells.value_missing", "line 3", "label", "2 such lines"),
    "path,label\na/1.png,x\ncell 3, 4.png,x\n": ("tables.too_many_values", "line 3", "3 values", "2 columns"),
    "path,label\na/1.png,x\na/9.png,x\nno/8.png,x\n": ("cells.files_missing", "2 file(s)", "'path'", "a/9.png, no/8"),
    "path,label,target\na/1.png,x,gone.png\n": ("cells.files_missing", "'target'", "gone.png"),
    "path,label\na,x\n": ("cells.files_missing", "'path'", ": a."),
    "path,label,split\na/1.png,x,val\n": ("cells.split_unknown", "'val'", "train, validation, test"),
    "path,label,split\na/1.png,x,train\na/2.png,x,tset\n": ("cells.split_unknown", "'tset'", "row 3"),
    "path,label,fold\na/1.png,x,-1\n": ("tables.not_a_number", "'-1'", "row 2"),
    "path,label,tile\na/1.png,x,4.5\n": ("tables.not_a_number", "'4.5'", "row 2", "cells.csv"),
    "path,label,tile\na/1.png,x,0\n": ("cells.tile_too_small", "0 px", "8 px"),
    "path,label,label\na/1.png,x,y\n": ("tables.duplicate_column", "2 columns", "'label'"),
    'path,label\n"a/1.png,x\n': ("tables.unreadable",),
}
"""Faulty tables, each with the code of its error and what the message names."""


@pytest.mark.parametrize("text", BAD_TABLES)
def test_refuses_faulty_tables(folder, text, raises_code):
    path = write(folder, text)
    code, *texts = BAD_TABLES[text]
    with raises_code(code) as caught:
        read_cells(path)
    for part in (str(folder), *texts):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_reads_parts_in_any_case(folder, raises_code):
    write(folder, "path,label,split\na/1.png,x,TRAIN\na/2.png,y,Test\na/1.png,y,\n")
    assert read_cells(folder).table["split"].tolist() == ["train", "test", ""]
    write(folder, "path,label,split\na/1.png,x,train\na/2.png,y,Val\n")
    with raises_code("cells.split_unknown") as caught:
        read_cells(folder)
    for text in ("row 3", "Write validation"):
        assert text in str(caught.value)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_refuses_other_encodings(folder, encoding, raises_code):
    with raises_code("tables.encoding") as caught:
        read_cells(write(folder, "path,label\na/1.png,Größe\n", encoding))
    for text in ("UTF-8",):
        assert text in str(caught.value)


@quick
@given(st.binary(max_size=200))
def test_any_bytes_give_a_table_or_a_cells_error(tmp_path, content):
    (tmp_path / "t.csv").write_bytes(b"path,label,split,tile\n" + content)
    with pytest.raises(CellsError):
        read_cells(tmp_path / "t.csv")


def test_labels_are_merged_and_ordered(folder, raises_code):
    names = ("neutrophil", "monocyte", "eosinophil", "granulocyte")
    write(folder, "path,label\n" + "".join(f"a/1.png,{name}\n" for name in names))
    classes = {"monocyte": ["monocyte"], "granulocyte": ["neutrophil", "eosinophil"]}
    cells = read_cells(folder, classes=classes)
    assert cells.classes == ("monocyte", "granulocyte")
    assert cells.labels.tolist() == [1, 0, 1, 1]
    with raises_code("cells.label_unknown") as caught:
        read_cells(folder, classes={"monocyte": ["monocyte"], "granulocyte": ["neutrophil"]})
    assert "eosinophil" in str(caught.value)


# --- montages and stacks


@pytest.fixture
def montages(tmp_path) -> Path:
    """Two class folders of 2 x 3 tiles, with a paired image."""
    for seed, label in enumerate("ab"):
        (tmp_path / label).mkdir()
        bright = np.random.default_rng(seed).integers(200, 1650, (20, 30), dtype=np.uint16)
        tifffile.imwrite(tmp_path / label / "bright.tif", bright)
        tifffile.imwrite(tmp_path / label / "dna.tif", bright + 5000)
    return tmp_path


def test_reads_tiles_with_their_targets(montages):
    cells = read_cells(montages, tile=10, image="bright.tif", target="dna.tif")
    assert len(cells) == 12
    assert cells.table["path"].iloc[4] == "a/bright.tif#r01c01"
    assert cells.table["target"].iloc[4] == "a/dna.tif#r01c01"
    assert cells.table["source"].is_unique
    for index in range(12):
        np.testing.assert_array_equal(cells.read(index) + 5000, cells.read(index, "target"))
    cells.write(montages / "elsewhere" / "t.csv")
    written = read_cells(montages / "elsewhere" / "t.csv")
    assert list(written.table["path"])[4] == "../a/bright.tif#r01c01"
    assert list(written.table["source"]) == list(cells.table["source"])
    for index in range(12):
        np.testing.assert_array_equal(written.read(index), cells.read(index))
        np.testing.assert_array_equal(written.read(index, "target"), cells.read(index, "target"))


def test_target_file_is_no_cell(montages, raises_code):
    cells = read_cells(montages, tile=10, target="dna.tif")
    assert len(cells) == 12
    (montages / "b" / "dna.tif").unlink()
    with raises_code("cells.files_missing") as caught:
        read_cells(montages, tile=10, target="dna.tif")
    for text in ("column 'target'", "b/dna.tif"):
        assert text in str(caught.value)
    (montages / "b" / "bright.tif").unlink()
    with raises_code("cells.class_folder_empty") as caught:
        read_cells(montages, tile=10, image="bright.tif")
    assert "bright.tif" in str(caught.value)


@pytest.mark.parametrize("image", [None, "bright.tif"])
def test_reads_targets_in_their_own_folder(montages, image):
    for folder in ("a", "b"):
        (montages / folder / "glow").mkdir()
        (montages / folder / "dna.tif").rename(montages / folder / "glow" / "t.tif")
    cells = read_cells(montages, tile=10, image=image, target="glow/t.tif")
    assert len(cells) == 12
    assert cells.table["target"].str.startswith(("a/glow/t.tif#", "b/glow/t.tif#")).all()


def test_refuses_a_tile_that_does_not_fit(montages, raises_code):
    with raises_code("images.not_a_montage") as caught:
        read_cells(montages, tile=9, image="bright.tif")
    for text in ("30 x 20 px", "9 px"):
        assert text in str(caught.value)


def test_reads_montages_with_their_tile_from_a_table(montages, raises_code):
    write(montages, "path,label,tile,source\na/bright.tif,a,10,\nb/bright.tif,b,20,s\n")
    with raises_code("images.not_a_montage"):
        read_cells(montages)
    write(montages, "path,label,tile,source\na/bright.tif,a,10,\nb/bright.tif#r0c1,b,10,s\n")
    cells = read_cells(montages)
    assert len(cells) == 7
    assert list(cells.table["path"])[-1] == "b/bright.tif#r00c01"
    assert list(cells.table["source"])[-2:] == ["a/bright.tif#r01c02", "s"]


def test_pages_of_a_stack_share_one_source(tmp_path):
    stack = np.random.default_rng(0).integers(0, 255, (3, 9, 9), dtype=np.uint8)
    (tmp_path / "a").mkdir()
    tifffile.imwrite(tmp_path / "a" / "s.tif", stack, photometric="minisblack")
    cells = read_cells(tmp_path)
    assert list(cells.table["path"]) == ["a/s.tif#p000", "a/s.tif#p001", "a/s.tif#p002"]
    assert set(cells.table["source"]) == {"a/s.tif"}
    np.testing.assert_array_equal(cells.read(2), stack[2])


def test_a_damaged_file_keeps_its_row(tmp_path, raises_code):
    """The audit reports it together with others."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.tif").write_bytes(b"II*\0 damaged")
    cells = read_cells(tmp_path)
    assert len(cells) == 1
    with raises_code("images.pages_damaged"):
        cells.read(0)


# --- what a table can do


def test_parts_and_masks(folder):
    cells = read_cells(folder).with_columns(split=["train", "", "test", "train"])
    assert list(cells.part("train").table["path"]) == ["a/1.png", "b/2.png"]
    assert len(cells.part("validation")) == 0
    assert list(cells.where(cells.labels == 1).table["path"]) == ["b/1.png", "b/2.png"]
    assert cells.part("test").classes == cells.classes
    assert not read_cells(folder).has_split


def test_table_written_beside_the_images_keeps_its_paths(folder):
    cells = read_cells(folder).with_columns(split="train", donor="")
    cells.write(folder / "cells.csv")
    text = (folder / "cells.csv").read_bytes().decode()
    assert text.splitlines()[:2] == ["path,label,source,split", "a/1.png,a,a/1.png,train"]
    assert "\r" not in text
    assert len(read_cells(folder).part("train")) == 4


# --- images to predict


def test_finds_files_folders_and_tables(folder, tmp_path, monkeypatch, raises_code):
    monkeypatch.chdir(tmp_path)
    table = tmp_path / "some.csv"
    table.write_text("path\ncells/a/1.png\ncells/gone.png\n", encoding="utf-8")
    (tmp_path / "text.png").write_text("no image", encoding="utf-8")
    cells = find_images(["cells/b", "text.png", table])
    assert list(cells.table["path"]) == [
        *("cells/b/1.png", "cells/b/2.png", "text.png"),
        *((tmp_path / "cells/a/1.png").as_posix(), (tmp_path / "cells/gone.png").as_posix()),
    ]
    assert cells.read(0).shape == cells.read(3).shape == (10, 12)
    for index, code in ((2, "images.format_unknown"), (4, "images.not_found")):
        with raises_code(code):
            cells.read(index)


def test_finds_tiles_and_pages(tmp_path):
    tifffile.imwrite(tmp_path / "m.tif", np.arange(600, dtype=np.uint16).reshape(20, 30))
    tifffile.imwrite(tmp_path / "s.tif", np.zeros((2, 12, 12), np.uint16), photometric="minisblack")
    tifffile.imwrite(tmp_path / "single.tif", np.zeros((10, 10), np.uint16))
    tifffile.imwrite(tmp_path / "other.tif", np.zeros((15, 15), np.uint16))
    (tmp_path / "damaged.tif").write_bytes(b"II*\0")
    cells = find_images([tmp_path], tile=10)
    names = [path.rsplit("/", 1)[1] for path in cells.table["path"]]
    tiles = [f"m.tif#r{row:02d}c{column:02d}" for row in range(2) for column in range(3)]
    assert names == ["damaged.tif", *tiles, "other.tif", "s.tif#p000", "s.tif#p001", "single.tif"]
    for index in range(1, len(names)):
        assert min(cells.read(index).shape) >= 10


def test_refuses_paths_without_images(tmp_path, raises_code):
    with raises_code("cells.no_images"):
        find_images([])
    with raises_code("cells.no_images"):
        find_images([tmp_path])
    for name in ("absent.png", "absent.csv", "absent"):
        with raises_code("cells.not_found"):
            find_images([tmp_path / name])


# --- real data


def rows_of_mass(images: np.ndarray) -> np.ndarray:
    """Compute the row of the centre of mass of each image, (N,)."""
    signal = np.abs(images - np.median(images, axis=(1, 2), keepdims=True))
    return (signal.sum(axis=2) @ np.arange(images.shape[1])) / signal.sum(axis=(1, 2))


@pytest.mark.real_data
def test_jurkat_tiles_have_their_dna_as_target(jurkat):
    """The nucleus is at the position of its own cell, not of the next one."""
    mitosis = ["prophase", "metaphase", "anaphase", "telophase"]
    classes = {"g1": ["g1"], "s": ["s"], "g2": ["g2"], "mitosis": mitosis}
    cells = read_cells(jurkat, tile=40, image="brightfield.tif", target="dna.tif", classes=classes)
    assert len(cells) == 7 * 720
    assert cells.classes == ("g1", "s", "g2", "mitosis")
    assert (cells.table["path"].str.replace("brightfield", "dna") == cells.table["target"]).all()
    g1 = cells.where(cells.labels == 0)
    bright, dna = (
        np.stack([g1.read(i, column) for i in range(len(g1))]).astype(float) for column in ("path", "target")
    )
    place, nucleus = rows_of_mass(bright), rows_of_mass(dna)
    assert np.corrcoef(place, nucleus)[0, 1] > 0.6
    assert abs(np.corrcoef(place, np.roll(nucleus, 1))[0, 1]) < 0.2


@pytest.mark.real_data
def test_pbc_is_read_whole(pbc):
    cells = read_cells(pbc)
    counts = cells.table["label"].value_counts().to_dict()
    assert counts == {"basophil": 366, "eosinophil": 352, "lymphocyte": 346, "monocyte": 338, "neutrophil": 344}


@pytest.mark.parametrize("key", ["image", "target"])
@pytest.mark.parametrize("name", ["../other.png", str(Path("/").resolve() / "other.png")])
def test_image_name_must_stay_in_the_class_folder(folder, key, name, raises_code):
    with raises_code("cells.file_outside_class_folder"):
        read_cells(folder, **{key: name})


@pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin", reason="names are Unicode on this system")
def test_refuses_a_name_that_is_no_unicode(folder, raises_code):
    label = next(place for place in sorted(folder.iterdir()) if place.is_dir())
    image = next(label.iterdir())
    image.rename(os.fsdecode(os.fsencode(label) + b"/\xff.png"))
    with raises_code("cells.file_name_not_unicode"):
        read_cells(folder)


def test_refuses_a_folder_without_permission(folder, monkeypatch, raises_code):
    def locked(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", locked)
    with raises_code("files.folder_unreadable") as caught:
        find_images([folder])
    for text in (str(folder),):
        assert text in str(caught.value)


@pytest.mark.parametrize(("found", "meant"), [("donr", "donor"), ("Donor", "donor"), ("splits", "split")])
def test_refuses_a_misspelt_column(tmp_path, found, meant, raises_code):
    (tmp_path / "cells.csv").write_text(f"path,label,{found}\na.png,x,1\n", encoding="utf-8")
    with raises_code("tables.misspelt_column") as caught:
        read_cells(tmp_path)
    for text in (
        repr(found),
        repr(meant),
    ):
        assert text in str(caught.value)


def test_refuses_a_patient_column_for_training_only(folder, caplog, raises_code):
    path = write(folder, "path,label,patient\na/1.png,x,7\n")
    with raises_code("tables.donor_synonym") as caught:
        read_cells(path)
    for text in (
        "'patient'",
        "donor",
    ):
        assert text in str(caught.value)
    assert list(find_images([path]).table["donor"]) == [""]
    assert "'patient'" in caplog.text


def test_empty_donor_column_is_ignored(folder, raises_code):
    path = write(folder, "path,label,donor,patient\na/1.png,x, ,7\n")
    with raises_code("tables.donor_synonym") as caught:
        read_cells(path)
    for text in (
        "'patient'",
        "donor",
    ):
        assert text in str(caught.value)
    assert list(read_cells(write(folder, "path,label,donor,patient\na/1.png,x,d1,7\n")).table["donor"]) == ["d1"]


def test_names_unknown_columns_only(folder, caplog):
    read_cells(write(folder, "path,label,magnification,donor\na/1.png,x,40,7\n"))
    assert "magnification" in caplog.text
    caplog.clear()
    theirs = (
        "predicted,p_x,p_y,rejected,set,source,donor,engine,error,labelled_by,labelled_at,corrected_by,model,x_case"
    )
    read_cells(write(folder, f"path,label,{theirs}\na/1.png,x,{','.join('1' for _ in theirs.split(','))}\n"))
    find_images([write(folder, "path,label,magnification\na/1.png,x,40\n")])
    assert not caplog.records


@pytest.mark.parametrize("content", ["an image", b"no image \xff", b""])
def test_refuses_an_image_as_a_table(tmp_path, content, raises_code):
    path = tmp_path / "cell.png"
    save(path) if content == "an image" else path.write_bytes(content)
    with raises_code("cells.not_a_table"):
        read_cells(path)

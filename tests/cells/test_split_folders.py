"""Folders `train`, `validation` and `test` above the class folders are a given split. Ambiguous ones are refused."""

import logging
import os
import re

import numpy as np
import pytest
from PIL import Image

from urnet.cells.audit import audit_cells
from urnet.cells.read import find_images, read_cells
from urnet.cells.split import assign_parts, split_cells
from urnet.fields.table import find_fields
from urnet.recipe import load_recipe


def draw(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        seed = sum(name.encode()) + len(list(root.rglob("*.png")))
        Image.fromarray(np.random.default_rng(seed).integers(0, 255, (24, 24), dtype=np.uint8)).save(root / name)
    return root


def parted(root, *parts, classes=("granulocyte", "monocyte"), count=2):
    names = [f"{part}/{label}/{number}.png" for part in parts for label in classes for number in range(count)]
    return draw(root, *names)


@pytest.mark.parametrize(
    "parts", [("train", "val", "test"), ("Training", "VALID", "Testing"), ("train", "validation", "TEST")]
)
def test_split_folders_are_the_given_split(tmp_path, caplog, parts):
    caplog.set_level(logging.WARNING)
    cells = read_cells(parted(tmp_path, *parts))
    assert cells.classes == ("granulocyte", "monocyte")
    assert cells.table["split"].value_counts().to_dict() == {"train": 4, "validation": 4, "test": 4}
    (record,) = caplog.records
    assert f"given split ({parts[0]} = train," in record.getMessage().replace(f"{parts[2]} = test, ", "")
    audit = audit_cells(cells)
    assert "given split: train 4, validation 4, test 4" in audit.notes
    divided = split_cells(cells, load_recipe("quick"), audit)
    assert divided.table["split"].tolist() == cells.table["split"].tolist()


def test_a_missing_validation_part_is_taken_from_training(tmp_path, caplog):
    cells = read_cells(parted(tmp_path, "train", "test", count=10))
    assert "Validation cells" in caplog.text
    parts = assign_parts(cells).table
    assert set(parts["split"]) == {"train", "validation", "test"}
    assert (parts["split"][parts["path"].str.startswith("test/")] == "test").all()
    assert not (parts["split"][parts["path"].str.startswith("train/")] == "test").any()


def test_a_missing_test_part_is_taken_as_given(tmp_path):
    assert set(read_cells(parted(tmp_path, "train", "val")).table["split"]) == {"train", "validation"}


def test_split_folders_are_compared_after_merging_classes(tmp_path):
    draw(tmp_path, "train/neutrophil/1.png", "train/monocyte/2.png", "test/basophil/3.png", "test/monocyte/4.png")
    classes = {"granulocyte": ["neutrophil", "basophil"], "monocyte": ["monocyte"]}
    assert read_cells(tmp_path, classes=classes).table["label"].value_counts().to_dict() == {
        "granulocyte": 2,
        "monocyte": 2,
    }


AMBIGUOUS = {
    "a class called test": (("granulocyte/1.png", "test/2.png"), "test may be"),
    "parts and other folders": (
        ("train/a/1.png", "test/a/2.png", "extra/a/3.png"),
        "train, test may be|test, train may be",
    ),
    "two folders for one part": (("train/a/1.png", "training/a/2.png", "test/a/3.png"), "same part"),
    "only one part": (("train/a/1.png", "train/b/2.png"), r"above the classes \(.*train\)"),
    "no training part": (("val/a/1.png", "test/a/2.png"), "'train'"),
    "images beside the classes": (("train/a/1.png", "train/2.png", "test/a/3.png"), r"2\.png"),
    "images in the parts only": (("train/1.png", "test/2.png"), r"[12]\.png"),
    "a class that one part lacks": (("train/a/1.png", "train/b/2.png", "test/a/3.png"), "test lacks b"),
    "other classes": (("train/a/1.png", "test/b/3.png"), "test lacks a; train lacks b"),
}


@pytest.mark.parametrize("kind", AMBIGUOUS)
def test_refuses_ambiguous_split_folders(tmp_path, raises_code, kind):
    files, pattern = AMBIGUOUS[kind]
    with raises_code("cells.split_folders") as caught:
        read_cells(draw(tmp_path, *files))
    assert re.search(pattern, str(caught.value)), str(caught.value)
    assert "path,label,split" in str(caught.value)


NESTED = {
    "parts in the classes": (("a/train/1.png", "a/val/2.png", "b/TEST/3.png"), r"class folder 'a'.*train/a/"),
    "parts below donors": (("a/1.png", "b/donor 2/Holdout/3.png"), "donor 2: .*Holdout"),
    "folds in the classes": (("a/fold1/1.png", "a/fold2/2.png", "b/3.png"), "fold1, fold2"),
    "parts in the classes of parts": (("train/a/1.png", "test/a/dev/2.png"), "class folder 'a'"),
    "folders of images": (("train_images/a/1.png", "test_images/a/2.png"), "train, validation and test"),
    "folds": (("fold1/a/1.png", "fold2/a/2.png", "Fold_10/a/2.png"), r"path,label,split \(or fold\)"),
    "sets": (("training_set/a/1.png", "dev/a/2.png", "holdout/a/3.png"), "not like classes"),
    "named at the end": (("cells_train/a/1.png", "cells-TEST/a/2.png"), "not like classes"),
    "written as one": (("trainset/a/1.png", "test1/a/2.png", "test2/a/2.png"), "not like classes"),
    "one level too high": (("data/train/a/1.png", "data/test/a/2.png"), r"Give \S+data if"),
    "two levels too high": (("x/data/train/a/1.png", "x/data/test/a/2.png"), r"Give \S+data if"),
    "folds one level too high": (("data/fold1/a/1.png", "data/fold2/a/2.png"), r"Give \S+data if"),
}


@pytest.mark.parametrize("kind", NESTED)
def test_refuses_a_split_in_nested_folders(tmp_path, raises_code, kind):
    files, pattern = NESTED[kind]
    with raises_code("cells.split_folders") as caught:
        read_cells(draw(tmp_path, *files))
    assert re.search(pattern, str(caught.value)), str(caught.value)
    assert "path,label,split" in str(caught.value)


@pytest.mark.parametrize(
    "files",
    [
        ("granulocyte/fold1/1.png", "monocyte_set/2.png"),
        ("testis_cells/1.png", "trained/2.png"),
        ("fold1/1.png", "monocyte/2.png"),
        ("granulocyte/test_slide/1.png", "monocyte/valence/2.png", "monocyte/slide/3.png"),
        ("folded/1.png", "developing/2.png"),
    ],
)
def test_accepts_class_names_similar_to_parts(tmp_path, files):
    assert read_cells(draw(tmp_path, *files)).classes == tuple(sorted({file.split("/")[0] for file in files}))


def test_prediction_reads_all_images_of_split_folders(tmp_path):
    assert len(find_images([parted(tmp_path, "train", "test")])) == 8


def test_accepts_linked_and_refuses_broken_class_folders(tmp_path, raises_code):
    draw(tmp_path, "cells/a/1.png", "elsewhere/2.png", "elsewhere/3.png", "more/4.png")
    try:
        (tmp_path / "cells" / "b").symlink_to("../elsewhere", target_is_directory=True)
        (tmp_path / "cells" / "a" / "donor 2").symlink_to("../../more", target_is_directory=True)
    except OSError:
        pytest.skip("links are not allowed here")
    table = read_cells(tmp_path / "cells").table
    assert table["label"].value_counts().to_dict() == {"a": 2, "b": 2}
    (tmp_path / "cells" / "c").symlink_to("../nowhere", target_is_directory=True)
    with raises_code("files.link_broken"):
        read_cells(tmp_path / "cells")


@pytest.mark.parametrize("is_parted", [False, True])
@pytest.mark.parametrize("kind", ["twice", "within", "loop"])
def test_refuses_links_between_class_folders(tmp_path, raises_code, caplog, is_parted, kind):
    parts = ("train", "test") if is_parted else (".",)
    root = parted(tmp_path / "cells", *parts)
    place = draw(root / parts[0] / "monocyte", "deep/9.png")
    for part in parts:
        link = root / part / "other"
        try:
            link.symlink_to({"twice": place, "within": place / "deep", "loop": root}[kind], target_is_directory=True)
        except OSError:
            pytest.skip("links are not allowed here")
    if kind == "loop":
        assert read_cells(root).classes == ("granulocyte", "monocyte")
        assert "not followed: other" in caplog.text
    else:
        with raises_code("cells.folder_twice"):
            read_cells(root)


def test_refuses_a_part_that_links_to_another(tmp_path, raises_code):
    root = parted(tmp_path / "cells", "train")
    try:
        (root / "test").symlink_to("train", target_is_directory=True)
    except OSError:
        pytest.skip("links are not allowed here")
    with raises_code("cells.folder_twice"):
        read_cells(root)


@pytest.mark.parametrize("place", ["dead.tif", "monocyte/dead.tif", "monocyte/donor 2/DEAD.TIF"])
@pytest.mark.parametrize("part", ["", "train"])
def test_refuses_an_image_that_is_a_broken_link(tmp_path, raises_code, place, part):
    root = parted(tmp_path, *(("train", "test") if part else (".",)))
    link = root / part / place
    link.parent.mkdir(exist_ok=True)
    try:
        link.symlink_to("/nowhere/x.tif")
    except OSError:
        pytest.skip("links are not allowed here")
    with raises_code("files.link_broken") as caught:
        read_cells(root)
    assert str(link) in str(caught.value)
    assert link.as_posix() in find_images([root]).table["path"].tolist()  # its own row reports it
    with raises_code("files.link_broken") as caught:
        find_fields(root)
    assert link.name in str(caught.value)


def test_refuses_a_montage_that_is_a_broken_link(tmp_path, raises_code):
    draw(tmp_path, "a/bf.png", "b/1.png")
    try:
        (tmp_path / "b" / "bf.png").symlink_to("/nowhere/x.png")
    except OSError:
        pytest.skip("links are not allowed here")
    with raises_code("files.link_broken"):
        read_cells(tmp_path, image="bf.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_error_names_pipes_with_image_names(tmp_path, caplog):
    root = parted(tmp_path, ".")
    os.mkfifo(root / "monocyte" / "pipe.png")
    for search in (read_cells, lambda folder: find_images([folder]), lambda folder: find_fields(folder)[1]):
        caplog.clear()
        assert len(search(root)) == 4
        assert "pipe.png" in caplog.text

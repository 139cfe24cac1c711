"""Splits of audited tables: usable cells get a part, others are excluded or raise an error."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from urnet.cells.audit import audit_cells
from urnet.cells.read import read_cells
from urnet.cells.split import split_cells
from urnet.cells.table import Cells
from urnet.recipe import Recipe


def save(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    texture = gaussian_filter(np.random.default_rng(seed).normal(size=(20, 20)), 2)
    Image.fromarray((128 + 35 * texture / texture.std()).clip(1, 254).astype(np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Twenty cells of each of two classes."""
    for index in range(40):
        save(tmp_path / "ab"[index % 2] / f"{index:02d}.png", index)
    return tmp_path


def table(folder: Path, columns: str, *rows: str) -> Cells:
    (folder / "cells.csv").write_text("\n".join([columns, *rows]), encoding="utf-8")
    return read_cells(folder)


def run(cells: Cells, *, allow_leaks: bool = False, **recipe: object) -> Cells:
    return split_cells(cells, Recipe(**recipe), audit_cells(cells, near_copies=False), allow_leaks=allow_leaks)


def test_every_sound_cell_gets_a_part(folder):
    cells = run(read_cells(folder))
    assert cells.table["split"].value_counts().to_dict() == {"train": 28, "test": 8, "validation": 4}


def test_excludes_copies_and_padding(folder):
    for number in range(12):
        save(folder / "a" / f"padding{number}.png", 99)
    save(folder / "b" / "copy.png", 1)
    cells = run(read_cells(folder))
    left_out = cells.table["path"][cells.table["split"] == ""]
    assert sorted(left_out) == sorted(["b/copy.png", *(f"a/padding{number}.png" for number in range(12))])


def test_refuses_a_single_class(tmp_path, raises_code):
    for index in range(5):
        save(tmp_path / "only" / f"{index}.png", index)
    with raises_code("cells.one_class"):
        run(read_cells(tmp_path))


def test_refuses_a_class_of_one_cell(folder, raises_code):
    save(folder / "rare" / "1.png", 77)
    with raises_code("cells.too_few"):
        run(read_cells(folder))


def test_error_names_a_class_without_usable_cells(folder, raises_code):
    cells = read_cells(folder, classes={"a": ["a"], "b": ["b"], "c": ["c"]})
    with raises_code("cells.class_unusable") as caught:
        run(cells)
    assert "class(es) c " in str(caught.value)


def test_error_names_unreadable_files(folder, raises_code):
    for name in ("empty.png", "text.png"):
        (folder / "a" / name).write_text("" if name == "empty.png" else "no image", encoding="utf-8")
    with raises_code("cells.unreadable") as caught:
        run(read_cells(folder))
    for text in ("2 image", "empty.png", "text.png"):
        assert text in str(caught.value)


def test_refuses_one_cell_under_two_labels(folder, raises_code):
    save(folder / "a" / "also.png", 1)
    for allow_leaks in (False, True):
        with raises_code("cells.label_conflict") as caught:
            run(read_cells(folder), allow_leaks=allow_leaks)
        assert "a/also.png, b/01.png" in str(caught.value)


def given_split(folder: Path, *, donors: bool = False, copy: bool = False) -> Cells:
    rows = []
    for index in range(40):
        part = "test" if index >= 30 else "train"
        rows.append(f"{'ab'[index % 2]}/{index:02d}.png,{'ab'[index % 2]},{part},{f'd{index % 15}' if donors else ''}")
    if copy:
        save(folder / "a" / "copy.png", 0)
        rows.append("a/copy.png,a,test,")
    return table(folder, "path,label,split,donor", *rows)


def test_adds_a_validation_part_to_a_given_split(folder):
    cells = run(given_split(folder))
    assert (cells.table["split"][30:] == "test").all()
    assert cells.table["split"].value_counts().to_dict() == {"train": 26, "test": 10, "validation": 4}


@pytest.mark.parametrize("leak", [{"donors": True}, {"copy": True}])
def test_leaks_in_a_given_split_raise_unless_allowed(folder, leak, raises_code):
    cells = given_split(folder, **leak)
    with raises_code("cells.leak"):
        run(cells)
    assert "test" in set(run(cells, allow_leaks=True).table["split"])


def test_each_donor_is_in_one_part(folder):
    rows = [f"{'ab'[i % 2]}/{i:02d}.png,{'ab'[i % 2]},d{i // 5}" for i in range(40)]
    cells = run(table(folder, "path,label,donor", *rows))
    parts = cells.table.groupby("donor")["split"].nunique()
    assert (parts == 1).all()
    paper = run(table(folder, "path,label,donor", *rows), protocol="paper")
    assert (paper.table.groupby("donor")["split"].nunique() > 1).any()


def test_paper_protocol_has_no_validation_part(folder):
    cells = run(read_cells(folder), protocol="paper")
    assert cells.table["split"].value_counts().to_dict() == {"train": 32, "test": 8}


def test_numbers_the_folds_if_none_is_chosen(folder):
    save(folder / "a" / "copy.png", 0)
    cells = run(read_cells(folder), split={"folds": 5})
    assert "split" not in cells.table
    assert cells.table["fold"].value_counts().to_dict() == {"0": 8, "1": 8, "2": 8, "3": 8, "4": 8, "": 1}
    for fold in range(5):
        one = run(read_cells(folder), split={"folds": 5, "fold": fold})
        assert ((one.table["split"] == "test") == (cells.table["fold"] == str(fold))).all()
        assert set(one.table["split"]) == {"train", "validation", "test", ""}


def test_split_is_independent_of_the_training_seed(folder):
    splits = [run(read_cells(folder), seed=seed, split={"seed": 7}).table["split"] for seed in (0, 1)]
    assert splits[0].equals(splits[1])
    assert not run(read_cells(folder), split={"seed": 8}).table["split"].equals(splits[0])


@pytest.mark.slow
@pytest.mark.real_data
def test_jurkat_in_four_classes(jurkat):
    mitosis = ["prophase", "metaphase", "anaphase", "telophase"]
    cells = read_cells(
        jurkat, tile=40, image="brightfield.tif", classes={"g1": ["g1"], "s": ["s"], "g2": ["g2"], "mitosis": mitosis}
    )
    divided = run(cells)
    used = divided.table[divided.table["split"] != ""]
    assert used["label"].value_counts().to_dict() == {"g1": 720, "s": 720, "g2": 720, "mitosis": 582}
    tested = used[used["split"] == "test"]["label"].value_counts()
    assert tested.to_dict() == pytest.approx({"g1": 144, "s": 144, "g2": 144, "mitosis": 116.4}, abs=1)

"""Names of classes and donors have one spelling in every table."""

import logging
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from urnet.calibration.conformal import join_set, split_set
from urnet.cells.read import find_images, read_cells
from urnet.cells.split import assign_parts, find_groups
from urnet.fields.cropping.crop import _name_by_folder
from urnet.fields.labels.positions import read_labels
from urnet.fields.table import FieldRow, find_fields
from urnet.names import donor_key, find_lookalikes, is_missing, name_key, normalize_name, unify_donor_names
from urnet.recipe import load_recipe

UNKNOWN = ["NA", "na", "N/A", "None", "null", "NaN", "nan", "-", "?", "#N/A", "<NA>", "ＮＡ", "\u200b"]
TWINS = [("Monocyte", "monocyte"), ("Ａ", "A"), ("mono\u200bcyte", "monocyte"), ("STRASSE", "straße"), ("i", "I")]


@pytest.fixture
def folder(tmp_path):
    """Twelve crops and twelve fields."""
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 255, (24, 24), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return tmp_path


def as_cells(folder, labels, donors=None):
    """Write a cells table with these labels and read it for training."""
    donors = donors or [""] * len(labels)
    rows = [f'{n}.png,"{label}","{donor}"' for n, (label, donor) in enumerate(zip(labels, donors, strict=True))]
    (folder / "t.csv").write_text("\n".join(["path,label,donor", *rows]), encoding="utf-8")
    return read_cells(folder / "t.csv").table


def as_folders(folder, labels, donors=None):
    for number, label in enumerate(labels):
        (folder / "classes" / label).mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").rename(folder / "classes" / label / f"{number}.png")
    return read_cells(folder / "classes").table


def as_fields(folder, labels, donors=None):
    donors = donors or [""] * len(labels)
    rows = [f'{n}.png,"{label}","{donor}"' for n, (label, donor) in enumerate(zip(labels, donors, strict=True))]
    (folder / "f.csv").write_text("\n".join(["field,label,donor", *rows]), encoding="utf-8")
    return find_fields(folder / "f.csv")[1]


def as_positions(folder, labels, donors=None):
    rows = [f'0.png,{n},3,"{label}"' for n, label in enumerate(labels)]
    (folder / "l.csv").write_text("\n".join(["field,x,y,label", *rows]), encoding="utf-8")

    class Info:
        width = height = 24

    return read_labels(folder / "l.csv", [FieldRow("0.png", folder / "0.png")], [Info()])


def as_field_folders(folder, labels, donors=None):
    rows = []
    for number, name in enumerate(donors or labels):
        rows.append(FieldRow(f"{name}/{number}.png", folder / f"{number}.png"))
    return _name_by_folder(rows, folder, "donor" if donors else "label")


FORMS = [as_field_folders, as_cells, as_folders, as_fields, as_positions]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", UNKNOWN)
def test_refuses_labels_that_mean_unknown(folder, raises_code, form, name):
    if form in (as_folders, as_field_folders) and "/" in name:
        pytest.skip("no folder can be called so")
    with raises_code("cells.label_missing") as caught:
        form(folder, ["a", name, "a"])
    assert repr(normalize_name(name)) in str(caught.value)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("pair", TWINS)
def test_refuses_classes_that_differ_only_in_spelling(folder, raises_code, form, pair):
    with raises_code("cells.label_twins") as caught:
        form(folder, ["a", *pair])
    assert all(ascii(name)[1:-1] in str(caught.value) or name in str(caught.value) for name in pair)


@pytest.mark.parametrize("form", FORMS)
def test_unicode_forms_and_blanks_make_no_new_class(folder, form):
    same = ["Größe μ", unicodedata.normalize("NFD", "Größe μ"), " Größe μ ", "Größe\u00a0 μ"]
    table = form(folder, same)
    labels = [row.label for row in table] if isinstance(table, list) else table["label"]
    assert set(labels) == {"Größe μ"}


def test_recipe_can_name_any_label(folder):
    (folder / "t.csv").write_text("path,label\n0.png,NA\n1.png,Monocyte\n2.png,monocyte\n", encoding="utf-8")
    cells = read_cells(folder / "t.csv", classes={"none seen": ["NA"], "monocyte": ["Monocyte", "monocyte"]})
    assert cells.table["label"].tolist() == ["none seen", "monocyte", "monocyte"]


def test_recipe_classes_match_in_any_unicode_form(folder):
    name = unicodedata.normalize("NFD", "é")
    (folder / "t.csv").write_text("path,label\n0.png,é\n1.png,b\n", encoding="utf-8")
    assert read_cells(folder / "t.csv", classes={name: [name], "b": ["b"]}).classes == (name, "b")


def test_refuses_recipe_classes_that_differ_only_in_spelling(folder, raises_code):
    (folder / "t.csv").write_text("path,label\n0.png,x\n1.png,y\n", encoding="utf-8")
    with raises_code("cells.label_twins"):
        read_cells(folder / "t.csv", classes={"Cell": ["x"], "cell": ["y"]})


@pytest.mark.parametrize("text", ["no: [a]", "yes: [a]", "null: [a]", "a: [off]", "a: null", "a: [~]"])
def test_refuses_yaml_values_that_are_no_text(tmp_path, text, raises_code):
    (tmp_path / "r.yaml").write_text(f"classes: {{{text}, b: [c]}}", encoding="utf-8")
    with raises_code("recipe.value_invalid") as caught:
        load_recipe(tmp_path / "r.yaml")
    assert "quotes" in str(caught.value)


# --- donors


@pytest.mark.parametrize(
    "same", [("2", "2.0", " 2", "02", "２", "2.00"), ("d1", "D1", "d1 "), ("é", "e\u0301", "É"), ("a b", "a  b", "A b")]
)
def test_spellings_of_one_donor_stay_in_one_part_with_a_warning(folder, caplog, same):
    caplog.set_level(logging.WARNING)
    same = list(same)
    labels = ["a", "b"] * 6
    donors = [*(same * 6)[:4], "x", "x", "y", "y", "z", "z", "w", "w"]
    table = as_cells(folder, labels, donors)
    assert table["donor"].nunique() == 5
    assert "spellings of one donor" in caplog.text
    cells = read_cells(folder / "t.csv")
    assert len(set(find_groups(cells)[0])) == 5
    parts = assign_parts(cells, test=0.3, validation=0.2).table.groupby("donor")["split"].nunique()
    assert parts.max() == 1
    assert len({row.donor for row in as_fields(folder, labels, donors)}) == 5
    assert len({row.donor for row in as_field_folders(folder, labels, donors)}) == 5
    assert find_images([folder / "t.csv"]).table["donor"].nunique() == 5


def test_different_donors_stay_apart():
    names = ["2", "2.5", "20", "d2", "d02", "-2", "1e3", "1000", "2 a", "2a", "١", "9" * 30, "9" * 29 + "8"]
    assert len({donor_key(name) for name in names}) == len(names)


@pytest.mark.parametrize("name", [name for name in UNKNOWN if name.isprintable()])
def test_donor_that_means_unknown_is_empty_with_a_warning(folder, caplog, name):
    caplog.set_level(logging.WARNING)
    table = as_cells(folder, ["a", "b", "a"], [name, name, "d"])
    assert table["donor"].tolist() == ["", "", "d"]
    assert "2 cells" in caplog.text
    assert len(set(find_groups(read_cells(folder / "t.csv"))[0])) == 3  # by source image


@pytest.mark.slow
@given(st.lists(st.one_of(st.text(max_size=5), st.sampled_from(["2", "2.0", "02", "NA", "d", "D"])), max_size=8))
def test_one_spelling_is_stable(names):
    names = list(map(normalize_name, names))
    chosen, merged, unknown = unify_donor_names(names)
    assert unify_donor_names(chosen) == (chosen, [], {})
    for one, other in zip(names, chosen, strict=True):
        assert donor_key(one) == donor_key(other) or other == ""
    assert {name for name in names if name and is_missing(name)} == set(unknown)
    assert all(len(group) > 1 for group in merged)


@pytest.mark.slow
@given(st.text(max_size=10))
def test_keys_are_stable(name):
    assert normalize_name(normalize_name(name)) == normalize_name(name)
    assert name_key(normalize_name(name)) == name_key(name)
    assert name_key(unicodedata.normalize("NFD", name)) == name_key(name)
    assert not find_lookalikes([name, name])


# --- prediction sets


@given(st.lists(st.text(min_size=1, max_size=6) | st.text("|\\a", min_size=1, max_size=5), max_size=5))
def test_prediction_set_round_trip(names):
    assert split_set(join_set(names)) == names


def test_prediction_sets_of_plain_names_use_commas():
    assert join_set(["a b", "c"]) == "a b|c"
    assert split_set("a|b") == ["a", "b"]
    assert split_set("") == []

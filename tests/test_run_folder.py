"""The run folder."""

import pandas as pd
import pytest

from urnet.cells.read import read_cells
from urnet.images.scale import Scaling
from urnet.recipe import load_recipe
from urnet.run_folder import Run, order_classes, refuse_existing

SCALING = Scaling(90.5, 210.0, "uint8")


@pytest.fixture
def divided(shapes):
    cells = read_cells(shapes)
    parts = ["train", "validation", "test", "train", ""] * 12
    return cells.with_columns(split=parts)


def test_a_begun_run_gives_back_recipe_and_cells(divided, tiny, tmp_path):
    recipe = load_recipe(tiny, ["seed=3"])
    run = Run.create(tmp_path / "Läufe 1" / "run", recipe, divided, SCALING)
    again = Run.open(str(run.folder))
    assert again.recipe() == recipe
    assert again.scaling() == SCALING
    cells = again.cells()
    assert cells.classes == divided.classes
    assert cells.table["split"].tolist() == divided.table["split"].tolist()
    assert (cells.read(7) == divided.read(7)).all()
    assert again.has_cells(divided)
    assert not again.has_cells(divided.where(divided.table["label"] != "bar"))
    assert not again.finished
    assert again.history().empty
    assert not list(run.folder.glob("*.part"))


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"low": 0}', '{"low": "a", "high": 2, "dtype": "uint8"}', '{"low": 3, "high": 2, "dtype": "uint8"}'],
)
def test_a_damaged_scaling_is_an_error(text, divided, tiny, tmp_path, raises_code):
    run = Run.create(tmp_path / "run", load_recipe(tiny), divided, SCALING)
    run.scaling_path.write_text(text, encoding="utf-8")
    with raises_code("run.scaling_damaged"):
        run.scaling()


def test_counts_come_from_the_table_alone(divided, tiny, tmp_path):
    recipe = load_recipe(tiny, ["classes.ring=ring", "classes.bar=bar", "classes.disc=disc"])
    run = Run.create(tmp_path / "run", recipe, divided, SCALING)
    table = pd.read_csv(run.cells_path, keep_default_na=False)
    table["path"] = "gone.png"
    table.to_csv(run.cells_path, index=False)
    counts = run.counts()
    assert counts.index.tolist() == ["ring", "bar", "disc"]
    assert counts.columns.tolist() == ["train", "validation", "test", "left out"]
    assert counts.sum().tolist() == [24, 12, 12, 12]


def test_classes_are_in_the_recipes_order_else_the_alphabets(divided, tiny):
    recipe = load_recipe(tiny, ["classes.ring=ring", "classes.bar=bar", "classes.disc=disc"])
    assert order_classes(recipe, divided) == ("ring", "bar", "disc")
    assert order_classes(load_recipe(tiny), divided) == ("bar", "disc", "ring")


def test_another_folder_is_no_run(tmp_path, divided, tiny, raises_code):
    with raises_code("run.not_a_run"):
        Run.open(tmp_path / "nowhere")
    Run.create(tmp_path / "cv" / "fold0", load_recipe(tiny), divided, SCALING)
    with raises_code("run.is_cross_validation"):
        Run.open(tmp_path / "cv")


def test_nothing_that_exists_is_overwritten(tmp_path, divided, tiny, raises_code):
    refuse_existing(tmp_path / "new")
    (tmp_path / "empty").mkdir()
    refuse_existing(tmp_path / "empty")
    with raises_code("run.exists"):
        refuse_existing(tmp_path / "empty", file=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("own", encoding="utf-8")
    for path in (tmp_path / "full", tmp_path / "full" / "note.txt"):
        with raises_code("run.exists"):
            refuse_existing(path)
    with raises_code("run.exists"):
        Run.create(tmp_path / "full", load_recipe(tiny), divided, SCALING)


def test_waiting_for_the_first_process_ends(tmp_path, raises_code):
    with raises_code("run.not_started"):
        Run(tmp_path / "run").wait(seconds=0.3)


def test_missing_cells_are_an_error(draw, tiny, tmp_path, raises_code):
    folder = draw(tmp_path / "cells", 4)
    cells = read_cells(folder)
    run = Run.create(
        tmp_path / "run", load_recipe(tiny), cells.with_columns(split=["train", "validation"] * 6), SCALING
    )
    folder.rename(tmp_path / "elsewhere")
    gone = tmp_path.resolve() / "cells" / "bar" / "000.png"
    with raises_code("cells.files_missing") as caught:
        run.cells()
    assert str(gone) in str(caught.value)
    table = run.cells_path.read_text(encoding="utf-8")
    run.cells_path.write_text(table.replace("../cells/", "../elsewhere/"), encoding="utf-8")
    assert len(run.cells()) == 12
    assert run.changed_images() == []

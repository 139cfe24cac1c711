"""The run folder."""

import pandas as pd
import pytest

from urnet.cells.read import read_cells
from urnet.errors import CellsError, RunError
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
    with raises_code("run.unusable"):
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


def test_what_is_no_run_folder_is_said_so(tmp_path, divided, tiny):
    with pytest.raises(RunError, match=r"nowhere: not a run folder \(recipe\.yaml, cells\.csv missing\)"):
        Run.open(tmp_path / "nowhere")
    Run.create(tmp_path / "cv" / "fold0", load_recipe(tiny), divided, SCALING)
    with pytest.raises(RunError, match=r"cv: a cross-validation of several runs; give one of them.*fold0"):
        Run.open(tmp_path / "cv")


def test_nothing_that_exists_is_overwritten(tmp_path, divided, tiny):
    refuse_existing(tmp_path / "new")
    (tmp_path / "empty").mkdir()
    refuse_existing(tmp_path / "empty")
    with pytest.raises(RunError, match="empty: exists already"):
        refuse_existing(tmp_path / "empty", file=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("own", encoding="utf-8")
    for path in (tmp_path / "full", tmp_path / "full" / "note.txt"):
        with pytest.raises(RunError, match="exists already; choose another --out"):
            refuse_existing(path)
    with pytest.raises(RunError, match="full: exists already"):
        Run.create(tmp_path / "full", load_recipe(tiny), divided, SCALING)


def test_waiting_for_the_first_process_ends(tmp_path):
    with pytest.raises(RunError, match="the first process did not begin the run"):
        Run(tmp_path / "run").wait(seconds=0.3)


def test_cells_that_were_moved_away_are_said_with_what_to_do(draw, tiny, tmp_path):
    folder = draw(tmp_path / "cells", 4)
    cells = read_cells(folder)
    run = Run.create(
        tmp_path / "run", load_recipe(tiny), cells.with_columns(split=["train", "validation"] * 6), SCALING
    )
    folder.rename(tmp_path / "elsewhere")
    gone = tmp_path.resolve() / "cells" / "bar" / "000.png"
    with pytest.raises(CellsError, match=r"12 image\(s\) of this run's cells do not exist where they were") as caught:
        run.cells()
    assert str(gone) in str(caught.value)
    assert "put the cells back there" in str(caught.value)
    table = run.cells_path.read_text(encoding="utf-8")
    run.cells_path.write_text(table.replace("../cells/", "../elsewhere/"), encoding="utf-8")
    assert len(run.cells()) == 12
    assert run.changed_images() == []

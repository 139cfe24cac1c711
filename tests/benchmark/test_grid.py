"""The folder of a benchmark: its cells, its lock, and the state of its jobs."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from urnet.benchmark import grid as grids
from urnet.benchmark.grid import MANIFEST, open_grid, recipe_digest, run_sequentially, unfinished_jobs
from urnet.benchmark.plans import plan_rows
from urnet.cells.read import read_cells
from urnet.errors import RunError
from urnet.images.scale import Scaling
from urnet.run_folder import Run


def silent(what: str, share: float) -> None:
    """Progress that shows nothing."""


class Notes:
    """A reporter that records its messages."""

    def __init__(self):
        self.messages = []

    def notify(self, message):
        self.messages.append(message)

    def update(self, task, share):
        pass


@pytest.fixture(scope="module")
def rows(small):
    return plan_rows("table3", scale="laptop", folds=2, channels=1, overrides=small)


@pytest.fixture(scope="module")
def cells(phantoms):
    return read_cells(phantoms)


@pytest.fixture
def opened(tmp_path, cells, rows):
    """Open the folder of a benchmark for some cells, and release it."""

    def call(given=cells, folder=tmp_path / "out", recipe=rows[0].recipe):
        with open_grid(folder, given, recipe, silent) as grid:
            return grid

    return call


# Whose folder it is.


def test_a_new_folder_says_which_cells_it_is_about_and_in_which_folds(opened, cells):
    grid = opened()
    assert json.loads((grid.folder / MANIFEST).read_text(encoding="utf-8"))["cells"] == 90
    folds = pd.read_csv(grid.folder / "cells.csv")["fold"]
    assert set(folds) == {0, 1}
    assert len(folds) == len(cells)
    before = (grid.folder / MANIFEST).read_bytes()
    assert opened().audit.copy_keys == grid.audit.copy_keys
    assert (grid.folder / MANIFEST).read_bytes() == before


def test_the_same_cells_in_another_place_are_the_same(opened, phantoms, tmp_path):
    opened()
    opened(read_cells(shutil.copytree(phantoms, tmp_path / "moved" / "elsewhere")))


@pytest.mark.parametrize("what", ["label", "donor", "fewer", "pixels"])
def test_other_cells_are_refused(opened, cells, phantoms, tmp_path, what, raises_code):
    opened()
    table = cells.table
    if what == "pixels":
        other = read_cells(shutil.copytree(phantoms, tmp_path / "other"))
        path = other.root / table["path"][0]
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    elif what == "fewer":
        other = cells.where(table.index > 0)
    else:
        values = table[what].replace({"lymphocyte": "monocyte", "monocyte": "lymphocyte", "d00": "d99"})
        other = cells.with_columns(**{what: values})
    with raises_code("benchmark.cells_changed"):
        opened(other)


@pytest.mark.parametrize("what", ["order", "source", "fold"])
def test_cells_with_another_split_are_refused(opened, cells, what, raises_code):
    """Otherwise some cells would be tested twice and others never."""
    opened()
    if what == "order":
        other = replace(cells, table=cells.table[::-1].reset_index(drop=True))
    elif what == "source":
        other = cells.with_columns(source=[f"slide {number // 2}" for number in range(len(cells))])
    else:
        other = cells.with_columns(fold=[str(int(donor[1:]) % 2) for donor in cells.table["donor"]])
    with raises_code("benchmark.split_changed"):
        opened(other)


def test_a_manifest_without_the_split_fingerprint_is_accepted(opened):
    manifest = opened().folder / MANIFEST
    known = json.loads(manifest.read_text(encoding="utf-8"))
    del known["division"]
    manifest.write_text(json.dumps(known), encoding="utf-8")
    opened()


def test_a_folder_with_other_content_is_refused_and_unchanged(opened, tmp_path, raises_code):
    out = tmp_path / "out"
    out.mkdir()
    opened()  # an empty folder can be filled
    cells_folder = tmp_path / "mine"
    cells_folder.mkdir()
    (cells_folder / "cells.csv").write_text("path,label\n", encoding="utf-8")
    with raises_code("benchmark.folder_other"):
        opened(folder=cells_folder)
    assert [path.name for path in cells_folder.iterdir()] == ["cells.csv"]
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with raises_code("benchmark.folder_other"):
        opened(folder=tmp_path / "file")


@pytest.mark.parametrize("killed", [f"{MANIFEST}.part", f".{MANIFEST}.unfinished.part", None])
def test_a_benchmark_that_was_killed_at_its_start_can_start_again(opened, tmp_path, killed):
    folder = opened().folder
    (folder / "cells.csv").unlink()
    if killed is not None:  # else before the table
        (folder / MANIFEST).rename(folder / killed)
    opened()
    assert killed is None or not (folder / killed).exists()
    assert (folder / MANIFEST).is_file()
    assert (folder / "cells.csv").is_file()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{", "benchmark.manifest_invalid"),
        ("[]", "benchmark.manifest_invalid"),
        ("{}", "benchmark.manifest_invalid"),
        ('{"format": 99, "fingerprint": ""}', "benchmark.manifest_newer"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_an_error(opened, text, code, raises_code):
    (opened().folder / MANIFEST).write_text(text, encoding="utf-8")
    with raises_code(code):
        opened()


def test_a_second_benchmark_in_the_same_folder_is_refused(opened, tmp_path, raises_code):
    grid = opened()
    code = (
        "import sys; from filelock import FileLock\n"
        "with FileLock(sys.argv[1], timeout=0): print('mine', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(grid.folder.with_name(f".{grid.folder.name}.unfinished.lock"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert other.stdout.readline().strip() == b"mine"
        with raises_code("run.busy"):
            opened()
    finally:
        other.kill()
        other.communicate()
    opened()  # a killed one holds nothing


def test_a_folder_is_free_again_after_an_error(tmp_path, cells, rows, opened):
    with pytest.raises(ZeroDivisionError), open_grid(tmp_path / "out", cells, rows[0].recipe, silent):
        raise ZeroDivisionError
    opened()


# Whether it can be divided.


@pytest.mark.parametrize(
    ("limits", "folds"),
    [
        ({"monocyte": 1}, 2),  # none for one of the folds
        ({"monocyte": 2}, 2),  # none for validation
        ({}, 6),  # five donors
    ],
)
def test_too_few_cells_are_an_error_before_anything_is_written(
    opened, cells, rows, tmp_path, limits, folds, raises_code
):
    rank = cells.table.groupby("label").cumcount()
    few = cells.where([rank[k] < limits.get(label, 99) for k, label in enumerate(cells.table["label"])])
    with raises_code("cells.too_few"):
        opened(few, recipe=rows[0].recipe.with_changes(split={"folds": folds}))
    assert not (tmp_path / "out").exists()


# Its cells.


def test_a_job_has_a_folder_by_recipe_seed_and_fold(opened, rows):
    grid = opened()
    found = grid.jobs(rows, seeds=2, folds=2)
    assert len({cell.folder for cell in found}) == len(found) == 16
    assert [cell.title for cell in found[:5]] == [
        *(f"{name}, seed 0, fold 0" for name in ("net1", "net2", "net3", "net4")),
        "net1, seed 0, fold 1",
    ]
    cell = grid.job(rows[3], 1, 0)
    assert cell.folder.relative_to(grid.folder).as_posix() == f"runs/net4-{recipe_digest(rows[3].recipe)}/seed1-fold0"
    assert (cell.recipe.seed, cell.recipe.split.fold) == (1, 0)


def test_the_digest_changes_with_every_setting_of_the_recipe(rows):
    recipe = rows[3].recipe
    same = [recipe.with_changes(name="x"), recipe.with_changes(seed=5), recipe.with_changes(split={"fold": 1})]
    assert {recipe_digest(one) for one in same} == {recipe_digest(recipe)}
    others = [
        recipe.with_changes(**{section: change})
        for section, change in (
            *(("train", {"lr": 0.5}), ("train", {"frozen": 1}), ("pretrain", {"target": "clahe"})),
            *(("enhancer", {"width": 3}), ("classifier", {"input": "both"}), ("input", {"size": 48})),
            *(("split", {"folds": 3}), ("split", {"seed": 1}), ("protocol", "paper"), ("selection", {})),
        )
    ]
    assert len({recipe_digest(one) for one in [recipe, *others]}) == 1 + len(others)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"status": "done"}'])
def test_an_outcome_that_cannot_be_read_or_lacks_its_predictions_is_missing(opened, rows, text):
    cell = opened().job(rows[0], 0, 0)
    assert cell.outcome()["status"] == "missing"
    cell.outcome_path.parent.mkdir(parents=True)
    cell.outcome_path.write_text(text, encoding="utf-8")
    assert cell.outcome() == {"status": "missing", "error": ""}
    assert unfinished_jobs([cell]) == [cell]


def test_training_seconds_add_up_over_attempts_and_are_unknown_after_a_kill(opened, rows, cells):
    cell = opened().job(rows[0], 0, 0)
    assert cell.discard_outcome() == 0.0
    Run.create(cell.folder, cell.recipe, cells.with_columns(split="train"), Scaling(0.0, 255.0, "uint8"))
    cell._write_outcome({"status": "missing", "error": "", "train_seconds": 7.5})
    cell.record_failure("broken\n  in two lines")
    assert cell.outcome() == {"status": "failed", "error": "broken in two lines", "train_seconds": 7.5}
    assert cell.discard_outcome() == 7.5
    assert cell.discard_outcome() is None  # nothing was concluded since it began


# Running them.


def fake(errors: dict[str, BaseException]):
    """Replacement of `run_job`: raise the error given for a job, or else store an outcome."""

    def run_job(cell, cells, audit, reporter=None):
        if error := errors.get(cell.title):
            raise error
        cell.predictions_path.parent.mkdir(parents=True)
        cell.predictions_path.write_bytes(b"")
        cell._write_outcome({"status": "done", "error": ""})

    return run_job


def test_a_failed_job_is_marked_and_the_others_run(opened, rows, monkeypatch):
    errors = {
        "net1, seed 0, fold 0": RunError("the user's fault"),
        "net3, seed 0, fold 0": ZeroDivisionError("ours"),
        "net4, seed 0, fold 1": MemoryError(),
    }
    monkeypatch.setattr(grids, "run_job", fake(errors))
    grid, notes = opened(), Notes()
    every = grid.jobs(rows, 1, 2)
    run_sequentially(grid, every, notes)
    outcomes = {cell.title: cell.outcome() for cell in every}
    assert {title for title, outcome in outcomes.items() if outcome["status"] == "failed"} == set(errors)
    assert outcomes["net1, seed 0, fold 0"]["error"] == "the user's fault"
    assert outcomes["net3, seed 0, fold 0"]["error"] == "ZeroDivisionError: ours"
    assert {outcome["status"] for title, outcome in outcomes.items() if title not in errors} == {"done"}
    assert notes.messages[0] == "[1/8] net1, seed 0, fold 0"
    assert "net1, seed 0, fold 0 failed: the user's fault" in notes.messages
    assert any(line.startswith("[8/8] net4, seed 0, fold 1 (") and line.endswith("left)") for line in notes.messages)

    monkeypatch.setattr(grids, "run_job", fake({}))
    again = unfinished_jobs(every)
    assert {cell.title for cell in again} == set(errors)


def test_an_interruption_stops_the_grid_and_marks_nothing(opened, rows, monkeypatch):
    monkeypatch.setattr(grids, "run_job", fake({"net2, seed 0, fold 0": KeyboardInterrupt()}))
    grid = opened()
    every = grid.jobs(rows, 1, 2)
    with pytest.raises(KeyboardInterrupt):
        run_sequentially(grid, every, Notes())
    assert [cell.outcome()["status"] for cell in every] == ["done", *["missing"] * 7]


def test_a_job_in_its_own_process_returns_its_error(opened, rows, monkeypatch):
    errors = {"net1, seed 0, fold 0": RunError("the user's fault"), "net2, seed 0, fold 0": ZeroDivisionError("ours")}
    monkeypatch.setattr(grids, "run_job", fake(errors))
    grid = opened()
    messages = [grids._run_ray_job(cell, (grid.cells, grid.audit), 1) for cell in grid.jobs(rows, 1, 1)]
    assert messages == ["the user's fault", "ZeroDivisionError: ours", "", ""]


@pytest.mark.parametrize(
    ("nodes", "jobs", "share"),
    [
        ([{"CPU": 16.0}], 4, (4.0, 0.0)),
        ([{"CPU": 2.0}], 4, (1.0, 0.0)),
        ([{"CPU": 3.0}], 2, (1.5, 0.0)),
        ([{"CPU": 16.0, "GPU": 1.0}], 4, (4.0, 0.25)),
        ([{"CPU": 16.0, "GPU": 3.0}], 2, (8.0, 1.0)),  # Ray refuses 1.5 GPUs
        ([{"CPU": 16.0, "GPU": 4.0}], 2, (8.0, 2.0)),
        ([{"CPU": 8.0}] * 4, 2, (8.0, 0.0)),  # 16 are more than a node has, and Ray would wait for ever
        ([{"CPU": 8.0}] * 4, None, (1.0, 0.0)),
        ([{"CPU": 8.0}, {"CPU": 8.0, "GPU": 2.0}], None, (1.0, 1.0)),
    ],
)
def test_each_job_gets_its_share_of_a_machine_or_cluster(nodes, jobs, share):
    assert grids._resources_per_job(nodes, jobs) == share


def test_a_folder_that_cannot_be_written_is_one_error(opened, tmp_path):
    if os.name == "nt" or os.geteuid() == 0:
        pytest.skip("permissions do not bind this user")
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(PermissionError):
        opened(folder=tmp_path / "locked" / "out")

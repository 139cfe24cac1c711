"""Kept labels and corrections: nobody's cell twice, nothing lost, nothing overwritten, old files whole or refused."""

import itertools
import signal
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest

from urnet.cells.table import read_cells
from urnet.errors import StoreError
from urnet.serve import schema
from urnet.serve.kept import NOT_A_CELL, SKIPPED
from urnet.serve.store import Store

QUEUE = "cells.csv"


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "bench ü.db")
    yield store
    store.close()


@pytest.fixture
def labelling(store):
    rows = [{"path": f"{k:03d}.png", "donor": f"d{k % 2}", "proposed": "disc", "confidence": "0.5"} for k in range(40)]
    assert store.labelling.add_cells(QUEUE, rows) == 40
    assert store.labelling.add_cells(QUEUE, [*rows, {"path": "new.png"}]) == 1
    return store.labelling


def test_two_labellers_never_get_the_same_cell(labelling, store):
    both = threading.Barrier(4)
    other = Store(store.path)  # as another process has it

    def label_all(task) -> list[str]:
        who, mine = task
        both.wait()
        got = []
        while cells := mine.claim(QUEUE, who, 3):
            for cell in cells:
                mine.label(cell.id, who, "disc")
                got.append(cell.path)
        return got

    tasks = [("Ada", labelling), ("Ben", labelling), ("Cyd", other.labelling), ("Dan", other.labelling)]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(label_all, tasks))
    other.close()
    assert sorted(itertools.chain(*got)) == sorted([f"{k:03d}.png" for k in range(40)] + ["new.png"])
    assert labelling.progress(QUEUE).labelled == 41


def test_a_claimed_cell_comes_back_to_its_labeller_and_in_time_to_others(labelling):
    first = labelling.claim(QUEUE, "Ada", 2)
    assert [cell.path for cell in first] == ["000.png", "001.png"]
    assert (first[0].proposed, first[0].confidence) == ("disc", 0.5)
    assert labelling.claim(QUEUE, "Ada", 2) == first
    assert [cell.path for cell in labelling.claim(QUEUE, "Ben", 2, seconds=-1)] == ["002.png", "003.png"]
    assert [cell.path for cell in labelling.claim(QUEUE, "Cyd", 1)] == ["002.png"]
    with pytest.raises(StoreError, match="Ada is looking at it"):
        labelling.label(first[0].id, "Ben", "bar")
    labelling.release("Ada")
    assert labelling.claim(QUEUE, "Ben", 1) == first[:1]


def test_the_most_informative_comes_first(labelling):
    labelling.order(QUEUE, ["007.png", "003.png"])
    assert [cell.path for cell in labelling.claim(QUEUE, "Ada", 3)] == ["007.png", "003.png", "000.png"]


def test_undo_takes_back_and_keeps_what_was_said(labelling, store):
    cell, other = labelling.claim(QUEUE, "Ada", 2)
    labelling.label(cell.id, "Ada", "bar", model="m1")
    labelling.label(other.id, "Ada", "ring")
    assert labelling.undo(QUEUE, "Ada") == other
    assert labelling.claim(QUEUE, "Ada", 1) == [other]
    assert labelling.undo(QUEUE, "Ada") == cell
    assert labelling.undo(QUEUE, "Ada") is None
    assert labelling.undo(QUEUE, "Ben") is None
    labelling.label(cell.id, "Ada", "disc")
    labelling.label(cell.id, "Ada", "ring")
    assert labelling.progress(QUEUE).labels == {"ring": 1}
    with sqlite3.connect(store.path) as db:
        kept = db.execute("SELECT label, who, model, version, undone IS NULL FROM labels ORDER BY id").fetchall()
    assert [row[0] for row in kept] == ["bar", "ring", "disc", "ring"]
    assert [row[4] for row in kept] == [0, 0, 0, 1]
    assert kept[0][1:3] == ("Ada", "m1")
    assert kept[0][3]


def test_agreement_of_two_labellers(labelling):
    ada, ben = ["disc"] * 10 + ["bar"] * 10, ["disc"] * 8 + ["bar"] * 12
    for label in ada:
        labelling.label(labelling.claim(QUEUE, "Ada")[0].id, "Ada", label)
    assert labelling.claim(QUEUE, "Ada", second=True) == []
    for label in ben:
        labelling.label(labelling.claim(QUEUE, "Ben", second=True)[0].id, "Ben", label)
    assert labelling.claim(QUEUE, "Ben", second=True) == []
    (found,) = labelling.agreement(QUEUE)
    assert (found.first, found.second, found.cells, found.agreed) == ("Ada", "Ben", 20, 18)
    from sklearn.metrics import cohen_kappa_score

    assert found.kappa == pytest.approx(cohen_kappa_score(ada, ben))


def test_labels_become_a_table_that_training_reads(labelling, draw, tmp_path):
    cells = draw(tmp_path / "cells", 2, classes=("disc",)) / "disc"
    labelling.add_cells("q", [{"path": f"{cells.as_posix()}/{name}.png", "donor": "d7"} for name in ("000", "001")])
    labelling.add_cells("q", [{"path": f"{k}"} for k in "abc"])
    for label in ("disc", "bar", NOT_A_CELL, SKIPPED, "disc"):
        labelling.label(labelling.claim("q", "Ada")[0].id, "Ada", label)
    labelling.label(labelling.claim("q", "Ben", second=True)[0].id, "Ben", "disc")
    last = labelling.claim("q", "Ben", 4, second=True)[-1]
    labelling.label(last.id, "Ben", "ring")
    assert labelling.export_labels("q", tmp_path / "out" / "cells.csv") == (2, 1)
    table = pd.read_csv(tmp_path / "out" / "cells.csv", keep_default_na=False)
    assert table["labelled_by"].tolist() == ["Ada|Ben", "Ada"]
    read = read_cells(tmp_path / "out" / "cells.csv")
    assert read.table["label"].tolist() == ["disc", "bar"]
    assert set(read.table["donor"]) == {"d7"}
    assert read.read(0).shape == (24, 24)


def test_corrections_are_kept_with_who_when_and_which_model(store, shapes, tmp_path):
    files = sorted((shapes / "disc").iterdir())[:3]
    kept = [store.review.keep_image(file.read_bytes(), ".png") for file in files]
    assert kept[0] == store.review.keep_image(files[0].read_bytes(), ".png")
    rows = [{"path": f.name, "image": k, "predicted": "disc", "p_disc": 0.9} for f, k in zip(files, kept, strict=True)]
    ids = store.review.add_predictions("S1", [*rows, {"path": "lost.png", "predicted": "bar"}], model="m1")
    store.review.correct(ids[0], "Ada", "bar")
    store.review.correct(ids[0], "Ben", "ring")
    store.review.correct(ids[1], "Ada", "bar")
    store.review.uncorrect(ids[1])
    store.review.correct(ids[2], "Ada", NOT_A_CELL)
    seen = store.review.reviewed("S1")
    assert [one.label for one in seen] == ["ring", "disc", NOT_A_CELL, "bar"]
    assert (seen[0].predicted, seen[0].who, seen[0].model, seen[0].told) == ("disc", "Ben", "m1", {"p_disc": 0.9})
    assert seen[0].version
    assert seen[0].at.endswith("+00:00")
    assert store.review.samples() == ["S1"]
    assert store.review.image(kept[0]) == files[0].read_bytes()
    assert store.review.export_reviewed("S1", tmp_path / "train") == 2
    cells = read_cells(tmp_path / "train")
    assert cells.table["label"].tolist() == ["ring", "disc"]
    assert cells.read(1).shape == (24, 24)
    with pytest.raises(StoreError, match="prediction 99: there is none"):
        store.review.correct(99, "Ada", "bar")


def test_a_label_needs_a_name(labelling):
    with pytest.raises(StoreError, match="give a name"):
        labelling.claim(QUEUE, " \n ")
    with pytest.raises(StoreError, match="cell 999: there is none"):
        labelling.label(999, "Ada", "disc")


LABELLER = """
import sys
from pathlib import Path
from urnet.serve.store import Store
labelling = Store(Path(sys.argv[1])).labelling
while cells := labelling.claim("q", "Ada", 2):
    for cell in cells:
        labelling.label(cell.id, "Ada", "disc")
        print(cell.path, flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 on this system")
def test_kill_9_while_labelling_loses_nothing_that_was_shown(tmp_path):
    path = tmp_path / "bench.db"
    store = Store(path)
    store.labelling.add_cells("q", [{"path": str(k)} for k in range(5000)])
    store.close()
    process = subprocess.Popen([sys.executable, "-c", LABELLER, str(path)], stdout=subprocess.PIPE, text=True)
    shown = [process.stdout.readline().strip() for _ in range(25)]
    process.kill()
    shown += process.stdout.read().split()
    process.wait()
    with Store(path).engine.connect() as db:
        kept = [row[0] for row in db.exec_driver_sql("SELECT path FROM labels JOIN cells ON cell = cells.id")]
    assert len(shown) <= len(kept) <= len(shown) + 1
    assert set(shown) <= set(kept)
    store = Store(path)
    assert store.labelling.claim("q", "Ada", 1)[0].path not in kept
    store.close()


def test_an_old_file_is_upgraded_whole_or_left_as_it_was(store, labelling, monkeypatch):
    store.close()
    before = store.path.read_bytes()
    monkeypatch.setattr(schema, "SCHEMA", 3)
    monkeypatch.setattr(schema, "UPGRADES", {1: ("ALTER TABLE cells ADD COLUMN x", "UPDATE cells SET x = 1")})
    with pytest.raises(StoreError, match="schema 2 is too old"):
        Store(store.path)
    assert columns(store.path) == columns_of(before, store.path)
    monkeypatch.setitem(schema.UPGRADES, 2, ("ALTER TABLE cells ADD COLUMN y", "NONSENSE"))
    with pytest.raises(StoreError, match="cannot be used"):
        Store(store.path)
    assert "x" not in columns(store.path)
    monkeypatch.setitem(schema.UPGRADES, 2, ("ALTER TABLE cells ADD COLUMN y",))
    Store(store.path).close()
    assert {"x", "y"} <= set(columns(store.path))
    monkeypatch.setattr(schema, "SCHEMA", 1)
    with pytest.raises(StoreError, match="newer urnet"):
        Store(store.path)


def columns(path) -> list[str]:
    with sqlite3.connect(path) as db:
        return [row[1] for row in db.execute("PRAGMA table_info(cells)")]


def columns_of(content: bytes, path) -> list[str]:
    copy = path.with_name("copy.db")
    copy.write_bytes(content)
    return columns(copy)


def test_files_that_are_not_ours_are_refused_and_untouched(tmp_path):
    with sqlite3.connect(tmp_path / "other.db") as db:
        db.execute("CREATE TABLE mine (x)")
    (tmp_path / "text.db").write_text("this is a letter, and quite a long one " * 40, encoding="utf-8")
    for name, words in (("other.db", "none of urnet"), ("text.db", "not a database")):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(StoreError, match=words):
            Store(tmp_path / name)
        assert (tmp_path / name).read_bytes()[100:] == before[100:]
    with pytest.raises(StoreError, match="there is no folder"):
        Store(tmp_path / "gone" / "bench.db")
    (tmp_path / "folder.db").mkdir()
    with pytest.raises(StoreError, match="cannot be used"):
        Store(tmp_path / "folder.db")


def test_a_full_disk_loses_only_what_did_not_fit(labelling, store):
    with store.engine.connect() as db:
        db.exec_driver_sql("COMMIT")
        pages = db.exec_driver_sql("PRAGMA page_count").scalar_one()
    store.engine.dispose()
    from sqlalchemy import event

    @event.listens_for(store.engine, "connect")
    def small(connection, record):
        connection.execute(f"PRAGMA max_page_count = {pages}").close()

    with pytest.raises(StoreError, match=r"full.*make room"):
        store.review.keep_image(bytes(200_000), ".png")
    assert labelling.progress(QUEUE).cells == 41

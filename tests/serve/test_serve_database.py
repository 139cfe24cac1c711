"""Database of labels and corrections: claims, durability, undo, upgrades and locks."""

import csv
import itertools
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from urnet.cells.read import read_cells
from urnet.files.csv_tables import unescape_formula
from urnet.serve.database import connection
from urnet.serve.database.agreement import measure_agreement
from urnet.serve.database.labels import CLAIMED_CODE, Labeller, LabelResult
from urnet.serve.database.lock import lock_database
from urnet.serve.database.models import NOT_A_CELL, SKIPPED, utc_now
from urnet.serve.database.names import MAX_NAME_LENGTH, make_single_line, person_key
from urnet.serve.database.store import Store

QUEUE = "cells.csv"


def by(who, session=None):
    """Return a labeller in a session of their own, or in the given one."""
    return Labeller(who, who if session is None else session)


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "bench ü.db")
    yield store
    store.close()


@pytest.fixture
def label_store(store):
    rows = [{"path": f"{k:03d}.png", "donor": f"d{k % 2}", "proposed": "disc", "confidence": "0.5"} for k in range(40)]
    assert store.labels.add_cells(QUEUE, rows) == 40
    assert store.labels.add_cells(QUEUE, [*rows, {"path": "new.png"}]) == 1
    return store.labels


def test_two_labellers_never_get_the_same_cell(label_store, store):
    both = threading.Barrier(4)
    other = Store(store.path)  # as another process has it

    def label_all(task) -> list[str]:
        who, queue = task
        both.wait()
        got = []
        while cells := queue.claim(QUEUE, by(who), 3):
            for cell in cells:
                queue.label(cell.id, by(who), "disc")
                got.append(cell.path)
        return got

    tasks = [("Ada", label_store), ("Ben", label_store), ("Cyd", other.labels), ("Dan", other.labels)]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(label_all, tasks))
    other.close()
    assert sorted(itertools.chain(*got)) == sorted([f"{k:03d}.png" for k in range(40)] + ["new.png"])
    assert label_store.progress(QUEUE).labelled == 41


def test_a_claim_lasts_for_its_session_and_ends_in_time(label_store, raises_code):
    first = label_store.claim(QUEUE, by("Ada"), 2)
    assert [cell.path for cell in first] == ["000.png", "001.png"]
    assert (first[0].proposed, first[0].confidence) == ("disc", 0.5)
    assert label_store.claim(QUEUE, by("Ada"), 2) == first
    assert [cell.path for cell in label_store.claim(QUEUE, by("Ben"), 2, seconds=-1)] == ["002.png", "003.png"]
    assert [cell.path for cell in label_store.claim(QUEUE, by("Cyd"), 1)] == ["002.png"]
    with raises_code("store.claimed"):
        label_store.label(first[0].id, by("Ben"), "bar")
    label_store.release("Ada")
    assert label_store.claim(QUEUE, by("Ben"), 1) == first[:1]


def test_two_browsers_under_one_name_get_different_cells(label_store, raises_code):
    one, two = by("Ada", "browser 1"), by("Ada", "browser 2")
    first = label_store.claim(QUEUE, one, 2)
    assert label_store.claim(QUEUE, one, 2) == first  # another tab of the same browser
    other = label_store.claim(QUEUE, two, 2)
    assert not {cell.id for cell in first} & {cell.id for cell in other}
    with raises_code("store.claimed"):
        label_store.label(first[0].id, two, "bar")
    label_store.release("browser 2")
    assert label_store.claim(QUEUE, by("Ben"), 2) == other
    assert label_store.claim(QUEUE, one, 2) == first
    label_store.release_all()
    assert label_store.claim(QUEUE, by("Cyd"), 2) == first


def test_a_replaced_label_is_returned_and_its_row_stays(label_store, store):
    one, two = by("Ada", "browser 1"), by("ada", "browser 2")
    (cell,) = label_store.claim(QUEUE, one, seconds=-1)  # the time is over
    assert label_store.claim(QUEUE, two) == [cell]
    assert label_store.label(cell.id, two, "bar") == LabelResult(None, ())
    given = label_store.label(cell.id, one, "disc")
    assert (given.replaced.label, given.replaced.person, given.others) == ("bar", "ada", ())
    assert given.replaced.at <= utc_now()
    (again,) = label_store.claim(QUEUE, one)
    assert again != cell
    assert label_store.label(cell.id, by("Ben"), "ring") == LabelResult(
        None, ("Ada",)
    )  # a second reading replaces nothing
    with sqlite3.connect(store.path) as db:
        rows = db.execute("SELECT label, who, session, undone IS NULL FROM labels ORDER BY id").fetchall()
    assert rows == [("bar", "ada", "browser 2", 0), ("disc", "Ada", "browser 1", 1), ("ring", "Ben", "Ben", 1)]
    assert label_store.progress(QUEUE).people == {"Ada": 1, "Ben": 1}


def test_undo_applies_to_this_session_and_to_ended_ones(label_store):
    one, two = by("Ada", "browser 1"), by("Ada", "browser 2")
    label_store.label(label_store.claim(QUEUE, one, 3)[0].id, one, "bar")
    (cell,) = label_store.claim(QUEUE, two)
    assert label_store.undo(QUEUE, two) is None  # the other browser is at work
    label_store.label(cell.id, two, "ring")
    assert label_store.undo(QUEUE, one).label == "bar"
    assert label_store.undo(QUEUE, two).cell == cell
    label_store.label(cell.id, two, "ring")
    label_store.release_all()  # as a server does that starts
    taken = label_store.undo(QUEUE, by("Ada", "browser 3"))
    assert (taken.cell, taken.label, taken.claimed_by) == (cell, "ring", "")
    assert label_store.claim(QUEUE, by("Ada", "browser 3"))[0] == cell


def test_undo_leaves_a_claimed_cell_to_its_second_reader(label_store, raises_code):
    ada, ben = by("Ada"), by("Ben")
    label_store.label(label_store.claim(QUEUE, ada)[0].id, ada, "bar")
    (cell,) = label_store.claim(QUEUE, ben, second=True)
    taken = label_store.undo(QUEUE, ada)
    assert (taken.cell, taken.claimed_by) == (cell, "Ben")
    assert label_store.label(cell.id, ben, "ring") == LabelResult(None, ())
    with raises_code(CLAIMED_CODE):
        label_store.label(label_store.claim(QUEUE, ada)[0].id, ben, "ring")


@pytest.mark.parametrize("spelling", ["Zoë", "zoë", "ZOË", " Zoe\u0308 ", "Ｚｏë", "Zo\u200dë", "Zoë\u202e"])
def test_no_spelling_of_a_name_is_its_own_second_reader(label_store, spelling):
    label_store.label(label_store.claim(QUEUE, by("Zoë"))[0].id, by("Zoë"), "bar")
    again = by(spelling, "another browser")
    assert label_store.claim(QUEUE, again, second=True) == []
    assert len(label_store.claim(QUEUE, by("Ben"), second=True)) == 1
    label_store.label(label_store.claim(QUEUE, again)[0].id, again, "bar")
    assert list(label_store.progress(QUEUE).people.values()) == [2]
    assert label_store.agreement(QUEUE) == []


def test_a_queue_can_be_ordered(label_store):
    label_store.set_order(QUEUE, ["007.png", "003.png"])
    assert [cell.path for cell in label_store.claim(QUEUE, by("Ada"), 3)] == ["007.png", "003.png", "000.png"]


def test_undo_keeps_the_rows_of_undone_labels(label_store, store):
    cell, other = label_store.claim(QUEUE, by("Ada"), 2)
    label_store.label(cell.id, by("Ada"), "bar", model="m1")
    label_store.label(other.id, by("Ada"), "ring")
    assert label_store.undo(QUEUE, by("Ada")).cell == other
    assert label_store.claim(QUEUE, by("Ada"), 1) == [other]
    assert label_store.undo(QUEUE, by("Ada")).cell == cell
    assert label_store.undo(QUEUE, by("Ada")) is None
    assert label_store.undo(QUEUE, by("Ben")) is None
    label_store.label(cell.id, by("Ada"), "disc")
    label_store.label(cell.id, by("Ada"), "ring")
    assert label_store.progress(QUEUE).labels == {"ring": 1}
    with sqlite3.connect(store.path) as db:
        saved = db.execute("SELECT label, who, model, version, undone IS NULL FROM labels ORDER BY id").fetchall()
    assert [row[0] for row in saved] == ["bar", "ring", "disc", "ring"]
    assert [row[4] for row in saved] == [0, 0, 0, 1]
    assert saved[0][1:3] == ("Ada", "m1")
    assert saved[0][3]


def test_agreement_of_two_labellers(label_store):
    ada, ben = ["disc"] * 10 + ["bar"] * 10, ["disc"] * 8 + ["bar"] * 12
    for label in ada:
        label_store.label(label_store.claim(QUEUE, by("Ada"))[0].id, by("Ada"), label)
    assert label_store.claim(QUEUE, by("Ada"), second=True) == []
    for label in ben:
        label_store.label(label_store.claim(QUEUE, by("Ben"), second=True)[0].id, by("Ben"), label)
    assert label_store.claim(QUEUE, by("Ben"), second=True) == []
    (found,) = label_store.agreement(QUEUE)
    assert (found.first, found.second, found.cells, found.agreed) == ("Ada", "Ben", 20, 18)
    assert found.kappa == pytest.approx(0.8)  # 90 % observed, 50 % by chance


def test_there_is_no_kappa_where_agreement_by_chance_is_certain():
    (found,) = measure_agreement({"Ada": {"a": "disc", "b": "disc"}, "Ben": {"a": "disc", "c": "bar"}})
    assert (found.cells, found.agreed, found.kappa) == (1, 1, None)


def test_exported_labels_are_a_cells_table_for_training(label_store, draw, tmp_path):
    cells = draw(tmp_path / "cells", 2, classes=("disc",)) / "disc"
    label_store.add_cells("q", [{"path": f"{cells.as_posix()}/{name}.png", "donor": "d7"} for name in ("000", "001")])
    label_store.add_cells("q", [{"path": f"{k}"} for k in "abc"])
    for label in ("disc", "bar", NOT_A_CELL, SKIPPED, "disc"):
        label_store.label(label_store.claim("q", by("Ada"))[0].id, by("Ada"), label)
    label_store.label(label_store.claim("q", by("Ben"), second=True)[0].id, by("Ben"), "disc")
    last = label_store.claim("q", by("Ben"), 4, second=True)[-1]
    label_store.label(last.id, by("Ben"), "ring")
    assert label_store.export_labels("q", tmp_path / "out" / "cells.csv") == (2, 1)
    table = pd.read_csv(tmp_path / "out" / "cells.csv", keep_default_na=False)
    assert table["labelled_by"].tolist() == ["Ada|Ben", "Ada"]
    read = read_cells(tmp_path / "out" / "cells.csv")
    assert read.table["label"].tolist() == ["disc", "bar"]
    assert set(read.table["donor"]) == {"d7"}
    assert read.read(0).shape == (24, 24)


def test_corrections_are_stored_with_reviewer_time_and_model(store, shapes, tmp_path, raises_code):
    files = sorted((shapes / "disc").iterdir())[:3]
    saved = [store.reviews.add_image(file.read_bytes(), ".png") for file in files]
    assert saved[0] == store.reviews.add_image(files[0].read_bytes(), ".png")
    rows = [{"path": f.name, "image": k, "predicted": "disc", "p_disc": 0.9} for f, k in zip(files, saved, strict=True)]
    ids = store.reviews.add_predictions("S1", [*rows, {"path": "lost.png", "predicted": "bar"}], model="m1")
    store.reviews.correct(ids[0], "Ada", "bar")
    store.reviews.correct(ids[0], "Ben", "ring")
    store.reviews.correct(ids[1], "Ada", "bar")
    store.reviews.undo_correction(ids[1])
    store.reviews.correct(ids[2], "Ada", NOT_A_CELL)
    seen = store.reviews.read_reviewed("S1")
    assert [one.label for one in seen] == ["ring", "disc", NOT_A_CELL, "bar"]
    assert (seen[0].predicted, seen[0].reviewer, seen[0].model, seen[0].details) == (
        "disc",
        "Ben",
        "m1",
        {"p_disc": 0.9},
    )
    assert seen[0].version
    assert seen[0].at.endswith("+00:00")
    assert store.reviews.list_samples() == ["S1"]
    assert store.reviews.read_image(saved[0]) == files[0].read_bytes()
    assert store.reviews.export_reviewed("S1", tmp_path / "train") == 2
    cells = read_cells(tmp_path / "train")
    assert cells.table["label"].tolist() == ["ring", "disc"]
    assert cells.read(1).shape == (24, 24)
    assert store.reviews.correct(ids[0], "ada", "disc").label == "ring"
    assert store.reviews.undo_correction(ids[0]).person == "ada"
    assert store.reviews.undo_correction(ids[0]) is None
    with sqlite3.connect(store.path) as db:
        assert db.execute("SELECT count(*) FROM corrections").fetchone() == (5,)
    with raises_code("store.no_prediction"):
        store.reviews.correct(99, "Ada", "bar")


def test_a_label_needs_a_name(label_store, raises_code):
    with raises_code("store.no_name"):
        label_store.claim(QUEUE, by(" \n "))
    with raises_code("store.no_cell"):
        label_store.label(999, by("Ada"), "disc")


@given(st.text(max_size=600) | st.text(st.characters(categories=["Cc", "Cf", "Cs", "Zs", "Mn"]), max_size=600))
def test_names_become_short_printable_single_lines(text):
    name = make_single_line(text, MAX_NAME_LENGTH)
    assert len(name) <= MAX_NAME_LENGTH
    assert name == " ".join(name.split())
    assert not [c for c in name if unicodedata.category(c)[0] == "C" and c not in "\u200c\u200d"]
    name.encode()
    assert make_single_line(name, MAX_NAME_LENGTH) == name
    assert person_key(name) == person_key(name.upper().lower()) or not name.isascii()


def test_long_and_empty_names(raises_code):
    assert make_single_line("x" * 10_000_000, 100) == "x" * 99 + "…"
    assert Labeller("<b>Ada\x00\x1b[31m\u202egnp", "").name == "<b>Ada[31mgnp"
    for nothing in ("", " \n", "\u202e\x07", "\ud800", "\u200d"):
        with raises_code("store.no_name"):
            Labeller(nothing)


LABELLER = """
import sys
from pathlib import Path
from urnet.serve.database.labels import Labeller
from urnet.serve.database.store import Store
label_store, ada = Store(Path(sys.argv[1])).labels, Labeller("Ada", "b1")
while cells := label_store.claim("q", ada, 2):
    for cell in cells:
        label_store.label(cell.id, ada, "disc")
        print(cell.path, flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 on this system")
def test_kill_9_while_labelling_loses_no_stored_label(tmp_path):
    path = tmp_path / "labels.db"
    store = Store(path)
    store.labels.add_cells("q", [{"path": str(k)} for k in range(5000)])
    store.close()
    process = subprocess.Popen([sys.executable, "-c", LABELLER, str(path)], stdout=subprocess.PIPE, text=True)
    shown = [process.stdout.readline().strip() for _ in range(25)]
    process.kill()
    shown += process.stdout.read().split()
    process.wait()
    with Store(path).engine.connect() as db:
        saved = [row[0] for row in db.exec_driver_sql("SELECT path FROM labels JOIN cells ON cell = cells.id")]
    assert len(shown) <= len(saved) <= len(shown) + 1
    assert set(shown) <= set(saved)
    store = Store(path)
    assert store.labels.claim("q", by("Ada"), 1)[0].path not in saved
    store.close()


def test_an_upgrade_is_complete_or_rolled_back(store, label_store, monkeypatch, raises_code):
    store.close()
    before = store.path.read_bytes()
    monkeypatch.setattr(connection, "SCHEMA_VERSION", 5)
    monkeypatch.setattr(connection, "UPGRADES", {3: ("ALTER TABLE cells ADD COLUMN x", "UPDATE cells SET x = 1")})
    with raises_code("store.older_schema"):
        Store(store.path)
    assert columns(store.path) == columns_of(before, store.path)
    monkeypatch.setitem(connection.UPGRADES, 4, ("ALTER TABLE cells ADD COLUMN y", "NONSENSE"))
    with raises_code("store.unusable"):
        Store(store.path)
    assert "x" not in columns(store.path)
    monkeypatch.setitem(connection.UPGRADES, 4, ("ALTER TABLE cells ADD COLUMN y",))
    Store(store.path).close()
    assert {"x", "y"} <= set(columns(store.path))
    monkeypatch.setattr(connection, "SCHEMA_VERSION", 3)
    with raises_code("store.newer_schema"):
        Store(store.path)


def columns(path) -> list[str]:
    with sqlite3.connect(path) as db:
        return [row[1] for row in db.execute("PRAGMA table_info(cells)")]


def columns_of(content: bytes, path) -> list[str]:
    copy = path.with_name("copy.db")
    copy.write_bytes(content)
    return columns(copy)


def test_files_of_other_programs_are_refused_and_unchanged(tmp_path, raises_code):
    with sqlite3.connect(tmp_path / "other.db") as db:
        db.execute("CREATE TABLE mine (x)")
    (tmp_path / "text.db").write_text("this is a letter, and quite a long one " * 40, encoding="utf-8")
    for name, code in (("other.db", "store.other_application"), ("text.db", "store.unusable")):
        before = (tmp_path / name).read_bytes()
        with raises_code(code):
            Store(tmp_path / name)
        assert (tmp_path / name).read_bytes()[100:] == before[100:]
    with raises_code("store.no_folder"):
        Store(tmp_path / "gone" / "labels.db")
    (tmp_path / "folder.db").mkdir()
    with raises_code("store.readonly"):
        Store(tmp_path / "folder.db")


def test_a_full_disk_loses_only_the_new_row(label_store, store, raises_code):
    with store.engine.connect() as db:
        db.exec_driver_sql("COMMIT")
        pages = db.exec_driver_sql("PRAGMA page_count").scalar_one()
    store.engine.dispose()
    from sqlalchemy import event

    @event.listens_for(store.engine, "connect")
    def small(connection, record):
        connection.execute(f"PRAGMA max_page_count = {pages}").close()

    with raises_code("store.full"):
        store.reviews.add_image(bytes(200_000), ".png")
    assert label_store.progress(QUEUE).cells == 41


@pytest.mark.parametrize("formula", ["=1+1", "+cmd", "-a", "@SUM(A1)", "\tx", "\r=x", "'=x", " =x"])
def test_exported_values_are_not_formulas(store, tmp_path, formula):
    store.labels.add_cells("q", [{"path": f"{formula}.png", "donor": formula}])
    ada = by(f"{formula}da")
    store.labels.label(store.labels.claim("q", ada)[0].id, ada, formula)
    store.labels.export_labels("q", tmp_path / "labels.csv")
    image = store.reviews.add_image(b"x", ".png")
    rows = [{"path": f"{formula}.png", "image": image, "predicted": "disc"}]
    (number,) = store.reviews.add_predictions(formula, rows, model=formula)
    store.reviews.correct(number, ada.name, formula)
    store.reviews.export_reviewed(formula, tmp_path / "reviewed")
    for file in (tmp_path / "labels.csv", tmp_path / "reviewed" / "cells.csv"):
        with file.open(encoding="utf-8", newline="") as lines:
            header, row = csv.reader(lines)
        assert len(header) == len(row) == 5
        assert not [cell for cell in row if cell.lstrip()[:1] in ("=", "+", "-", "@") or cell[:1] in ("\t", "\r")]
        assert dict(zip(header, map(unescape_formula, row), strict=True))["label"] == formula


def test_invalid_unicode_is_refused_with_the_name(label_store, store, raises_code):
    before = label_store.progress(QUEUE)
    with raises_code("store.not_text") as caught:
        label_store.add_cells(QUEUE, [{"path": "fine.png"}, {"path": "cells/\udcff.png"}])
    assert "cells/\\udcff.png" in str(caught.value)
    with raises_code("store.not_text"):
        store.reviews.add_predictions("S", [{"path": "\udcff.png", "predicted": "disc"}], model="m")
    with raises_code("store.not_text"):
        label_store.label(1, by("Ada"), "\udcff")
    assert label_store.progress(QUEUE) == before


FROZEN = Path(__file__).parents[1] / "frozen" / "0.1.0" / "labels.db"


def dump(path) -> list[str]:
    with sqlite3.connect(path) as db:
        return [f"user_version {db.execute('PRAGMA user_version').fetchone()}", *db.iterdump()]


def test_a_file_of_schema_1_is_upgraded_or_unchanged(tmp_path, monkeypatch, raises_code):
    path = Path(shutil.copy(FROZEN, tmp_path / "labels.db"))
    before = dump(path)
    whole = connection.UPGRADES[1]
    for broken in ((*whole, "NONSENSE"), (*whole[:2], "INSERT INTO nowhere VALUES (1)"), ("NONSENSE",)):
        monkeypatch.setitem(connection.UPGRADES, 1, broken)
        with raises_code("store.unusable"):
            Store(path)
        assert dump(path) == before
    monkeypatch.setitem(connection.UPGRADES, 1, whole)
    store = Store(path)
    name = store.id
    assert store.labels.progress("cells").people == {"Ada": 6, "Bela": 5}
    assert store.labels.undo("cells", by("Ada")).label
    assert store.labels.claim("cells", by("Ada"))
    store.close()
    store = Store(path)
    assert store.id == name
    store.close()
    made = Store(tmp_path / "new.db")
    assert made.id != name
    made.close()
    assert [described(path, table) for table in TABLES] == [described(made.path, table) for table in TABLES]


TABLES = ("cells", "claims", "labels", "identity", "classes", "images", "predictions", "corrections")


def described(path, table) -> list[tuple]:
    """Describe the columns of a table by name, since an upgrade adds new ones at the end."""
    with sqlite3.connect(path) as db:
        return sorted((row[1], row[2], row[3], row[5]) for row in db.execute(f"PRAGMA table_info({table})"))


@pytest.mark.parametrize("action", ["claim", "label", "undo", "release", "correct"])
def test_a_locked_database_is_reported_and_unchanged(label_store, store, monkeypatch, action, raises_code):
    ada = by("Ada")
    cells = label_store.claim(QUEUE, ada, 2)
    label_store.label(cells[0].id, ada, "bar")
    (prediction,) = store.reviews.add_predictions("S", [{"path": "a", "predicted": "bar"}], model="m")
    store.engine.dispose()
    monkeypatch.setattr(connection, "BUSY_SECONDS", 0.05)
    impatient = Store(store.path)
    before = dump(store.path)
    actions = {
        "claim": lambda: impatient.labels.claim(QUEUE, ada, 3),
        "label": lambda: impatient.labels.label(cells[1].id, ada, "disc"),
        "undo": lambda: impatient.labels.undo(QUEUE, ada),
        "release": lambda: impatient.labels.release("Ada"),
        "correct": lambda: impatient.reviews.correct(prediction, "Ada", "disc"),
    }
    with sqlite3.connect(store.path, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        with raises_code("store.locked"):
            actions[action]()
        other.execute("ROLLBACK")
    assert dump(store.path) == before
    actions[action]()  # the connection is as good as before
    assert dump(store.path) != before
    impatient.close()


HOLDER = """
import sys, time
from pathlib import Path
from urnet.serve.database.lock import lock_database
with lock_database(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_server_locks_a_database_and_a_killed_one_releases_it(tmp_path, raises_code):
    path = tmp_path / "labels.db"
    with lock_database(path):
        (tmp_path / "link.db").symlink_to(path)
        for same in (path, tmp_path / "link.db"):
            with raises_code("store.in_use"), lock_database(same):
                pass
        with lock_database(tmp_path / "other.db"):
            pass
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with raises_code("store.in_use"), lock_database(path):
        pass
    process.kill()
    process.wait()
    process.stdout.close()
    assert [file.name for file in tmp_path.glob("*.lock")] == ["labels.db.lock"]
    with lock_database(path):
        pass
    assert list(tmp_path.glob("*.lock")) == []
    with raises_code("store.no_folder"), lock_database(tmp_path / "gone" / "labels.db"):
        pass


def test_a_database_on_a_file_system_without_locks_is_refused(tmp_path, monkeypatch, raises_code):
    monkeypatch.setattr("urnet.serve.database.lock.lock_file", lambda path: None)
    with raises_code("store.no_locks"), lock_database(tmp_path / "labels.db"):
        pass


def test_classes_of_a_queue_can_be_changed_but_not_while_in_use(label_store, raises_code):
    assert label_store.read_classes(QUEUE) == []
    assert label_store.add_classes(QUEUE, ["disc", " round\tring "]) == ["disc", "round ring"]
    label_store.label(label_store.claim(QUEUE, by("Ada"))[0].id, by("Ada"), "disc")
    for names, code in (
        ([""], "labels.class_name"),
        (["\u200d"], "labels.class_name"),
        ([NOT_A_CELL], "labels.class_name"),
        (["NA"], "labels.class_name"),
        (["x" * (MAX_NAME_LENGTH + 1)], "labels.class_name"),
        (["DISC"], "labels.class_duplicate"),
        (["e\u0301", "\u00e9"], "labels.class_duplicate"),
        ([f"{k}" for k in range(29)], "labels.too_many_classes"),
    ):
        with raises_code(code):
            label_store.add_classes(QUEUE, names)
    with raises_code("labels.class_in_use"):
        label_store.remove_class(QUEUE, "disc")
    assert label_store.read_classes(QUEUE) == ["disc", "round ring"]
    assert label_store.add_classes(QUEUE, ["bar"]) == ["disc", "round ring", "bar"]
    assert label_store.remove_class(QUEUE, "round ring") == label_store.read_classes(QUEUE) == ["disc", "bar"]
    assert label_store.read_classes("another queue") == []


@pytest.mark.parametrize(
    "name", ["<b>bold</b>", "=1+1", "a|b", "a,b", '"quoted"', "..", "con", "中性粒细胞", "x" * MAX_NAME_LENGTH]
)
def test_labels_of_any_allowed_class_train_as_they_are(label_store, tmp_path, name):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    label_store.add_cells("train", [{"path": str(tmp_path / "a.png")}])
    label_store.add_classes("train", [name])
    label_store.label(label_store.claim("train", by("Ada"))[0].id, by("Ada"), name)
    label_store.export_labels("train", tmp_path / "cells.csv")
    assert read_cells(tmp_path / "cells.csv").classes == (name,)

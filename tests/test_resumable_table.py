"""Tables that grow row by row, and what becomes of them when they are interrupted."""

import csv
import os

import pytest
from filelock import FileLock

from urnet.errors import RunError
from urnet.resumable_table import open_resumable_table

COLUMNS = ("path", "note")
PATHS = ["a.png", 'b "ü",\nc.png', "d.png"]
ROWS = [{"path": path, "note": str(number)} for number, path in enumerate(PATHS)]
ABOUT = {"model": "m", "images": "i"}


def fill(out, rows, *, about=ABOUT, paths=PATHS, stop=False) -> list[str]:
    """Write rows; the notes of those that were passed on, the ones found there first."""
    seen = []
    try:
        with open_resumable_table(out, COLUMNS, paths, about, lambda row: seen.append(row["note"])) as table:
            table.write(rows[table.done :])
            if stop:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert stop
    return seen


@pytest.fixture
def begun(tmp_path):
    out = tmp_path / "neu ü" / "t.csv"
    assert fill(out, ROWS[:2], stop=True) == ["0", "1"]
    assert sorted(path.name for path in out.parent.iterdir()) == ["t.csv.part", "t.csv.part.json"]
    return out


def test_a_table_gets_its_name_when_it_is_complete(tmp_path):
    out = tmp_path / "t.csv"
    assert fill(out, ROWS) == ["0", "1", "2"]
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]
    with out.open(encoding="utf-8", newline="") as file:
        assert list(csv.DictReader(file)) == ROWS


def test_an_interruption_before_the_first_row_leaves_nothing(tmp_path):
    fill(tmp_path / "t.csv", [], stop=True)
    assert not list(tmp_path.iterdir())


def test_what_was_interrupted_goes_on_to_the_same_bytes(begun, tmp_path):
    fill(tmp_path / "whole.csv", ROWS)
    assert fill(begun, ROWS) == ["0", "1", "2"]
    assert begun.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert [path.name for path in begun.parent.iterdir()] == ["t.csv"]


def test_wherever_it_was_cut_off_the_same_bytes_come_out(begun, tmp_path):
    fill(tmp_path / "whole.csv", ROWS)
    whole = (tmp_path / "whole.csv").read_bytes()
    sidecar = begun.with_name("t.csv.part.json").read_bytes()
    for end in range(len(whole)):
        out = tmp_path / str(end) / "t.csv"
        out.parent.mkdir()
        out.with_name("t.csv.part").write_bytes(whole[:end])
        out.with_name("t.csv.part.json").write_bytes(sidecar)
        assert fill(out, ROWS) == ["0", "1", "2"]
        assert out.read_bytes() == whole


def test_rows_of_something_else_are_kept_and_not_gone_on_with(begun):
    part = begun.with_name("t.csv.part")
    before = part.read_bytes()
    with pytest.raises(RunError, match=r"t\.csv\.part: rows of an interrupted prediction with other model;"):
        fill(begun, ROWS, about=ABOUT | {"model": "another"})
    with pytest.raises(RunError, match=r"line 2 is not of this prediction"):
        fill(begun, ROWS, paths=["z.png", *PATHS[1:]])
    with pytest.raises(RunError, match=r"is not of this prediction"):
        fill(begun, ROWS, paths=PATHS[:1])
    assert part.read_bytes() == before


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_rows_of_nobody_knows_what_are_kept(begun, content):
    part, sidecar = begun.with_name("t.csv.part"), begun.with_name("t.csv.part.json")
    sidecar.unlink() if content is None else sidecar.write_text(content, encoding="utf-8")
    before = part.read_bytes()
    with pytest.raises(RunError, match=r"t\.csv\.part\.json does not say of what; move or remove"):
        fill(begun, ROWS)
    assert part.read_bytes() == before


def test_two_processes_do_not_write_one_table(tmp_path):
    with (
        FileLock(tmp_path / ".t.csv.unfinished.lock"),
        pytest.raises(RunError, match="another process is writing it"),
        open_resumable_table(tmp_path / "t.csv", COLUMNS, PATHS, ABOUT, lambda row: None),
    ):
        pass


def test_a_table_that_exists_is_not_touched(tmp_path):
    (tmp_path / "t.csv").write_text("mine", encoding="utf-8")
    with pytest.raises(RunError, match="exists already"):
        fill(tmp_path / "t.csv", ROWS)
    assert (tmp_path / "t.csv").read_text(encoding="utf-8") == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


@pytest.mark.parametrize("name", ["x" * 244 + ".csv", "x" * 240 + ".csv"])
def test_errors_name_the_table_and_no_file_beside_it(tmp_path, name):
    with pytest.raises(OSError, match="too long") as told:
        fill(tmp_path / name, ROWS)
    assert told.value.filename == str(tmp_path / name)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError) as told:
        fill(tmp_path / "file" / "t.csv", ROWS)
    assert told.value.filename == str(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not hold the superuser")
def test_a_folder_that_cannot_be_written_is_said_of_the_table(tmp_path):
    (tmp_path / "kept").mkdir(mode=0o500)
    with pytest.raises(PermissionError) as told:
        fill(tmp_path / "kept" / "t.csv", ROWS)
    assert told.value.filename == str(tmp_path / "kept" / "t.csv")

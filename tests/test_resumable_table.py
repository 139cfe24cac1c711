"""Tables that are written row by row, and their interruption."""

import csv
import os

import pytest
from filelock import FileLock

from urnet.resumable_table import open_resumable_table

COLUMNS = ("path", "note")
PATHS = ["a.png", 'b "ü",\nc.png', "d.png"]
ROWS = [{"path": path, "note": str(number)} for number, path in enumerate(PATHS)]
SETTINGS = {"model": "m", "images": "i"}


def fill(out, rows, *, settings=SETTINGS, paths=PATHS, stop=False) -> list[str]:
    """Write rows; return the notes of the rows given to `on_row`, earlier rows first."""
    seen = []
    try:
        with open_resumable_table(out, COLUMNS, paths, settings, lambda row: seen.append(row["note"])) as table:
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


def test_a_complete_table_gets_its_name(tmp_path):
    out = tmp_path / "t.csv"
    assert fill(out, ROWS) == ["0", "1", "2"]
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]
    with out.open(encoding="utf-8", newline="") as file:
        assert list(csv.DictReader(file)) == ROWS


def test_an_interruption_before_the_first_row_leaves_nothing(tmp_path):
    fill(tmp_path / "t.csv", [], stop=True)
    assert not list(tmp_path.iterdir())


def test_a_resumed_table_has_the_same_bytes(begun, tmp_path):
    fill(tmp_path / "whole.csv", ROWS)
    assert fill(begun, ROWS) == ["0", "1", "2"]
    assert begun.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert [path.name for path in begun.parent.iterdir()] == ["t.csv"]


def test_a_table_truncated_anywhere_is_resumed_to_the_same_bytes(begun, tmp_path):
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


def test_rows_of_another_prediction_are_kept_and_not_resumed(begun, raises_code):
    part = begun.with_name("t.csv.part")
    before = part.read_bytes()
    with raises_code("predict.other_rows") as caught:
        fill(begun, ROWS, settings=SETTINGS | {"model": "another"})
    assert "t.csv.part" in str(caught.value)
    with raises_code("predict.other_rows") as caught:
        fill(begun, ROWS, paths=["z.png", *PATHS[1:]])
    assert "line 2" in str(caught.value)
    with raises_code("predict.other_rows"):
        fill(begun, ROWS, paths=PATHS[:1])
    assert part.read_bytes() == before


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_rows_without_settings_are_kept(begun, raises_code, content):
    part, sidecar = begun.with_name("t.csv.part"), begun.with_name("t.csv.part.json")
    sidecar.unlink() if content is None else sidecar.write_text(content, encoding="utf-8")
    before = part.read_bytes()
    with raises_code("predict.other_rows"):
        fill(begun, ROWS)
    assert part.read_bytes() == before


def test_two_processes_do_not_write_one_table(tmp_path, raises_code):
    with (
        FileLock(tmp_path / ".t.csv.unfinished.lock"),
        raises_code("run.busy"),
        open_resumable_table(tmp_path / "t.csv", COLUMNS, PATHS, SETTINGS, lambda row: None),
    ):
        pass


def test_a_table_that_exists_is_not_changed(tmp_path, raises_code):
    (tmp_path / "t.csv").write_text("mine", encoding="utf-8")
    with raises_code("run.exists"):
        fill(tmp_path / "t.csv", ROWS)
    assert (tmp_path / "t.csv").read_text(encoding="utf-8") == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


@pytest.mark.parametrize("name", ["x" * 244 + ".csv", "x" * 240 + ".csv"])
def test_errors_name_the_table_and_no_file_beside_it(tmp_path, name):
    with pytest.raises(OSError, match="too long") as failed:
        fill(tmp_path / name, ROWS)
    assert failed.value.filename == str(tmp_path / name)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError) as failed:
        fill(tmp_path / "file" / "t.csv", ROWS)
    assert failed.value.filename == str(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not hold the superuser")
def test_the_error_of_a_write_protected_folder_names_the_table(tmp_path):
    (tmp_path / "kept").mkdir(mode=0o500)
    with pytest.raises(PermissionError) as failed:
        fill(tmp_path / "kept" / "t.csv", ROWS)
    assert failed.value.filename == str(tmp_path / "kept" / "t.csv")

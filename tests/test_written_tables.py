"""Tables that urnet writes: no formulas in a spreadsheet, and the same values when read."""

import csv
import io
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from urnet.cells.read import find_images, read_cells
from urnet.cells.table import Cells
from urnet.files.csv_tables import escape_formula, format_csv, read_own_table, unescape_formula, write_csv, write_frame
from urnet.files.user_tables import read_table
from urnet.resumable_table import open_resumable_table

FORMULAS = ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "＝1+1", "＋1", "－1+1", "＠a", " =1+1", "-", "=x.png"]
PLAIN = ["", "a", "0", "-0.5", "+3", "-1e-05", ".5", "a=b", "a-b", "'", "'a", "it's", "monocyte", "#p001", "a|b"]

text = st.one_of(
    st.text(max_size=12),
    st.text("'=+-@\t\r\n ＝＠;,\"0.5ea", max_size=8),
    st.sampled_from([*FORMULAS, *PLAIN]),
)


@pytest.mark.parametrize("value", FORMULAS)
def test_a_formula_is_written_as_text(value):
    assert escape_formula(value) == f"'{value}"
    assert escape_formula(f"'{value}") == f"''{value}"


@pytest.mark.parametrize("value", PLAIN)
def test_other_texts_and_numbers_are_written_as_they_are(value):
    assert escape_formula(value) == value


@given(text)
@example("'-5")
@example("''=")
def test_reading_gives_back_every_text(value):
    written = escape_formula(value)
    assert unescape_formula(written) == value
    assert not re.match(r"\s*[=+\-@＝＋－＠]", written) or float(written.strip()) is not None


@pytest.mark.slow
@given(st.lists(st.tuples(text, text), min_size=1, max_size=4), st.tuples(text, text))
def test_a_table_of_any_texts_is_read_as_it_was_written(tmp_path_factory, rows, names):
    columns = [f"a{names[0]}", f"={names[1]}"]
    for file in ("t.csv", "t.csv.gz"):
        path = tmp_path_factory.getbasetemp() / file
        write_csv(path, columns, rows)
        table = read_own_table(path)
        assert list(table) == columns
        assert list(table.itertuples(index=False, name=None)) == rows
    cells = [cell for row in csv.reader(io.StringIO(format_csv(columns, rows), newline="")) for cell in row]
    assert cells == [escape_formula(cell) for row in (columns, *rows) for cell in row]


@given(st.lists(text.filter(lambda value: value.strip() and "\0" not in value), min_size=1, max_size=4))
def test_a_user_table_keeps_paths_of_any_text(tmp_path_factory, paths):
    path = tmp_path_factory.getbasetemp() / "user.csv"
    write_csv(path, ["path", "label"], [(value, "x") for value in paths])
    table = read_table(path, ("path", "label"), required=("path",), path_columns=("path",))
    assert table["path"].tolist() == [value.replace("\\", "/") for value in paths]


def test_numbers_stay_numbers_and_what_is_missing_is_empty(tmp_path):
    table = pd.DataFrame({"name": ["-a", None], "x": [-0.5, np.nan], "n": [-3, 4], "text": ["-0.5", "NA"]})
    write_frame(tmp_path / "t.csv", table)
    assert (tmp_path / "t.csv").read_text() == "name,x,n,text\n'-a,-0.5,-3,-0.5\n,,4,NA\n"
    back = read_own_table(tmp_path / "t.csv", ("name", "text"))
    assert (back["x"].dtype, back["n"].dtype) == (np.float64, np.int64)
    assert back["text"].tolist() == ["-0.5", "NA"]


def test_a_cells_table_names_the_same_files_when_it_is_read_again(tmp_path):
    names = ["=x.png", "+y.png", "-z.png", "@w.png", "'=v.png", "#p001.png", "a,b;c.png", " u.png"]
    for name in names:
        Image.fromarray(np.eye(24, dtype=np.uint8)).save(tmp_path / name)
    table = pd.DataFrame({"path": names, "label": ["=a", "-b"] * 4, "donor": ["+1", "@2"] * 4})
    Cells(tmp_path, table).write(tmp_path / "cells.csv")
    again = read_cells(tmp_path / "cells.csv")
    assert again.table[["path", "label", "donor"]].equals(table)
    assert again.classes == ("-b", "=a")
    found = find_images([tmp_path / "cells.csv"])
    assert found.table["path"].tolist() == [(tmp_path / name).as_posix() for name in names]


def test_an_interrupted_table_of_formulas_is_resumed(tmp_path):
    out, paths, seen = tmp_path / "p.csv", ["=1.png", "-2.png"], []
    columns = ["path", "p_=a", "error"]

    def interrupted():
        with open_resumable_table(out, columns, paths, {"model": "m"}, seen.append) as table:
            table.write([{"path": "=1.png", "p_=a": "0.5"}])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with open_resumable_table(out, columns, paths, {"model": "m"}, seen.append) as table:
        assert table.done == 1
        table.write([{"path": "-2.png", "error": "-"}])
    assert [row["path"] for row in seen[1:]] == ["=1.png", "-2.png"]
    assert out.read_text() == "path,p_=a,error\n'=1.png,0.5,\n'-2.png,,'-\n"

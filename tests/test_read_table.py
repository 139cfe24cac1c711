"""Tables of users: errors for other kinds of files, synonyms of columns, and unused columns."""

import logging

import pytest

from urnet.files.user_tables import read_table

COLUMNS = ("path", "label", "donor", "split")


@pytest.fixture
def read(tmp_path):
    """Read a table from text: `read(text, name of the file, **options)`."""

    def call(text, name="t.csv", **options):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_table(path, COLUMNS, required=("path",), **options)

    return call


@pytest.mark.parametrize(
    "name", ["donor_id", "patient", "Patient ID", "patient_id", "subject", "subject-no", "person", "case", "Donors"]
)
def test_donors_under_another_name_are_refused(read, raises_code, name):
    code = "tables.misspelt_column" if name == "Donors" else "tables.donor_synonym"
    with raises_code(code) as caught:
        read(f"path,label, {name} \na.png,x,7\n")
    assert repr(name) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("header", ["donor,patient", "x_patient,x", "slide,sample", "caseous,personal", "casework,id"])
def test_other_columns_beside_donor_or_of_another_meaning_are_ignored(read, header):
    table = read(f"path,label,{header}\na.png,x,7,8\n")
    assert set(table) <= set(COLUMNS)


def test_an_empty_column_of_donors_leaks_nothing(read):
    assert list(read("path,label,patient\na.png,x, \n")) == ["path", "label"]


def test_where_nothing_is_divided_donors_under_another_name_are_noted(read, caplog):
    assert list(read("path,patient_id,stain\na.png,7,b\n", refuse_donor_synonyms=False)) == ["path"]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "column 'patient_id' is not used. Rename it to donor" in record.getMessage()


def test_columns_that_are_not_used_are_named_in_one_line(read, caplog):
    read("path,stain batch,label,p_a,empty,slide\na.png,1,x,0.5,,3\n", ignored=("p_*",))
    assert [record.getMessage().split(": ", 1)[1] for record in caplog.records] == [
        "columns not used: stain batch, slide"
    ]
    caplog.clear()
    read("path,stain batch\na.png,1\n")
    assert not caplog.records


def test_a_missing_column_is_found_under_its_usual_name(read, raises_code):
    with raises_code("tables.missing_column") as caught:
        read("File Name,x\na.png,1\n")
    assert "Rename 'File Name' to path" in str(caught.value)
    with raises_code("tables.missing_column") as caught:
        read("x,y\na.png,1\n")
    assert "columns are x, y" in str(caught.value)


@pytest.mark.parametrize("name", ["t.xlsx", "t.csv"])
@pytest.mark.parametrize("content", [b"PK\3\4\x14\0 and so on", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", b"PK\3\4"])
def test_a_spreadsheet_is_recognised(read, raises_code, name, content):
    with raises_code("tables.spreadsheet"):
        read(content, name)


def test_a_damaged_spreadsheet_is_recognised_by_its_name(read, raises_code):
    with raises_code("tables.spreadsheet"):
        read(b"\xff\xfe\xfd damaged", "t.xlsx")
    assert len(read("path\na.png\n", "t.xlsx")) == 1


def test_a_binary_file_is_not_taken_for_a_bad_encoding(read, raises_code):
    with raises_code("tables.not_text"):
        read(b"\x93NUMPY\1\0v\0{'descr'\xff")
    with raises_code("tables.encoding"):
        read("path,label\na.png,Größe\n".encode("utf-16"))


GOOD = {
    "a byte order mark": "\ufeffpath,label\na.png,x\n".encode(),
    "two byte order marks": "\ufeff\ufeffpath,label\na.png,x\n".encode(),
    "semicolons": b"path;label\na.png;x\n",
    "tabs": b"path\tlabel\na.png\tx\n",
    "Excel's first line": b"sep=;\r\npath;label\r\na.png;x\r\n",
    "Excel's first line, with a mark": "\ufeffsep=;\r\npath;label\r\na.png;x\r\n".encode(),
    "Excel's first line, quoted, with a tab": b'"sep=\t"\npath\tlabel\na.png\tx\n',
    "old Mac line ends": b"path,label\ra.png,x\r",
    "mixed line ends": b"\r\npath,label\r\n\na.png,x\r\n\n\n",
    "a separator at the end of each line": b"path,label,\na.png,x,\n",
    "a separator at the end of a row": b"path,label\na.png,x,,,\n",
    "everything quoted": b'"path","label"\n"a.png","x"\n',
    "blanks in the header": b" path ,\tlabel\na.png,x\n",
    "a blank that does not break": "path\u00a0,label\na.png,\u00a0x\n".encode(),
    "an index column of pandas": b",path,label\n0,a.png,x\n",
    "other columns that are called alike": b"path,label,area,area\na.png,x,1,2\n",
    "a header with the other separators in quotes": b'path,label,"a;b;c;d;e"\na.png,x,1\n',
}
BAD = {
    "UTF-16": ("path,label\na.png,x\n".encode("utf-16"), "encoding"),
    "UTF-16 without a mark": ("path,label\na.png,x\n".encode("utf-16-le"), "not_text"),
    "Latin-1": ("path,label\nGröße.png,x\n".encode("latin-1"), "encoding"),
    "a header only": (b"path,label\n", "empty"),
    "nothing": (b"", "missing_column"),
    "two columns of one name": (b"path,label,label\na.png,x,y\n", "duplicate_column"),
    "two header lines": (b"Image,Cells\npath,label\na.png,x\n", "missing_column"),
    "capitals": (b"Path,label\na.png,x\n", "misspelt_column"),
    "a comment above": (b"# made by hand\npath,label\na.png,x\n", "missing_column"),
    "a quote that is not closed": (b'path,label\n"a.png,x\nb.png,y\n', "unreadable"),
    "a quote within a cell": (b'path,label\n"a"b.png,x\n', "unreadable"),
    "decimal commas between commas": (b"path,label\na.png,12,5\n", "too_many_values"),
    "a web page": (b"<html><body>log in</body></html>", "missing_column"),
    "another separator": (b"path|label\na.png|x\n", "missing_column"),
}


@pytest.mark.parametrize("kind", GOOD)
def test_tables_of_other_programs_are_read(read, kind):
    assert read(GOOD[kind]).to_dict("list") == {"path": ["a.png"], "label": ["x"]}


@pytest.mark.parametrize("kind", BAD)
def test_an_unusable_table_is_named_in_one_line(read, raises_code, kind):
    content, code = BAD[kind]
    with raises_code(f"tables.{code}") as caught:
        read(content)
    assert "\n" not in str(caught.value)


def test_rows_are_counted_as_a_spreadsheet_shows_them(read):
    assert list(read(b"sep=,\npath,label\na.png,x\nb.png,y\n").index) == [3, 4]


def test_a_number_with_one_comma_and_three_digits_may_be_either(tmp_path, raises_code):
    (tmp_path / "t.csv").write_text('path,x\na.png,"1,234"\n', encoding="utf-8")
    with raises_code("tables.not_a_number") as caught:
        read_table(tmp_path / "t.csv", ("path", "x"))
    assert "Write 1.234 if the comma is a decimal point, 1234 if it is not" in str(caught.value)

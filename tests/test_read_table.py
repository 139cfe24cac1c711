"""Tables as people have them: what is no CSV, what a column is called elsewhere, what is not read."""

import logging

import pytest

from urnet.errors import CellsError
from urnet.tables import read_table

COLUMNS = ("path", "label", "donor", "split")


@pytest.fixture
def read(tmp_path):
    """Reads a table of some text: `read(text, name of the file, **options)`."""

    def call(text, name="t.csv", **options):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_table(path, COLUMNS, needed=("path",), **options)

    return call


@pytest.mark.parametrize(
    "name", ["donor_id", "patient", "Patient ID", "patient_id", "subject", "subject-no", "person", "case", "Donors"]
)
def test_donors_under_another_name_are_refused(read, name):
    with pytest.raises(CellsError, match=r"t\.csv: column '.*rename it to (x_)?donor") as caught:
        read(f"path,label, {name} \na.png,x,7\n")
    assert repr(name) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("header", ["donor,patient", "x_patient,x", "slide,sample", "caseous,personal", "casework,id"])
def test_other_columns_beside_donor_or_of_another_meaning_are_passed_over(read, header):
    table = read(f"path,label,{header}\na.png,x,7,8\n")
    assert set(table) <= set(COLUMNS)


def test_an_empty_column_of_donors_leaks_nothing(read):
    assert list(read("path,label,patient\na.png,x, \n")) == ["path", "label"]


def test_where_nothing_is_divided_donors_under_another_name_are_noted(read, caplog):
    assert list(read("path,patient_id,stain\na.png,7,b\n", leaks=False)) == ["path"]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "column 'patient_id' is not used; rename it to donor" in record.getMessage()


def test_columns_that_are_not_used_are_named_in_one_line(read, caplog):
    read("path,stain batch,label,p_a,empty,slide\na.png,1,x,0.5,,3\n", passed_over=("p_*",))
    assert [record.getMessage().split(": ", 1)[1] for record in caplog.records] == [
        "columns not used: stain batch, slide"
    ]
    caplog.clear()
    read("path,stain batch\na.png,1\n")
    assert not caplog.records


def test_a_missing_column_is_found_under_its_usual_name(read):
    with pytest.raises(CellsError, match="no column 'path'; its columns are File Name, x; rename 'File Name' to path"):
        read("File Name,x\na.png,1\n")
    with pytest.raises(CellsError, match=r"no column 'path'; its columns are x, y$"):
        read("x,y\na.png,1\n")


@pytest.mark.parametrize("name", ["t.xlsx", "t.csv"])
@pytest.mark.parametrize("content", [b"PK\3\4\x14\0 and so on", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", b"PK\3\4"])
def test_a_spreadsheet_is_called_one(read, name, content):
    with pytest.raises(CellsError, match=f"{name}: a spreadsheet, no CSV.*save the table as 'CSV UTF-8'"):
        read(content, name)


def test_a_damaged_spreadsheet_is_told_by_its_name(read):
    with pytest.raises(CellsError, match=r"t\.xlsx: a spreadsheet, no CSV, or a damaged one"):
        read(b"\xff\xfe\xfd damaged", "t.xlsx")
    assert len(read("path\na.png\n", "t.xlsx")) == 1


def test_what_is_no_text_is_not_taken_for_a_bad_encoding(read):
    with pytest.raises(CellsError, match="its content is no text"):
        read(b"\x93NUMPY\1\0v\0{'descr'\xff")
    with pytest.raises(CellsError, match="not UTF-8"):
        read("path,label\na.png,Größe\n".encode("utf-16"))

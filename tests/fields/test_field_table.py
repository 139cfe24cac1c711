"""Fields are found with their nuclei, whichever way they are laid out; what is missing is named."""

from pathlib import Path

import pytest

from urnet.errors import CellsError
from urnet.fields.cropping.new_fields import drop_absent_nuclei
from urnet.fields.cropping.settings import CropSettings
from urnet.fields.table import FieldRow, check_options_agree, find_fields


@pytest.fixture
def touch(tmp_path):
    """Makes empty files: finding fields opens no image."""

    def make(*names: str) -> Path:
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(b"")
        return tmp_path

    return make


def names(rows: list[FieldRow]) -> list[str]:
    return [row.field for row in rows]


def test_one_image(touch):
    root = touch("a.ome.tif", "b.tif")
    folder, rows = find_fields(root / "a.ome.tif", channel="BF", z="max", scene="1")
    assert folder == root
    assert rows == [FieldRow("a.ome.tif", root / "a.ome.tif", channel="BF", z="max", scene="1")]


def test_a_folder_is_searched_whole_in_order(touch):
    root = touch("d2/b.tif", "d2/a.TIFF", "d1/x.png", "c.jpg", "d3/e/f.czi", "g.nd2", "h.LIF", "notes.txt")
    touch(".hidden.tif", ".cache/a.tif", "d1/.a.tif")
    folder, rows = find_fields(root)
    assert folder == root
    assert names(rows) == ["c.jpg", "d1/x.png", "d2/a.TIFF", "d2/b.tif", "d3/e/f.czi", "g.nd2", "h.LIF"]
    assert all(row.nuclei is None and row.donor == row.label == "" for row in rows)


def test_nuclei_beside_their_fields(touch):
    root = touch("a.tif", "a_nuclei.tif", "d/b.ome.tif", "d/b_nuclei.tif")
    _, rows = find_fields(root, nuclei="*_nuclei.tif", nuclei_channel="DAPI")
    assert names(rows) == ["a.tif", "d/b.ome.tif"]
    assert [row.nuclei for row in rows] == [root / "a_nuclei.tif", root / "d" / "b_nuclei.tif"]
    assert {row.nuclei_channel for row in rows} == {"DAPI"}
    _, rows = find_fields(root / "a.tif", nuclei="*_nuclei.tif")
    assert rows[0].nuclei == root / "a_nuclei.tif"


def test_nuclei_in_a_folder_of_their_own(touch):
    root = touch("p1/bf/1.tif", "p1/bf/2.tif", "p1/dapi/1.tif", "p1/dapi/2.tif", "p2/bf/1.tif", "p2/dapi/1.tif")
    _, rows = find_fields(root, nuclei="../dapi/*.tif")
    assert names(rows) == ["p1/bf/1.tif", "p1/bf/2.tif", "p2/bf/1.tif"]
    assert [row.nuclei.relative_to(root).as_posix() for row in rows] == [
        "p1/dapi/1.tif",
        "p1/dapi/2.tif",
        "p2/dapi/1.tif",
    ]


def test_nuclei_in_a_channel_of_the_same_file(touch):
    root = touch("a.tif", "b.tif")
    _, rows = find_fields(root, nuclei_channel="1", channel="0")
    assert all(row.nuclei == row.brightfield and row.nuclei_channel == "1" for row in rows)


def test_a_missing_partner_is_named(touch):
    root = touch("a.tif", "a_nuclei.tif", "b.tif", "c.tif")
    with pytest.raises(CellsError, match=r"nuclei of b\.tif, .*b_nuclei\.tif, is missing \(2 such files\)"):
        find_fields(root, nuclei="*_nuclei.tif")


def test_nuclei_without_a_brightfield_are_named(touch):
    root = touch("a.tif", "a_nuclei.tif", "z_nuclei.tif")
    with pytest.raises(CellsError, match=r"z_nuclei\.tif: named like nuclei.*no brightfield"):
        find_fields(root, nuclei="*_nuclei.tif")
    (root / "z_nuclei.tif").unlink()
    touch("dapi/q.tif", "bf/p.tif", "dapi/p.tif")
    with pytest.raises(CellsError, match=r"q\.tif: named like nuclei"):
        find_fields(root / "bf" / "..", nuclei="../dapi/*.tif")


@pytest.mark.parametrize("pattern", ["nuclei.tif", "*_nuclei", "/data/*.tif", "*"])
def test_patterns_that_cannot_be(touch, pattern):
    with pytest.raises(CellsError, match="the pattern for nuclei is"):
        find_fields(touch("a.tif"), nuclei=pattern)


def test_the_pattern_of_a_model_is_followed_within_the_folder_of_the_fields(touch, raises_code, monkeypatch):
    root = touch("p/bf/1.tif", "p/dapi/1.tif", "dapi/1.tif", "etc/1.tif")
    for pattern, followed in (("../dapi/*.tif", True), ("../../dapi/*.tif", False), ("../../etc/*.tif", False)):
        asked = CropSettings(nuclei=pattern)
        known, notes = drop_absent_nuclei(asked, root / "p")
        assert (known.nuclei is not None) == followed == (not notes)
        monkeypatch.chdir(root / "p" / "bf")
        for folder in (root / "p" / "bf", Path()):
            known, notes = drop_absent_nuclei(asked, folder)
            assert known.nuclei is None
            assert notes
    (root / "p" / "fields.csv").write_text("field,nuclei\nbf/1.tif,../etc/1.tif\n", encoding="utf-8")
    known, notes = drop_absent_nuclei(CropSettings(nuclei="../../dapi/*.tif"), root / "p")
    assert known.nuclei is None
    assert not notes  # the user's own table names nuclei anywhere
    try:
        (root / "q").symlink_to(root / "p" / "bf", target_is_directory=True)
        (root / "p" / "bf" / "glow").symlink_to(root / "etc", target_is_directory=True)
        (root / "p" / "bf" / "1_n.tif").symlink_to(root / "etc" / "1.tif")
    except OSError:
        pytest.skip("links are not allowed here")
    for pattern in ("glow/*.tif", "*_n.tif"):
        for folder in (root / "p" / "bf", root / "p" / "bf" / "1.tif", root / "q"):
            with raises_code("fields.nuclei_outside"):
                drop_absent_nuclei(CropSettings(nuclei=pattern), folder)


def test_nothing_there(touch):
    root = touch("notes.txt")
    with pytest.raises(CellsError, match=r"no image in this folder or below.*czi.*tif"):
        find_fields(root)
    with pytest.raises(CellsError, match="no such file or folder"):
        find_fields(root / "absent")


# --- tables


def test_a_field_table(touch):
    root = touch("img/a.tif", "img/b.ome.tif", "dapi a.tif")
    (root / "fields.csv").write_text(
        "field;nuclei;donor;pixel_size_um;channel;z;label;remark\n"
        "img\\a.tif;dapi a.tif;d1;0.25;;;lymphocyte;x\n"
        "img/b.ome.tif;;d2;;BF;3;;y\n",
        encoding="utf-8-sig",
    )
    folder, rows = find_fields(root, channel="0", z="max", nuclei_channel=None, scene="s")
    assert folder == root
    assert rows == [
        FieldRow("img/a.tif", root / "img/a.tif", root / "dapi a.tif", "d1", "lymphocyte", 0.25, "0", None, "max", "s"),
        FieldRow("img/b.ome.tif", root / "img/b.ome.tif", None, "d2", "", None, "BF", None, "3", "s"),
    ]
    assert find_fields(root / "fields.csv", channel="0", z="max", scene="s") == (folder, rows)


def test_scenes_of_one_file_and_patterns_beside_a_table(touch):
    root = touch("plate.czi", "plate_n.tif")
    (root / "wells.csv").write_text(
        "field,brightfield,scene,nuclei_channel\nA1,plate.czi,0,\nA2,plate.czi,1,DAPI\n", encoding="utf-8"
    )
    _, rows = find_fields(root / "wells.csv")
    assert [(row.field, row.scene, row.nuclei) for row in rows] == [
        ("A1", "0", None),
        ("A2", "1", root / "plate.czi"),
    ]
    _, rows = find_fields(root / "wells.csv", nuclei="*_n.tif")
    assert [row.nuclei for row in rows] == [root / "plate_n.tif"] * 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fields,donor\na.tif,1\n", "misspelt 'field'"),
        ("field,pixel_size\na.tif,1\n", "misspelt 'pixel_size_um'"),
        ("donor,label\n1,x\n", "neither a column 'field' nor 'brightfield'"),
        ("field\n", "no fields"),
        ("field,donor\n,1\n", "line 2 names no field"),
        ("field\na.tif\na.tif\n", "stands in 2 lines"),
        ("field\nq.tif\n", "field q.tif is missing"),
        ("field,nuclei\na.tif,q.tif\n", r"nuclei of a\.tif, .*q\.tif, is missing"),
        ("field,pixel_size_um\na.tif,0\n", "line 2: pixel_size_um is '0'"),
        ('field,pixel_size_um\na.tif,"0,25"\n', "Use a decimal point: 0.25"),
        ("field,pixel_size_um\na.tif,nan\n", "must be a number"),
    ],
)
def test_tables_that_cannot_be(touch, text, words):
    root = touch("a.tif")
    (root / "fields.csv").write_text(text, encoding="utf-8")
    with pytest.raises(CellsError, match=words):
        find_fields(root)


@pytest.mark.parametrize(
    ("column", "options", "message"),
    [
        ("nuclei,x_dapi.tif", {"nuclei": "*_nuclei.tif"}, r"fields\.csv: its column 'nuclei' .*--nuclei \*_nuclei"),
        ("nuclei_channel,DAPI", {"nuclei_channel": "Hoechst"}, "--nuclei-channel Hoechst says otherwise"),
        ("channel,BF", {"channel": "0"}, "--channel 0 says otherwise"),
        ("z,3", {"z": "max"}, "leave the option out, or empty the column"),
        ("scene,A1", {"scene": "B1"}, "'scene' names that of every field"),
    ],
)
def test_an_option_that_the_table_contradicts_is_refused(touch, column, options, message):
    root = touch("a.tif", "x_dapi.tif", "a_nuclei.tif")
    name, value = column.split(",")
    (root / "fields.csv").write_text(f"field,{name}\na.tif,{value}\n", encoding="utf-8")
    for place in (root, root / "fields.csv"):
        with pytest.raises(CellsError, match=message):
            check_options_agree(place, **options)
    check_options_agree(root, **dict.fromkeys(options))
    check_options_agree(root / "a.tif", **options)
    (root / "fields.csv").write_text(f"field,{name}\na.tif,{value}\nb.tif,\n", encoding="utf-8")
    check_options_agree(root, **options)  # it says what the table leaves open


def test_an_option_that_says_what_the_table_says_is_none_too_many(touch):
    root = touch("d/a.tif", "d/a_nuclei.tif")
    (root / "fields.csv").write_text("field,nuclei,z\nd/a.tif,d/a_nuclei.tif,max\n", encoding="utf-8")
    check_options_agree(root, nuclei="*_nuclei.tif", z="max")


def test_a_link_that_leads_nowhere_is_no_field_that_is_passed_over(touch):
    root = touch("a.tif")
    try:
        (root / "b.tif").symlink_to("nowhere.tif")
    except OSError:
        pytest.skip("links are not allowed here")
    with pytest.raises(CellsError, match=r"the field b\.tif is a broken link; mend or remove it"):
        find_fields(root)

"""Lists of fields with their nuclei, from folders, patterns and tables. Errors name what is missing."""

from pathlib import Path

import pytest

from urnet.fields.cropping.new_fields import drop_absent_nuclei
from urnet.fields.cropping.settings import CropSettings
from urnet.fields.table import FieldRow, check_options_agree, find_fields, list_source


@pytest.fixture
def touch(tmp_path):
    """Create empty files; listing fields opens no image."""

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


def test_a_folder_is_searched_with_subfolders_in_order(touch):
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


def test_a_missing_partner_is_named(touch, raises_code):
    root = touch("a.tif", "a_nuclei.tif", "b.tif", "c.tif")
    with raises_code("fields.missing") as caught:
        find_fields(root, nuclei="*_nuclei.tif")
    assert all(word in str(caught.value) for word in ("b.tif", "b_nuclei.tif", "2"))


def test_nuclei_without_a_brightfield_are_named(touch, raises_code):
    root = touch("a.tif", "a_nuclei.tif", "z_nuclei.tif")
    with raises_code("fields.brightfield_missing") as caught:
        find_fields(root, nuclei="*_nuclei.tif")
    assert "z_nuclei.tif" in str(caught.value)
    (root / "z_nuclei.tif").unlink()
    touch("dapi/q.tif", "bf/p.tif", "dapi/p.tif")
    with raises_code("fields.brightfield_missing") as caught:
        find_fields(root / "bf" / "..", nuclei="../dapi/*.tif")
    assert "q.tif" in str(caught.value)


@pytest.mark.parametrize("pattern", ["nuclei.tif", "*_nuclei", "/data/*.tif", "*"])
def test_invalid_patterns_are_refused(touch, pattern, raises_code):
    with raises_code("fields.pattern_invalid"):
        find_fields(touch("a.tif"), nuclei=pattern)


def test_the_pattern_of_a_model_is_followed_within_the_folder_of_the_fields(touch, raises_code, monkeypatch):
    root = touch("p/bf/1.tif", "p/dapi/1.tif", "dapi/1.tif", "etc/1.tif")
    for pattern, followed in (("../dapi/*.tif", True), ("../../dapi/*.tif", False), ("../../etc/*.tif", False)):
        asked = CropSettings(nuclei=pattern)
        known, notes = drop_absent_nuclei(asked, list_source(root / "p"))
        assert (known.nuclei is not None) == followed == (not notes)
        monkeypatch.chdir(root / "p" / "bf")
        for folder in (root / "p" / "bf", Path()):
            known, notes = drop_absent_nuclei(asked, list_source(folder))
            assert known.nuclei is None
            assert notes
    (root / "p" / "fields.csv").write_text("field,nuclei\nbf/1.tif,../etc/1.tif\n", encoding="utf-8")
    known, notes = drop_absent_nuclei(CropSettings(nuclei="../../dapi/*.tif"), list_source(root / "p"))
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
                drop_absent_nuclei(CropSettings(nuclei=pattern), list_source(folder))


def test_missing_paths_and_folders_without_images_are_refused(touch, raises_code):
    root = touch("notes.txt")
    with raises_code("fields.none") as caught:
        find_fields(root)
    assert "czi" in str(caught.value)
    with raises_code("fields.missing"):
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
    ("text", "code", "words"),
    [
        ("fields,donor\na.tif,1\n", "tables.misspelt_column", ("'field'",)),
        ("field,pixel_size\na.tif,1\n", "tables.misspelt_column", ("'pixel_size_um'",)),
        ("donor,label\n1,x\n", "fields.column_missing", ("'field'", "'brightfield'")),
        ("field\n", "tables.empty", ()),
        ("field,donor\n,1\n", "fields.name_missing", ("line 2",)),
        ("field\na.tif\na.tif\n", "fields.name_twice", ("2 lines", "'a.tif'")),
        ("field\nq.tif\n", "fields.missing", ("q.tif",)),
        ("field,nuclei\na.tif,q.tif\n", "fields.missing", ("a.tif", "q.tif")),
        ("field,pixel_size_um\na.tif,0\n", "fields.pixel_size_invalid", ("line 2", "'0'")),
        ('field,pixel_size_um\na.tif,"0,25"\n', "tables.not_a_number", ("0.25",)),
        ("field,pixel_size_um\na.tif,nan\n", "tables.not_a_number", ()),
    ],
)
def test_invalid_tables_are_refused(touch, raises_code, text, code, words):
    root = touch("a.tif")
    (root / "fields.csv").write_text(text, encoding="utf-8")
    with raises_code(code) as caught:
        find_fields(root)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("column", "options", "option"),
    [
        ("nuclei,x_dapi.tif", {"nuclei": "*_nuclei.tif"}, "--nuclei *_nuclei.tif"),
        ("nuclei_channel,DAPI", {"nuclei_channel": "Hoechst"}, "--nuclei-channel Hoechst"),
        ("channel,BF", {"channel": "0"}, "--channel 0"),
        ("z,3", {"z": "max"}, "--z max"),
        ("scene,A1", {"scene": "B1"}, "--scene B1"),
    ],
)
def test_an_option_that_the_table_contradicts_is_refused(touch, raises_code, column, options, option):
    root = touch("a.tif", "x_dapi.tif", "a_nuclei.tif")
    name, value = column.split(",")
    (root / "fields.csv").write_text(f"field,{name}\na.tif,{value}\n", encoding="utf-8")
    for place in (root, root / "fields.csv"):
        with raises_code("fields.option_contradicts_table") as caught:
            check_options_agree(list_source(place), **options)
        assert all(word in str(caught.value) for word in ("fields.csv", repr(name), option))
    check_options_agree(list_source(root), **dict.fromkeys(options))
    check_options_agree(list_source(root / "a.tif"), **options)
    (root / "fields.csv").write_text(f"field,{name}\na.tif,{value}\nb.tif,\n", encoding="utf-8")
    check_options_agree(list_source(root), **options)  # it says what the table leaves open


def test_an_option_may_repeat_the_table(touch):
    root = touch("d/a.tif", "d/a_nuclei.tif")
    (root / "fields.csv").write_text("field,nuclei,z\nd/a.tif,d/a_nuclei.tif,max\n", encoding="utf-8")
    check_options_agree(list_source(root), nuclei="*_nuclei.tif", z="max")


def test_a_broken_link_is_an_error(touch, raises_code):
    root = touch("a.tif")
    try:
        (root / "b.tif").symlink_to("nowhere.tif")
    except OSError:
        pytest.skip("links are not allowed here")
    with raises_code("files.link_broken") as caught:
        find_fields(root)
    assert "b.tif" in str(caught.value)

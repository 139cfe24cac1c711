import pytest

from urnet.errors import ImageError
from urnet.images.companions import resolve_companion

REFUSED = [
    "",
    ".",
    "..",
    " ",
    "../secret.tif",
    "..\\secret.tif",
    "sub/b.tif",
    "sub\\b.tif",
    "./b.tif",
    "b.tif/",
    "/etc/passwd",
    "\\\\server\\share\\b.tif",
    "//server/share/b.tif",
    "C:b.tif",
    "C:\\b.tif",
    "b.tif:stream",
    "file:///etc/passwd",
    "b.tif\0",
    "b\n.tif",
    "*.tif",
    "NUL",
    "nul.tif",
    "com1.ome.tif",
    "LPT9",
    "CON .tif",
    "b.tif ",
    "b.tif.",
    "\ud800.tif",
    "b" * 300,
]


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_every_name_with_a_path_in_the_same_way(tmp_path, name):
    given = tmp_path / "given" / "a.tif"
    given.parent.mkdir()
    given.write_bytes(b"")
    with pytest.raises(ImageError) as absolute:
        resolve_companion(given, str(tmp_path / "nothing.tif"))
    with pytest.raises(ImageError) as refused:
        resolve_companion(given, name)
    assert refused.value.code == absolute.value.code == "images.companion_refused"
    assert str(refused.value) == str(absolute.value)


def test_error_does_not_reveal_whether_the_target_exists(tmp_path):
    folder = tmp_path / "given"
    folder.mkdir()
    given = folder / "a.tif"
    (tmp_path / "there.tif").write_bytes(b"x")
    (folder / "linked.tif").symlink_to(tmp_path / "there.tif")
    (folder / "dangling.tif").symlink_to(tmp_path / "absent.tif")
    names = ["../there.tif", "../absent.tif", str(tmp_path / "there.tif"), str(tmp_path / "absent.tif")]
    texts = set()
    for name in [*names, "linked.tif", "dangling.tif"]:
        with pytest.raises(ImageError) as refused:
            resolve_companion(given, name)
        texts.add((refused.value.code, str(refused.value)))
    assert len(texts) == 1


def test_finds_files_of_the_same_folder(tmp_path, raises_code):
    given = tmp_path / "a.ome.tif"
    (tmp_path / "b.ome.tif").write_bytes(b"x")
    (tmp_path / "Zähler 2 (b).tif").write_bytes(b"x")
    (tmp_path / "c.ome.tif").symlink_to("b.ome.tif")
    (tmp_path / "folder.tif").mkdir()
    for name in ("b.ome.tif", "Zähler 2 (b).tif", "c.ome.tif"):
        assert resolve_companion(given, name) == tmp_path / name
    for name in ("d.ome.tif", "folder.tif"):
        with raises_code("images.companion_missing"):
            resolve_companion(given, name)


def test_accepts_a_folder_that_is_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "b.tif").write_bytes(b"x")
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    assert resolve_companion(tmp_path / "linked" / "a.tif", "b.tif") == tmp_path / "linked" / "b.tif"

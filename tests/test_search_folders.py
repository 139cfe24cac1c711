"""Search of folders: links, loops, and warnings about folders that are not searched."""

import pytest

from urnet.files.search import find_files, find_folders


@pytest.fixture
def tree(tmp_path):
    """Create files in folders, and links between them."""
    for name in ("in/a/1.png", "in/a/deep/2.png", "in/b/3.png", "out/4.png", "out/deep/5.png", "gone/6.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    try:
        (tmp_path / "in" / "linked").symlink_to("../out", target_is_directory=True)
    except OSError:
        pytest.skip("links are not allowed here")
    return tmp_path / "in"


def names(folder):
    return [file.relative_to(folder).as_posix() for file in find_files(folder, {".png"})]


OWN = ["a/1.png", "a/deep/2.png", "b/3.png", "linked/4.png", "linked/deep/5.png"]


def test_linked_folders_are_searched(tree, caplog):
    assert names(tree) == OWN
    assert not caplog.records
    (tree.parent / "door").symlink_to("in", target_is_directory=True)
    assert names(tree.parent / "door") == OWN


def test_a_folder_that_is_reached_twice_counts_once(tree):
    (tree / "a" / "again").symlink_to("../../out/deep", target_is_directory=True)
    (tree / "0 again").symlink_to("a/deep", target_is_directory=True)
    (tree / "z again").symlink_to("../out", target_is_directory=True)
    assert names(tree) == ["a/1.png", "a/again/5.png", "a/deep/2.png", "b/3.png", "linked/4.png"]


def test_loops_end_and_are_named(tree, caplog):
    (tree / "a" / "up").symlink_to("..", target_is_directory=True)
    (tree / "top").symlink_to("../..", target_is_directory=True)
    (tree.parent / "out" / "back").symlink_to("../in", target_is_directory=True)
    (tree.parent / "out" / "self").symlink_to(".", target_is_directory=True)
    assert names(tree) == OWN
    assert "links to a folder above it are not followed: a/up, linked/back, top" in caplog.text


def test_links_to_the_folder_or_above_it_are_no_class_folders(tree, caplog):
    for name, place in (("self", "."), ("top", "../.."), ("way round", "../out/back")):
        (tree / name).symlink_to(place, target_is_directory=True)
    (tree.parent / "out" / "back").symlink_to("../in", target_is_directory=True)
    assert [folder.name for folder in find_folders(tree, {".png"})] == ["a", "b", "linked"]
    assert "links to a folder above it are not followed: self, top, way round" in caplog.text


def test_a_linked_folder_that_is_gone_is_an_error(tree, raises_code):
    (tree / "monocytes").symlink_to("../nowhere", target_is_directory=True)
    with raises_code("files.link_broken") as caught:
        names(tree)
    assert "monocytes: a broken link" in str(caught.value)
    with raises_code("files.link_broken"):
        find_folders(tree, {".png"})


def test_hidden_folders_with_images_are_named(tree, caplog):
    for name in (
        "__MACOSX/b/._3.png",
        ".git/HEAD",
        ".trash/7.png",
        ".trash/deep/8.PNG",
        "a/.checkpoints/9.png",
        "b/.empty/x.txt",
        ".10.png",
    ):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).touch()
    assert names(tree) == OWN
    (record,) = caplog.records
    assert record.getMessage().endswith("not searched: .trash (2 images), __MACOSX (1 image), a/.checkpoints (1 image)")
    caplog.clear()
    assert [folder.name for folder in find_folders(tree, {".png"})] == ["a", "b", "linked"]
    assert caplog.records[0].getMessage().endswith("not searched: .trash (2 images), __MACOSX (1 image)")

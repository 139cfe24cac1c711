"""Files are written whole or not at all."""

import errno

import pytest

from urnet.files import files_below, whole_file, whole_folder


def test_a_file_is_written_into_a_new_folder(tmp_path):
    with whole_file(tmp_path / "neu ü" / "a.bin") as file:
        file.write(b"new")
    assert (tmp_path / "neu ü" / "a.bin").read_bytes() == b"new"
    assert [path.name for path in (tmp_path / "neu ü").iterdir()] == ["a.bin"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt(), RuntimeError("other")])
def test_what_was_there_stays_when_writing_fails(tmp_path, error):
    (tmp_path / "a.bin").write_bytes(b"old")

    def write() -> None:
        with whole_file(tmp_path / "a.bin") as file:
            file.write(b"half of the ne")
            raise error

    with pytest.raises(type(error)):
        write()
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_a_full_disk_behind_another_error_is_brought_to_light(tmp_path):
    def save():
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise RuntimeError("unexpected pos 704 vs 598")  # noqa: B904 - as torch.save does

    with pytest.raises(OSError, match="No space left") as caught, whole_file(tmp_path / "a.bin"):
        save()
    assert caught.value.errno == errno.ENOSPC


LONG = "x" * 252
"""A name that the system takes; with a suffix of ours it is too long."""


@pytest.mark.parametrize("write", [whole_file, whole_folder])
def test_errors_name_what_was_asked_for(tmp_path, write):
    with pytest.raises(OSError, match="too long") as told, write(tmp_path / LONG):
        pass
    assert told.value.filename == str(tmp_path / LONG)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError) as told, write(tmp_path / "file" / "deeper" / "out"):
        pass
    assert told.value.filename == str(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_link_that_leads_nowhere_is_not_passed_over(tmp_path):
    (tmp_path / "a.png").touch()
    (tmp_path / "folder.png").mkdir()
    try:
        (tmp_path / "gone.png").symlink_to("nowhere.png")
        (tmp_path / "self.png").symlink_to("self.png")
        (tmp_path / "above").symlink_to(".", target_is_directory=True)
    except OSError:
        pytest.skip("links are not allowed here")
    assert [file.name for file in files_below(tmp_path, {".png"})] == ["a.png", "gone.png", "self.png"]

"""Files are written whole or not at all."""

import errno

import pytest

from urnet.files import whole_file


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

"""Files and folders appear complete or not at all, and outputs of killed commands are repaired."""

import errno
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress

import pytest
from filelock import Timeout

from urnet.errors import UrnetError
from urnet.files.atomic import atomic_file, atomic_folder, move, new_file
from urnet.files.locks import lock_file, unlock
from urnet.files.outputs import command_scope, lock_output, refuse_existing
from urnet.files.search import find_files


def test_a_file_is_written_into_a_new_folder(tmp_path):
    with atomic_file(tmp_path / "neu ü" / "a.bin") as file:
        file.write(b"new")
    assert (tmp_path / "neu ü" / "a.bin").read_bytes() == b"new"
    assert [path.name for path in (tmp_path / "neu ü").iterdir()] == ["a.bin"]


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_link_in_the_place_of_an_unfinished_file_is_not_written_through(tmp_path):
    (tmp_path / "other").write_bytes(b"another file")
    (tmp_path / ".a.bin.unfinished.part").symlink_to(tmp_path / "other")
    with atomic_file(tmp_path / "a.bin") as file:
        file.write(b"new")
    assert (tmp_path / "other").read_bytes() == b"another file"
    assert (tmp_path / "a.bin").read_bytes() == b"new"


@pytest.mark.parametrize("end", ["well", "full disk", "killed"])
def test_files_of_the_user_beside_an_output_stay(tmp_path, end):
    (tmp_path / "a.onnx.part").write_bytes(b"mine")
    if end == "killed":
        run_elsewhere(tmp_path / "a.onnx", "within a file")
        assert names(tmp_path) == [
            *(f".a.onnx.unfinished.{suffix}" for suffix in ("json", "lock", "part")),
            "a.onnx.part",
        ]
    with suppress(OSError), new_file(tmp_path / "a.onnx") as file:
        file.write(b"new")
        if end == "full disk":
            raise OSError(errno.ENOSPC, "full")
    assert names(tmp_path) == [*(["a.onnx"] if end != "full disk" else []), "a.onnx.part"]
    assert (tmp_path / "a.onnx.part").read_bytes() == b"mine"


def test_an_unfinished_file_of_a_killed_process_goes_when_a_folder_takes_its_name(tmp_path):
    run_elsewhere(tmp_path / "out", "within a file")
    with atomic_folder(tmp_path / "out"):
        pass
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("write", [new_file, lambda out: nullcontext(refuse_existing(out, file=True))])
def test_rows_of_an_interrupted_prediction_are_in_the_way_of_their_name(tmp_path, raises_code, write):
    for name in ("p.csv.part", "p.csv.part.json"):
        (tmp_path / name).write_text("rows", encoding="utf-8")
    with raises_code("run.interrupted_rows"), write(tmp_path / "p.csv"):
        pass
    assert names(tmp_path) == ["p.csv.part", "p.csv.part.json"]
    refuse_existing(tmp_path / "p.csv", file=True, resumes=True)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt(), RuntimeError("other")])
def test_an_existing_file_stays_when_writing_fails(tmp_path, error):
    (tmp_path / "a.bin").write_bytes(b"old")

    def write() -> None:
        with atomic_file(tmp_path / "a.bin") as file:
            file.write(b"half of the ne")
            raise error

    with pytest.raises(type(error)):
        write()
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_a_full_disk_behind_another_error_is_reported(tmp_path):
    def save():
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise RuntimeError("unexpected pos 704 vs 598")  # noqa: B904 - as torch.save does

    with pytest.raises(OSError, match="No space left") as caught, atomic_file(tmp_path / "a.bin"):
        save()
    assert caught.value.errno == errno.ENOSPC


LONG = "x" * 252
"""A name that the system takes; with a suffix of ours it is too long."""


@pytest.mark.parametrize("write", [atomic_file, atomic_folder, new_file])
def test_errors_name_the_output(tmp_path, write):
    with pytest.raises(OSError, match="too long") as caught, write(tmp_path / LONG):
        pass
    assert caught.value.filename == str(tmp_path / LONG)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError) as caught, write(tmp_path / "file" / "deeper" / "out"):
        pass
    assert caught.value.filename == str(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_broken_link_is_not_ignored(tmp_path):
    (tmp_path / "a.png").touch()
    (tmp_path / "folder.png").mkdir()
    try:
        (tmp_path / "gone.png").symlink_to("nowhere.png")
        (tmp_path / "self.png").symlink_to("self.png")
        (tmp_path / "above").symlink_to(".", target_is_directory=True)
    except OSError:
        pytest.skip("links are not allowed here")
    assert [file.name for file in find_files(tmp_path, {".png"})] == ["a.png", "gone.png", "self.png"]


SCRIPT = """
import os, sys
from pathlib import Path
from urnet.files.atomic import atomic_folder, new_file
from urnet.files.outputs import command_scope

out, stage = Path(sys.argv[1]), sys.argv[2]
with command_scope("the same"):
    if stage == "within a file":
        with new_file(out) as file:
            os._exit(9)
    if stage == "file":
        with new_file(out) as file:
            file.write(b"whole")
        os._exit(9)
    with atomic_folder(out) as folder:
        (folder / "a.txt").write_text("whole")
        if stage == "within":
            os._exit(9)
        if stage == "filling":
            print("ready", flush=True)
            sys.stdin.read()
    os._exit(9)
"""


def run_elsewhere(out, stage: str) -> None:
    """Write an output in a process that dies at a stage: within the folder, or right after it has its name."""
    assert subprocess.run([sys.executable, "-c", SCRIPT, str(out), stage], check=False).returncode == 9


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_staging_folder_of_a_killed_process_is_removed_by_the_next_one(tmp_path):
    out = tmp_path / "neu ü"
    run_elsewhere(out, "within")
    assert names(tmp_path) == [f".neu ü.unfinished{suffix}" for suffix in ("", ".json", ".lock")]
    with atomic_folder(out) as folder:
        assert names(folder) == []
        (folder / "b.txt").write_text("whole")
    assert names(tmp_path) == ["neu ü"]
    assert names(out) == ["b.txt"]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_an_output_that_was_complete_when_its_command_was_killed_is_accepted_from_the_same_command_alone(
    tmp_path, raises_code, kind
):
    out = tmp_path / "out"

    def repeat_command(command: str) -> None:
        with command_scope(command), new_file(out) if kind == "file" else atomic_folder(out):
            pass

    run_elsewhere(out, "file" if kind == "file" else "after")
    with raises_code("files.done_already"), command_scope("the same"):
        refuse_existing(out)
    assert names(tmp_path) == ["out"]
    with raises_code("run.exists"):
        repeat_command("the same")
    for command, code in (("the same", "files.done_already"), ("another", None)):
        out.unlink() if kind == "file" else shutil.rmtree(out)
        run_elsewhere(out, "file" if kind == "file" else "after")
        with pytest.raises(UrnetError) as caught, command_scope(command):
            refuse_existing(out)
        assert (caught.value.code == "files.done_already") == (code is not None)
        assert names(tmp_path) == ["out"]


def test_two_processes_do_not_write_one_output(tmp_path, raises_code):
    out = tmp_path / "out"
    command = [sys.executable, "-c", SCRIPT, str(out), "filling"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline().strip() == b"ready"
        before = names(tmp_path)
        for write in (atomic_folder, new_file):
            with raises_code("run.busy"), write(out):
                pass
        assert names(tmp_path) == before
    finally:
        process.kill()
        process.communicate()
    with atomic_folder(out):
        pass
    assert names(tmp_path) == ["out"]


def test_a_folder_of_the_user_with_the_name_of_the_staging_folder_stays(tmp_path, raises_code):
    staging = tmp_path / ".out.unfinished"
    staging.mkdir()
    (staging / "notes.txt").write_text("mine")
    with raises_code("run.staging"), atomic_folder(tmp_path / "out"):
        pass
    assert names(tmp_path) == [".out.unfinished"]
    assert names(staging) == ["notes.txt"]
    (staging / "notes.txt").unlink()
    with atomic_folder(tmp_path / "out"):
        pass
    assert names(tmp_path) == ["out"]


def test_replacing_files_keeps_other_files(tmp_path):
    out = tmp_path / "out"
    (out / "figures").mkdir(parents=True)
    (out / "notes.txt").write_text("mine")
    (out / "figures" / "a.png").write_text("old")
    with atomic_folder(out, replace_files=True) as folder:
        (folder / "figures").mkdir()
        (folder / "figures" / "a.png").write_text("new")
        (folder / "b.csv").write_text("new")
    assert names(tmp_path) == ["out"]
    assert {path.name: path.read_text() for path in out.rglob("*.*")} == {
        "notes.txt": "mine",
        "a.png": "new",
        "b.csv": "new",
    }


def test_an_error_or_an_interruption_leaves_no_files(tmp_path):
    def fail(error: type[BaseException]) -> None:
        with command_scope("any"), atomic_folder(tmp_path / "out") as folder:
            (folder / "a.txt").write_text("half")
            raise error

    for error in (KeyboardInterrupt, ZeroDivisionError):
        with pytest.raises(error):
            fail(error)
    assert names(tmp_path) == []


def test_outputs_within_a_locked_folder_need_no_lock(tmp_path):
    with command_scope("any"), lock_output(tmp_path / "out", in_place=True) as claim:
        assert not claim.interrupted
        assert not claim.same_command
        with atomic_folder(tmp_path / "out" / "cells") as folder:
            assert names(tmp_path / "out") == [".cells.unfinished"]
            (folder / "a.txt").write_text("whole")
        with lock_output(tmp_path / "out" / "run", in_place=True):
            assert names(tmp_path / "out") == ["cells"]
    assert names(tmp_path) == ["out"]


def test_an_output_is_locked_once_by_one_command(tmp_path):
    with command_scope("any"):
        for _ in range(2):
            with atomic_folder(tmp_path / "out", replace_files=True) as folder:
                (folder / "a.txt").write_text("whole")
    assert names(tmp_path) == ["out"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not hold the superuser")
def test_a_folder_that_grows_in_place_needs_no_room_beside_it(tmp_path):
    (tmp_path / "mounted").mkdir()
    tmp_path.chmod(0o500)
    try:
        with lock_output(tmp_path / "mounted", in_place=True):
            (tmp_path / "mounted" / "a.txt").write_text("whole")
        with pytest.raises(PermissionError), atomic_folder(tmp_path / "mounted"):
            pass
    finally:
        tmp_path.chmod(0o700)


def test_a_rename_that_windows_refuses_is_repeated(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("new")
    waited = []
    monkeypatch.setattr("urnet.files.atomic.time.sleep", waited.append)
    replace, refused = type(tmp_path).replace, [True, True]

    def scanned(self, place):
        if refused:
            refused.pop()
            raise PermissionError(13, "in use")
        return replace(self, place)

    monkeypatch.setattr(type(tmp_path), "replace", scanned)
    monkeypatch.setattr("urnet.files.atomic.IS_WINDOWS", True)
    move(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "new"
    assert len(waited) == 2
    monkeypatch.setattr("urnet.files.atomic.IS_WINDOWS", False)
    refused.append(True)
    with pytest.raises(PermissionError):
        move(tmp_path / "b", tmp_path / "c")


@pytest.fixture(params=["ENOLCK", "ENOSYS", "ENOTSUP", "EOPNOTSUPP", "other"])
def no_locks(request, monkeypatch):
    """A file system whose locks fail in one of several ways."""

    def fail(*_, **__):
        if request.param == "other":
            raise NotImplementedError("no locks")
        number = getattr(errno, request.param)
        raise OSError(number, os.strerror(number))

    if request.param == "other" or os.name == "nt":
        monkeypatch.setattr("urnet.files.locks.FileLock.acquire", fail)
    else:
        monkeypatch.setattr("fcntl.flock", fail)


def test_without_locks_no_lock_file_is_left(tmp_path, no_locks, raises_code):
    assert lock_file(tmp_path / "a.lock") is None
    with command_scope("any"), new_file(tmp_path / "a.txt"):
        pass
    assert names(tmp_path) == ["a.txt"]
    with raises_code("run.exists"), command_scope("any"):
        refuse_existing(tmp_path / "a.txt")


def test_a_lock_file_that_was_removed_meanwhile_is_not_locked(tmp_path):
    """A process that waits for a lock has its file open while the holder removes it."""
    first = lock_file(tmp_path / "a.lock")
    with ThreadPoolExecutor(1) as pool:
        task = pool.submit(lock_file, tmp_path / "a.lock", wait=20)
        time.sleep(0.2)
        unlock(first)
        second = task.result()
    with pytest.raises(Timeout):
        lock_file(tmp_path / "a.lock")
    unlock(second)
    assert names(tmp_path) == []


def test_a_file_system_without_locks_can_be_written(tmp_path, no_locks, raises_code):
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "a.txt").write_text("whole")
    assert names(tmp_path) == ["out"]
    (tmp_path / ".new.unfinished" / "cells").mkdir(parents=True)
    with raises_code("run.staging"), atomic_folder(tmp_path / "new"):
        pass

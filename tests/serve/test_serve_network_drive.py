"""Network drives, on which a database is refused."""

import ctypes
import sys
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace

import pytest

from urnet.serve.database import network_drive as module
from urnet.serve.database.lock import lock_database
from urnet.serve.database.network_drive import find_network_drive
from urnet.serve.database.store import Store

MOUNTINFO = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
23 22 0:5 / /home rw,relatime shared:2 master:3 - nfs4 server:/home rw,vers=4.2
24 23 8:2 / /home/ada/local rw - xfs /dev/sdb1 rw
25 22 0:6 / /mnt/lab\\040data rw - cifs //server/lab rw
26 22 0:7 / /mnt/c rw - 9p C:\\134 rw
27 22 0:8 / /mnt/far rw - fuse.sshfs ada@far: rw
28 22 0:9 / /mnt/twice rw - nfs server:/a rw
29 22 0:10 / /mnt/twice rw - tmpfs tmpfs rw
30 22 0:11 / /mnt/stick rw - fuseblk /dev/sdc1 rw
a line that is none
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows tells it otherwise")
@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/srv/labels.db", None),
        ("/home/ada/labels.db", "nfs4"),
        ("/home/ada/local/labels.db", None),
        ("/home/ada/localities/labels.db", "nfs4"),
        ("/mnt/lab data/day 1/labels.db", "cifs"),
        ("/mnt/c/Users/ada/labels.db", "9p"),
        ("/mnt/far/labels.db", "fuse.sshfs"),
        ("/mnt/twice/labels.db", None),
        ("/mnt/stick/labels.db", None),
    ],
)
def test_the_deepest_mount_determines_the_file_system(tmp_path, monkeypatch, path, kind):
    (tmp_path / "mountinfo").write_text(MOUNTINFO, encoding="utf-8")
    monkeypatch.setattr(module, "MOUNTINFO", tmp_path / "mountinfo")
    assert find_network_drive(Path(path)) == kind


def test_nothing_is_refused_without_a_list_of_mounts(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOUNTINFO", tmp_path / "gone")
    assert find_network_drive(tmp_path / "labels.db") is None


@pytest.mark.parametrize(
    ("path", "found", "kind"),
    [
        ("C:\\data\\labels.db", 3, None),
        ("Z:\\data\\labels.db", 4, "share under a letter"),
        ("\\\\server\\lab\\labels.db", 4, "share"),
        ("\\\\?\\C:\\data\\labels.db", 3, None),
    ],
)
def test_network_drives_on_windows(monkeypatch, path, found, kind):
    windows = SimpleNamespace(kernel32=SimpleNamespace(GetDriveTypeW=lambda root: found))
    monkeypatch.setattr(ctypes, "windll", windows, raising=False)
    assert module._find_on_windows(PureWindowsPath(path)) == kind


@pytest.mark.skipif(sys.platform == "win32", reason="Windows tells it otherwise")
def test_a_database_on_a_network_drive_is_refused_and_not_created(tmp_path, monkeypatch, raises_code):
    drive = tmp_path / "drive"
    drive.mkdir()
    (tmp_path / "link").symlink_to(drive)
    mount_info = tmp_path / "mountinfo"
    mount_info.write_text(
        f"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n23 22 0:5 / {drive} rw - nfs4 s:/ rw\n", encoding="utf-8"
    )
    monkeypatch.setattr(module, "MOUNTINFO", mount_info)
    for path in (drive / "labels.db", tmp_path / "link" / "labels.db"):
        with raises_code("store.network_drive") as caught:
            Store(path)
        assert "nfs4" in str(caught.value)
        with raises_code("store.network_drive"), lock_database(path):
            pass
    assert list(drive.iterdir()) == []
    Store(tmp_path / "labels.db").close()

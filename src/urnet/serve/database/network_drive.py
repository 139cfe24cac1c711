"""Detect network drives, on which a database is refused.

SQLite protects its file by locks and, in WAL mode, by shared memory. Neither works between two machines, and a network
may grant the same lock twice (sqlite.org/wal.html, sqlite.org/lockingv3.html). Hours of labels could be lost silently.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path, PurePath

from urnet.errors import StoreError

MOUNTINFO = Path("/proc/self/mountinfo")
"""File in which Linux lists all mounts (proc(5))."""

NETWORK_FILE_SYSTEMS = {
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "gpfs", "beegfs", "glusterfs", "davfs"),
    *("fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.rclone", "fuse.s3fs", "fuse.davfs2", "fuse.smbnetfs"),
    *("fuse.gvfsd-fuse", "vboxsf", "prl_fs"),
}
"""File systems of other machines, including the host of a virtual machine; 9p is also Windows seen from WSL."""

DRIVE_REMOTE = 4


def find_network_drive(path: Path) -> str | None:
    """Return the kind of network drive of a file.

    Args:
        path: the file, which need not exist.

    Returns:
        The system's name of the kind; none for a local disk, or where the system does not say, as on macOS.
    """
    path = path.resolve()
    if sys.platform == "win32":
        return _find_on_windows(path)
    try:
        mounts = MOUNTINFO.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None
    kind = max(_mounts_above(mounts, path), key=lambda mount: mount[0], default=(0, ""))[1]
    return kind if kind in NETWORK_FILE_SYSTEMS else None


def refuse_network_drive(database: Path) -> None:
    """Refuse a database on a network drive.

    Raises:
        StoreError: the file is on a network drive.
    """
    if kind := find_network_drive(database):
        raise StoreError(
            f"{database}: on a network drive ({kind}), where SQLite may lose labels; choose a --database on a disk of "
            "this machine, and copy it to the drive when the server has stopped",
            code="store.network_drive",
        )


def _mounts_above(mounts: str, path: Path) -> Iterator[tuple[int, str]]:
    """Iterate over the depth and file system of each mount point above a path, the latest mounts first.

    Args:
        mounts: lines of `MOUNTINFO`.
        path: absolute, without links.
    """
    for line in reversed(mounts.splitlines()):
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")[0]
        if len(fields) < 5:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields[4]))
        if path.is_relative_to(point):
            yield len(point.parts), kind


def _find_on_windows(path: PurePath) -> str | None:
    import ctypes

    if path.drive.startswith("\\\\") and path.drive[2:4] not in ("?\\", ".\\"):
        return "share"
    kind = ctypes.windll.kernel32.GetDriveTypeW(path.anchor)  # type: ignore[attr-defined]
    return "share under a letter" if kind == DRIVE_REMOTE else None

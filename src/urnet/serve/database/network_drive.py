"""Whether a file lies on a network drive, as far as the system tells.

SQLite keeps its file whole by locks, and in WAL mode by memory that all who open it share; neither holds between two
machines, and over a network the locks themselves may be granted twice (sqlite.org/wal.html, sqlite.org/lockingv3.html).
Another journal mode would not help against that. What is lost then are hours of somebody's labels, without a word, so
such a place is refused rather than made do with.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path, PurePath

from urnet.errors import StoreError

MOUNTINFO = Path("/proc/self/mountinfo")
"""Where Linux tells what is mounted (proc(5))."""

NETWORK_FILE_SYSTEMS = {
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "gpfs", "beegfs", "glusterfs", "davfs"),
    *("fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.rclone", "fuse.s3fs", "fuse.davfs2", "fuse.smbnetfs"),
    *("fuse.gvfsd-fuse", "vboxsf", "prl_fs"),
}
"""File systems of other machines, the host of a virtual one among them; 9p is also Windows seen from WSL."""

DRIVE_REMOTE = 4


def find_network_drive(path: Path) -> str | None:
    """The kind of network drive that a file lies on or would lie on.

    Args:
        path: the file, which need not exist.

    Returns:
        As the system calls it; none where it lies on a local disk, or the system does not tell, as macOS.
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
        StoreError: it lies on one, or would lie there.
    """
    if kind := find_network_drive(database):
        raise StoreError(
            f"{database}: lies on a network drive ({kind}), where SQLite may lose labels; choose a --database on a "
            "disk of this machine, and copy it to the drive when the server has stopped"
        )


def _mounts_above(mounts: str, path: Path) -> Iterator[tuple[int, str]]:
    """How deep each mount point above a path lies, and its file system; of two at one place the later hides the other.

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

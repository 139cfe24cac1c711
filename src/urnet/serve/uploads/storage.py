"""Where what was sent lies while it is needed: a temporary folder for each server, bounded over all who send.

A server that is killed leaves its folder behind, and the next one to start removes it. Each holds a lock beside its
folder for as long as it lives, which the system lets go of whatever ended it: a folder whose lock is free has no owner.
"""

import errno
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from urnet.errors import UrnetError
from urnet.files.locks import lock_file

PREFIX = "urnet-serve-"


DISK_FULL = "the server's disk is full, so this was not done; tell who runs it, and try again when there is room"

_FULL_NUMBERS = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
"""No room on the disk, or no more allowed to one file or user."""


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised from, says that the disk is full: the client is not to blame."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL_NUMBERS:
            return True
        if getattr(error, "sqlite_errorname", "") == "SQLITE_FULL":
            return True
        error = error.__cause__ or error.__context__
    return False


class StorageFullError(UrnetError):
    """The server holds as many bytes of uploads as it may."""

    code = "server.uploads_full"


@dataclass
class Usage:
    """Decoding time that one request, sample or file has used, in seconds."""

    seconds: float = 0.0


class UploadStorage:
    """The temporary folder of one server.

    Args:
        max_bytes: bytes that may lie in it, of all requests and browsers together.
    """

    def __init__(self, max_bytes: int):
        self.max_bytes, self.used_bytes = max_bytes, 0
        self.root = Path(tempfile.gettempdir()) / f"{PREFIX}{secrets.token_hex(8)}"
        self._lock: FileLock | None = None
        self._counting = threading.Lock()

    def start(self) -> None:
        """Make it, and remove those whose servers are no longer alive."""
        _remove_orphans(self.root.parent)
        self._lock = lock_file(_lock_of(self.root))  # before there is a folder: one whose lock is free may be removed
        self.root.mkdir(mode=0o700)

    def stop(self) -> None:
        """Remove it."""
        shutil.rmtree(self.root, ignore_errors=True)
        if self._lock is not None:
            self._lock.release()
        if not self.root.exists():  # what Windows has open stays, and the next server to start removes it
            _lock_of(self.root).unlink(missing_ok=True)

    @property
    def is_scarce(self) -> bool:
        """Whether more than half of the room is taken."""
        return 2 * self.used_bytes > self.max_bytes

    def new_folder(self) -> Path:
        """A new folder in it."""
        self.root.mkdir(mode=0o700, exist_ok=True)  # systems tidy up what lies empty for days
        return Path(tempfile.mkdtemp(dir=self.root))

    def reserve(self, size: int) -> None:
        """Count bytes that are about to be written, or give them back with a number below zero.

        Raises:
            StorageFullError: there is no room for them.
        """
        with self._counting:
            if size > 0 and self.used_bytes + size > self.max_bytes:
                raise StorageFullError(
                    f"the uploads of all clients take {self.used_bytes:,} bytes, and {size:,} more are over "
                    f"the limit of {self.max_bytes:,} (upload_bytes); try again later, or ask who operates the server"
                )
            self.used_bytes += size


class UploadFolder:
    """What was put aside for one request, or for one sample of a page.

    Args:
        storage: where.

    Attributes:
        root: its folder.
        files: the folder in it with what was sent.
        usage: decoding time of all its files together.
    """

    def __init__(self, storage: UploadStorage):
        self.storage = storage
        self.root = storage.new_folder()
        self.files = self.root / "files"
        self.files.mkdir()
        self.usage = Usage()
        self._bytes, self._closed = 0, False
        self._taking = threading.Lock()

    def reserve(self, size: int) -> None:
        """Count bytes that are about to be written.

        Raises:
            StorageFullError: there is no room for them.
            FileNotFoundError: it was given up meanwhile.
        """
        with self._taking:
            if self._closed:
                raise FileNotFoundError(f"{self.root}: given up")
            self.storage.reserve(size)
            self._bytes += size

    @contextmanager
    def writing(self) -> Iterator[None]:
        """While another process writes into it, which goes on where this is closed: what it wrote is deleted then."""
        try:
            yield
        finally:
            with self._taking:
                closed = self._closed
            if closed:
                shutil.rmtree(self.root, ignore_errors=True)

    def close(self) -> None:
        """Delete it."""
        with self._taking:
            self._closed = True
            size, self._bytes = self._bytes, 0
            self.storage.reserve(-size)
        shutil.rmtree(self.root, ignore_errors=True)


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder and below it."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _remove_orphans(place: Path) -> None:
    """Remove the folders of servers that are no longer alive."""
    for folder in place.glob(f"{PREFIX}*"):
        lock = _lock_of(folder)
        try:
            if not (folder.is_dir() and _is_own(folder) and _is_own(lock)):
                continue
            owned = lock_file(lock)
            if owned is None:
                continue
            shutil.rmtree(folder, ignore_errors=True)
            owned.release()
            if not folder.exists():
                lock.unlink(missing_ok=True)
        except OSError:  # its owner lives, or another server removes it
            continue


def _is_own(path: Path) -> bool:
    """Whether it is this user's, and no link: temporary folders may be everybody's."""
    about = path.lstat()
    return not path.is_symlink() and (os.name != "posix" or about.st_uid == os.getuid())

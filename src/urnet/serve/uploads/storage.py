"""Temporary storage for uploaded files: one folder for each server, with a limit on the bytes of all clients together.

A server holds a lock beside its folder, which the system releases when the process ends in any way. A folder whose lock
is free belongs to a server that was killed; the next server to start removes it.
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
"""Start of the names of the temporary folders."""

DISK_FULL = "the server's disk is full, so this was not done; inform the operator of the server, and try again later"

_FULL_NUMBERS = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
"""Numbers of the errors that the disk, a file or a user's quota is full."""


def is_disk_full(error: BaseException | None) -> bool:
    """Return whether an error, or an error that caused it, says that the disk is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL_NUMBERS:
            return True
        if getattr(error, "sqlite_errorname", "") == "SQLITE_FULL":
            return True
        error = error.__cause__ or error.__context__
    return False


class StorageFullError(UrnetError):
    """The uploads of all clients together have reached their limit."""

    code = "server.uploads_full"


@dataclass
class Usage:
    """Decoding time of one request, sample or file so far, in seconds."""

    seconds: float = 0.0


class UploadStorage:
    """The temporary folder of one server.

    Args:
        max_bytes: limit on the bytes of all requests and browsers together.

    Attributes:
        root: the folder.
        used_bytes: bytes in use.
    """

    def __init__(self, max_bytes: int):
        self.max_bytes, self.used_bytes = max_bytes, 0
        self.root = Path(tempfile.gettempdir()) / f"{PREFIX}{secrets.token_hex(8)}"
        self._lock: FileLock | None = None
        self._counting = threading.Lock()

    def start(self) -> None:
        """Create the folder, and remove the folders of servers that were killed."""
        _remove_orphans(self.root.parent)
        self._lock = lock_file(_lock_path(self.root))  # before the folder: one without a lock may be removed
        self.root.mkdir(mode=0o700)

    def stop(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.root, ignore_errors=True)
        if self._lock is not None:
            self._lock.release()
        if not self.root.exists():  # Windows keeps open files; the next server removes them
            _lock_path(self.root).unlink(missing_ok=True)

    @property
    def is_scarce(self) -> bool:
        """Whether more than half of the limit is used."""
        return 2 * self.used_bytes > self.max_bytes

    def new_folder(self) -> Path:
        """Create a folder in the storage."""
        self.root.mkdir(mode=0o700, exist_ok=True)  # systems remove folders that stay empty for days
        return Path(tempfile.mkdtemp(dir=self.root))

    def reserve(self, size: int) -> None:
        """Reserve bytes before they are written; a negative number releases them.

        Raises:
            StorageFullError: the limit would be exceeded.
        """
        with self._counting:
            if size > 0 and self.used_bytes + size > self.max_bytes:
                raise StorageFullError(
                    f"the uploads of all clients take {self.used_bytes:,} bytes, and {size:,} more are over "
                    f"the limit of {self.max_bytes:,} (upload_bytes); try again later, or ask the operator"
                )
            self.used_bytes += size


class UploadFolder:
    """Folder of the uploaded files of one request, or of one sample of a page.

    Args:
        storage: storage of the server.

    Attributes:
        root: the folder.
        files: folder in it with the uploaded files.
        usage: decoding time of all files together.
    """

    def __init__(self, storage: UploadStorage):
        self.storage = storage
        self.root = storage.new_folder()
        self.files = self.root / "files"
        self.files.mkdir()
        self.usage = Usage()
        self._bytes, self._closed = 0, False
        self._closing = threading.Lock()

    def reserve(self, size: int) -> None:
        """Reserve bytes before they are written; a negative number releases them.

        Raises:
            StorageFullError: the limit would be exceeded.
            FileNotFoundError: the folder was closed meanwhile.
        """
        with self._closing:
            if self._closed:
                raise FileNotFoundError(f"{self.root}: closed")
            self.storage.reserve(size)
            self._bytes += size

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Guard writing by another process: if the folder is closed meanwhile, its new files are deleted as well."""
        try:
            yield
        finally:
            with self._closing:
                closed = self._closed
            if closed:
                shutil.rmtree(self.root, ignore_errors=True)

    def close(self) -> None:
        """Delete the folder, and release its bytes."""
        with self._closing:
            self._closed = True
            size, self._bytes = self._bytes, 0
            self.storage.reserve(-size)
        shutil.rmtree(self.root, ignore_errors=True)


def measure_bytes(folder: Path) -> int:
    """Sum the sizes of all files below a folder, in bytes."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _lock_path(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _remove_orphans(parent: Path) -> None:
    """Remove the folders of servers that were killed."""
    for folder in parent.glob(f"{PREFIX}*"):
        lock = _lock_path(folder)
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
        except OSError:  # its server runs, or another server removes it
            continue


def _is_own(path: Path) -> bool:
    """Return whether a path is this user's and not a link; other users may write to the temporary folder."""
    about = path.lstat()
    return not path.is_symlink() and (os.name != "posix" or about.st_uid == os.getuid())

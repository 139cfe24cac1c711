"""Locks between processes, on files. The system releases them when a process ends."""

import errno
import os
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}

IS_WINDOWS = os.name == "nt"


def lock_file(path: Path, *, wait: float = 0) -> FileLock | None:
    """Lock a file, and create it where it is missing.

    Args:
        path: the file.
        wait: maximum time to wait for another process, s.

    Returns:
        The held lock; None on a file system without working locks, where no file is left.

    Raises:
        Timeout: another process holds the lock.
        OSError: the file cannot be written.
    """
    # The substitute of filelock, a file whose existence is the lock, would outlive a killed process.
    lock = FileLock(path, timeout=wait, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        with suppress(OSError):
            path.unlink(missing_ok=True)
        return None
    return lock


def unlock(lock: FileLock) -> None:
    """Release a lock and remove its file, before the release where the system allows it."""
    with suppress(OSError):
        Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()
    with suppress(OSError):
        if IS_WINDOWS:
            Path(lock.lock_file).unlink(missing_ok=True)

"""Locks between processes, held on files and released by the system when a process ends."""

import errno
import os
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}


IS_WINDOWS = os.name == "nt"


def lock_file(path: Path, *, wait: float = 0) -> FileLock | None:
    """Lock a file, which is made where it is missing. The system releases the lock when this process ends.

    Args:
        path: the file.
        wait: seconds to wait for another process that holds it.

    Returns:
        The lock, held; none on a file system without working locks, where no file is left.

    Raises:
        Timeout: another process holds it.
        OSError: the file cannot be written.
    """
    # filelock's substitute for missing locks, a file that exists, outlives a killed process.
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
    """Remove the file while it is held where the system can, so that nobody locks a file that is about to go."""
    with suppress(OSError):
        Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()
    with suppress(OSError):
        if IS_WINDOWS:
            Path(lock.lock_file).unlink(missing_ok=True)

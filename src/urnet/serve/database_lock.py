"""One server for each database: a lock beside the file, which the system releases when its process ends."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from urnet.errors import StoreError


@contextmanager
def database_lock(database: Path) -> Iterator[None]:
    """Hold a database for one server.

    The lock is not the file, but a system lock on it. A file that a killed server left behind is therefore free.

    Args:
        database: the file, which need not exist yet.

    Raises:
        StoreError: another server that runs uses it, or the lock cannot be written.
    """
    path = database.resolve()
    if not path.parent.is_dir():
        raise StoreError(
            f"{database}: there is no folder {path.parent}; make it, or choose another place", code="store.no_folder"
        )
    file = path.with_name(f"{path.name}.lock")
    lock = FileLock(file, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise StoreError(
            f"{database}: another urnet server uses this database, and two would hand out the same cells. Use that "
            "server, or stop it, or give this one a file of its own with --database",
            code="store.in_use",
        ) from None
    except OSError as error:
        raise StoreError(
            f"{database}: its lock {file.name} cannot be written ({error.strerror}); allow writing in its folder",
            code="store.readonly",
        ) from None
    try:
        yield
    finally:
        with suppress(OSError):  # Windows keeps open files; the next server uses it again
            file.unlink()  # before the release, so that nobody else's lock is removed
        lock.release()

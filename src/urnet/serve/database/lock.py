"""One server for each database: a lock beside the file, which the system releases when its process ends."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import Timeout

from urnet.errors import StoreError
from urnet.files.locks import lock_file
from urnet.serve.database.network_drive import refuse_network_drive


@contextmanager
def lock_database(database: Path) -> Iterator[None]:
    """Hold a database for one server.

    The lock is not the file, but a system lock on it. A file that a killed server left behind is therefore free.

    Args:
        database: the file, which need not exist yet.

    Raises:
        StoreError: another server that runs uses it, the lock cannot be written, its file system has no locks,
            or it is on a network drive.
    """
    path = database.resolve()
    if not path.parent.is_dir():
        raise StoreError(
            f"{database}: there is no folder {path.parent}; make it, or choose another place", code="store.no_folder"
        )
    refuse_network_drive(database)  # where locks may not work
    file = path.with_name(f"{path.name}.lock")
    try:
        lock = lock_file(file)
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
    if lock is None:
        raise StoreError(
            f"{database}: its file system has no locks, without which SQLite may lose labels; choose a --database on a "
            "disk of this machine",
            code="store.no_locks",
        )
    try:
        yield
    finally:
        with suppress(OSError):  # Windows keeps open files; the next server uses it again
            file.unlink()  # before the release, so that nobody else's lock is removed
        lock.release()

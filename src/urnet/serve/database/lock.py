"""Lock that reserves a database for one server; the system releases it when the process ends."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import Timeout

from urnet.errors import StoreError
from urnet.files.locks import lock_file
from urnet.serve.database.network_drive import refuse_network_drive


@contextmanager
def lock_database(database: Path) -> Iterator[None]:
    """Reserve a database for one server.

    The system locks a file beside the database. A lock file that a killed server left behind is not locked.

    Args:
        database: the file, which need not exist yet.

    Raises:
        StoreError: another server uses the database, the lock cannot be written, the file system has no locks, or the
            database is on a network drive.
    """
    path = database.resolve()
    if not path.parent.is_dir():
        raise StoreError(
            f"{database}: the folder {path.parent} does not exist; create it, or choose another place",
            code="store.no_folder",
        )
    refuse_network_drive(database)  # locks may not work there
    file = path.with_name(f"{path.name}.lock")
    try:
        lock = lock_file(file)
    except Timeout:
        raise StoreError(
            f"{database}: another urnet server uses this database, and two servers would give the same cells to two "
            "people. Use that server, stop it, or choose another file with --database",
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
        with suppress(OSError):  # Windows keeps open files; the next server uses the file
            file.unlink()  # before the release, so that nobody else's lock is removed
        lock.release()

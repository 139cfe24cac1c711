"""Open a database file, create or upgrade its tables, and run transactions.

SQLite's `user_version` holds the version of the schema. An older file is upgraded in one transaction or stays as it
was. Every write is on the disk before its transaction returns (WAL, synchronous FULL).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from sqlalchemy.pool import QueuePool

from urnet.errors import StoreError
from urnet.serve.database.models import Base, Identity
from urnet.serve.database.names import person_key
from urnet.serve.database.network_drive import refuse_network_drive

SCHEMA_VERSION = 3
APPLICATION_ID = 0x75726E74
"""SQLite's `application_id` of our files: "urnt"."""

NEW_ID = "INSERT INTO identity (id) VALUES (lower(hex(randomblob(8))))"
UPGRADES: dict[int, tuple[str, ...]] = {
    1: (
        "ALTER TABLE claims ADD COLUMN session TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE labels ADD COLUMN session TEXT NOT NULL DEFAULT ''",
        "CREATE TABLE identity (id TEXT NOT NULL)",
        NEW_ID,
    ),
    2: (
        "CREATE TABLE classes (queue TEXT NOT NULL, position INTEGER NOT NULL, name TEXT NOT NULL, "
        "PRIMARY KEY (queue, position), UNIQUE (queue, name))",
    ),
}
"""Statements that upgrade a file of each older version to the next version."""

SAME_PERSON = "SAME_PERSON"
"""Collation under which two spellings of a person's name are equal."""

BUSY_SECONDS = 15.0
"""Longest wait for another transaction, in seconds."""

SQLITE_ERRORS = {
    "full": ("full", "make room on the disk"),
    "disk i/o": ("full", "make room on the disk, and check that it works"),
    "locked": ("locked", "close the other program that uses the file, or try again"),
    "readonly": ("readonly", "allow writing to the file and its folder"),
    "unable to open": ("readonly", "allow writing to its folder"),
    "queuepool": ("locked", "too many requests use the file at once; try again"),
}
"""Code and advice for each SQLite error, by a part of its message."""


class Database:
    """An open database file.

    Args:
        path: the file; created if absent.

    Attributes:
        id: random name of the database; not secret.

    Raises:
        StoreError: the file is not a database of urnet, is newer than this version, cannot be upgraded, written or
            locked, or lies on a network drive.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        if not self.path.parent.is_dir():
            raise StoreError(
                f"{path}: the folder {self.path.parent} does not exist; create it, or choose another place",
                code="store.no_folder",
            )
        refuse_network_drive(self.path)
        self.engine = _create_engine(self.path)
        try:
            with raise_store_errors(self.path):
                _prepare(self.engine, self.path)
            with self.begin_read() as session:
                self.id = session.scalars(select(Identity.id)).one()
        except BaseException:
            self.engine.dispose()
            raise

    def close(self) -> None:
        """Close the file."""
        self.engine.dispose()

    @contextmanager
    def begin_write(self) -> Iterator[Session]:
        """Begin a transaction that locks the file for writing; an error rolls all of it back.

        Raises:
            StoreError: the file cannot be written.
        """
        engine = self.engine.execution_options(urnet_writes=True)
        with raise_store_errors(self.path), Session(engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def begin_read(self) -> Iterator[Session]:
        """Begin a transaction that reads one state of the file.

        Raises:
            StoreError: the file cannot be read.
        """
        with raise_store_errors(self.path), Session(self.engine) as session, session.begin():
            yield session


@contextmanager
def raise_store_errors(path: Path) -> Iterator[None]:
    """Raise errors of SQLite as `StoreError`."""
    try:
        yield
    except UnicodeEncodeError as error:
        name = error.object[-100:].encode("ascii", "backslashreplace").decode()
        raise StoreError(
            f"{name}: the name has characters that are not valid Unicode, which the database cannot store; rename the "
            "file",
            code="store.not_text",
        ) from None
    except SQLAlchemyError as error:
        reason = " ".join(str(getattr(error, "orig", None) or error).split())[:160]
        unknown = ("unusable", "restore it from a copy, or choose another file")
        kind, advice = next((known for part, known in SQLITE_ERRORS.items() if part in reason.lower()), unknown)
        message = f"{path}: the database cannot be used ({reason}); {advice}"
        raise StoreError(message, code=f"store.{kind}") from None


def _prepare(engine: Engine, path: Path) -> None:
    """Create the tables, or upgrade those of an older version."""
    with engine.execution_options(urnet_writes=True).begin() as db:
        version = db.exec_driver_sql("PRAGMA user_version").scalar_one()
        application = db.exec_driver_sql("PRAGMA application_id").scalar_one()
        is_empty = db.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar_one() == 0
        if not is_empty and application != APPLICATION_ID:
            raise StoreError(
                f"{path}: a database of another program; choose another file", code="store.other_application"
            )
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"{path}: written by a newer urnet (schema {version}, this version reads up to {SCHEMA_VERSION}); "
                "update urnet",
                code="store.newer_schema",
            )
        if is_empty:
            Base.metadata.create_all(db)
            db.exec_driver_sql(NEW_ID)
            db.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")
        for old in range(SCHEMA_VERSION if is_empty else version, SCHEMA_VERSION):
            if old not in UPGRADES:
                raise StoreError(
                    f"{path}: schema {old} is too old; upgrade the file with an older urnet first",
                    code="store.older_schema",
                )
            for statement in UPGRADES[old]:
                db.exec_driver_sql(statement)
        db.exec_driver_sql(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _compare_people(one: str, other: str) -> int:
    first, second = person_key(one), person_key(other)
    return (first > second) - (first < second)


def _create_engine(path: Path) -> Engine:
    engine = create_engine(
        f"sqlite:///{path}", poolclass=QueuePool, connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False}
    )

    @event.listens_for(engine, "connect")
    def connect(connection: Any, record: object) -> None:
        connection.create_collation(SAME_PERSON, _compare_people)
        connection.isolation_level = None  # `begin` below starts every transaction, also those that change the schema
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def begin(db: Connection) -> None:
        # A writer takes the lock at once: two writers that had read first would block each other.
        db.exec_driver_sql("BEGIN IMMEDIATE" if db.get_execution_options().get("urnet_writes") else "BEGIN")

    return engine

"""The tables of the web application's database, and how a file is opened: made, upgraded whole, or refused.

The schema's version is SQLite's `user_version`. A file of an older one is upgraded in one transaction, or left as it
was.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    event,
)
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import QueuePool

from urnet.errors import StoreError
from urnet.serve.database.names import person_key
from urnet.serve.database.network_drive import refuse_network_drive

SCHEMA_VERSION = 2
APPLICATION_ID = 0x75726E74  # "urnt": tells our files from other SQLite files
NEW_ID = "INSERT INTO identity (id) VALUES (lower(hex(randomblob(8))))"
UPGRADES: dict[int, tuple[str, ...]] = {
    1: (
        "ALTER TABLE claims ADD COLUMN session TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE labels ADD COLUMN session TEXT NOT NULL DEFAULT ''",
        "CREATE TABLE identity (id TEXT NOT NULL)",
        NEW_ID,
    )
}
"""Statements that make a file of each older version one of the next, all in one transaction."""

SAME_PERSON = "SAME_PERSON"
"""Collation under which two spellings of a person's name are equal."""

BUSY_SECONDS = 15.0
"""How long one waits for another's transaction."""

metadata = MetaData()
identity = Table("identity", metadata, Column("id", Text, nullable=False))
"""Random name of the database, in one row; not secret."""
cells = Table(
    "cells",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("queue", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("donor", Text, nullable=False, default=""),
    Column("proposed", Text, nullable=False, default=""),
    Column("confidence", Float),
    Column("place", Float, nullable=False, default=0.0),
    UniqueConstraint("queue", "path"),
    Index("cells_in_order", "queue", "place", "id"),
)
claims = Table(
    "claims",
    metadata,
    Column("cell", ForeignKey("cells.id"), primary_key=True),
    Column("who", Text, nullable=False),
    Column("until", Float, nullable=False),
    Column("session", Text, nullable=False, server_default=""),
)
labels = Table(
    "labels",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("cell", ForeignKey("cells.id"), nullable=False),
    Column("label", Text, nullable=False),
    Column("who", Text, nullable=False),
    Column("at", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("undone", Text),
    Column("session", Text, nullable=False, server_default=""),
)
Index("one_label_a_person", labels.c.cell, labels.c.who, unique=True, sqlite_where=labels.c.undone.is_(None))
images = Table(
    "images",
    metadata,
    Column("sha256", Text, primary_key=True),
    Column("suffix", Text, nullable=False),
    Column("content", LargeBinary, nullable=False),
)
predictions = Table(
    "predictions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("sample", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("image", ForeignKey("images.sha256")),
    Column("predicted", Text, nullable=False),
    Column("told", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("at", Text, nullable=False),
    Index("predictions_of_a_sample", "sample", "id"),
)
corrections = Table(
    "corrections",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("prediction", ForeignKey("predictions.id"), nullable=False),
    Column("label", Text, nullable=False),
    Column("who", Text, nullable=False),
    Column("at", Text, nullable=False),
    Column("undone", Text),
    Index("corrections_of_a_prediction", "prediction"),
)


def open_database(path: Path) -> Engine:
    """Open the file, or make it where there is none.

    Raises:
        StoreError: no such file of ours, one of a newer program, one that cannot be upgraded, written or locked, or one
            on a network drive.
    """
    if not path.parent.is_dir():
        raise StoreError(f"{path}: there is no folder {path.parent}; make it, or choose another place")
    refuse_network_drive(path)
    engine = _engine(path)
    try:
        with raise_store_errors(path):
            _prepare(engine, path)
    except BaseException:
        engine.dispose()
        raise
    return engine


SQLITE_ERRORS = {
    "full": ("full", "make room on the disk"),
    "disk i/o": ("full", "make room on the disk, and check that it works"),
    "locked": ("locked", "another program holds it; end that, or try again"),
    "readonly": ("readonly", "allow writing it and its folder"),
    "unable to open": ("readonly", "allow writing in its folder"),
    "queuepool": ("locked", "others wait for it too; try again"),
}
"""By a part of SQLite's message: kind of the error's code, and what to do."""


@contextmanager
def raise_store_errors(path: Path) -> Iterator[None]:
    """Raise what SQLite finds wrong as `StoreError`."""
    try:
        yield
    except UnicodeEncodeError as error:
        name = error.object[-100:].encode("ascii", "backslashreplace").decode()
        raise StoreError(
            f"{name}: the name has letters that are no Unicode, which the database cannot hold; rename the file",
            code="store.not_text",
        ) from None
    except SQLAlchemyError as error:
        reason = " ".join(str(getattr(error, "orig", None) or error).split())[:160]
        other = ("unusable", "restore it, or choose another file")
        kind, hint = next((told for part, told in SQLITE_ERRORS.items() if part in reason.lower()), other)
        message = f"{path}: the database cannot be used ({reason}); {hint}"
        raise StoreError(message, code=f"store.{kind}") from None


def _prepare(engine: Engine, path: Path) -> None:
    """Make the tables, or upgrade what is there."""
    with engine.execution_options(urnet_writes=True).begin() as db:
        version = db.exec_driver_sql("PRAGMA user_version").scalar_one()
        application = db.exec_driver_sql("PRAGMA application_id").scalar_one()
        empty = db.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar_one() == 0
        if not empty and application != APPLICATION_ID:
            raise StoreError(f"{path}: a database, but none of urnet; choose another file")
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"{path}: written by a newer urnet (schema {version}, this one reads {SCHEMA_VERSION}); update urnet"
            )
        if empty:
            metadata.create_all(db)
            db.exec_driver_sql(NEW_ID)
            db.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")
        for old in range(SCHEMA_VERSION if empty else version, SCHEMA_VERSION):
            if old not in UPGRADES:
                raise StoreError(f"{path}: schema {old} is too old to be upgraded; use an older urnet first")
            for statement in UPGRADES[old]:
                db.exec_driver_sql(statement)
        db.exec_driver_sql(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _compare_people(one: str, other: str) -> int:
    first, second = person_key(one), person_key(other)
    return (first > second) - (first < second)


def _engine(path: Path) -> Engine:
    engine = create_engine(
        f"sqlite:///{path}", poolclass=QueuePool, connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False}
    )

    @event.listens_for(engine, "connect")
    def connect(connection: Any, record: object) -> None:
        connection.create_collation(SAME_PERSON, _compare_people)
        connection.isolation_level = None  # transactions are begun below, those that change the schema too
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def begin(db: Connection) -> None:
        # Who is going to write takes the lock at once: two who had read first could both not go on.
        db.exec_driver_sql("BEGIN IMMEDIATE" if db.get_execution_options().get("urnet_writes") else "BEGIN")

    return engine

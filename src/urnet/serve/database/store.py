"""What people told the web application, in one SQLite file: `labels`, and `reviews` of what a model said.

What was told is on the disk before the page goes on (WAL, synchronous FULL), so that a killed server loses at most the
key press in flight. Nothing is ever overwritten: what is taken back keeps its row and the time of that.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, select

from urnet.serve.database.labels import LabelStore
from urnet.serve.database.models import identity, open_database, raise_store_errors
from urnet.serve.database.reviews import ReviewStore


class Store:
    """The file.

    Args:
        path: of it; made where there is none.

    Attributes:
        labelling: queues of cells that wait for labels.
        review: predictions and their corrections.
        id: random name of the database; not secret.

    Raises:
        StoreError: no such file of ours, one of a newer program, one that cannot be upgraded, written or locked, or one
            on a network drive.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self.engine = open_database(self.path)
        self.labels = LabelStore(self)
        self.reviews = ReviewStore(self)
        with self.reading() as db:
            self.id = db.execute(select(identity.c.id)).scalar_one()

    def close(self) -> None:
        """Let go of the file."""
        self.engine.dispose()

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that is kept whole or not at all; nobody else writes meanwhile.

        Raises:
            StoreError: the file cannot be written.
        """
        with raise_store_errors(self.path), self.engine.execution_options(urnet_writes=True).begin() as db:
            yield db

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one state of the file."""
        with raise_store_errors(self.path), self.engine.begin() as db:
            yield db

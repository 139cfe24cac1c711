"""Labels and reviews in one SQLite file."""

from pathlib import Path

from urnet.serve.database.connection import Database
from urnet.serve.database.labels import LabelStore
from urnet.serve.database.reviews import ReviewStore


class Store(Database):
    """The database of the web application.

    A label that is undone or replaced keeps its row. Only the renaming of a class changes labels.

    Args:
        path: the file; created if absent.

    Attributes:
        labels: labelling queues and their labels.
        reviews: predictions and their corrections.

    Raises:
        StoreError: see `Database`.
    """

    def __init__(self, path: Path):
        super().__init__(path)
        self.labels = LabelStore(self)
        self.reviews = ReviewStore(self)

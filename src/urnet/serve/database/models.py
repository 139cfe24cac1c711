"""Tables of the database with labels and reviews, as typed SQLAlchemy models.

Attributes carry standard names; the columns keep the names that files of earlier versions have.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Float, ForeignKey, Index, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

NOT_A_CELL = "not a cell"
"""Label of a crop that shows no cell."""

SKIPPED = ""
"""Label of a cell that a labeller skipped."""


@dataclass(frozen=True)
class ReplacedLabel:
    """A label or correction that another one replaced, or that was undone; its row stays in the database.

    Attributes:
        label: the label.
        person: name of the labeller or reviewer.
        at: time in UTC.
    """

    label: str
    person: str
    at: str


def utc_now() -> str:
    """Return the current time in UTC, as the database stores it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Base(DeclarativeBase):
    """Base of all tables."""

    type_annotation_map = {str: Text, float: Float}  # noqa: RUF012


class Identity(Base):
    """Random name of the database, in one row; not secret."""

    __tablename__ = "identity"
    id: Mapped[str] = mapped_column()
    __mapper_args__ = {"primary_key": [id]}  # noqa: RUF012


class Cell(Base):
    """A cell of a labelling queue.

    Attributes:
        queue: name of the queue.
        path: address of the crop.
        proposed: label that the cells table proposes; "" without one.
        confidence: confidence of the proposal.
        place: position in the queue.
    """

    __tablename__ = "cells"
    id: Mapped[int] = mapped_column(primary_key=True)
    queue: Mapped[str]
    path: Mapped[str]
    donor: Mapped[str] = mapped_column(default="")
    proposed: Mapped[str] = mapped_column(default="")
    confidence: Mapped[float | None]
    place: Mapped[float] = mapped_column(default=0.0)
    __table_args__ = (UniqueConstraint("queue", "path"), Index("cells_in_order", "queue", "place", "id"))


class QueueClass(Base):
    """A class that labellers of a queue choose from, where no model defines the classes."""

    __tablename__ = "classes"
    queue: Mapped[str] = mapped_column(primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    __table_args__ = (UniqueConstraint("queue", "name"),)


class Claim(Base):
    """Reservation of a cell for one browser session.

    Attributes:
        until: end of the reservation, in seconds since the epoch.
    """

    __tablename__ = "claims"
    cell: Mapped[int] = mapped_column(ForeignKey("cells.id"), primary_key=True)
    labeller: Mapped[str] = mapped_column("who")
    until: Mapped[float]
    session: Mapped[str] = mapped_column(server_default="")


class Label(Base):
    """A label that a person gave to a cell.

    Attributes:
        model: digest of the model whose proposal was shown; "" without one.
        version: version of urnet.
        undone: time at which the label was undone or replaced; none while it is valid.
    """

    __tablename__ = "labels"
    id: Mapped[int] = mapped_column(primary_key=True)
    cell: Mapped[int] = mapped_column(ForeignKey("cells.id"))
    label: Mapped[str]
    labeller: Mapped[str] = mapped_column("who")
    at: Mapped[str]
    model: Mapped[str]
    version: Mapped[str]
    undone: Mapped[str | None]
    session: Mapped[str] = mapped_column(server_default="")


Index("one_label_a_person", Label.cell, Label.labeller, unique=True, sqlite_where=Label.undone.is_(None))


class Image(Base):
    """An image file that is stored for review."""

    __tablename__ = "images"
    sha256: Mapped[str] = mapped_column(primary_key=True)
    suffix: Mapped[str]
    content: Mapped[bytes]


class Prediction(Base):
    """A prediction that is stored for review.

    Attributes:
        image: SHA-256 of the stored image, if any.
        details: probabilities, rejection and prediction set, as JSON.
        model: digest of the model.
    """

    __tablename__ = "predictions"
    id: Mapped[int] = mapped_column(primary_key=True)
    sample: Mapped[str]
    path: Mapped[str]
    image: Mapped[str | None] = mapped_column(ForeignKey("images.sha256"))
    predicted: Mapped[str]
    details: Mapped[str] = mapped_column("told")
    model: Mapped[str]
    version: Mapped[str]
    at: Mapped[str]
    __table_args__ = (Index("predictions_of_a_sample", "sample", "id"),)


class Correction(Base):
    """A reviewer's correction or confirmation of a prediction.

    Attributes:
        undone: time at which it was undone or replaced; none while it is valid.
    """

    __tablename__ = "corrections"
    id: Mapped[int] = mapped_column(primary_key=True)
    prediction: Mapped[int] = mapped_column(ForeignKey("predictions.id"))
    label: Mapped[str]
    reviewer: Mapped[str] = mapped_column("who")
    at: Mapped[str]
    undone: Mapped[str | None]
    __table_args__ = (Index("corrections_of_a_prediction", "prediction"),)

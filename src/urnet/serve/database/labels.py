"""Labelling queues: hand out cells, store labels, measure the agreement of labellers."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, exists, func, not_, select, update
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.orm import Session

from urnet.errors import StoreError
from urnet.files.csv_tables import write_csv
from urnet.names import is_missing, name_key, normalize_name
from urnet.serve.database.agreement import Agreement, measure_agreement
from urnet.serve.database.connection import SAME_PERSON, Database
from urnet.serve.database.models import NOT_A_CELL, SKIPPED, Cell, Claim, Label, QueueClass, ReplacedLabel, utc_now
from urnet.serve.database.names import MAX_NAME_LENGTH, clean_name, make_single_line, person_key
from urnet.version import __version__

CLAIM_SECONDS = 300.0
"""Time for which a cell is reserved for a browser session, in seconds."""

CLAIMED_CODE = "store.claimed"
"""Code of the error that another session has claimed a cell."""

MAX_CLASSES = 30
"""Most classes of a queue: each one needs a key."""


@dataclass(frozen=True)
class Labeller:
    """A person who labels, in one browser session: two browsers under one name get different cells.

    Attributes:
        name: name of the person.
        session: identifier of the browser session.
    """

    name: str
    session: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", clean_name(self.name))


@dataclass(frozen=True)
class QueuedCell:
    """A cell to be labelled.

    Attributes:
        id: number in the database.
        path: address of the crop.
        proposed: proposed label; "" without one.
        confidence: confidence of the proposal.
    """

    id: int
    path: str
    proposed: str
    confidence: float | None


@dataclass(frozen=True)
class LabelResult:
    """Other labels of a cell that was just labelled.

    Attributes:
        replaced: earlier label by the same person, undone by the new one.
        others: other people whose labels are valid.
    """

    replaced: ReplacedLabel | None
    others: tuple[str, ...]


@dataclass(frozen=True)
class UndoneLabel:
    """A label that was undone.

    Attributes:
        cell: its cell.
        label: the label.
        claimed_by: person who has claimed the cell meanwhile; "" where the cell is claimed for the labeller again.
    """

    cell: QueuedCell
    label: str
    claimed_by: str = ""


@dataclass(frozen=True)
class Progress:
    """Progress of a queue.

    Attributes:
        cells: number of cells.
        labelled: number of cells that were labelled or skipped.
        labels: number of cells by label.
        people: number of labels by labeller.
    """

    cells: int
    labelled: int
    labels: dict[str, int]
    people: dict[str, int]


class LabelStore:
    """Queues of cells, each of which goes to one browser session at a time.

    Args:
        database: the database.
    """

    def __init__(self, database: Database):
        self.database = database

    def add_cells(self, queue: str, rows: Iterable[Mapping[str, Any]]) -> int:
        """Add cells to the end of a queue; known cells keep their labels and places.

        Args:
            queue: name of the queue, such as the path of the cells table.
            rows: each with `path`, and where known `donor`, `proposed`, `confidence`.

        Returns:
            The number of new cells.
        """
        with self.database.begin_write() as session:
            before = _count_cells(session, queue)
            values = [
                {
                    "queue": queue,
                    "path": row["path"],
                    "donor": row.get("donor") or "",
                    "proposed": row.get("proposed") or "",
                    "confidence": None if row.get("confidence") in ("", None) else float(row["confidence"]),
                    "place": float(place),
                }
                for place, row in enumerate(rows, before)
            ]
            if values:
                session.execute(upsert(Cell).on_conflict_do_nothing(), values)
            return _count_cells(session, queue) - before

    def list_labelled_queues(self) -> list[str]:
        """List the queues that have labels."""
        labelled = select(Cell.queue).join(Label, Label.cell == Cell.id).where(_is_valid()).distinct()
        with self.database.begin_read() as session:
            return sorted(session.scalars(labelled))

    def read_classes(self, queue: str) -> list[str]:
        """Read the classes that labellers of a queue choose from, in order; empty before they are set."""
        with self.database.begin_read() as session:
            return _read_classes(session, queue)

    def add_classes(self, queue: str, names: Sequence[str]) -> list[str]:
        """Add classes that labellers of a queue choose from, after those that it has.

        Args:
            queue: name of the queue.
            names: the new classes, in the order of their keys.

        Returns:
            All classes as stored: single lines without control characters.

        Raises:
            StoreError: a name is not allowed or given twice, or there are too many classes.
        """
        with self.database.begin_write() as session:
            return _write_classes(session, queue, [*_read_classes(session, queue), *names])

    def remove_class(self, queue: str, name: str) -> list[str]:
        """Remove a class that no label uses; do nothing if there is no such class.

        Returns:
            The classes that are left.

        Raises:
            StoreError: some cells have this label.
        """
        with self.database.begin_write() as session:
            is_used = exists().where(Label.label == name, Label.cell == Cell.id, Cell.queue == queue, _is_valid())
            if session.scalar(select(is_used)):
                raise StoreError(
                    f"{name}: some cells have this label, so the class cannot be removed; keep it, or undo its labels "
                    "first",
                    code="labels.class_in_use",
                )
            return _write_classes(session, queue, [other for other in _read_classes(session, queue) if other != name])

    def rename_class(self, queue: str, name: str, new_name: str) -> list[str]:
        """Rename a class of a queue, also in its labels.

        Args:
            queue: name of the queue.
            name: present name of the class.
            new_name: its new name.

        Returns:
            The classes as stored.

        Raises:
            StoreError: there is no such class, or the new name is not allowed or given twice.
        """
        with self.database.begin_write() as session:
            names = _read_classes(session, queue)
            if name not in names:
                raise StoreError(
                    f"{name}: there is no such class; there are {', '.join(names)}", code="labels.class_unknown"
                )
            renamed = _write_classes(session, queue, [new_name if other == name else other for other in names])
            cleaned, of_queue = renamed[names.index(name)], select(Cell.id).where(Cell.queue == queue)
            session.execute(update(Label).where(Label.label == name, Label.cell.in_(of_queue)).values(label=cleaned))
        return renamed

    def set_order(self, queue: str, paths: Sequence[str]) -> None:
        """Move cells to the front of a queue, in this order; the others follow in their present order."""
        with self.database.begin_write() as session:
            later = update(Cell).where(Cell.queue == queue).values(place=func.abs(Cell.place) + len(paths))
            session.execute(later, execution_options={"synchronize_session": False})
            numbers = {
                row.path: row.id for row in session.execute(select(Cell.path, Cell.id).where(Cell.queue == queue))
            }
            places = [{"id": numbers[path], "place": float(k)} for k, path in enumerate(paths) if path in numbers]
            if places:
                session.execute(update(Cell), places)

    def list_next(self, queue: str, count: int) -> list[str]:
        """List the paths of the next cells without labels and claims, in the order of the queue."""
        is_labelled = exists().where(Label.cell == Cell.id, _is_valid())
        is_claimed = exists().where(Claim.cell == Cell.id, Claim.until > time.time())
        following = (
            select(Cell.path)
            .where(Cell.queue == queue, not_(is_labelled), not_(is_claimed))
            .order_by(Cell.place, Cell.id)
            .limit(count)
        )
        with self.database.begin_read() as session:
            return list(session.scalars(following))

    def find_path(self, queue: str, cell: int) -> str | None:
        """Return the path of a cell by its number; none where the queue has no such cell."""
        with self.database.begin_read() as session:
            return session.scalar(select(Cell.path).where(Cell.queue == queue, Cell.id == cell))

    def claim(
        self, queue: str, labeller: Labeller, count: int = 1, *, second: bool = False, seconds: float = CLAIM_SECONDS
    ) -> list[QueuedCell]:
        """Claim the next cells for a browser session; no other session gets them before the claim ends.

        Cells that the session has claimed already come first, so that a reloaded page continues where it was.

        Args:
            queue: name of the queue.
            labeller: person and session.
            count: number of cells.
            second: claim cells that exactly one other person labelled, to measure agreement, instead of new cells.
            seconds: duration of the claim.
        """
        now = time.time()
        is_claimed = and_(Claim.cell == Cell.id, Claim.until > now)
        by_others = exists().where(is_claimed, Claim.session != labeller.session)
        by_this_session = exists().where(is_claimed, Claim.session == labeller.session)
        is_labelled_by_person = exists().where(Label.cell == Cell.id, _is_valid(), _is_by(labeller))
        labels = select(func.count()).where(Label.cell == Cell.id, _is_valid()).correlate(Cell).scalar_subquery()
        following = (
            select(Cell)
            .where(Cell.queue == queue, not_(by_others), not_(is_labelled_by_person), labels == int(second))
            .order_by(not_(by_this_session), Cell.place, Cell.id)
            .limit(count)
        )
        with self.database.begin_write() as session:
            claimed = [_to_queued(cell) for cell in session.scalars(following)]
            for cell in claimed:
                _claim(session, cell.id, labeller, now + seconds)
        return claimed

    def release(self, session_id: str) -> None:
        """Release all cells that a browser session has claimed."""
        with self.database.begin_write() as session:
            session.execute(delete(Claim).where(Claim.session == session_id))

    def release_all(self) -> None:
        """Release all claimed cells: sessions end with the server."""
        with self.database.begin_write() as session:
            session.execute(delete(Claim))

    def label(self, cell: int, labeller: Labeller, label: str, *, model: str = "") -> LabelResult:
        """Store a label; an earlier label by the same person is undone, and its row stays.

        Args:
            cell: number of the cell.
            labeller: person and session.
            label: a class, `NOT_A_CELL`, or `SKIPPED`.
            model: digest of the model whose proposal was shown, if any.

        Raises:
            StoreError: the cell does not exist, or another session has claimed it.
        """
        at = utc_now()
        is_of_cell = and_(Label.cell == cell, _is_valid())
        with self.database.begin_write() as session:
            if session.get(Cell, cell) is None:
                raise StoreError(f"cell {cell}: not in {self.database.path}", code="store.no_cell")
            if claimed_by := _find_claim(session, cell, labeller):
                raise StoreError(f"cell {cell}: {claimed_by} has claimed it; label the next one", code=CLAIMED_CODE)
            before = session.scalars(select(Label).where(is_of_cell).order_by(Label.id)).all()
            own = [row for row in before if person_key(row.labeller) == person_key(labeller.name)]
            for row in own:
                row.undone = at
            session.flush()  # only one valid label of each person
            session.add(
                Label(
                    cell=cell,
                    label=label,
                    labeller=labeller.name,
                    at=at,
                    model=model,
                    version=__version__,
                    session=labeller.session,
                )
            )
            session.execute(delete(Claim).where(Claim.cell == cell))
        replaced = ReplacedLabel(own[-1].label, own[-1].labeller, own[-1].at) if own else None
        return LabelResult(replaced, tuple(row.labeller for row in before if row not in own))

    def undo(self, queue: str, labeller: Labeller, *, seconds: float = CLAIM_SECONDS) -> UndoneLabel | None:
        """Undo the last label that a person gave in this session, or in a session that has ended.

        A session with claimed cells is still open; its labels are undone there.

        Returns:
            The label and its cell, claimed again; none where there is nothing to undo.
        """
        now = time.time()
        is_open_elsewhere = exists().where(
            Claim.session == Label.session, Claim.session != labeller.session, Claim.until > now
        )
        last = (
            select(Label, Cell)
            .join(Cell, Label.cell == Cell.id)
            .where(Cell.queue == queue, _is_valid(), _is_by(labeller), not_(is_open_elsewhere))
            .order_by(Label.session != labeller.session, Label.id.desc())
        )
        with self.database.begin_write() as session:
            row = session.execute(last).first()
            if row is None:
                return None
            given, cell = row
            given.undone = utc_now()
            claimed_by = _find_claim(session, cell.id, labeller)
            if not claimed_by:
                _claim(session, cell.id, labeller, now + seconds)
        return UndoneLabel(_to_queued(cell), given.label, claimed_by)

    def progress(self, queue: str) -> Progress:
        """Measure the progress of a queue."""
        given = self._read_labels(queue)
        names = _latest_spellings(given)
        with self.database.begin_read() as session:
            cells = _count_cells(session, queue)
        return Progress(
            cells=cells,
            labelled=len({row.path for row in given}),
            labels=dict(Counter(row.label for row in given if row.label != SKIPPED).most_common()),
            people=dict(Counter(names[person_key(row.labeller)] for row in given).most_common()),
        )

    def agreement(self, queue: str) -> list[Agreement]:
        """Compute the agreement of each two labellers who labelled the same cells."""
        given = self._read_labels(queue)
        names = _latest_spellings(given)
        labels: dict[str, dict[str, str]] = defaultdict(dict)
        for row in given:
            if row.label != SKIPPED:
                labels[names[person_key(row.labeller)]][row.path] = row.label
        return measure_agreement(labels)

    def export_labels(self, queue: str, out: Path) -> tuple[int, int]:
        """Write a cells table of the labelled cells, ready for training.

        Crops that are not a cell and cells with disagreeing labels are left out.

        Args:
            queue: name of the queue.
            out: the CSV; replaced if it exists.

        Returns:
            The number of cells that were written, and the number left out because labellers disagree.
        """
        by_path: dict[str, list[Any]] = defaultdict(list)
        for row in self._read_labels(queue):
            if row.label != SKIPPED:
                by_path[row.path].append(row)
        rows, disagreeing = [], 0
        for path, given in by_path.items():
            labels = {row.label for row in given}
            disagreeing += len(labels) > 1
            if len(labels) == 1 and NOT_A_CELL not in labels:
                labellers = "|".join(sorted({row.labeller for row in given}))
                rows.append((path, given[0].label, given[0].donor, labellers, max(row.at for row in given)))
        write_csv(out, ("path", "label", "donor", "labelled_by", "labelled_at"), rows)
        return len(rows), disagreeing

    def _read_labels(self, queue: str) -> Sequence[Any]:
        """Read all valid labels of a queue, in the order in which they were given."""
        joined = (
            select(Cell.path, Cell.donor, Label.label, Label.labeller, Label.at)
            .join(Cell, Label.cell == Cell.id)
            .where(Cell.queue == queue, _is_valid())
            .order_by(Label.id)
        )
        with self.database.begin_read() as session:
            return session.execute(joined).all()


def _is_valid() -> ColumnElement[bool]:
    """Return whether a label is not undone."""
    return Label.undone.is_(None)


def _is_by(labeller: Labeller) -> ColumnElement[bool]:
    """Return whether a label was given by this person, however the name is spelled."""
    return Label.labeller.collate(SAME_PERSON) == labeller.name


def _count_cells(session: Session, queue: str) -> int:
    return session.scalars(select(func.count()).select_from(Cell).where(Cell.queue == queue)).one()


def _read_classes(session: Session, queue: str) -> list[str]:
    ordered = select(QueueClass.name).where(QueueClass.queue == queue).order_by(QueueClass.position)
    return list(session.scalars(ordered))


def clean_class_names(names: Sequence[str]) -> list[str]:
    """Clean the names of all classes of a queue for storage.

    Returns:
        The names as single lines without control characters.

    Raises:
        StoreError: a name is empty, too long, reserved, or a text for a missing label; two names differ only in
            spelling; or there are too many classes.
    """
    cleaned = [make_single_line(name, MAX_NAME_LENGTH) for name in names]
    keys = [name_key(name) for name in cleaned]
    for given, name, key in zip(names, cleaned, keys, strict=True):
        if not key:
            raise StoreError("a class has an empty name; enter a name, or remove the class", code="labels.class_name")
        if len(normalize_name(given)) > MAX_NAME_LENGTH:
            raise StoreError(
                f"{name}: the name of a class has at most {MAX_NAME_LENGTH} characters, and this one has "
                f"{len(normalize_name(given))}; shorten it",
                code="labels.class_name",
            )
        if key in (NOT_A_CELL, "skipped"):
            raise StoreError(f"{name}: every queue has this label already; remove the class", code="labels.class_name")
        if is_missing(name):
            raise StoreError(
                f"{name}: in a cells table this means that the label is missing; choose another name",
                code="labels.class_name",
            )
        if keys.count(key) > 1:
            raise StoreError(f"{name}: this class is given twice; remove one", code="labels.class_duplicate")
    if len(names) > MAX_CLASSES:
        raise StoreError(
            f"{len(names)} classes, but a queue has at most {MAX_CLASSES}; merge or remove some",
            code="labels.too_many_classes",
        )
    return cleaned


def _write_classes(session: Session, queue: str, names: Sequence[str]) -> list[str]:
    """Replace the classes of a queue; return them as stored."""
    cleaned = clean_class_names(names)
    session.execute(delete(QueueClass).where(QueueClass.queue == queue))
    session.add_all(QueueClass(queue=queue, position=k, name=name) for k, name in enumerate(cleaned))
    return cleaned


def _claim(session: Session, cell: int, labeller: Labeller, until: float) -> None:
    values = {"labeller": labeller.name, "session": labeller.session, "until": until}
    claim = upsert(Claim).values(cell=cell, **values)
    columns = {"who": labeller.name, "session": labeller.session, "until": until}
    session.execute(claim.on_conflict_do_update(index_elements=["cell"], set_=columns))


def _find_claim(session: Session, cell: int, labeller: Labeller) -> str:
    """Return who has claimed a cell in another session; "" for nobody."""
    name = session.scalar(
        select(Claim.labeller).where(Claim.cell == cell, Claim.until > time.time(), Claim.session != labeller.session)
    )
    if name is None:
        return ""
    return f"{name} in another browser" if person_key(name) == person_key(labeller.name) else name


def _latest_spellings(given: Iterable[Any]) -> dict[str, str]:
    """Return the latest spelling of each labeller's name."""
    return {person_key(row.labeller): row.labeller for row in given}


def _to_queued(cell: Cell) -> QueuedCell:
    return QueuedCell(cell.id, cell.path, cell.proposed, cell.confidence)

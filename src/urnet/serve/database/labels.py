"""Labelling queues: hand out cells, keep labels, measure agreement between people."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Connection, and_, bindparam, exists, func, insert, not_, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from urnet.errors import StoreError
from urnet.files.csv_tables import write_csv
from urnet.serve.database.models import SAME_PERSON, cells, claims, labels
from urnet.serve.database.names import NOT_A_CELL, SKIPPED, ReplacedLabel, clean_name, person_key, utc_now
from urnet.version import __version__

if TYPE_CHECKING:
    from urnet.serve.database.store import Store

CLAIM_SECONDS = 300.0
"""How long a cell that was handed to a browser session is kept from others."""

CLAIMED_CODE = "store.claimed"
"""Code of the error that another session has claimed a cell."""


@dataclass(frozen=True)
class Labeller:
    """Who labels, and in which browser: two browsers under one name get different cells.

    Attributes:
        who: name of the person.
        session: identifier of the browser session.
    """

    who: str
    session: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "who", clean_name(self.who))


@dataclass(frozen=True)
class QueuedCell:
    """A cell that waits for a label.

    Attributes:
        id: its number in the store.
        path: its address.
        proposed: the label that was proposed, if any.
        confidence: of the proposal.
    """

    id: int
    path: str
    proposed: str
    confidence: float | None


@dataclass(frozen=True)
class LabelResult:
    """What else is said of a cell that was labelled.

    Attributes:
        replaced: the same person's earlier label, taken back by this one; none where there was none.
        others: other people whose labels stand.
    """

    replaced: ReplacedLabel | None
    others: tuple[str, ...]


@dataclass(frozen=True)
class UndoneLabel:
    """A label that was taken back.

    Attributes:
        cell: its cell.
        label: the label.
        reader: the person at whose screen the cell is meanwhile; "" where it is claimed again for who took it back.
    """

    cell: QueuedCell
    label: str
    reader: str = ""


@dataclass(frozen=True)
class Progress:
    """How far a queue is.

    Attributes:
        cells: in it.
        labelled: that somebody labelled or skipped.
        labels: how often each label was given.
        people: labels by each person.
    """

    cells: int
    labelled: int
    labels: dict[str, int]
    people: dict[str, int]


@dataclass(frozen=True)
class Agreement:
    """How far two labellers agree on the cells that both labelled.

    Attributes:
        first, second: who.
        cells: that both labelled.
        agreed: with the same label.
        kappa: Cohen's kappa; none where there is nothing to tell from.
    """

    first: str
    second: str
    cells: int
    agreed: int
    kappa: float | None


class LabelStore:
    """Queues of cells, each of which goes to one browser session at a time.

    Args:
        store: where they are kept.
    """

    def __init__(self, store: "Store"):
        self.store = store

    def add_cells(self, queue: str, rows: Iterable[Mapping[str, Any]]) -> int:
        """Put cells into a queue; those that are there keep their labels.

        Args:
            queue: its name, such as the path of the cells table.
            rows: each with `path`, and where known `donor`, `proposed`, `confidence`.

        Returns:
            How many are new.
        """
        known = ("donor", "proposed", "confidence")
        told = [{"queue": queue, "path": row["path"], **{key: row.get(key) for key in known}} for row in rows]
        with self.store.writing() as db:
            before = self._count(db, queue)
            for place, row in enumerate(told, before):
                row |= {"donor": row["donor"] or "", "proposed": row["proposed"] or "", "place": float(place)}
                row["confidence"] = None if row["confidence"] in ("", None) else float(row["confidence"])
            if told:
                db.execute(upsert(cells).on_conflict_do_nothing(), told)
            return self._count(db, queue) - before

    def order(self, queue: str, paths: Sequence[str]) -> None:
        """Let cells be asked for in this order; those not named come after."""
        with self.store.writing() as db:
            db.execute(update(cells).where(cells.c.queue == queue).values(place=func.abs(cells.c.place) + len(paths)))
            if paths:
                moved = update(cells).where(cells.c.queue == queue, cells.c.path == bindparam("at"))
                places = [{"at": path, "to": float(place)} for place, path in enumerate(paths)]
                db.execute(moved.values(place=bindparam("to")), places)

    def claim(
        self, queue: str, labeller: Labeller, count: int = 1, *, second: bool = False, seconds: float = CLAIM_SECONDS
    ) -> list[QueuedCell]:
        """Claim the next cells for a browser session; no other session gets them as long as they are claimed.

        Those that it has claimed already come first, so that a page that was closed goes on where it was.

        Args:
            queue: which.
            labeller: who, and in which session.
            count: how many.
            second: cells that exactly one other person labelled, to measure agreement, instead of new ones.
            seconds: until they are free again.
        """
        clock = time.time()
        valid = and_(labels.c.cell == cells.c.id, labels.c.undone.is_(None))
        claimed = and_(claims.c.cell == cells.c.id, claims.c.until > clock)
        taken = exists().where(claimed, claims.c.session != labeller.session)
        mine = exists().where(claimed, claims.c.session == labeller.session)
        by_me = exists().where(valid, _by(labeller))
        readings = select(func.count()).where(valid).correlate(cells).scalar_subquery()
        wanted = (
            select(cells)
            .where(cells.c.queue == queue, not_(taken), not_(by_me), readings == int(second))
            .order_by(not_(mine), cells.c.place, cells.c.id)
            .limit(count)
        )
        with self.store.writing() as db:
            found = [_queued(row) for row in db.execute(wanted)]
            for cell in found:
                self._claim(db, cell.id, labeller, clock + seconds)
        return found

    def release(self, session: str) -> None:
        """Give back all cells that a session has claimed."""
        with self.store.writing() as db:
            db.execute(claims.delete().where(claims.c.session == session))

    def release_all(self) -> None:
        """Give back all claimed cells: sessions end with the server, so that a new one finds none."""
        with self.store.writing() as db:
            db.execute(claims.delete())

    def label(self, cell: int, labeller: Labeller, label: str, *, model: str = "") -> LabelResult:
        """Keep a label; one that the same person gave before is taken back, and its row stays.

        Args:
            cell: number of the cell.
            labeller: who gives it, and in which session.
            label: a class, `NOT_A_CELL`, or `SKIPPED`.
            model: digest of the model whose proposal was shown, if any.

        Raises:
            StoreError: no such cell, or another session has claimed it.
        """
        at = utc_now()
        standing = and_(labels.c.cell == cell, labels.c.undone.is_(None))
        with self.store.writing() as db:
            if db.execute(select(cells.c.id).where(cells.c.id == cell)).first() is None:
                raise StoreError(
                    f"cell {cell}: there is none of this number in {self.store.path}", code="store.no_cell"
                )
            if reader := self._reader(db, cell, labeller):
                raise StoreError(f"cell {cell}: {reader} is looking at it; ask for the next one", code=CLAIMED_CODE)
            before = db.execute(select(labels).where(standing).order_by(labels.c.id)).all()
            own = [row for row in before if person_key(row.who) == person_key(labeller.who)]
            db.execute(update(labels).where(standing, _by(labeller)).values(undone=at))
            values = {"who": labeller.who, "session": labeller.session, "model": model, "version": __version__}
            db.execute(insert(labels).values(cell=cell, label=label, at=at, **values))
            db.execute(claims.delete().where(claims.c.cell == cell))
        replaced = ReplacedLabel(own[-1].label, own[-1].who, own[-1].at) if own else None
        return LabelResult(replaced, tuple(row.who for row in before if row not in own))

    def undo(self, queue: str, labeller: Labeller, *, seconds: float = CLAIM_SECONDS) -> UndoneLabel | None:
        """Take back the last label that a person gave in this session, or in a session that has ended.

        A session that has claimed cells goes on elsewhere; its labels are taken back there.

        Returns:
            The label and its cell, claimed again; none where there is nothing to take back.
        """
        clock = time.time()
        open_elsewhere = exists().where(
            claims.c.session == labels.c.session, claims.c.session != labeller.session, claims.c.until > clock
        )
        last = (
            select(labels.c.id.label("given"), labels.c.label, cells)
            .join(cells, labels.c.cell == cells.c.id)
            .where(cells.c.queue == queue, labels.c.undone.is_(None), _by(labeller), not_(open_elsewhere))
            .order_by(labels.c.session != labeller.session, labels.c.id.desc())
        )
        with self.store.writing() as db:
            row = db.execute(last).first()
            if row is None:
                return None
            db.execute(update(labels).where(labels.c.id == row.given).values(undone=utc_now()))
            reader = self._reader(db, row.id, labeller)
            if not reader:
                self._claim(db, row.id, labeller, clock + seconds)
        return UndoneLabel(_queued(row), row.label, reader)

    def progress(self, queue: str) -> Progress:
        """How far a queue is."""
        given = self._labels(queue)
        names = _names(given)
        with self.store.reading() as db:
            there = self._count(db, queue)
        return Progress(
            cells=there,
            labelled=len({row.path for row in given}),
            labels=dict(Counter(row.label for row in given if row.label != SKIPPED).most_common()),
            people=dict(Counter(names[person_key(row.who)] for row in given).most_common()),
        )

    def agreement(self, queue: str) -> list[Agreement]:
        """Cohen's kappa (Cohen 1960) of each two labellers who labelled the same cells."""
        by_person: dict[str, dict[str, str]] = defaultdict(dict)
        given = self._labels(queue)
        names = _names(given)
        for row in given:
            if row.label != SKIPPED:
                by_person[names[person_key(row.who)]][row.path] = row.label
        found = []
        for first, second in combinations(sorted(by_person), 2):
            both = sorted(by_person[first].keys() & by_person[second].keys())
            if both:
                pairs = [(by_person[first][path], by_person[second][path]) for path in both]
                agreed = sum(one == other for one, other in pairs)
                found.append(Agreement(first, second, len(pairs), agreed, _kappa(pairs)))
        return found

    def export_labels(self, queue: str, out: Path) -> tuple[int, int]:
        """Write a cells table of what was labelled, which training takes as it is.

        What is not a cell is left out, and so is what two people called differently.

        Args:
            queue: which.
            out: the CSV; replaced where it is there.

        Returns:
            How many cells were written, and how many are left out because people disagree.
        """
        given: dict[str, list[Any]] = defaultdict(list)
        for row in self._labels(queue):
            if row.label != SKIPPED:
                given[row.path].append(row)
        rows, apart = [], 0
        for path, told in given.items():
            named = {row.label for row in told}
            apart += len(named) > 1
            if len(named) == 1 and NOT_A_CELL not in named:
                who = "|".join(sorted({row.who for row in told}))
                rows.append((path, told[0].label, told[0].donor, who, max(row.at for row in told)))
        write_csv(out, ("path", "label", "donor", "labelled_by", "labelled_at"), rows)
        return len(rows), apart

    def _claim(self, db: Connection, cell: int, labeller: Labeller, until: float) -> None:
        values = {"who": labeller.who, "session": labeller.session, "until": until}
        db.execute(upsert(claims).values(cell=cell, **values).on_conflict_do_update(set_=values))

    def _reader(self, db: Connection, cell: int, labeller: Labeller) -> str:
        """Who has claimed a cell in another session; "" where nobody has."""
        other = and_(claims.c.cell == cell, claims.c.until > time.time(), claims.c.session != labeller.session)
        found = db.execute(select(claims.c.who).where(other)).scalar()
        if found is None:
            return ""
        return f"{found} in another browser" if person_key(found) == person_key(labeller.who) else found

    def _count(self, db: Connection, queue: str) -> int:
        return db.execute(select(func.count()).select_from(cells).where(cells.c.queue == queue)).scalar_one()

    def _labels(self, queue: str) -> Sequence[Any]:
        """All labels of a queue that stand, in the order in which they were given."""
        joined = (
            select(cells.c.path, cells.c.donor, labels.c.label, labels.c.who, labels.c.at)
            .join(cells, labels.c.cell == cells.c.id)
            .where(cells.c.queue == queue, labels.c.undone.is_(None))
            .order_by(labels.c.id)
        )
        with self.store.reading() as db:
            return db.execute(joined).all()


def _by(labeller: Labeller) -> ColumnElement[bool]:
    """Whether a label was given by this person."""
    return labels.c.who.collate(SAME_PERSON) == labeller.who


def _names(given: Iterable[Any]) -> dict[str, str]:
    """The name under which each person's labels are counted: as it was written last."""
    return {person_key(row.who): row.who for row in given}


def _queued(row: Any) -> QueuedCell:
    return QueuedCell(row.id, row.path, row.proposed, row.confidence)


def _kappa(pairs: Sequence[tuple[str, str]]) -> float | None:
    """Agreement beyond chance; none where chance alone would agree always."""
    total = len(pairs)
    seen = sum(one == other for one, other in pairs) / total
    first, second = Counter(one for one, _ in pairs), Counter(other for _, other in pairs)
    expected = sum(first[name] * second[name] for name in first) / total**2
    return None if expected == 1 else (seen - expected) / (1 - expected)

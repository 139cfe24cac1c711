"""Cells that wait for labels: who gets which one next, what they say, how far people agree."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, and_, bindparam, exists, func, insert, not_, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from urnet import __version__
from urnet.errors import StoreError
from urnet.serve.kept import NOT_A_CELL, SKIPPED, named, now, write_csv
from urnet.serve.schema import cells, claims, labels

if TYPE_CHECKING:
    from urnet.serve.store import Store

CLAIM_SECONDS = 300.0
"""How long a cell that was handed to somebody is kept from others."""


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


class Labelling:
    """Queues of cells, each of which goes to one labeller at a time.

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
        self, queue: str, who: str, count: int = 1, *, second: bool = False, seconds: float = CLAIM_SECONDS
    ) -> list[QueuedCell]:
        """The next cells for a labeller, which nobody else gets as long as they are claimed.

        Those that are claimed already come first, so that a page that was closed goes on where it was.

        Args:
            queue: which.
            who: the labeller.
            count: how many.
            second: cells that exactly one other person labelled, to see how far both agree, instead of new ones.
            seconds: until they are free again.
        """
        clock, who = time.time(), named(who)
        valid = and_(labels.c.cell == cells.c.id, labels.c.undone.is_(None))
        taken = exists().where(claims.c.cell == cells.c.id, claims.c.until > clock, claims.c.who != who)
        mine = exists().where(claims.c.cell == cells.c.id, claims.c.until > clock, claims.c.who == who)
        by_me = exists().where(valid, labels.c.who == who)
        readings = select(func.count()).where(valid).correlate(cells).scalar_subquery()
        wanted = (
            select(cells)
            .where(cells.c.queue == queue, not_(taken), not_(by_me), readings == int(second))
            .order_by(not_(mine), cells.c.place, cells.c.id)
            .limit(count)
        )
        with self.store.writing() as db:
            found = [QueuedCell(row.id, row.path, row.proposed, row.confidence) for row in db.execute(wanted)]
            for cell in found:
                claim = upsert(claims).values(cell=cell.id, who=who, until=clock + seconds)
                db.execute(claim.on_conflict_do_update(set_={"who": who, "until": clock + seconds}))
        return found

    def release(self, who: str) -> None:
        """Give back all cells that a labeller has claimed."""
        with self.store.writing() as db:
            db.execute(claims.delete().where(claims.c.who == named(who)))

    def label(self, cell: int, who: str, label: str, *, model: str = "") -> None:
        """Keep a label; one that the same person gave before is taken back.

        Args:
            cell: number of the cell.
            who: gives it.
            label: a class, `NOT_A_CELL`, or `SKIPPED`.
            model: digest of the model whose proposal was shown, if any.

        Raises:
            StoreError: no such cell, or somebody else has claimed it.
        """
        who, at = named(who), now()
        with self.store.writing() as db:
            if db.execute(select(cells.c.id).where(cells.c.id == cell)).first() is None:
                raise StoreError(f"cell {cell}: there is none of this number in {self.store.path}")
            claim = db.execute(select(claims).where(claims.c.cell == cell, claims.c.until > time.time())).first()
            if claim is not None and claim.who != who:
                raise StoreError(f"cell {cell}: {claim.who} is looking at it; ask for the next one")
            mine = and_(labels.c.cell == cell, labels.c.who == who, labels.c.undone.is_(None))
            db.execute(update(labels).where(mine).values(undone=at))
            db.execute(insert(labels).values(cell=cell, label=label, who=who, at=at, model=model, version=__version__))
            db.execute(claims.delete().where(claims.c.cell == cell))

    def undo(self, queue: str, who: str, *, seconds: float = CLAIM_SECONDS) -> QueuedCell | None:
        """Take back a person's last label; its cell, claimed again, or none where there is nothing to take back."""
        who = named(who)
        last = (
            select(labels.c.id.label("given"), cells)
            .join(cells, labels.c.cell == cells.c.id)
            .where(cells.c.queue == queue, labels.c.who == who, labels.c.undone.is_(None))
            .order_by(labels.c.id.desc())
        )
        with self.store.writing() as db:
            row = db.execute(last).first()
            if row is None:
                return None
            db.execute(update(labels).where(labels.c.id == row.given).values(undone=now()))
            claim = upsert(claims).values(cell=row.id, who=who, until=time.time() + seconds)
            db.execute(claim.on_conflict_do_nothing())
        return QueuedCell(row.id, row.path, row.proposed, row.confidence)

    def progress(self, queue: str) -> Progress:
        """How far a queue is."""
        given = self._labels(queue)
        with self.store.reading() as db:
            there = self._count(db, queue)
        return Progress(
            cells=there,
            labelled=len({row.path for row in given}),
            labels=dict(Counter(row.label for row in given if row.label != SKIPPED).most_common()),
            people=dict(Counter(row.who for row in given).most_common()),
        )

    def agreement(self, queue: str) -> list[Agreement]:
        """Cohen's kappa (Cohen 1960) of each two labellers who labelled the same cells."""
        by_person: dict[str, dict[str, str]] = defaultdict(dict)
        for row in self._labels(queue):
            if row.label != SKIPPED:
                by_person[row.who][row.path] = row.label
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


def _kappa(pairs: Sequence[tuple[str, str]]) -> float | None:
    """Agreement beyond chance; none where chance alone would agree always."""
    total = len(pairs)
    seen = sum(one == other for one, other in pairs) / total
    first, second = Counter(one for one, _ in pairs), Counter(other for _, other in pairs)
    expected = sum(first[name] * second[name] for name in first) / total**2
    return None if expected == 1 else (seen - expected) / (1 - expected)

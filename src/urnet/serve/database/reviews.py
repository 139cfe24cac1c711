"""Predictions that people look through, and what they correct."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, and_, func, insert, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from urnet.errors import StoreError
from urnet.files.atomic import atomic_file
from urnet.files.csv_tables import write_csv
from urnet.serve.database.models import corrections, images, predictions
from urnet.serve.database.names import NOT_A_CELL, SKIPPED, ReplacedLabel, clean_name, utc_now
from urnet.version import __version__

if TYPE_CHECKING:
    from urnet.serve.database.store import Store


@dataclass(frozen=True)
class ReviewedPrediction:
    """A prediction and what a person made of it.

    Attributes:
        id: its number in the store.
        path: of the image, as it was called.
        image: SHA-256 of the kept image; none where it was not kept.
        predicted: by the model.
        told: probabilities, rejection and set, as tables have them.
        model, version: which said so.
        at: when, in UTC.
        corrected: by a person; none where nobody did.
        who: that person.
    """

    id: int
    path: str
    image: str | None
    predicted: str
    told: dict[str, Any]
    model: str
    version: str
    at: str
    corrected: str | None
    who: str | None

    @property
    def label(self) -> str:
        """What counts: the correction, else the prediction."""
        return self.predicted if self.corrected is None else self.corrected


class ReviewStore:
    """What models said, and what people made of it.

    Args:
        store: where it is kept.
    """

    def __init__(self, store: "Store"):
        self.store = store

    def add_image(self, content: bytes, suffix: str) -> str:
        """Keep an image file, once; its SHA-256.

        Args:
            content: of the file.
            suffix: of its kind, such as ".png".
        """
        digest = hashlib.sha256(content).hexdigest()
        with self.store.writing() as db:
            db.execute(upsert(images).values(sha256=digest, suffix=suffix, content=content).on_conflict_do_nothing())
        return digest

    def read_image(self, digest: str) -> bytes | None:
        """A kept image file; none where there is none of that digest."""
        with self.store.reading() as db:
            return db.execute(select(images.c.content).where(images.c.sha256 == digest)).scalar()

    def add_predictions(self, sample: str, rows: Iterable[Mapping[str, Any]], *, model: str) -> list[int]:
        """Keep what a model said of a sample's images, to be reviewed.

        Args:
            sample: its name.
            rows: each with `path`, `predicted`, and what `urnet predict` says besides; `image` where it was kept.
            model: the model's digest.

        Returns:
            Their numbers.
        """
        numbers = []
        with self.store.writing() as db:
            for row in rows:
                told = {key: value for key, value in row.items() if key not in ("path", "predicted", "image")}
                values = {
                    "sample": sample,
                    "path": row["path"],
                    "image": row.get("image"),
                    "predicted": row["predicted"],
                    "told": json.dumps(told, ensure_ascii=False),
                    "model": model,
                    "version": __version__,
                    "at": utc_now(),
                }
                numbers.append(db.execute(insert(predictions).values(values)).inserted_primary_key[0])
        return numbers

    def list_samples(self) -> list[str]:
        """Names of the samples that have predictions, the latest first."""
        latest = select(predictions.c.sample).group_by(predictions.c.sample).order_by(func.max(predictions.c.id).desc())
        with self.store.reading() as db:
            return list(db.execute(latest).scalars())

    def correct(self, prediction: int, who: str, label: str) -> ReplacedLabel | None:
        """Keep a correction; an earlier one of the same image is taken back, and its row stays.

        Returns:
            The earlier one, whoever gave it; none where there was none.

        Raises:
            StoreError: no such prediction.
        """
        with self.store.writing() as db:
            if db.execute(select(predictions.c.id).where(predictions.c.id == prediction)).first() is None:
                raise StoreError(
                    f"prediction {prediction}: there is none of this number in {self.store.path}",
                    code="store.no_prediction",
                )
            earlier = self._take_back(db, prediction)
            db.execute(
                insert(corrections).values(prediction=prediction, label=label, who=clean_name(who), at=utc_now())
            )
        return earlier

    def undo_correction(self, prediction: int) -> ReplacedLabel | None:
        """Take back the correction of an image, whoever gave it; none where there was none."""
        with self.store.writing() as db:
            return self._take_back(db, prediction)

    def read_reviewed(self, sample: str) -> list[ReviewedPrediction]:
        """A sample's predictions with their corrections, in order."""
        valid = and_(corrections.c.prediction == predictions.c.id, corrections.c.undone.is_(None))
        joined = (
            select(predictions, corrections.c.label.label("corrected"), corrections.c.who)
            .outerjoin(corrections, valid)
            .where(predictions.c.sample == sample)
            .order_by(predictions.c.id)
        )
        with self.store.reading() as db:
            rows = db.execute(joined).mappings().all()
        kept = ("id", "path", "image", "predicted", "model", "version", "at", "corrected", "who")
        return [ReviewedPrediction(**{key: row[key] for key in kept}, told=json.loads(row["told"])) for row in rows]

    def export_reviewed(self, sample: str, folder: Path) -> int:
        """Write a sample's kept images and a `cells.csv` beside them, with what they count as, to be trained on.

        Args:
            sample: which.
            folder: into which; an image that is there already stays.

        Returns:
            How many cells were written; those that are not cells, or whose image was not kept, are left out.
        """
        rows = []
        for one in self.read_reviewed(sample):
            if one.image is None or one.label in (NOT_A_CELL, SKIPPED):
                continue
            with self.store.reading() as db:
                found = db.execute(select(images).where(images.c.sha256 == one.image)).one()
            name = f"{one.image[:32]}{found.suffix}"
            if not (folder / name).is_file():
                with atomic_file(folder / name) as file:
                    file.write(found.content)
            rows.append((name, one.label, sample, one.who or "", one.model))
        write_csv(folder / "cells.csv", ("path", "label", "donor", "corrected_by", "model"), rows)
        return len(rows)

    def _take_back(self, db: Connection, prediction: int) -> ReplacedLabel | None:
        standing = and_(corrections.c.prediction == prediction, corrections.c.undone.is_(None))
        row = db.execute(select(corrections).where(standing).order_by(corrections.c.id.desc())).first()
        db.execute(update(corrections).where(standing).values(undone=utc_now()))
        return None if row is None else ReplacedLabel(row.label, row.who, row.at)

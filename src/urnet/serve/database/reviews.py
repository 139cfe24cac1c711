"""Store predictions for review, with the corrections of reviewers."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import and_, func, select, update
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.orm import Session

from urnet.errors import StoreError
from urnet.files.atomic import atomic_file
from urnet.files.csv_tables import write_csv
from urnet.serve.database.connection import Database
from urnet.serve.database.models import NOT_A_CELL, SKIPPED, Correction, Image, Prediction, ReplacedLabel, utc_now
from urnet.serve.database.names import clean_name
from urnet.version import __version__


@dataclass(frozen=True)
class ReviewedPrediction:
    """A prediction and its correction.

    Attributes:
        id: number in the database.
        path: name of the image.
        image: SHA-256 of the stored image; none where no image was stored.
        predicted: class assigned by the model.
        details: probabilities, rejection and prediction set, as in tables.
        model, version: digest of the model and version of urnet.
        at: time of the prediction, in UTC.
        corrected: label by a reviewer; none without a correction.
        reviewer: name of the reviewer.
    """

    id: int
    path: str
    image: str | None
    predicted: str
    details: dict[str, Any]
    model: str
    version: str
    at: str
    corrected: str | None
    reviewer: str | None

    @property
    def label(self) -> str:
        """The final label: the correction if there is one, else the prediction."""
        return self.predicted if self.corrected is None else self.corrected


class ReviewStore:
    """Predictions and the corrections of reviewers.

    Args:
        database: the database.
    """

    def __init__(self, database: Database):
        self.database = database

    def add_image(self, content: bytes, suffix: str) -> str:
        """Store an image file once.

        Args:
            content: content of the file.
            suffix: suffix of its format, such as ".png".

        Returns:
            Its SHA-256.
        """
        digest = hashlib.sha256(content).hexdigest()
        with self.database.begin_write() as session:
            image = upsert(Image).values(sha256=digest, suffix=suffix, content=content)
            session.execute(image.on_conflict_do_nothing())
        return digest

    def read_image(self, digest: str) -> bytes | None:
        """Read a stored image file; none where no image has the digest."""
        with self.database.begin_read() as session:
            return session.scalar(select(Image.content).where(Image.sha256 == digest))

    def add_predictions(self, sample: str, rows: Iterable[Mapping[str, Any]], *, model: str) -> list[int]:
        """Store the predictions of a sample's images for review.

        Args:
            sample: name of the sample.
            rows: each with `path`, `predicted`, other columns of `urnet predict`, and `image` if the image is stored.
            model: digest of the model.

        Returns:
            The numbers of the predictions.
        """
        predictions = [
            Prediction(
                sample=sample,
                path=row["path"],
                image=row.get("image"),
                predicted=row["predicted"],
                details=json.dumps(
                    {key: value for key, value in row.items() if key not in ("path", "predicted", "image")},
                    ensure_ascii=False,
                ),
                model=model,
                version=__version__,
                at=utc_now(),
            )
            for row in rows
        ]
        with self.database.begin_write() as session:
            session.add_all(predictions)
        return [prediction.id for prediction in predictions]

    def list_samples(self) -> list[str]:
        """List the samples with predictions, the latest first."""
        latest = select(Prediction.sample).group_by(Prediction.sample).order_by(func.max(Prediction.id).desc())
        with self.database.begin_read() as session:
            return list(session.scalars(latest))

    def correct(self, prediction: int, reviewer: str, label: str) -> ReplacedLabel | None:
        """Store a correction; an earlier correction of the same image is undone, and its row stays.

        Returns:
            The earlier correction by any reviewer; none without one.

        Raises:
            StoreError: the prediction does not exist.
        """
        with self.database.begin_write() as session:
            if session.get(Prediction, prediction) is None:
                raise StoreError(f"prediction {prediction}: not in {self.database.path}", code="store.no_prediction")
            replaced = _undo_correction(session, prediction)
            session.add(Correction(prediction=prediction, label=label, reviewer=clean_name(reviewer), at=utc_now()))
        return replaced

    def undo_correction(self, prediction: int) -> ReplacedLabel | None:
        """Undo the correction of an image by any reviewer; none where there is no correction."""
        with self.database.begin_write() as session:
            return _undo_correction(session, prediction)

    def read_reviewed(self, sample: str) -> list[ReviewedPrediction]:
        """Read the predictions of a sample with their corrections, in order."""
        is_valid = and_(Correction.prediction == Prediction.id, Correction.undone.is_(None))
        joined = (
            select(Prediction, Correction.label, Correction.reviewer)
            .outerjoin(Correction, is_valid)
            .where(Prediction.sample == sample)
            .order_by(Prediction.id)
        )
        with self.database.begin_read() as session:
            return [
                ReviewedPrediction(
                    id=row.id,
                    path=row.path,
                    image=row.image,
                    predicted=row.predicted,
                    details=json.loads(row.details),
                    model=row.model,
                    version=row.version,
                    at=row.at,
                    corrected=corrected,
                    reviewer=reviewer,
                )
                for row, corrected, reviewer in session.execute(joined)
            ]

    def export_reviewed(self, sample: str, folder: Path) -> int:
        """Write the stored images of a sample and a `cells.csv` with their final labels, ready for training.

        Args:
            sample: name of the sample.
            folder: target folder; images that it holds already stay.

        Returns:
            The number of cells that were written. Crops that are not a cell or have no stored image are left out.
        """
        rows = []
        for one in self.read_reviewed(sample):
            if one.image is None or one.label in (NOT_A_CELL, SKIPPED):
                continue
            with self.database.begin_read() as session:
                image = session.get_one(Image, one.image)
                name, content = f"{one.image[:32]}{image.suffix}", image.content
            if not (folder / name).is_file():
                with atomic_file(folder / name) as file:
                    file.write(content)
            rows.append((name, one.label, sample, one.reviewer or "", one.model))
        write_csv(folder / "cells.csv", ("path", "label", "donor", "corrected_by", "model"), rows)
        return len(rows)


def _undo_correction(session: Session, prediction: int) -> ReplacedLabel | None:
    is_valid = and_(Correction.prediction == prediction, Correction.undone.is_(None))
    last = session.scalar(select(Correction).where(is_valid).order_by(Correction.id.desc()))
    session.execute(update(Correction).where(is_valid).values(undone=utc_now()))
    return None if last is None else ReplacedLabel(last.label, last.reviewer, last.at)

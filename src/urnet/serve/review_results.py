"""Results of a review: counts before and after it, the estimate of the differential, and the reviewed images."""

import asyncio
import io
from collections import Counter, OrderedDict
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from urnet.counting.sample import Sample
from urnet.errors import UrnetError
from urnet.evaluation.figure_style import encode_png
from urnet.serve.database.models import NOT_A_CELL, SKIPPED
from urnet.serve.database.reviews import ReviewedPrediction
from urnet.serve.results import ImageResult
from urnet.serve.services import Services
from urnet.serve.uploads.receive import store_uploads
from urnet.serve.uploads.storage import UploadFolder

CACHED_IMAGES = 500
"""Images that stay in memory."""

CONFIDENCE_LEVEL = 0.95
"""Confidence level of the intervals."""


@dataclass(frozen=True)
class ReviewedShare:
    """The cells of one class in a sample, before and after the review.

    Attributes:
        label: the class.
        counted: number of cells that the model called this class and did not reject.
        reviewed: number of cells after the review; cells without a review count as predicted.
        share: share of all cells after the review; none without cells.
        interval: its 95 % interval for the number of cells (Wilson); none without cells.
    """

    label: str
    counted: int
    reviewed: int
    share: float | None
    interval: tuple[float, float] | None


def is_counted(row: ReviewedPrediction) -> bool:
    """Return whether a cell counts: by the reviewer's label, else by the prediction."""
    if row.corrected is not None:
        return row.corrected not in (NOT_A_CELL, SKIPPED)
    return not row.details.get("rejected")


def count_after_review(rows: Sequence[ReviewedPrediction], classes: Sequence[str]) -> list[ReviewedShare]:
    """Count the cells of a sample before and after the review.

    Args:
        rows: the predictions of the sample.
        classes: classes of the model; other labels follow.
    """
    before = Counter(row.predicted for row in rows if not row.details.get("rejected"))
    after = Counter(row.label for row in rows if is_counted(row))
    cells = sum(after.values())
    shares = []
    for label in dict.fromkeys((*classes, *before, *after)):
        share, interval = None, None
        if cells:
            ends = binomtest(after[label], cells).proportion_ci(CONFIDENCE_LEVEL, method="wilson")
            share, interval = after[label] / cells, (float(ends.low), float(ends.high))
        shares.append(ReviewedShare(label, before[label], after[label], share, interval))
    return shares


def estimate_differential(services: Services, sample: str, rows: Sequence[ReviewedPrediction]) -> Sample | None:
    """Estimate the differential from the predictions of a sample, as the page Classify does.

    The estimate does not change with the review: reviewers choose the uncertain cells, so the confusion that was
    measured in calibration does not hold for the cells that remain.

    Args:
        services: the services with the model.
        sample: name of the sample.
        rows: its predictions.

    Returns:
        The estimate; none if the model is not calibrated, or if another model made a prediction.
    """
    if services.model.calibration is None or not rows or any(row.model != services.digest for row in rows):
        return None
    return services.count_results(sample, [ImageResult(row.path, row.details) for row in rows])


class ReviewImages:
    """Stored images as PNG for the page, decoded by the processes that decode uploads.

    Args:
        services: the application with its database.
    """

    def __init__(self, services: Services):
        self.services = services
        self._cache: OrderedDict[str, bytes] = OrderedDict()

    async def read_png(self, digest: str) -> bytes | None:
        """Return a stored image as PNG; none where it is not stored, or cannot be decoded for this model."""
        if digest in self._cache:
            self._cache.move_to_end(digest)
            return self._cache[digest]
        store = self.services.store
        content = None if store is None else await asyncio.to_thread(store.reviews.read_image, digest)
        if content is None or not self.services.has_model:
            return None
        with closing(UploadFolder(self.services.storage)) as folder:
            try:
                uploads = store_uploads(folder, [(digest, io.BytesIO(content))])
                _, cells = await self.services.decoders.read(uploads[0], 0, 1) if uploads[0].path else (0, [])
            except UrnetError:
                return None
        if not cells or cells[0].crop is None:
            return None
        shown = self.services.model.config.scaling.apply(cells[0].crop)
        self._cache[digest] = encode_png(np.moveaxis(shown, 0, -1))
        while len(self._cache) > CACHED_IMAGES:
            self._cache.popitem(last=False)
        return self._cache[digest]

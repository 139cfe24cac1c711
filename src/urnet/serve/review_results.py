"""Results of a review: the differential after corrections, and the images of reviewed cells."""

import asyncio
import io
from collections import Counter, OrderedDict
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from urnet.errors import UrnetError
from urnet.evaluation.figure_style import encode_png
from urnet.serve.database.models import NOT_A_CELL, SKIPPED
from urnet.serve.database.reviews import ReviewedPrediction
from urnet.serve.services import Services
from urnet.serve.uploads.receive import store_uploads
from urnet.serve.uploads.storage import UploadFolder

CACHED_IMAGES = 500
"""Images that stay in memory."""

CONFIDENCE_LEVEL = 0.95
"""Confidence level of the intervals."""


@dataclass(frozen=True)
class ClassShare:
    """Share of one class in a sample.

    Attributes:
        label: the class.
        predicted: number of cells by the model.
        counted: number of cells after the review.
        share: share of all counted cells; none without cells.
        interval: Wilson's 95 % interval of the share, for the sampling of cells only.
    """

    label: str
    predicted: int
    counted: int
    share: float | None
    interval: tuple[float, float] | None


def is_counted(row: ReviewedPrediction) -> bool:
    """Whether the differential counts a crop: by the correction if there is one, else by the model."""
    if row.corrected is not None:
        return row.corrected not in (NOT_A_CELL, SKIPPED)
    return not row.details.get("rejected")


def corrected_differential(rows: Sequence[ReviewedPrediction], classes: Sequence[str]) -> list[ClassShare]:
    """Count a sample by the final labels of its cells.

    Cells without a correction count as predicted. The counts are not corrected for the confusion of the model: it was
    measured over all cells, and reviewers correct the doubtful ones first.

    Args:
        rows: reviewed predictions of the sample.
        classes: classes of the model; other labels follow.
    """
    before = Counter(row.predicted for row in rows if not row.details.get("rejected"))
    after = Counter(row.label for row in rows if is_counted(row))
    whole = sum(after.values())
    shares = []
    for label in dict.fromkeys((*classes, *before, *after)):
        share, interval = None, None
        if whole:
            ends = binomtest(after[label], whole).proportion_ci(CONFIDENCE_LEVEL, method="wilson")
            share, interval = after[label] / whole, (float(ends.low), float(ends.high))
        shares.append(ClassShare(label, before[label], after[label], share, interval))
    return shares


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

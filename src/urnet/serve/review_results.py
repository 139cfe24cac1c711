"""What is made of reviewed predictions: pictures of what was kept, and the corrected differential."""

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
"""Pictures that are held ready."""

CONFIDENCE_LEVEL = 0.95


@dataclass(frozen=True)
class ClassShare:
    """How many cells of a sample are of one class.

    Attributes:
        label: the class.
        predicted: cells that the model counted.
        counted: cells after the review.
        share: of all counted cells; none where there are none.
        interval: Wilson's 95 % interval of it, the chance of drawing these cells alone.
    """

    label: str
    predicted: int
    counted: int
    share: float | None
    interval: tuple[float, float] | None


def is_counted(for_row: ReviewedPrediction) -> bool:
    """Whether it is a cell that the differential counts: by a person's word, else by the model's."""
    if for_row.corrected is not None:
        return for_row.corrected not in (NOT_A_CELL, SKIPPED)
    return not for_row.details.get("rejected")


def corrected_differential(rows: Sequence[ReviewedPrediction], classes: Sequence[str]) -> list[ClassShare]:
    """Count a sample by what the cells were called in the end.

    Cells that nobody looked at count as the model called them, and are not corrected for its confusion: that was
    measured over all cells, and people look at the doubtful ones first.

    Args:
        rows: of the sample.
        classes: of the model; labels that it does not know come after.
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
    """Kept images as PNG for the page; what was kept is decoded where uploads are.

    Args:
        services: whose store holds them.
    """

    def __init__(self, services: Services):
        self.services = services
        self._held: OrderedDict[str, bytes] = OrderedDict()

    async def of(self, digest: str) -> bytes | None:
        """The picture of a kept image; none where it is not kept, or cannot be shown to this model."""
        if digest in self._held:
            self._held.move_to_end(digest)
            return self._held[digest]
        store = self.services.store
        content = None if store is None else await asyncio.to_thread(store.reviews.read_image, digest)
        if content is None:
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
        self._held[digest] = encode_png(np.moveaxis(shown, 0, -1))
        while len(self._held) > CACHED_IMAGES:
            self._held.popitem(last=False)
        return self._held[digest]

"""The model looks through the cells that wait for labels, so that the most informative ones are asked for first."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from urnet.errors import StoreError
from urnet.prefetch import decode_cells
from urnet.serve.active_learning import compute_uncertainty, project_features, rank_cells
from urnet.serve.database.prefetch import CellImages, upcoming
from urnet.serve.services import Services

CHUNK_CELLS = 16
"""Cells that are with the network at a time; instruments' requests go in between."""

FIRST_RANKING_CELLS = 500
"""Cells after which the queue is ordered for the first time; then whenever twice as many were looked at."""

MAX_CELLS = 20_000
"""Cells that are looked at; more would keep the machine busy for hours, and nobody labels as many."""


MAX_RANKED_CELLS = 5_000
"""Cells that are put in order; labels wait while that is written."""


@dataclass(frozen=True)
class Proposal:
    """What the model would call a cell.

    Attributes:
        label: the class.
        probability: of it.
    """

    label: str
    probability: float


class QueueRanking:
    """Orders one queue.

    Args:
        services: whose model looks.
        images: the queue's cells.

    Attributes:
        done: cells looked at.
        total: cells to look at.
        proposals: by path.
        state: `waiting`, `running`, `done`, `stopped`, or `failed`.
    """

    def __init__(self, services: Services, images: CellImages):
        self.services, self.images = services, images
        self.done = self.total = 0
        self.proposals: dict[str, Proposal] = {}
        self.state = "waiting"
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, or begin again after it was stopped; nothing where it runs or is done."""
        if self.state in ("waiting", "stopped", "failed"):
            self.state = "running"
            self._task = asyncio.create_task(self._run())

    def stop(self) -> None:
        """Leave it at what is known."""
        if self._task is not None and self.state == "running":
            self._task.cancel()
            self.state = "stopped"

    async def _run(self) -> None:
        try:
            await self._rank()
            self.state = "done"
        except asyncio.CancelledError:
            self.state = "stopped"
            raise
        except Exception:
            self.state = "failed"
            raise

    async def _rank(self) -> None:
        store, name = self.services.store, self.images.name
        assert store is not None
        coming = await asyncio.to_thread(upcoming, store, name, MAX_CELLS)
        paths = [path for path in coming if path in self.images.rows]
        self.done, self.total = 0, len(paths)
        known: list[str] = []
        unsure, features = [], []
        following = FIRST_RANKING_CELLS
        for start in range(0, len(paths), CHUNK_CELLS):
            part = paths[start : start + CHUNK_CELLS]
            rows = [self.images.rows[path] for path in part]
            read = await asyncio.to_thread(decode_cells, self.services.model, self.images.cells, rows)
            good = [(path, one.crop) for path, one in zip(part, read, strict=True) if one.crop is not None]
            if good:
                told, _, seen = await self.services.network.run(np.stack([crop for _, crop in good]))
                known += [path for path, _ in good]
                unsure.append(compute_uncertainty(told))
                features.append(project_features(seen))
                self._propose([path for path, _ in good], told)
            self.done += len(part)
            if known and (self.done >= following or self.done == self.total):
                following = 2 * self.done
                order = await asyncio.to_thread(rank_cells, np.concatenate(unsure), np.concatenate(features))
                with suppress(StoreError):  # a full disk costs the order, not the labels
                    await asyncio.to_thread(store.labels.order, name, [known[k] for k in order[:MAX_RANKED_CELLS]])

    def _propose(self, paths: list[str], probabilities: np.ndarray) -> None:
        for path, values in zip(paths, probabilities, strict=True):
            best = int(values.argmax())
            self.proposals[path] = Proposal(self.services.model.classes[best], float(values[best]))

"""Active learning: order the cells of a labelling queue by uncertainty and diversity.

The label page shows cells with an uncertain prediction first, and among those the cells that differ most.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import numpy as np

from urnet.errors import StoreError
from urnet.prefetch import decode_cells
from urnet.serve.cell_images import CellImages
from urnet.serve.database.labels import LabelStore
from urnet.serve.services import Services

BAND_CELLS = 500
"""Cells that count as equally uncertain; within a band, cells are ordered by diversity."""

PROJECTED_DIMENSIONS = 64
"""Dimensions of the random projection of the features, which preserves distances (Johnson and Lindenstrauss)."""

CHUNK_CELLS = 16
"""Cells that go to the network at once, so that requests of instruments are answered in between."""

FIRST_RANKING_CELLS = 500
"""Number of predicted cells at which the queue is first ordered; the number doubles each time."""

MAX_CELLS = 20_000
"""Most cells that are predicted for a queue."""

MAX_RANKED_CELLS = 5_000
"""Most cells that are put in order; labels wait while the order is written."""


def compute_uncertainty(probabilities: np.ndarray) -> np.ndarray:
    """Compute the uncertainty of predictions: 1 minus the margin between the two most probable classes.

    Scheffer, Decomain and Wrobel, "Active hidden Markov models for information extraction", IDA 2001.

    Args:
        probabilities: (N, K).

    Returns:
        (N,) 0 for a certain prediction, 1 for two equally probable classes.
    """
    second, first = np.sort(probabilities, axis=1)[:, -2:].T
    return 1.0 - (first - second)


def project_features(features: np.ndarray) -> np.ndarray:
    """Project features onto fewer dimensions, with a fixed seed; distances are nearly preserved.

    Args:
        features: (N, F).

    Returns:
        (N, D) float32, from rows scaled to length 1.
    """
    rows = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    directions = np.random.default_rng(0).standard_normal((features.shape[1], PROJECTED_DIMENSIONS))
    return (rows @ (directions / np.sqrt(PROJECTED_DIMENSIONS))).astype(np.float32)


def rank_cells(uncertainty: np.ndarray, features: np.ndarray, band: int = BAND_CELLS) -> np.ndarray:
    """Rank cells by uncertainty, in bands, and by diversity within each band.

    A band begins with its most uncertain cell and continues with the cell farthest from all before it (greedy
    k-centre: Sener and Savarese, "Active learning for convolutional neural networks: a core-set approach", ICLR 2018).

    Args:
        uncertainty: (N,) from `compute_uncertainty`.
        features: (N, D) from `project_features`.
        band: number of cells that count as equally uncertain.

    Returns:
        (N,) indices, the most informative cell first.
    """
    falling = np.argsort(-uncertainty, kind="stable")
    bands = [falling[start : start + band] for start in range(0, len(falling), band)]
    return np.concatenate([members[_farthest_first(features[members])] for members in bands] or [falling])


def _farthest_first(points: np.ndarray) -> np.ndarray:
    """Order points (M, D): the first one, then always the one farthest from those before."""
    order = np.zeros(len(points), dtype=np.int64)
    nearest = np.full(len(points), np.inf)
    for place in range(1, len(points)):
        last = order[place - 1]
        nearest = np.minimum(nearest, np.square(points - points[last]).sum(axis=1))
        nearest[last] = -1.0  # in the order already
        order[place] = nearest.argmax()
    return order


@dataclass(frozen=True)
class Proposal:
    """Label that the model proposes for a cell.

    Attributes:
        label: the class.
        probability: probability of the class.
    """

    label: str
    probability: float


class QueueRanking:
    """Background task that predicts the cells of a queue, proposes labels and orders the queue.

    Args:
        services: the application; without a model, the task never runs.
        images: the cells of the queue.
        labels: the labelling queues.

    Attributes:
        done: number of predicted cells.
        total: number of cells to predict.
        proposals: proposed label by path.
        state: state of the task.
    """

    def __init__(self, services: Services, images: CellImages, labels: LabelStore):
        self.services, self.images, self.labels = services, images, labels
        self.done = self.total = 0
        self.proposals: dict[str, Proposal] = {}
        self.state: Literal["waiting", "running", "done", "stopped", "failed"] = "waiting"
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the task, or start it again after it was stopped or failed; do nothing without a model."""
        if self.services.has_model and self.state in ("waiting", "stopped", "failed"):
            self.state = "running"
            self._task = asyncio.create_task(self._run())

    def stop(self) -> None:
        """Stop the task; the present order stays."""
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
        queue = self.images.name
        following = await asyncio.to_thread(self.labels.list_next, queue, MAX_CELLS)
        paths = [path for path in following if path in self.images.rows]
        self.done, self.total = 0, len(paths)
        ranked: list[str] = []
        uncertainty, features = [], []
        next_ranking = FIRST_RANKING_CELLS
        for start in range(0, len(paths), CHUNK_CELLS):
            chunk = paths[start : start + CHUNK_CELLS]
            rows = [self.images.rows[path] for path in chunk]
            decoded = await asyncio.to_thread(decode_cells, self.services.model, self.images.cells, rows)
            usable = [(path, one.crop) for path, one in zip(chunk, decoded, strict=True) if one.crop is not None]
            if usable:
                crops = np.stack([crop for _, crop in usable])
                probabilities, _, vectors = await self.services.network.run(crops)
                ranked += [path for path, _ in usable]
                uncertainty.append(compute_uncertainty(probabilities))
                features.append(project_features(vectors))
                self._propose([path for path, _ in usable], probabilities)
            self.done += len(chunk)
            if ranked and (self.done >= next_ranking or self.done == self.total):
                next_ranking = 2 * self.done
                order = await asyncio.to_thread(rank_cells, np.concatenate(uncertainty), np.concatenate(features))
                first = [ranked[k] for k in order[:MAX_RANKED_CELLS]]
                with suppress(StoreError):  # without room on the disk the old order stays
                    await asyncio.to_thread(self.labels.set_order, queue, first)

    def _propose(self, paths: list[str], probabilities: np.ndarray) -> None:
        for path, values in zip(paths, probabilities, strict=True):
            best = int(values.argmax())
            self.proposals[path] = Proposal(self.services.model.classes[best], float(values[best]))

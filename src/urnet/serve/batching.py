"""The network's thread: batches formed of whatever waits, across requests."""

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from urnet.export.engine import Engine

Outputs = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class _Task:
    """Crops, or something else that the network's thread has to do."""

    future: "Future[Any]"
    crops: np.ndarray | None = None
    call: Callable[[], Any] | None = None

    @property
    def images(self) -> int:
        return 0 if self.crops is None else len(self.crops)


class BatchedNetwork:
    """Runs an engine in a thread of its own; while it looks at one batch, the next one gathers.

    Nobody waits for a batch to become full: it takes what is there when the one before is done. How much can wait is
    bounded by those who ask (`LimitMiddleware`): each has a few crops here at a time.

    Args:
        engine: what runs the networks.

    Attributes:
        max_batch: images of the largest batch.
        batches: batches that were run.
        images: images in them.
    """

    def __init__(self, engine: Engine):
        self.engine = engine
        self.max_batch = max(engine.sizes)
        self.batches = self.images = 0
        self._seconds_a_batch = 0.0
        self._queue: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="network", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self) -> None:
        """Finish what waits, and end."""
        self._queue.put(None)
        self._thread.join()

    @property
    def is_running(self) -> bool:
        """Whether it answers."""
        return self._thread.is_alive()

    def backlog_seconds(self) -> float:
        """Expected time until all waiting batches are done, in seconds, from measured durations."""
        return self._queue.qsize() * self._seconds_a_batch

    async def run(self, crops: np.ndarray) -> Outputs:
        """Classify and enhance, as `Engine.run`.

        Args:
            crops: (N, C, S, S) raw counts at the network's size; a few.
        """
        future: Future[Outputs] = Future()
        self._queue.put(_Task(future, crops=crops))
        return await asyncio.wrap_future(future)

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Do something else with the networks, such as Grad-CAM, between two batches."""
        future: Future[Any] = Future()
        self._queue.put(_Task(future, call=lambda: function(*arguments)))
        return await asyncio.wrap_future(future)

    def _work(self) -> None:
        held: _Task | None = None
        while (first := held or self._queue.get()) is not None:
            batch, held = self._gather(first)
            batch = [one for one in batch if one.future.set_running_or_notify_cancel()]
            if batch and batch[0].call is not None:
                _settle(batch, batch[0].call, lambda result: [result])
            elif batch:
                self._run(batch)

    def _gather(self, first: _Task) -> tuple[list[_Task], _Task | None]:
        """What goes into one batch with the first, and what was taken out of the queue but has to wait."""
        batch = [first]
        while first.call is None:
            try:
                one = self._queue.get_nowait()
            except queue.Empty:
                break
            if one is None:
                self._queue.put(None)  # nothing comes after it
                break
            if one.call is not None or sum(each.images for each in batch) + one.images > self.max_batch:
                return batch, one
            batch.append(one)
        return batch, None

    def _run(self, batch: list[_Task]) -> None:
        def split(answers: Outputs) -> list[Outputs]:
            ends = np.cumsum([one.images for one in batch])[:-1]
            return list(zip(*(np.split(array, ends) for array in answers), strict=True))

        begun = time.perf_counter()
        crops = np.concatenate([one.crops for one in batch if one.crops is not None])
        _settle(batch, lambda: self.engine.run(crops), split)
        self.batches += 1
        self.images += len(crops)
        latest = time.perf_counter() - begun
        self._seconds_a_batch += (latest - self._seconds_a_batch) * (0.1 if self.batches > 1 else 1.0)


def _settle(batch: list[_Task], work: Callable[[], Any], split: Callable[[Any], list[Any]]) -> None:
    """Do the work, and give each of a batch its part of the result, or what went wrong."""
    try:
        results = split(work())
    except BaseException as error:
        for one in batch:
            one.future.set_exception(error)
    else:
        for one, result in zip(batch, results, strict=True):
            one.future.set_result(result)

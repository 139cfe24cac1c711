"""Run the networks in one thread, in batches of the crops that wait, across requests."""

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
"""Probabilities (N, K), enhanced images (N, C, S, S) and features (N, F)."""


@dataclass(frozen=True)
class _Task:
    """Crops to run, or a function to call in the thread of the network."""

    future: "Future[Any]"
    crops: np.ndarray | None = None
    call: Callable[[], Any] | None = None

    @property
    def images(self) -> int:
        return 0 if self.crops is None else len(self.crops)


class BatchedNetwork:
    """Thread that runs an engine in batches.

    A batch takes all crops that wait when the one before ends; it never waits to become full. The number of waiting
    crops is bounded, since `LimitMiddleware` limits the requests and each request has a few crops here at a time.

    Args:
        engine: engine of the networks.

    Attributes:
        max_batch: size of the largest batch, in images.
        batches: number of batches so far.
        images: number of images in them.
    """

    def __init__(self, engine: Engine):
        self.engine = engine
        self.max_batch = engine.size
        self.batches = self.images = 0
        self._seconds_a_batch = 0.0
        self._queue: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="network", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Finish all waiting tasks, and end the thread."""
        self._queue.put(None)
        self._thread.join()

    @property
    def is_running(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def backlog_seconds(self) -> float:
        """Estimate the time until all waiting tasks are done, in seconds, from measured durations."""
        return self._queue.qsize() * self._seconds_a_batch

    async def run(self, crops: np.ndarray) -> Outputs:
        """Classify and enhance, as `Engine.run`.

        Args:
            crops: (N, C, S, S) raw counts at the size of the network, at most a few.
        """
        future: Future[Outputs] = Future()
        self._queue.put(_Task(future, crops=crops))
        return await asyncio.wrap_future(future)

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function that uses the networks, such as Grad-CAM, between two batches."""
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
        """Return the tasks of one batch, and the task that was taken from the queue but has to wait."""
        batch = [first]
        while first.call is None:
            try:
                one = self._queue.get_nowait()
            except queue.Empty:
                break
            if one is None:
                self._queue.put(None)  # the last task
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
    """Do the work, and give each task of a batch its part of the result, or the error."""
    try:
        results = split(work())
    except BaseException as error:
        for one in batch:
            one.future.set_exception(error)
    else:
        for one, result in zip(batch, results, strict=True):
            one.future.set_result(result)

"""Batches of waiting crops in the thread of the network."""

import asyncio
import threading

import numpy as np

from urnet.export.engine import GraphEngine
from urnet.serve.batching import BatchedNetwork


class Slow:
    """Engine that waits for its cue, and records the images of each batch."""

    def __init__(self):
        self.cue, self.begun, self.batches = threading.Event(), threading.Event(), []

    def __call__(self, crops):
        self.begun.set()
        assert self.cue.wait(20)
        self.batches.append(crops[:, 0, 0, 0].tolist())
        if 99 in crops:
            raise ValueError("ninety-nine")
        return crops[:, 0, 0, :1] * 2, crops, crops[:, 0, :, 0]


def crops(*values: int) -> np.ndarray:
    return np.array(values, np.float32).reshape(-1, 1, 1, 1) * np.ones((1, 1, 2, 2), np.float32)


def together(run, *work):
    """Start the first task; once it runs, start all others; then let it continue."""

    async def all_of_it():
        network = BatchedNetwork(GraphEngine("test", run, 4))
        network.start()
        first = asyncio.ensure_future(work[0](network))
        await asyncio.to_thread(run.begun.wait, 20)
        others = [asyncio.ensure_future(one(network)) for one in work[1:]]
        await asyncio.sleep(0.05)
        run.cue.set()
        try:
            return await asyncio.gather(first, *others, return_exceptions=True), network
        finally:
            await asyncio.to_thread(network.stop)
            assert not network.is_running

    return asyncio.run(all_of_it())


def test_each_task_gets_its_part_of_a_batch():
    run = Slow()
    answers, network = together(run, *(lambda n, k=k: n.run(crops(k, k + 10)) for k in range(4)))
    assert [answer[0].ravel().tolist() for answer in answers] == [[2 * k, 2 * k + 20] for k in range(4)]
    assert run.batches == [[0, 10], [1, 11, 2, 12], [3, 13]]  # 4 at max_batch
    assert (network.batches, network.images) == (3, 8)
    assert network.backlog_seconds() == 0


def test_an_error_reaches_the_tasks_of_its_batch_only():
    run = Slow()
    answers, _ = together(
        run, lambda n: n.run(crops(1)), lambda n: n.run(crops(99, 2, 3, 4)), lambda n: n.run(crops(5))
    )
    assert isinstance(answers[1], ValueError)
    assert answers[0][0].item() == 2
    assert answers[2][0].item() == 10


def test_functions_run_between_batches():
    run, threads = Slow(), []

    def open_page(value):
        threads.append(threading.current_thread().name)
        return value

    answers, _ = together(run, lambda n: n.run(crops(1)), lambda n: n.call(open_page, 7), lambda n: n.run(crops(2)))
    assert answers[1] == 7
    assert threads == ["network"]
    assert run.batches == [[1], [2]]


def test_cancelled_tasks_are_not_run():
    run = Slow()

    async def leave(network):
        async with asyncio.timeout(0):
            await network.run(crops(50))

    answers, _ = together(run, lambda n: n.run(crops(1)), leave, lambda n: n.run(crops(2)))
    assert isinstance(answers[1], TimeoutError)
    assert run.batches == [[1], [2]]


def test_stopping_finishes_waiting_tasks():
    run = Slow()

    async def stop_at_once():
        network = BatchedNetwork(GraphEngine("test", run, 4))
        network.start()
        tasks = [asyncio.ensure_future(network.run(crops(k))) for k in range(6)]
        await asyncio.sleep(0)
        run.cue.set()
        await asyncio.to_thread(network.stop)
        return await asyncio.gather(*tasks)

    assert len(asyncio.run(stop_at_once())) == 6

"""A grid through Ray: the same figures as alone, and what goes wrong with it."""

import importlib.util
import os
import sys
import time

import pandas as pd
import pytest

from urnet.benchmark import grid as grids
from urnet.benchmark.run import run_benchmark

ONE_ROW = {"only": ["net1"], "folds": 2, "scale": "laptop"}

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed (extra cluster)")
pytestmark = pytest.mark.usefixtures("undrawn")


class Notes:
    """A reporter that remembers what it was told."""

    def __init__(self):
        self.messages, self.shares = [], []

    def notify(self, message):
        self.messages.append(message)

    def update(self, task, share):
        if task == "cells":
            self.shares.append(share)


def answers(out) -> list[pd.DataFrame]:
    return [pd.read_csv(path) for path in sorted(out.glob("runs/*/*/benchmark/predictions.csv.gz"))]


@needs_ray
def test_through_ray_a_grid_gives_what_it_gives_alone(phantoms, small, tmp_path, monkeypatch):
    monkeypatch.chdir(phantoms.parent)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # of a cluster that is gone, and that nobody asked for
    notes = Notes()
    done = run_benchmark("table3", phantoms.name, tmp_path / "ray", jobs=2, overrides=small, reporter=notes, **ONE_ROW)
    assert done.failed == []
    assert [line[:5] for line in notes.messages] == ["[1/2]", "[2/2]"]
    assert all("net1, seed 0, fold" in line and ": done" in line for line in notes.messages)
    assert notes.shares[-1] == 1.0
    run_benchmark("table3", phantoms, tmp_path / "own", overrides=small, **ONE_ROW)
    ours, alone = answers(tmp_path / "ray"), answers(tmp_path / "own")
    assert len(ours) == len(alone) == 2
    for one, other in zip(ours, alone, strict=True):
        pd.testing.assert_frame_equal(one, other, rtol=0, atol=1e-4)


@needs_ray
def test_a_worker_that_is_killed_fails_its_own_cell_alone(phantoms, small, tmp_path, monkeypatch):
    train = grids._run_ray_job

    def killed(cell, shared, threads):
        if cell.recipe.split.fold == 0:
            os.kill(os.getpid(), 9)
        return train(cell, shared, threads)

    monkeypatch.setattr(grids, "_run_ray_job", killed)
    done = run_benchmark("table3", phantoms, tmp_path / "out", jobs=2, overrides=small, **ONE_ROW)
    assert len(done.failed) == 1
    assert "net1, seed 0, fold 0: its process died" in done.failed[0]
    assert "memory may have run out" in done.failed[0]
    assert pd.read_csv(done.folder / "results.csv")["status"].tolist() == ["failed", "done"]
    # The same command, alone or not, tries it again.
    assert run_benchmark("table3", phantoms, tmp_path / "out", overrides=small, **ONE_ROW).failed == []


@needs_ray
@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nowhere.invalid:6379", "rubbish"])
def test_an_address_where_no_cluster_answers_is_told_at_once(phantoms, small, tmp_path, address, raises_code):
    started = time.monotonic()
    with raises_code("benchmark.ray_unreachable"):
        run_benchmark("table3", phantoms, tmp_path / "out", ray=address, overrides=small, **ONE_ROW)
    assert time.monotonic() - started < 60


def test_without_ray_the_extra_is_named(phantoms, small, tmp_path, monkeypatch, raises_code):
    monkeypatch.setitem(sys.modules, "ray", None)
    with raises_code("benchmark.ray_missing"):
        run_benchmark("table3", phantoms, tmp_path / "out", jobs=2, overrides=small, **ONE_ROW)


def test_a_finished_grid_needs_no_ray(phantoms, small, tmp_path, monkeypatch):
    run_benchmark("table3", phantoms, tmp_path / "out", overrides=small, **ONE_ROW)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert run_benchmark("table3", phantoms, tmp_path / "out", jobs=2, overrides=small, **ONE_ROW).failed == []

"""A grid through Ray: the same results as without Ray, and its errors."""

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
    """A reporter that records its messages."""

    def __init__(self):
        self.messages, self.shares = [], []

    def notify(self, message):
        self.messages.append(message)

    def update(self, task, share):
        if task == "cells":
            self.shares.append(share)


def answers(out) -> list[pd.DataFrame]:
    return [pd.read_csv(path) for path in sorted(out.glob("runs/*/*/benchmark/predictions.csv.gz"))]


@pytest.fixture(autouse=True)
def no_niceness(monkeypatch):
    """Give Ray workers the normal priority; with their low one they hardly run during other tests."""
    monkeypatch.setenv("RAY_worker_niceness", "0")


@pytest.fixture(scope="module")
def alone(phantoms, small, tmp_path_factory):
    """One row over two folds, trained in this process; not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("urnet.benchmark.report._draw_figures", lambda *_: [])
        out = tmp_path_factory.mktemp("alone") / "out"
        assert run_benchmark("table3", phantoms, out, overrides=small, **ONE_ROW).failed == []
    return out


@needs_ray
@pytest.mark.slow
def test_ray_gives_the_same_results_and_a_killed_worker_fails_its_own_job_alone(
    phantoms, small, alone, tmp_path, monkeypatch
):
    run_job = grids._run_ray_job

    def killed(job, shared, threads):
        if job.recipe.split.fold == 0:
            os.kill(os.getpid(), 9)
        return run_job(job, shared, threads)

    monkeypatch.setattr(grids, "_run_ray_job", killed)
    monkeypatch.chdir(phantoms.parent)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # of a cluster that is gone, and that nobody asked for
    notes, out = Notes(), tmp_path / "out"
    done = run_benchmark("table3", phantoms.name, out, jobs=2, overrides=small, reporter=notes, **ONE_ROW)
    assert len(done.failed) == 1
    assert "net1, seed 0, fold 0: its process died" in done.failed[0]
    assert "memory may have run out" in done.failed[0]
    assert pd.read_csv(done.folder / "results.csv")["status"].tolist() == ["failed", "done"]
    counted = [line for line in notes.messages if line.startswith("[")]
    assert [line[:5] for line in counted] == ["[1/2]", "[2/2]"]
    assert sorted(line.split(": ")[1].split(" ")[0].rstrip(";") for line in counted) == ["done", "failed"]
    assert notes.shares[-1] == 1.0
    # The same command, alone or not, tries it again.
    assert run_benchmark("table3", phantoms, out, overrides=small, **ONE_ROW).failed == []
    ours, others = answers(out), answers(alone)
    assert len(ours) == len(others) == 2
    for one, other in zip(ours, others, strict=True):
        pd.testing.assert_frame_equal(one.drop(columns="path"), other.drop(columns="path"), rtol=0, atol=1e-4)


@needs_ray
@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nowhere.invalid:6379", "rubbish"])
def test_an_address_where_no_cluster_answers_is_an_error_at_once(address, raises_code):
    started = time.monotonic()
    with raises_code("benchmark.ray_unreachable"):
        grids.run_with_ray(None, [], None, address, Notes())
    assert time.monotonic() - started < 60


def test_without_ray_the_extra_is_named(phantoms, small, tmp_path, monkeypatch, raises_code):
    monkeypatch.setitem(sys.modules, "ray", None)
    with raises_code("benchmark.ray_missing"):
        run_benchmark("table3", phantoms, tmp_path / "out", jobs=2, overrides=small, **ONE_ROW)


@pytest.mark.slow
def test_a_finished_grid_needs_no_ray(phantoms, small, alone, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert run_benchmark("table3", phantoms, alone, jobs=2, overrides=small, **ONE_ROW).failed == []

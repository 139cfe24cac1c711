"""The grid of a benchmark: its folder, what in it is done, and how the rest is run, alone or through Ray.

OUT/benchmark.json   which cells it is about           OUT/cells.csv      the cells with their folds
OUT/runs/<recipe>-<digest>/seed<n>-fold<n>/            a run folder a cell of the grid
"""

import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from urnet.benchmark.job import Job, run_job
from urnet.benchmark.plans import PlannedRow
from urnet.cells.audit import Audit, audit_cells
from urnet.cells.split import split_cells
from urnet.cells.table import TABLE_NAME, Cells
from urnet.cpus import THREADS_VARIABLE, limit_torch, usable_cpus
from urnet.errors import RunError, UrnetError
from urnet.files.atomic import atomic_file
from urnet.files.outputs import lock_output, unfinished_files
from urnet.progress import Progress
from urnet.recipe import Recipe

FORMAT = 1
MANIFEST = "benchmark.json"


@dataclass(frozen=True)
class Grid:
    """A benchmark's folder and the cells that it is about.

    Attributes:
        folder: the benchmark's --out.
        cells: undivided.
        audit: of these cells.
    """

    folder: Path
    cells: Cells
    audit: Audit

    def job(self, row: PlannedRow, seed: int, fold: int) -> Job:
        """The cell of a row, with its folder."""
        recipe = row.recipe.with_changes(seed=seed, split={"fold": fold})
        return Job(recipe, self.folder / "runs" / f"{row.name}-{recipe_digest(row.recipe)}" / f"seed{seed}-fold{fold}")

    def jobs(self, rows: Sequence[PlannedRow], seeds: int, folds: int) -> list[Job]:
        """Fold by fold, so that every row has some figures early."""
        return [self.job(row, seed, fold) for seed in range(seeds) for fold in range(folds) for row in rows]


def recipe_digest(recipe: Recipe) -> str:
    """Eight letters that change whenever anything but name, seed and fold does.

    Keys at their default don't count, so that a key that is new in the recipe leaves the runs of older grids valid.
    """
    data = recipe.with_changes(name="", seed=0, split={"fold": None}).model_dump(mode="json", exclude_defaults=True)
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:8]


@contextmanager
def open_grid(folder: Path, cells: Cells, recipe: Recipe, progress: Progress) -> Iterator[Grid]:
    """The grid of a folder, begun or gone on with; no other benchmark can have it meanwhile.

    Args:
        folder: the benchmark's --out.
        cells: what it is about.
        recipe: how folds are made.
        progress: called with what is done and the share of it.

    Raises:
        RunError: the folder holds something else, another dataset's results, or a benchmark runs in it.
        CellsError: the cells cannot be divided into these folds; the counts needed are said.
    """
    folder = folder.resolve()
    manifest = folder / MANIFEST
    begun = unfinished_files(manifest)  # of a benchmark that was killed as it began
    if folder.exists() and not manifest.is_file() and any(path not in begun for path in _list_folder(folder)):
        raise RunError(f"{folder}: holds something else than a benchmark; choose another --out")
    audit = audit_cells(cells, progress=lambda share: progress("audit", share))
    divided = split_cells(cells, recipe, audit)
    for fold in range(recipe.split.folds or 0):  # that validation is possible shows itself before hours of training
        split_cells(cells, recipe.with_changes(split={"fold": fold}), audit)
    found = {
        "format": FORMAT,
        "fingerprint": fingerprint_cells(cells, audit),
        "division": fingerprint_split(cells, audit),
        "cells": int(audit.distinct.sum()),
    }
    with lock_output(folder, in_place=True):
        if manifest.is_file():
            _check_same_cells(manifest, found)
        else:  # the manifest first, without which the table would be taken for the user's own
            with atomic_file(manifest) as file:
                file.write((json.dumps(found, indent=2) + "\n").encode())
            for left in begun:
                left.unlink(missing_ok=True)
        if not (folder / TABLE_NAME).is_file():
            divided.write(folder / TABLE_NAME)
        yield Grid(folder, cells, audit)


def _list_folder(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise RunError(f"{folder}: is a file; choose another --out")
    return list(folder.iterdir())


def _check_same_cells(manifest: Path, found: dict[str, Any]) -> None:
    try:
        known = json.loads(manifest.read_text(encoding="utf-8"))
        newer, other = known["format"] > FORMAT, known["fingerprint"] != found["fingerprint"]
        otherwise = known.get("division", found["division"]) != found["division"]
    except (ValueError, KeyError, TypeError):
        raise RunError(f"{manifest}: not a benchmark's manifest; restore it or choose another --out") from None
    if newer:
        raise RunError(f"{manifest}: written by a newer urnet (format {known['format']}); update urnet")
    if other:
        raise RunError(
            f"{manifest.parent}: holds the results of other cells ({known.get('cells')} cells, here {found['cells']}, "
            "or other images, labels or donors); choose another --out"
        )
    if otherwise:
        raise RunError(
            f"{manifest.parent}: holds results of these cells in another order, or with another source or fold column, "
            "which makes other folds; restore the table or choose another --out"
        )


def fingerprint_cells(cells: Cells, audit: Audit) -> str:
    """What the cells are, whatever their folder is called: pixels, labels and donors."""
    table = cells.table
    donors = table["donor"] if "donor" in table else [""] * len(table)
    rows = sorted(zip(audit.copy_keys, table["label"], donors, strict=True))
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def fingerprint_split(cells: Cells, audit: Audit) -> str:
    """What folds depend on beside the fingerprint: the order of the cells, which share a source, given folds."""
    table = cells.table
    folds = table["fold"] if "fold" in table else [""] * len(table)
    rows = list(zip(audit.copy_keys, pd.factorize(table["source"])[0].tolist(), folds, strict=True))
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def run_sequentially(grid: Grid, todo: Sequence[Job], reporter: Any) -> None:
    """One cell after the other, in this process."""
    started = time.monotonic()
    for done, job in enumerate(todo):
        reporter.notify(f"[{done + 1}/{len(todo)}] {job.title}{_describe_time_left(started, done, len(todo))}")
        try:
            run_job(job, grid.cells, grid.audit, reporter)
        except UrnetError as error:
            _record_failure(job, str(error), reporter)
        except Exception as error:  # one broken cell must not cost the night's grid
            _record_failure(job, f"{type(error).__name__}: {error}", reporter)


def run_with_ray(grid: Grid, todo: Sequence[Job], jobs: int | None, address: str | None, reporter: Any) -> None:
    """Every cell a Ray task with its share of CPUs, or of GPUs where there are some.

    Args:
        grid: the benchmark.
        todo: cells to run.
        jobs: how many at once on this machine; on a cluster, one for each GPU, or for each CPU where it has none.
        address: of a Ray cluster that sees the same files; none for this machine alone.

    Raises:
        RunError: Ray is not installed, or there is no cluster at the address.
    """
    try:
        import ray
    except ImportError:
        raise RunError('--jobs and --ray need Ray; install it with: pip install "urnet[cluster]"') from None
    try:
        _check_address(address)
        # "local", since Ray would else join any cluster that it finds here, another benchmark's among them.
        ray.init(
            address or "local",
            num_cpus=None if address else usable_cpus(),  # a cluster has its own
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
    except (OSError, OverflowError, ValueError, RuntimeError) as error:  # ConnectionError is an OSError
        where = f"--ray {address}: no Ray cluster answers there" if address else "--jobs: Ray does not start here"
        raise RunError(f"{where} ({' '.join(str(error).split())[:200]})") from None
    try:
        cpus, gpus = _resources_per_job([node["Resources"] for node in ray.nodes() if node["Alive"]], jobs)
        there = replace(grid.cells, root=grid.cells.root.resolve())  # a worker's working folder may be another
        shared = ray.put((there, grid.audit))
        task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0, max_calls=1)(_run_ray_job)
        waiting = {task.remote(job, shared, int(cpus)): job for job in todo}
        started, total = time.monotonic(), len(waiting)
        while waiting:
            ready, _ = ray.wait(list(waiting), timeout=2.0)
            for future in ready:
                job = waiting.pop(future)
                try:
                    if error := ray.get(future):
                        _record_failure(job, error, reporter)
                except ray.exceptions.RayError as error:
                    _record_failure(
                        job,
                        f"its process died ({' '.join(str(error).split())[:200]}); memory may have run out",
                        reporter,
                    )
                done = total - len(waiting)
                left = _describe_time_left(started, done, total) + _describe_running(waiting.values())
                reporter.notify(f"[{done}/{total}] {job.title}: {job.outcome()['status']}{left}")
            reporter.update("cells", 1 - len(waiting) / total)
    finally:
        ray.shutdown()


def _check_address(address: str | None) -> None:
    """Ray tries an address where nothing listens for minutes, and then ends the process.

    Raises:
        OSError: nothing listens there.
    """
    if found := re.fullmatch(r"(?:ray://)?\[?(.+?)\]?:(\d+)", address or ""):
        socket.create_connection((found[1], int(found[2])), timeout=10).close()


def _resources_per_job(nodes: Sequence[dict[str, float]], jobs: int | None) -> tuple[float, float]:
    """CPUs and GPUs of each of `jobs` cells at once, or of a cell that takes one; never more than one node has."""

    def each(kind: str) -> float:
        have = [node.get(kind, 0.0) for node in nodes]
        return min(sum(have) / jobs if jobs else 1.0, max(have))

    gpus = each("GPU")
    return max(1.0, each("CPU")), float(int(gpus)) if gpus > 1 else gpus  # Ray divides one GPU, but not three by two


def _run_ray_job(job: Job, shared: tuple[Cells, Audit], threads: int) -> str:
    """One cell in a process of its own; what went wrong, or ""."""
    os.environ[THREADS_VARIABLE] = str(max(1, threads))
    limit_torch()
    try:
        run_job(job, *shared)
    except UrnetError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _describe_running(jobs: Iterable[Job]) -> str:
    """How many cells are under way, and the epoch of the one that is farthest."""
    epochs = []
    for job in jobs:
        history = job.folder / "history.csv"
        if history.is_file():
            epochs.append((history.read_bytes().count(b"\n") - 1, job))
    if not epochs:
        return ""
    epoch, job = max(epochs, key=lambda item: item[0])
    whole = job.recipe.train.epochs + job.recipe.pretrain.epochs
    return f"; {len(epochs)} under way, {job.title} at epoch {epoch} of {whole}"


def _record_failure(job: Job, error: str, reporter: Any) -> None:
    job.record_failure(error)
    reporter.notify(f"{job.title} failed: {error}")


def _describe_time_left(started: float, done: int, total: int) -> str:
    if not done or done == total:
        return ""
    minutes = (time.monotonic() - started) / done * (total - done) / 60
    return f" (about {minutes:.0f} min left)" if minutes >= 1 else " (less than a minute left)"


def unfinished_jobs(jobs: Iterable[Job]) -> list[Job]:
    """The cells to run: those that are missing, and those that failed."""
    return [job for job in jobs if job.outcome()["status"] != "done"]

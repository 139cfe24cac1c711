"""The grid of a benchmark: its folder, its jobs, and how they run, one after the other or through Ray.

OUT/benchmark.json                             fingerprint of the cells
OUT/cells.csv                                  the cells with their folds
OUT/runs/<recipe>-<digest>/seed<n>-fold<n>/    the run folder of one job; from the second repeat of the folds on,
                                               seed<n>-repeat<n>-fold<n>/
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
SPLIT_SEEDS = 2**32
"""Number of values that `split.seed` can have."""


@dataclass(frozen=True)
class Grid:
    """A benchmark's folder and its cells.

    Attributes:
        folder: the benchmark's --out.
        cells: all cells.
        audit: audit of these cells.
    """

    folder: Path
    cells: Cells
    audit: Audit

    def job(self, row: PlannedRow, seed: int, fold: int, repeat: int = 0) -> Job:
        """Build the job of a row for one seed, fold and repeat of the folds. Each repeat has its own `split.seed`."""
        split = row.recipe.split
        recipe = row.recipe.with_changes(seed=seed, split={"fold": fold, "seed": (split.seed + repeat) % SPLIT_SEEDS})
        name = f"seed{seed}-repeat{repeat}-fold{fold}" if repeat else f"seed{seed}-fold{fold}"
        return Job(recipe, self.folder / "runs" / f"{row.name}-{recipe_digest(row.recipe)}" / name, repeat)

    def jobs(self, rows: Sequence[PlannedRow], seeds: int, folds: int, repeats: int = 1) -> list[Job]:
        """List the jobs of all rows, fold by fold, so that every row has results early."""
        return [
            self.job(row, seed, fold, repeat)
            for seed in range(seeds)
            for repeat in range(repeats)
            for fold in range(folds)
            for row in rows
        ]


def recipe_digest(recipe: Recipe) -> str:
    """Hash a recipe without its name, seed and fold, as 8 hexadecimal digits.

    Keys with their default value do not count, so that a new key in the recipe leaves the runs of older grids valid.
    """
    data = recipe.with_changes(name="", seed=0, split={"fold": None}).model_dump(mode="json", exclude_defaults=True)
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:8]


@contextmanager
def open_grid(folder: Path, cells: Cells, recipe: Recipe, progress: Progress, repeats: int = 1) -> Iterator[Grid]:
    """Create or reopen the grid of a folder, and lock it.

    Args:
        folder: the benchmark's --out.
        cells: all cells.
        recipe: recipe whose `split` makes the folds.
        progress: called with the name of a step and the share of it that is done.
        repeats: number of times that the cells are divided into folds.

    Raises:
        RunError: the folder has other content or the results of other cells, or another process uses it.
        CellsError: the cells cannot be divided into these folds; the message says how many are needed.
    """
    folder = folder.resolve()
    manifest = folder / MANIFEST
    begun = unfinished_files(manifest)  # of a benchmark that was killed at its start
    if folder.exists() and not manifest.is_file() and any(path not in begun for path in _list_folder(folder)):
        raise RunError(f"{folder} exists and is no benchmark. Choose another --out", code="benchmark.folder_other")
    audit = audit_cells(cells, progress=lambda share: progress("audit", share))
    divided = split_cells(cells, recipe, audit)
    for repeat in range(repeats):  # fails now, not after hours of training
        seed = (recipe.split.seed + repeat) % SPLIT_SEEDS
        for fold in range(recipe.split.folds or 0):
            split_cells(cells, recipe.with_changes(split={"fold": fold, "seed": seed}), audit)
    content = {
        "format": FORMAT,
        "fingerprint": fingerprint_cells(cells, audit),
        "division": fingerprint_split(cells, audit),
        "cells": int(audit.distinct.sum()),
    }
    with lock_output(folder, in_place=True):
        if manifest.is_file():
            _check_same_cells(manifest, content)
        else:  # first, since a table without it would be the user's
            with atomic_file(manifest) as file:
                file.write((json.dumps(content, indent=2) + "\n").encode())
            for left in begun:
                left.unlink(missing_ok=True)
        if not (folder / TABLE_NAME).is_file():
            divided.write(folder / TABLE_NAME)
        yield Grid(folder, cells, audit)


def _list_folder(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise RunError(f"{folder} is a file, not a folder. Choose another --out", code="benchmark.folder_other")
    return list(folder.iterdir())


def _check_same_cells(manifest: Path, content: dict[str, Any]) -> None:
    try:
        known = json.loads(manifest.read_text(encoding="utf-8"))
        newer, other = known["format"] > FORMAT, known["fingerprint"] != content["fingerprint"]
        otherwise = known.get("division", content["division"]) != content["division"]
    except (ValueError, KeyError, TypeError):
        raise RunError(
            f"{manifest} is damaged: it is not the manifest of a benchmark. Restore it, or choose another --out",
            code="benchmark.manifest_invalid",
        ) from None
    if newer:
        raise RunError(
            f"{manifest} was written by a newer urnet (format {known['format']}). Update urnet",
            code="benchmark.manifest_newer",
        )
    if other:
        raise RunError(
            f"{manifest.parent} has the results of other cells: {known.get('cells')} cells, here {content['cells']}, "
            "or other images, labels or donors. Choose another --out",
            code="benchmark.cells_changed",
        )
    if otherwise:
        raise RunError(
            f"{manifest.parent} has the results of these cells in another order, or with another source or fold "
            "column. The folds would differ. Restore the table, or choose another --out",
            code="benchmark.split_changed",
        )


def fingerprint_cells(cells: Cells, audit: Audit) -> str:
    """Hash pixels, labels and donors of the cells, independent of their paths."""
    table = cells.table
    donors = table["donor"] if "donor" in table else [""] * len(table)
    rows = sorted(zip(audit.copy_keys, table["label"], donors, strict=True))
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def fingerprint_split(cells: Cells, audit: Audit) -> str:
    """Hash what else the folds depend on: the order of the cells, their sources and given folds."""
    table = cells.table
    folds = table["fold"] if "fold" in table else [""] * len(table)
    rows = list(zip(audit.copy_keys, pd.factorize(table["source"])[0].tolist(), folds, strict=True))
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def run_sequentially(grid: Grid, todo: Sequence[Job], reporter: Any) -> None:
    """Run one job after the other in this process."""
    started = time.monotonic()
    for done, job in enumerate(todo):
        reporter.notify(f"[{done + 1}/{len(todo)}] {job.title}{_describe_time_left(started, done, len(todo))}")
        try:
            run_job(job, grid.cells, grid.audit, reporter)
        except UrnetError as error:
            _record_failure(job, str(error), reporter)
        except Exception as error:  # one failing job must not stop the grid
            _record_failure(job, f"{type(error).__name__}: {error}", reporter)


def run_with_ray(grid: Grid, todo: Sequence[Job], jobs: int | None, address: str | None, reporter: Any) -> None:
    """Run each job as a Ray task with its share of the CPUs and GPUs.

    Args:
        grid: the benchmark.
        todo: jobs to run.
        jobs: number of jobs at once. Default: one per GPU, or one per CPU if there is no GPU.
        address: address of a Ray cluster that sees the same files; None for this machine alone.
        reporter: receives messages and progress.

    Raises:
        RunError: Ray is not installed, or there is no cluster at the address.
    """
    try:
        import ray
    except ImportError:
        raise RunError(
            '--jobs and --ray need Ray. Install it with: pip install "urnet[cluster]"', code="benchmark.ray_missing"
        ) from None
    try:
        _check_address(address)
        # Without "local" Ray would join any cluster on this machine, such as that of another benchmark.
        ray.init(
            address or "local",
            num_cpus=None if address else usable_cpus(),  # a cluster has its own
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
    except (OSError, OverflowError, ValueError, RuntimeError) as error:  # ConnectionError is an OSError
        where = f"--ray {address}: no Ray cluster answers there" if address else "--jobs: Ray does not start here"
        raise RunError(f"{where} ({' '.join(str(error).split())[:200]})", code="benchmark.ray_unreachable") from None
    try:
        cpus, gpus = _resources_per_job([node["Resources"] for node in ray.nodes() if node["Alive"]], jobs)
        there = replace(grid.cells, root=grid.cells.root.resolve())  # a worker's working folder may be another
        shared = ray.put((there, grid.audit))
        task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0, max_calls=1)(_run_ray_job)
        pending = {task.remote(job, shared, int(cpus)): job for job in todo}
        started, total = time.monotonic(), len(pending)
        while pending:
            ready, _ = ray.wait(list(pending), timeout=2.0)
            for future in ready:
                job = pending.pop(future)
                try:
                    if error := ray.get(future):
                        _record_failure(job, error, reporter)
                except ray.exceptions.RayError as error:
                    _record_failure(
                        job,
                        f"its process died ({' '.join(str(error).split())[:200]}); memory may have run out",
                        reporter,
                    )
                done = total - len(pending)
                left = _describe_time_left(started, done, total) + _describe_running(pending.values())
                reporter.notify(f"[{done}/{total}] {job.title}: {job.outcome()['status']}{left}")
            reporter.update("cells", 1 - len(pending) / total)
    finally:
        ray.shutdown()


def _check_address(address: str | None) -> None:
    """Check that something listens at an address. Ray would try for minutes, and then end the process.

    Raises:
        OSError: nothing listens there.
    """
    if match := re.fullmatch(r"(?:ray://)?\[?(.+?)\]?:(\d+)", address or ""):
        socket.create_connection((match[1], int(match[2])), timeout=10).close()


def _resources_per_job(nodes: Sequence[dict[str, float]], jobs: int | None) -> tuple[float, float]:
    """Compute CPUs and GPUs of one job: the share of `jobs` at once, or one; never more than one node has."""

    def each(kind: str) -> float:
        have = [node.get(kind, 0.0) for node in nodes]
        return min(sum(have) / jobs if jobs else 1.0, max(have))

    gpus = each("GPU")
    return max(1.0, each("CPU")), float(int(gpus)) if gpus > 1 else gpus  # Ray divides one GPU, but not three by two


def _run_ray_job(job: Job, shared: tuple[Cells, Audit], threads: int) -> str:
    """Run one job in a process of its own, and return the error, or ""."""
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
    """Describe how many jobs are running, and the epoch of the most advanced one."""
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
    """List the jobs that are missing or failed."""
    return [job for job in jobs if job.outcome()["status"] != "done"]

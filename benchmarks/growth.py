"""Measure time and memory of preparing tables of growing size: reading, audit, split, cache.

    python benchmarks/growth.py --work GROWTH --sizes 1000 10000 100000 1000000

The cells are mixtures of two phantom crops of 24 px in random orientations, with noise. They are tiles of a few dozen
montages, so that there are few files. One per cent of them are copies: half rotated, half rotated with noise. Each
stage runs in a process of its own with one thread, and reads the results of earlier stages from the work folder. Donors
are not known, so each cell is a group of its own for the split. An interrupted measurement resumes with the same
command. The results are `growth.json` and `growth.png` in the work folder. Memory is the peak of the process without
its imports, the results of earlier stages, and pages of mapped files. Linux only.
"""

import argparse
import csv
import json
import math
import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tifffile
import torch
from machine import describe, load
from matplotlib.figure import Figure

from urnet.cells.audit import audit_cells
from urnet.cells.cache.arrays import load_cached_pixels
from urnet.cells.read import read_cells
from urnet.cells.split import split_cells
from urnet.cells.table import TABLE_NAME
from urnet.evaluation.figure_style import FAINT, LINE_COLORS, LINE_DASHES, LINE_MARKERS, WIDTH, styled
from urnet.files.atomic import atomic_file
from urnet.images.simulation.phantom import draw_crop
from urnet.recipe import load_recipe

SIDE, POOL = 24, 2000
LABELS = ("granulocyte", "lymphocyte", "monocyte")
STAGES = ("table", "audit", "split", "cache", "cache again")


def main() -> None:
    """Measure the missing stages, then print, write and draw all results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--stage", nargs=2, help=argparse.SUPPRESS)  # for the processes of the stages
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.stage:
        return stage(arguments.work, int(arguments.stage[0]), arguments.stage[1])
    arguments.work.mkdir(parents=True, exist_ok=True)
    out = arguments.work / "growth.json"
    figures = (
        json.loads(out.read_text(encoding="utf-8")) if out.is_file() else describe("numpy", "scipy") | {"rows": []}
    )
    environment = os.environ | {"URNET_CACHE": str(arguments.work / "cache"), "OMP_NUM_THREADS": "1"}
    for size in sorted(arguments.sizes):
        if not (arguments.work / str(size)).is_dir():
            make(arguments.work, size)
        for name in STAGES:
            if any((row["cells"], row["stage"]) == (size, name) for row in figures["rows"]):
                continue
            command = [sys.executable, __file__, "--work", str(arguments.work), "--stage", str(size), name]
            process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
            row = {"cells": size, "stage": name, **json.loads(process.stdout.splitlines()[-1]), "load": load()}
            print(row, flush=True)
            figures["rows"].append(row)
            with atomic_file(out) as file:
                file.write((json.dumps(figures, indent=2) + "\n").encode())
    print(pd.DataFrame(figures["rows"]).to_string(index=False, float_format="{:.4g}".format))
    drawn(pd.DataFrame(figures["rows"])).savefig(arguments.work / "growth.png", dpi=200)


def make(work: Path, size: int) -> None:
    """Write the montages and the table of one size."""
    pool = work / "pool.npy"
    if not pool.is_file():
        crops = [draw_crop(LABELS[k % 3], 0, k % 12, k // 12, SIDE).image for k in range(POOL)]
        np.save(pool, np.stack(crops))
    phantoms = np.load(pool)
    tiles = min(10_000, size // 20)
    rows = max(edge for edge in range(1, math.isqrt(tiles) + 1) if tiles % edge == 0)
    staging = work / f"{size}.unfinished"
    staging.mkdir(exist_ok=True)
    with (staging / TABLE_NAME).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "tile"])
        for number in range(size // tiles):
            crops = mixtures(phantoms, tiles, np.random.default_rng(number))
            montage = crops.reshape(rows, tiles // rows, SIDE, SIDE).swapaxes(1, 2).reshape(rows * SIDE, -1)
            tifffile.imwrite(staging / f"{number:03d}.tif", montage)
            writer.writerow([f"{number:03d}.tif", LABELS[number % 3], SIDE])
    staging.rename(work / str(size))


def mixtures(phantoms: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw new cells, (count, 24, 24) uint8; the last 0.5 % are noisy copies, the 0.5 % before rotated ones."""
    share = rng.uniform(0.35, 0.65, (count, 1, 1))
    first, second = (turned(phantoms[rng.integers(0, len(phantoms), count)], rng).astype(float) for _ in range(2))
    cells = share * first + (1 - share) * second + rng.normal(0, 1, first.shape)
    copied = max(1, count // 200)
    cells[-copied:] = turned(cells[:copied], rng) + rng.normal(0, 0.4, (copied, SIDE, SIDE))
    cells = np.clip(np.rint(cells), 0, 255).astype(np.uint8)
    cells[-2 * copied : -copied] = turned(cells[copied : 2 * copied], rng)
    return cells


def turned(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turn each image to a random one of its eight orientations."""
    which = rng.integers(0, 8, len(images))
    result = images.copy()
    for kind in range(1, 8):
        some = images[which == kind]
        result[which == kind] = np.rot90(some[:, :, ::-1] if kind > 3 else some, kind % 4, (1, 2))
    return result


def stage(work: Path, size: int, name: str) -> None:
    """Run one stage in this process, and print seconds, peak memory and results."""
    stored = {needed: work / f"{size}-{needed}.pickle" for needed in ("table", "audit")}
    given = [pickle.loads(stored[needed].read_bytes()) for needed in NEEDS[name]]
    before, most = memory(), [0.0]
    threading.Thread(target=watch, args=(most,), daemon=True).start()
    begun, worked = time.perf_counter(), time.process_time()
    result: Any
    about = {}
    if name == "table":
        result = read_cells(work / str(size))
    elif name == "audit":
        result = audit_cells(*given)
        kinds = pd.Series([finding.kind for finding in result.findings]).value_counts()
        about = {"found": kinds.to_dict()}
    elif name == "split":
        result = split_cells(given[0], load_recipe("quick"), given[1])
    else:
        result = load_cached_pixels(*given, SIDE, 1)
    seconds, worked = time.perf_counter() - begun, time.process_time() - worked
    measured = {"seconds": seconds, "processor": worked, "megabytes": max(most[0], memory()) - before, "before": before}
    if name in stored:
        stored[name].write_bytes(pickle.dumps(result))
    print(json.dumps(measured | about))


NEEDS = {"table": (), "audit": ("table",), "split": ("table", "audit"), "cache": ("table",), "cache again": ("table",)}


def memory() -> float:
    """Read the memory of this process, in megabytes, without pages of files."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon:"))


def watch(most: list[float]) -> None:
    """Record the peak of memory, a hundred times a second."""
    while True:
        most[0] = max(most[0], memory())
        time.sleep(0.01)


@styled
def drawn(rows: pd.DataFrame) -> Figure:
    """Draw processor seconds and memory of each stage over the number of cells, and n log n."""
    figure = Figure(figsize=(WIDTH, 5.6), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True)
    for number, name in enumerate(STAGES):
        measured = rows[rows["stage"] == name].sort_values("cells")
        style = {
            "color": LINE_COLORS[number],
            "linestyle": LINE_DASHES[number],
            "marker": LINE_MARKERS[number],
            "markersize": 4,
        }
        upper.plot(measured["cells"], measured["processor"], label=name, **style)
        lower.plot(measured["cells"], measured["megabytes"].clip(lower=1), **style)
    sizes = np.sort(rows["cells"].unique()).astype(float)
    first = rows[(rows["stage"] == "audit") & (rows["cells"] == sizes[0])]["processor"].iloc[0]
    growth = sizes * np.log(sizes)
    upper.plot(sizes, first * growth / growth[0], color=FAINT, linestyle=":", label="n log n")
    upper.set(xscale="log", yscale="log", title="Preparing a table", ylabel="processor seconds")
    lower.set(xscale="log", yscale="log", xlabel="cells", ylabel="peak memory, MB")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


if __name__ == "__main__":
    main()

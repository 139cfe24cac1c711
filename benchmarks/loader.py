"""Measure the images per second of the training's loader on one core, against ImageFolder and PIL.

    python benchmarks/loader.py --stained ../shared/data/pbc_stained --out loader.json

Both load every image of a folder per class once in an epoch, in random order and batches of 32, as float tensors in
[0, 1], mirrored and rotated by any angle with reflected borders. The images are stained crops (JPEG of 360 px, at 128
px in colour) and phantom crops (PNG of 64 px, grey). The plain loader is also timed with torchvision's black corners.
Each run is a separate process with one thread, and the kinds take turns. The figures are medians over epochs. urnet
decodes once, before the first epoch and for all later runs; that time is reported separately.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from machine import describe, load

from urnet.cells.augment import augment
from urnet.cells.batches import CellDataset, make_training_loader
from urnet.cells.cache.arrays import load_cached_pixels
from urnet.cells.read import read_cells
from urnet.cells.simulate import write_phantom
from urnet.images.rows import LazyRows
from urnet.images.scale import fit_scaling

PLAIN = Path(__file__).parent / "plain" / "loader.py"
BATCH = 32


def main() -> None:
    """Print a table of medians and ratios, and write all figures to a file if asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stained", type=Path, help="folder per class of stained crops")
    parser.add_argument("--phantoms", type=int, default=1200)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)  # used by the processes
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.run:
        folder, *numbers = arguments.run
        return load_and_augment(Path(folder), *map(int, numbers))
    about = describe("torchvision", "pillow", "numpy") | {"load": [load()]}
    rows, turns = [], {}
    with tempfile.TemporaryDirectory() as name:
        os.environ |= {"URNET_CACHE": str(Path(name) / "cache"), "OMP_NUM_THREADS": "1"}
        write_phantom(Path(name) / "phantom", arguments.phantoms, size=64, donors=4)
        data = {"phantom": (Path(name) / "phantom" / "cells", 64, 1)}
        if arguments.stained is not None:
            data["stained"] = (arguments.stained, 128, 3)
        for title, (folder, size, channels) in data.items():
            given = [str(folder), str(size), str(channels), str(arguments.epochs)]
            kinds = {
                "plain": [str(PLAIN), *given, "reflect"],
                "plain, black corners": [str(PLAIN), *given, "black"],
                "urnet": [__file__, "--run", *given],
            }
            turns[title] = {kind: [] for kind in kinds}
            for _ in range(arguments.repeats):
                for kind, command in kinds.items():
                    turns[title][kind].append(run(command))
            rows += summarise(title, turns[title])
    about["load"].append(load())
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.4g}".format))
    print(f"load {about['load']} on {about['cores']} cores")
    if arguments.out is not None:
        content = json.dumps(about | {"medians": rows, "turns": turns}, indent=2)
        arguments.out.write_text(content + "\n", encoding="utf-8")


def run(command: list[str]) -> dict[str, object]:
    """Run one process: epochs as (images, seconds, processor seconds), and the decoding time of urnet."""
    result = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True)
    answer = json.loads(result.stdout.splitlines()[-1])
    return answer if isinstance(answer, dict) else {"epochs": answer}


def load_and_augment(folder: Path, size: int, channels: int, epochs: int) -> None:
    """Measure urnet's loader in this process."""
    cells = read_cells(folder)
    started = time.perf_counter()
    whole = load_cached_pixels(cells, size, channels)
    decoded = time.perf_counter() - started
    rows = LazyRows(whole, np.arange(len(whole)))
    dataset = CellDataset(rows, cells.labels, fit_scaling(rows, str(whole.dtype)))
    result = []
    loader = make_training_loader(dataset, BATCH, balanced=False, per_class=None, seed=0)
    for epoch in range(epochs):
        loader.batch_sampler.sampler.set_epoch(epoch)
        started, worked = time.perf_counter(), time.process_time()
        images = sum(len(augment(batch, flips=True, rotation=True)) for batch, _, _ in loader)
        result.append([images, time.perf_counter() - started, time.process_time() - worked])
    print(json.dumps({"epochs": result, "decoded": decoded}))


def summarise(title: str, turns: dict[str, list[dict[str, object]]]) -> list[dict[str, object]]:
    """Compute the medians over all epochs of each kind, and the ratio to the plain loader."""

    def rate(kind: str, clock: int) -> float:
        return statistics.median(epoch[0] / epoch[clock] for turn in turns[kind] for epoch in turn["epochs"])

    return [
        {
            "data": title,
            "kind": kind,
            "images_a_second": rate(kind, 1),
            "times_plain": rate(kind, 1) / rate("plain", 1),
            "times_plain_processor": rate(kind, 2) / rate("plain", 2),
            "decoded_once_seconds": turns[kind][0].get("decoded"),
            "opened_again_seconds": turns[kind][-1].get("decoded"),
        }
        for kind in turns
    ]


if __name__ == "__main__":
    main()

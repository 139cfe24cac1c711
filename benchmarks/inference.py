"""Measure the seconds per image, from files to the table: `urnet predict` against a plain PyTorch script.

    python benchmarks/inference.py net4 --images 12 --repeats 3 --out inference-net4.json
    python benchmarks/inference.py quick --images 2000 --repeats 3 --out inference-quick.json
    python benchmarks/inference.py quick --images 100000 --memory --out inference-memory.json

Both read the same phantom crops (beyond 2,000, copies of them) and the same network (random weights, no calibration),
and write the same table. urnet also computes the enhanced images and the features. Each run is a separate process, and
the kinds take turns. The figures are medians of the time from the loaded network to the table, in wall-clock time and
in processor time, which other processes disturb less, and of the time of the whole process. The export of the graph and
its comparison with PyTorch are timed separately, once. The rate of float32 matrix products (2048 × 2048) on the same
threads is measured as well, and the share of it that each kind reaches in useful operations (2 × MAC).

With `--memory`, only `urnet predict` is measured, with the engine that it chooses: its peak memory after 1,000, 10,000,
… images of one large folder. A first process is killed after a tenth of the images; a second one resumes after its
rows. Memory is known on Linux only.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from machine import describe, load

from urnet.bundle.config import ModelConfig
from urnet.bundle.model import Model
from urnet.cells.simulate import write_phantom
from urnet.images.scale import Scaling
from urnet.nets.size import count_macs
from urnet.optional_packages import is_installed
from urnet.predict import predict_files
from urnet.recipe import load_recipe

CLASSES = ("granulocyte", "lymphocyte", "monocyte")
QUICK = load_recipe("quick")
MODELS = {
    "net4": (200, 3, {"name": "urnet", "width": 64}, {"name": "resnet101"}, 200),
    "quick": (40, 1, QUICK.enhancer.model_dump(), {"name": "resnet10t", "output_stride": 8}, 48),
}
PLAIN = Path(__file__).parent / "plain" / "inference.py"
DRAWN = 2000
DIED = 9
PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "check": False}


def main() -> None:
    """Print a table of medians and ratios, and write all figures to a file if asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--engines", nargs="+", default=["torch", "onnx", *["openvino"] * is_installed("openvino")])
    parser.add_argument("--threads", type=int, help="of the networks, in all kinds; PyTorch's own choice by default")
    parser.add_argument("--memory", action="store_true", help="of urnet predict alone, in the course of a large folder")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--run", nargs=5, help=argparse.SUPPRESS)  # what the processes are started with
    arguments = parser.parse_args()
    if arguments.run:
        return predict(*arguments.run)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
        os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # for the processes
    about = describe("timm", "onnxruntime", "openvino") | {"load": [load()]}
    if arguments.memory:
        figures = {"model": arguments.model, "images": arguments.images, **memory(arguments.model, arguments.images)}
        about["load"].append(load())
        return write_figures(about | figures, arguments.out)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        macs = make(arguments.model, arguments.images, folder)
        first = {engine: run(engine, folder, "first") for engine in arguments.engines}
        kinds = ("plain", *arguments.engines)
        turns = [{kind: run(kind, folder, str(turn)) for kind in kinds} for turn in range(arguments.repeats)]
        check_equal_tables(folder, kinds)
    about["load"].append(load())
    rate = product_rate()
    rows = []
    for kind in kinds:
        seconds, worked, process = (median(turns, kind, key) for key in ("seconds", "processor", "process"))
        rows.append(
            {
                "kind": kind,
                "seconds_an_image": seconds / arguments.images,
                "times_plain": median(turns, "plain", "seconds") / seconds,
                "times_plain_processor": median(turns, "plain", "processor") / worked,
                "process_seconds": process,
                "gflops": 2e-9 * macs * arguments.images / seconds,
                "share_of_products": 2e-9 * macs * arguments.images / seconds / rate,
                "first_seconds": first[kind]["seconds"] if kind in first else None,
            }
        )
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.4g}".format))
    print(f"matrix products: {rate:.0f} GFLOP/s; load {about['load']} on {about['cores']} cores")
    figures = {"model": arguments.model, "images": arguments.images, "gmac": macs / 1e9, "products_gflops": rate}
    write_figures(about | figures | {"medians": rows, "turns": turns}, arguments.out)


def write_figures(figures: dict[str, Any], out: Path | None) -> None:
    """Write the figures to a file, if asked for."""
    if out is not None:
        out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def memory(name: str, images: int) -> dict[str, Any]:
    """Measure the peak memory over a folder, in a process that is killed after a tenth and in the one that resumes."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make(name, images, folder)
        results = [run("auto", folder, "memory", stop) for stop in (images // 10, 0)]
        table = pd.read_csv(folder / "auto-memory.csv", usecols=["path", "error"], keep_default_na=False)
    assert len(table) == table["path"].nunique() == images
    assert not table["error"].any()
    rows = [
        {"process": which, **mark}
        for which, one in zip(("first", "second"), results, strict=True)
        for mark in one["marks"]
    ]
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.1f}".format))
    seconds = sum(one["seconds"] for one in results)
    rate, by = images / seconds, ", ".join(results[1]["engines"])
    print(f"{results[1]['resumed']:,} rows were there already; {rate:.0f} images a second by {by}")
    print(f"longest time without progress: {max(one['silence'] for one in results):.1f} s")
    return {"processes": results}


def make(name: str, images: int, folder: Path) -> int:
    """Write phantom crops and a bundle; return the multiply-accumulates per image."""
    size, channels, enhancer, classifier, edge = MODELS[name]
    write_phantom(folder / "phantom", min(max(images, 12), DRAWN), size=edge, donors=4)
    (folder / "crops").mkdir()
    drawn = sorted((folder / "phantom" / "cells").rglob("*.png"))
    for number in range(images):
        shutil.copyfile(drawn[number % len(drawn)], folder / "crops" / f"{number:06d}.png")
    torch.manual_seed(0)
    config = ModelConfig(name, CLASSES, size, channels, Scaling(0.0, 255.0, "uint8"), enhancer, classifier)
    model = Model(config, config.build())
    model.save(folder / "bundle")
    return count_macs(model.joint, size, channels)


def run(kind: str, folder: Path, turn: str, stop: int = 0) -> dict[str, Any]:
    """Run one process, which may stop itself; return its result and its total time."""
    places = [str(folder / place) for place in ("bundle", "crops", f"{kind}-{turn}.csv")]
    ours = [sys.executable, __file__, "net4", "--run", kind, *places, str(stop)]
    begun = time.perf_counter()
    process = subprocess.run([sys.executable, str(PLAIN), *places] if kind == "plain" else ours, **PIPES)
    if process.returncode != (DIED if stop else 0):
        raise RuntimeError(process.stderr)
    return json.loads(process.stdout.splitlines()[-1]) | {"process": time.perf_counter() - begun, "load": load()}


def predict(engine: str, bundle: str, crops: str, out: str, stop: str) -> None:
    """Measure `urnet predict` in this process."""
    model = Model.load(bundle)
    begun, worked = time.perf_counter(), sum(os.times()[:4])
    recorder = Recorder(begun, sum(1 for _ in Path(crops).iterdir()), int(stop))
    done = predict_files(model, [crops], Path(out), engine=engine, progress=recorder)
    worked = sum(os.times()[:4]) - worked
    print(json.dumps(recorder.summary() | {"processor": worked, "engines": done.engines, "resumed": done.resumed}))


class Recorder:
    """Recorder of a prediction: peak memory and longest time without progress. It can kill the process at an image."""

    def __init__(self, begun: float, images: int, stop: int):
        self.begun, self.last, self.images, self.stop, self.longest_gap = begun, begun, images, stop, 0.0
        self.next = 1000
        self.marks = [self._mark(0, begun)]

    def __call__(self, what: str, share: float) -> None:
        """Record the progress of `predict_files`."""
        now = time.perf_counter()
        self.longest_gap, self.last = max(self.longest_gap, now - self.last), now
        done = round(share * self.images) if what == "classify" else 0
        stops = 0 < self.stop <= done
        if done >= self.next or done == self.images or stops:
            self.marks.append(self._mark(done, now))
        while done >= self.next:
            self.next *= 10
        if stops:
            print(json.dumps(self.summary()), flush=True)
            os._exit(DIED)

    def _mark(self, done: int, now: float) -> dict[str, float | None]:
        return {"images": done, "peak_mb": peak(), "seconds": now - self.begun}

    def summary(self) -> dict[str, Any]:
        """Return the record for the parent process."""
        return {"seconds": time.perf_counter() - self.begun, "silence": self.longest_gap, "marks": self.marks}


def peak() -> float | None:
    """Read the peak memory of this process, in megabytes."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="ascii").splitlines() if status.is_file() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), None)


def median(turns: list[dict[str, dict[str, float]]], kind: str, key: str) -> float:
    """Compute the median over the runs of one kind."""
    return statistics.median(turn[kind][key] for turn in turns)


def check_equal_tables(folder: Path, kinds: tuple[str, ...]) -> None:
    """Check that all kinds gave the same table."""
    plain = pd.read_csv(folder / "plain-0.csv")
    for kind in kinds[1:]:
        table = pd.read_csv(folder / f"{kind}-0.csv")
        assert [Path(path).name for path in table["path"]] == [Path(path).name for path in plain["path"]]
        assert table["predicted"].equals(plain["predicted"])
        for name in CLASSES:
            assert np.allclose(table[f"p_{name}"], plain[name], atol=1e-4)


def product_rate() -> float:
    """Measure the GFLOP/s of float32 matrix products, the best of ten."""
    a = torch.rand(2048, 2048)
    times = []
    for _ in range(10):
        begun = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - begun)
    return 2e-9 * 2048**3 / min(times)


if __name__ == "__main__":
    main()

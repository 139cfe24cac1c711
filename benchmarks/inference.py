"""Seconds an image from files on disk to the table: `urnet predict` against a plain PyTorch script.

    python benchmarks/inference.py net4 --images 12 --repeats 3 --out inference-net4.json
    python benchmarks/inference.py quick --images 2000 --repeats 3 --out inference-quick.json

Both read the same phantom crops and the same network (random weights, no calibration) and write the same table; ours
also has the enhanced images and the features. Each run is a process of its own, the kinds take turns, and what counts
are medians: of the time from the loaded network to the written table, by the clock and of processor time (which others
on the machine disturb less), and of the whole process. The graph is exported, and compared with PyTorch, once before;
that is timed by itself. In the end, the rate of float32 matrix products (2048 ×
2048) on the same threads, and what part of it each kind reaches in useful operations (2 × MAC).
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

from urnet.bundle import Model, ModelConfig
from urnet.cells.simulate import write_phantom
from urnet.export.packages import installed
from urnet.images.scale import Scaling
from urnet.nets.size import count_macs
from urnet.predict import predict_files

CLASSES = ("granulocyte", "lymphocyte", "monocyte")
MODELS = {
    "net4": (200, 3, {"name": "urnet", "width": 64}, {"name": "resnet101"}, 200),
    "quick": (40, 1, {"name": "urnet", "width": 8, "residual": True}, {"name": "resnet10t", "output_stride": 8}, 48),
}
PLAIN = Path(__file__).parent / "plain" / "inference.py"


def main() -> None:
    """Print a table of medians and ratios, and write all figures if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--engines", nargs="+", default=["torch", "onnx", *["openvino"] * installed("openvino")])
    parser.add_argument("--threads", type=int, help="of the networks, in all kinds; PyTorch's own choice by default")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)  # what the processes are started with
    arguments = parser.parse_args()
    if arguments.run:
        return predict(*arguments.run)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
        os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # for the processes
    about = describe("timm", "onnxruntime", "openvino") | {"load": [load()]}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        macs = make(arguments.model, arguments.images, folder)
        first = {engine: run(engine, folder, "first") for engine in arguments.engines}
        kinds = ("plain", *arguments.engines)
        turns = [{kind: run(kind, folder, str(turn)) for kind in kinds} for turn in range(arguments.repeats)]
        agree(folder, kinds)
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
    if arguments.out is not None:
        figures = {"model": arguments.model, "images": arguments.images, "gmac": macs / 1e9, "products_gflops": rate}
        content = json.dumps(about | figures | {"medians": rows, "turns": turns}, indent=2)
        arguments.out.write_text(content + "\n", encoding="utf-8")


def make(name: str, images: int, folder: Path) -> int:
    """Write phantom crops and a bundle; multiply-accumulates an image."""
    size, channels, enhancer, classifier, edge = MODELS[name]
    write_phantom(folder / "phantom", max(images, 12), size=edge, donors=4)
    (folder / "crops").mkdir()
    for number, file in enumerate(sorted((folder / "phantom" / "cells").rglob("*.png"))[:images]):
        file.rename(folder / "crops" / f"{number:06d}.png")
    torch.manual_seed(0)
    config = ModelConfig(name, CLASSES, size, channels, Scaling(0.0, 255.0, "uint8"), enhancer, classifier)
    model = Model(config, config.build())
    model.save(folder / "bundle")
    return count_macs(model.joint, size, channels)


def run(kind: str, folder: Path, turn: str) -> dict[str, float]:
    """One process; what it says, and how long it took as a whole."""
    command = [sys.executable, str(PLAIN)] if kind == "plain" else [sys.executable, __file__, "net4", "--run", kind]
    places = [str(folder / place) for place in ("bundle", "crops", f"{kind}-{turn}.csv")]
    begun = time.perf_counter()
    told = subprocess.run([*command, *places], capture_output=True, text=True, check=True)
    return json.loads(told.stdout.splitlines()[-1]) | {"process": time.perf_counter() - begun, "load": load()}


def predict(engine: str, bundle: str, crops: str, out: str) -> None:
    """Our side, in its process."""
    model = Model.load(bundle)
    begun, worked = time.perf_counter(), sum(os.times()[:4])
    done = predict_files(model, [crops], Path(out), engine=engine)
    seconds, worked = time.perf_counter() - begun, sum(os.times()[:4]) - worked
    print(json.dumps({"seconds": seconds, "processor": worked, "images": done.images, "engines": done.engines}))


def median(turns: list[dict[str, dict[str, float]]], kind: str, key: str) -> float:
    """Of one kind's runs."""
    return statistics.median(turn[kind][key] for turn in turns)


def agree(folder: Path, kinds: tuple[str, ...]) -> None:
    """See to it that all kinds gave the same table."""
    plain = pd.read_csv(folder / "plain-0.csv")
    for kind in kinds[1:]:
        table = pd.read_csv(folder / f"{kind}-0.csv")
        assert [Path(path).name for path in table["path"]] == [Path(path).name for path in plain["path"]]
        assert table["predicted"].equals(plain["predicted"])
        for name in CLASSES:
            assert np.allclose(table[f"p_{name}"], plain[name], atol=1e-4)


def product_rate() -> float:
    """GFLOP/s of float32 matrix products, the best of ten."""
    a = torch.rand(2048, 2048)
    times = []
    for _ in range(10):
        begun = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - begun)
    return 2e-9 * 2048**3 / min(times)


if __name__ == "__main__":
    main()

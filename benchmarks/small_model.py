"""Measure the images per second of the small recipe against the paper-size Net4, both through `urnet predict`.

    python benchmarks/small_model.py --threads 1 --out small_model.json

Both classify phantom crops on disk with random weights, without calibration, on the same engine. Net4 has the paper's
200 × 200 px in colour. The small model has that size, and the sizes of the trainings in docs/results. Each run is a
separate process, and the models take turns. The figures are medians of the time from the loaded network to the table,
in wall-clock time and in processor time, which other processes disturb less.
"""

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

import pandas as pd
import torch
from inference import MODELS, make, run
from machine import describe, load

from urnet.recipe import load_recipe

PAPER = "net4"
SIZES = ((200, 3), (96, 3), (96, 1), (64, 1))


def main() -> None:
    """Print a table of medians and ratios, and write all figures to a file if asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="urnet-small")
    parser.add_argument("--images", type=int, default=400, help="crops for the small model")
    parser.add_argument("--paper-images", type=int, default=12, help="crops for Net4")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--engine", default="onnx")
    parser.add_argument("--threads", type=int, help="of the networks; PyTorch's own choice by default")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
        os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # for the processes
    about = describe("timm", "onnxruntime", "openvino") | {"load": [load()]}
    counts = {PAPER: arguments.paper_images}
    recipe = load_recipe(arguments.recipe)
    enhancer = {"name": recipe.enhancer.name, **recipe.enhancer.options}
    classifier = {"name": recipe.classifier.name, **recipe.classifier.options}
    for size, channels in SIZES:
        name = f"{recipe.name}, {size} px, {'colour' if channels == 3 else 'grey'}"
        MODELS[name] = (size, channels, enhancer, classifier, size)
        counts[name] = arguments.images
    with tempfile.TemporaryDirectory() as folder:
        places = {name: Path(folder) / str(number) for number, name in enumerate(counts)}
        macs = {name: make(name, counts[name], place) for name, place in places.items()}
        for place in places.values():
            run(arguments.engine, place, "first")  # exports the graph
        turns = [
            {name: run(arguments.engine, place, str(turn)) for name, place in places.items()}
            for turn in range(arguments.repeats)
        ]
    about["load"].append(load())
    seconds, worked = (
        {name: statistics.median(turn[name][key] for turn in turns) / counts[name] for name in counts}
        for key in ("seconds", "processor")
    )
    rows = [
        {
            "model": name,
            "gmac": macs[name] / 1e9,
            "images_a_second": 1 / seconds[name],
            "times_net4": seconds[PAPER] / seconds[name],
            "times_net4_processor": worked[PAPER] / worked[name],
        }
        for name in counts
    ]
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.4g}".format))
    print(f"engine {arguments.engine}; load {about['load']} on {about['cores']} cores")
    if arguments.out is not None:
        content = json.dumps(about | {"engine": arguments.engine, "medians": rows, "turns": turns}, indent=2)
        arguments.out.write_text(content + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

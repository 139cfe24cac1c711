"""Measure every export format: parity with torch, time and size, for every enhancer and the usual classifiers.

    python benchmarks/exports.py [--out FILE.json] [--only NAME …]

Networks have random weights; crops are random counts. Ends with 1 where a graph is not within the limits of parity.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from machine import describe

from urnet.bundle.config import ModelConfig
from urnet.bundle.model import Model
from urnet.errors import RunError
from urnet.export.graph import capture
from urnet.export.onnx_format import open_onnx, to_onnx
from urnet.export.openvino_format import NAME, open_openvino, to_openvino
from urnet.export.parity import compare_outputs
from urnet.export.torch_format import open_torch, to_torch
from urnet.images.scale import Scaling
from urnet.nets import list_enhancers
from urnet.optional_packages import is_installed

CROPS = 20
NARROW = {name: {"width": 8} for name in ("unet", "resunet", "unetpp", "urnet")}
CLASSIFIERS = ("vgg16", "mobilenetv2_100", "densenet121", "resnet101", "tf_efficientnet_lite0", "test_vit")
PACKAGES = ("timm", "onnx", "onnxscript", "onnxruntime", "openvino")


def rows() -> list[tuple[str, int, dict, dict]]:
    """List name, channels, enhancer and classifier of each model."""
    small = {"name": "test_byobnet"}
    models = [
        (f"{name}, {'grey' if channels == 1 else 'colour'}", channels, {"name": name, **NARROW.get(name, {})}, small)
        for name in list_enhancers()
        for channels in (1, 3)
    ]
    models += [
        (f"dynamic, {variant}", 1, {"name": "dynamic", "variant": variant}, small) for variant in ("static", "streams")
    ]
    both = {"name": "resnet10t", "input": "both"}
    models.append(("raw image as input", 1, {"name": "urnet", "width": 8}, both))
    models.append(("shahzad2022", 3, {"name": "none"}, {"name": "shahzad2022", "backbones": ["resnet10t", "test_vit"]}))
    return models + [(name, 1, {"name": "none"}, {"name": name}) for name in CLASSIFIERS]


def measure(channels: int, enhancer: dict, classifier: dict) -> dict[str, dict]:
    """Measure parity, seconds and megabytes of one model in each format."""
    torch.manual_seed(0)
    size = 160 if classifier["name"] == "test_vit" else 32
    size = 160 if "test_vit" in classifier.get("backbones", ()) else size
    config = ModelConfig("x", ("a", "b", "c"), size, channels, Scaling(100.0, 4000.0, "uint16"), enhancer, classifier)
    model = Model(config, config.build())
    counts = np.random.default_rng(0).integers(0, 5000, (CROPS, channels, size, size)).astype(np.uint16)
    begin = time.perf_counter()
    program = capture(model)
    captured = time.perf_counter() - begin
    onnx = to_onnx(model, program=program)
    in_onnx = time.perf_counter() - begin
    formats = {"onnx": _make_row(compare_outputs(model, open_onnx(onnx), counts), in_onnx, len(onnx))}
    with tempfile.TemporaryDirectory() as folder:
        if is_installed("openvino"):
            begin = time.perf_counter()
            to_openvino(onnx, Path(folder))
            seconds = in_onnx + time.perf_counter() - begin
            size = sum(file.stat().st_size for file in Path(folder).iterdir())
            formats["openvino"] = _make_row(
                compare_outputs(model, open_openvino(Path(folder) / NAME), counts), seconds, size
            )
        begin = time.perf_counter()
        path = Path(folder) / "model.pt2"
        path.write_bytes(to_torch(model, program))
        seconds = captured + time.perf_counter() - begin
        formats["torch"] = _make_row(compare_outputs(model, open_torch(path), counts), seconds, path.stat().st_size)
    return formats


def _make_row(parity: "object", seconds: float, size: int) -> dict:
    return {
        **vars(parity),
        "held": parity.within_limits,
        "seconds": round(seconds, 2),
        "megabytes": round(size / 1e6, 2),
    }


def main() -> int:
    """Measure all models, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    arguments = parser.parse_args()
    print(f"{'':24}{'format':10}{'probabilities':>15}{'enhanced':>10}{'features':>10}{'changed':>9}{'s':>7}{'MB':>8}")
    results, refused = {}, 0
    for name, channels, enhancer, classifier in rows():
        if arguments.only and not any(word in name for word in arguments.only):
            continue
        try:
            results[name] = measure(channels, enhancer, classifier)
        except RunError as error:
            results[name] = {"error": str(error)}
            print(f"{name:24}{error}", flush=True)
            continue
        for format, row in results[name].items():
            refused += not row["held"]
            print(
                f"{name:24}{format:10}{row['difference']:15.1e}{row['enhanced']:10.1e}{row['features']:10.1e}"
                f"{row['changed']:9d}{row['seconds']:7.1f}{row['megabytes']:8.1f}",
                flush=True,
            )
    if arguments.out:
        text = json.dumps({**describe(*PACKAGES), "rows": results}, indent=2)
        arguments.out.write_text(f"{text}\n", encoding="utf-8")
    return int(refused > 0)


if __name__ == "__main__":
    raise SystemExit(main())

"""Measure speed, memory and losses of `urnet train` against a plain PyTorch script, on a CPU or a GPU.

    python benchmarks/training.py --device cpu --json training-cpu.json
    python benchmarks/training.py --device cpu --parts speed --widths 64 --repeats 2
    python benchmarks/training.py --device cuda --json training-cuda.json --seconds 240

Both train the same network (UR-Net before ResNet101, random weights, SGD) on the same phantom crops. "ours" is
`urnet.train` from the folder: audit, split, decoding, Lightning, augmentation. "plain" is `plain/training.py`. Each run
is a separate process. On a CPU the kinds take turns. The time of a step is a median, in wall-clock time and in
processor time, which other processes disturb less:

- speed: paper size with an enhancer of width 64 (the paper) and 16.
- memory: peak of the process, paper size, batches of 8, without and with `train.checkpointing`.
- losses: 50 steps of a small network with the same weights and batches, without augmentation; and the plain script
  against itself with pixels changed by 1e-7. `tests/training/test_same_losses.py` compares in float64.
- processes: two of one thread each (DDP, gloo) against one of one thread.
- compile: `train.compile` and `train.checkpointing`, each and together, paper size; not part of the default.

On a GPU: the rate of bf16 matrix products; the plain script with and without TF32; the effect of each measure in a loop
over augmented batches; `urnet.train`. The useful operations of a step are three times those of the forward pass
(2 × MAC). A failing variant is reported with its error. Variants after the time limit are left out.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from machine import describe, load

from urnet.cells.augment import augment, draw_epoch_order
from urnet.cells.simulate import write_phantom
from urnet.cpus import usable_cpus
from urnet.nets.joint import build_joint
from urnet.nets.size import count_macs
from urnet.run_folder import Run
from urnet.training.fit import train

PLAIN = Path(__file__).parent / "plain" / "training.py"
PAPER = {"width": 64, "classifier": "resnet101", "size": 200, "batch": 8}
SMALL = {"width": 4, "classifier": "resnet10t", "size": 48, "batch": 8}
MEASURES = {  # each on top of those before it
    "eager bf16": {"bf16": True},
    "+ channels-last": {"channels_last": True},
    "+ fused optimiser": {"fused": True},
    "+ cudnn.benchmark": {"tuned": True},
    "+ compile": {"compile": True},
    "+ batch 128": {"batch": 128},
}


class EnoughError(Exception):
    """All steps of the measurement are done."""


class Clock(Callback):
    """Callback that records the end and the loss of each step, writes them to a file, and stops the training.

    On a GPU only the first and the last counted step are synchronised, so that the others are not slowed.
    """

    def __init__(self, path: Path, steps: int, warm: int):
        self.path, self.steps, self.warm = path, steps, warm
        self.ends: list[tuple[float, float]] = []
        self.losses: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        """Record a step."""
        self.losses.append(outputs["loss"].detach())
        wait(module.device.type, len(self.losses), self.warm, self.steps)
        self.ends.append((time.perf_counter(), time.process_time()))
        if len(self.ends) == self.steps:
            if trainer.is_global_zero:
                result = figures(self.ends, [float(loss) for loss in self.losses], module.device.type, self.warm)
                self.path.write_text(json.dumps(result), encoding="utf-8")
            raise EnoughError


class Listener:
    """Reporter for `urnet.train` that returns the clock."""

    def __init__(self, clock: Clock):
        self.clock = clock

    def update(self, task: str, share: float) -> None:
        """Ignore it."""

    def notify(self, message: str) -> None:
        """Ignore it."""

    def epoch_bar(self, stage: str, epochs: int) -> Callback:
        """Return the clock."""
        return self.clock


def main() -> None:
    """Print a row after each run, and write all figures to a file if asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--parts", nargs="+", default=["speed", "memory", "losses", "processes"], help="on CPUs")
    parser.add_argument("--widths", nargs="+", type=int, default=[16, 64], help="of part speed")
    parser.add_argument("--repeats", type=int, default=2, help="of parts speed and processes")
    parser.add_argument("--steps", type=int, default=5, help="counted in a run on CPUs")
    parser.add_argument("--threads", type=int, help="on CPUs; PyTorch's own choice by default")
    parser.add_argument("--seconds", type=float, default=240, help="that the GPU is used for")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)  # used by the processes
    arguments = parser.parse_args()
    if arguments.run:
        kind, options = arguments.run
        return CHILDREN[kind](json.loads(options))
    if arguments.threads:
        torch.set_num_threads(arguments.threads)  # what is described
    report = Report(arguments.json, describe("timm", "lightning"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.device == "cuda":
            return on_gpu(folder, report, time.monotonic() + arguments.seconds)
        if not {"speed", "memory", "compile"}.isdisjoint(arguments.parts):
            write_phantom(folder / "large", 60, size=200, donors=5)
        for part in arguments.parts:
            PARTS[part](folder, report, arguments)


class Report:
    """Rows that are printed and written as soon as they exist."""

    def __init__(self, path: Path | None, about: dict[str, Any]):
        self.path, self.content = path, about | {"load": [load()], "rows": []}

    def add(self, part: str, kind: str, **row: Any) -> None:
        """Add a row."""
        self.content["rows"].append({"part": part, "kind": kind, "load": load(), **row})
        shown = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()}
        print(f"{part:10} {kind:44}", *(f"{k}={v}" for k, v in shown.items() if not isinstance(v, list)), flush=True)
        if self.path is not None:
            self.path.write_text(json.dumps(self.content, indent=2) + "\n", encoding="utf-8")


# ---- on CPUs


def speed(folder: Path, report: Report, arguments: argparse.Namespace) -> None:
    """Measure images per second at paper size, wide and narrow; bf16 if the processor has instructions for it."""
    variants: dict[str, tuple[str, dict[str, Any]]] = {"plain": ("plain", {}), "ours": ("ours", {})}
    if torch.cpu._is_avx512_bf16_supported():
        variants["ours, bf16"] = ("ours", {"precision": "bf16"})
    for width in arguments.widths:
        options = PAPER | {"width": width, "steps": arguments.steps + 2, "warm": 2, "threads": arguments.threads}
        turns: dict[str, list[dict[str, Any]]] = {name: [] for name in variants}
        for turn in range(arguments.repeats):
            for name, (kind, more) in variants.items():
                place = {"folder": str(folder / "large"), "out": str(folder / f"{width}-{turn}-{len(more)}")}
                turns[name].append(start(kind, options | place | more))
        medians = {
            name: [statistics.median(step for one in result for step in one[key]) for key in ("seconds", "processor")]
            for name, result in turns.items()
        }
        for name, (seconds, processor) in medians.items():
            report.add(
                "speed",
                f"{name}, width {width}",
                images_a_second=options["batch"] / seconds,
                ratio=medians["plain"][0] / seconds,
                processor_seconds_an_image=processor / options["batch"],
                ratio_processor=medians["plain"][1] / processor,
                turns=turns[name],
            )


def memory(folder: Path, report: Report, arguments: argparse.Namespace) -> None:
    """Measure the peak memory of the process over two steps at paper size."""
    options = PAPER | {"steps": 2, "warm": 0, "threads": arguments.threads, "folder": str(folder / "large")}
    peaks = {"plain": start("plain", options)["peak_mib"]}
    for checkpointing in (False, True):
        result = start("ours", options | {"out": str(folder / f"m{checkpointing}"), "checkpointing": checkpointing})
        peaks[f"ours{', checkpointing' * checkpointing}"] = result["peak_mib"]
    for kind, peak in peaks.items():
        report.add("memory", kind, peak_mib=peak, ratio=peak / peaks["plain"])


def losses(folder: Path, report: Report, arguments: argparse.Namespace) -> None:
    """Compare the first 50 losses with the same weights and batches."""
    write_phantom(folder / "small", 720, size=SMALL["size"])
    options = SMALL | {"steps": 50, "warm": 0, "folder": str(folder / "small"), "threads": 1}
    ours = start("ours", options | {"out": str(folder / "same"), "still": True})
    trained = Run(folder / "same").cells().part("train")
    order = draw_epoch_order(trained.labels, balanced=False, per_class=None, seed=0, epoch=0)
    names = [Path(path).relative_to(folder / "small" / "cells").as_posix() for path in paths(trained)]
    (folder / "order.json").write_text(json.dumps([names[place] for place in order]), encoding="utf-8")
    options |= {"order": str(folder / "order.json"), "workers": 0}
    plain, moved = (start("plain", options | {"jitter": jitter}) for jitter in (0.0, 1e-7))
    for kind, result in (("plain", plain), ("plain, pixels moved by 1e-7", moved), ("ours", ours)):
        gaps = np.abs(np.subtract(result["losses"], plain["losses"]))
        report.add("losses", kind, first_gap=float(gaps[0]), largest_gap=float(gaps.max()), losses=result["losses"])


def processes(folder: Path, report: Report, arguments: argparse.Namespace) -> None:
    """Compare two processes of one thread each with one process, with the same batch in each process."""
    write_phantom(folder / "middle", 60, size=96, donors=5)
    options = {"width": 16, "classifier": "resnet10t", "size": 96, "batch": 16, "folder": str(folder / "middle")}
    options |= {"steps": 10 + 2, "warm": 2, "threads": 1}
    times: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(arguments.repeats):
        for devices, seconds in times.items():
            out = folder / f"p{devices}-{turn}"
            seconds += start("ours", options | {"out": str(out), "devices": devices})["seconds"]
    rates = {devices: devices * options["batch"] / statistics.median(seconds) for devices, seconds in times.items()}
    for devices, rate in rates.items():
        report.add("processes", f"{devices} of one thread", images_a_second=rate, ratio=rate / rates[1])


def compiled(folder: Path, report: Report, arguments: argparse.Namespace) -> None:
    """Measure the effect of compiling, alone and with checkpointing, at paper size."""
    options = PAPER | {"steps": arguments.steps + 2, "warm": 2, "threads": arguments.threads}
    variants = ([], ["compile"], ["checkpointing"], ["checkpointing", "compile"])
    base = None
    for switched in variants:
        place = {"folder": str(folder / "large"), "out": str(folder / "-".join(["c", *switched]))}
        result = start("ours", options | place | dict.fromkeys(switched, True))
        rate = options["batch"] / statistics.median(result["seconds"])
        base = base or rate
        name = ", ".join(["ours", *switched])
        report.add("compile", name, images_a_second=rate, ratio=rate / base, peak_mib=result["peak_mib"])


PARTS = {"speed": speed, "memory": memory, "losses": losses, "processes": processes, "compile": compiled}


# ---- on a GPU


def on_gpu(folder: Path, report: Report, until: float) -> None:
    """Measure all variants, the most important first, until the time limit."""
    options = PAPER | {"batch": 32, "device": "cuda", "workers": usable_cpus(), "warm": 8, "steps": 28}
    macs = count_macs(network(options), options["size"], 3)
    report.content |= {"gpu": torch.cuda.get_device_name(), "gmac_an_image": macs / 1e9}
    write_phantom(folder / "large", 96, size=200, donors=8)
    options |= {"folder": str(folder / "large")}
    rate: float | None = None
    plain: dict[str, float] = {}
    result = tried("products", {}, until)
    if "error" not in result:
        rate = result["tflops"]
    report.add("gpu", "bf16 matrix products", **result)
    ours = {"precision": "bf16"}
    variants: list[tuple[str, str, dict[str, Any]]] = [
        ("plain script, TF32 convolutions", "plain", {}),
        ("plain script, float32", "plain", {"no_tf32": True, "steps": 16, "warm": 4}),
        ("urnet.train", "ours", ours | {"out": str(folder / "eager")}),
        ("urnet.train, compile", "ours", ours | {"out": str(folder / "compiled"), "compile": True}),
    ]
    measures: dict[str, Any] = {}
    for name, measure in MEASURES.items():
        measures = measures | measure
        variants.append((f"loop, {name}", "loop", measures))
    checkpointing = ours | {"out": str(folder / "checkpointed"), "checkpointing": True}
    variants.insert(-1, ("urnet.train, checkpointing", "ours", checkpointing))
    for name, kind, changes in variants:
        asked = options | changes
        result = tried(kind, asked, until)
        if "error" in result:
            report.add("gpu", name, **result)
            continue
        speed = asked["batch"] * len(result["seconds"]) / sum(result["seconds"])  # images a second
        if kind == "plain":
            plain["times_plain_float32" if changes else "times_plain"] = speed
        tflops = 6e-12 * macs * speed
        report.add(
            "gpu",
            name,
            images_a_second=speed,
            **{key: speed / its for key, its in plain.items()},
            tflops=tflops,
            utilisation=tflops / rate if rate else None,
            peak_mib=result["peak_mib"],
            first_seconds=result.get("first_seconds"),
            last_loss=result["losses"][-1],
        )


def tried(kind: str, options: dict[str, Any], until: float) -> dict[str, Any]:
    """Run a process and return its result, or its error."""
    left = until - time.monotonic()
    if left < 15:
        return {"error": "no time left"}
    try:
        return start(kind, options, timeout=left)
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {left:.0f} s"}
    except (subprocess.CalledProcessError, OSError, ValueError, IndexError) as error:
        return {"error": (getattr(error, "stderr", None) or repr(error))[-1500:]}


# ---- the processes


def start(kind: str, options: dict[str, Any], timeout: float | None = None) -> dict[str, Any]:
    """Run one kind in a separate process and return its last line."""
    environment = dict(os.environ)
    if options.get("threads"):
        environment["OMP_NUM_THREADS"] = str(options["threads"])
    command = [sys.executable, __file__, "--run", kind, json.dumps(options)]
    if kind == "plain":
        warm = options["warm"]
        keys = (
            "width",
            "classifier",
            "size",
            "batch",
            "steps",
            "lr",
            "device",
            "workers",
            "threads",
            "order",
            "jitter",
        )
        given = [part for key in keys if options.get(key) is not None for part in (f"--{key}", str(options[key]))]
        command = [sys.executable, str(PLAIN), str(Path(options["folder"]) / "cells"), *given]
        command += ["--no-tf32"] * bool(options.get("no_tf32"))
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=timeout)
    if done.returncode:
        if timeout is None:
            print(done.stderr, file=sys.stderr)
        raise subprocess.CalledProcessError(done.returncode, kind, done.stdout, done.stderr)
    result = json.loads(done.stdout.splitlines()[-1])
    if kind == "plain":
        result |= {key: result[key][max(0, warm - 1) :] for key in ("seconds", "processor")}
    return result


def run_ours(options: dict[str, Any]) -> None:
    """Run `urnet.train` and stop it after some steps."""
    if options.get("threads"):
        torch.set_num_threads(options["threads"])
    out = Path(options["out"])
    still = options.get("still", False)
    overrides = [
        *(f"input.size={options['size']}", "input.channels=3", f"enhancer.width={options['width']}"),
        *(f"classifier.name={options['classifier']}", "classifier.pretrained=false", "pretrain.epochs=0"),
        *(f"train.batch_size={options['batch']}", "train.epochs=1", f"train.lr={options.get('lr', 1e-4)}"),
        f"augment.per_class={-(-options['steps'] * options['batch'] * options.get('devices', 1) // 3)}",
        *(["augment.flips=false", "augment.rotation=false", "train.balance=none"] if still else []),
        *([f"train.precision={options['precision']}"] if "precision" in options else []),
        *([f"train.{key}=true" for key in ("checkpointing", "compile") if options.get(key)]),
    ]
    result = out.with_suffix(".json")
    clock = Clock(result, options["steps"], options["warm"])
    devices = options.get("devices", 1)
    try:
        train(options["folder"], "net4", out, overrides=overrides, reporter=Listener(clock), devices=devices)
    except Exception as error:  # an error of another process arrives as text
        if "EnoughError" not in f"{type(error).__name__} {error}":
            raise
    print(result.read_text(encoding="utf-8"))


def run_loop(options: dict[str, Any]) -> None:
    """Run the measures one by one, without Lightning, on images that are on the device."""
    torch.backends.cudnn.benchmark = options.get("tuned", False)
    device, batch, size = options["device"], options["batch"], options["size"]
    layout = torch.channels_last if options.get("channels_last") else torch.contiguous_format
    model = network(options).to(device, memory_format=layout).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, fused=options.get("fused", False))
    forward = (
        torch.compile(model.enhance_and_classify, dynamic=False)
        if options.get("compile")
        else model.enhance_and_classify
    )  # as training does
    cells = torch.randint(0, 256, (4 * batch, 3, size, size), dtype=torch.uint8, device=device)
    labels = torch.randint(0, 3, (4 * batch,), device=device)
    ends, losses = [], []
    started = time.perf_counter()
    for step in range(options["steps"]):
        rows = slice(step % 4 * batch, (step % 4 + 1) * batch)
        images = augment(cells[rows] / 255, flips=True, rotation=True).contiguous(memory_format=layout)
        with torch.autocast(device, torch.bfloat16, enabled=options.get("bf16", False)):
            loss = F.cross_entropy(forward(images)[0], labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        wait(device, len(losses), options["warm"], options["steps"])
        ends.append((time.perf_counter(), time.process_time()))
    result = figures(ends, [float(loss) for loss in losses], device, options["warm"])
    print(json.dumps(result | {"first_seconds": ends[0][0] - started}))


def run_products(_: dict[str, Any]) -> None:
    """Measure TFLOP/s of bf16 matrix products, 8192 × 8192, on random numbers: the mean of twenty after five."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(5):
        a @ b
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(20):
        a @ b
    torch.cuda.synchronize()
    print(json.dumps({"tflops": 20 * 2e-12 * 8192**3 / (time.perf_counter() - started)}))


CHILDREN = {"ours": run_ours, "loop": run_loop, "products": run_products}


def network(options: dict[str, Any]) -> torch.nn.Module:
    """Build both networks with random weights."""
    return build_joint("urnet", options["classifier"], 3, 3, enhancer_options={"width": options["width"]})


def wait(device: str, step: int, warm: int, last: int) -> None:
    """Synchronise the GPU at the first and the last counted step."""
    if device == "cuda" and step in (warm, last):
        torch.cuda.synchronize()


def figures(ends: list[tuple[float, float]], losses: list[float], device: str, warm: int) -> dict[str, Any]:
    """Return the result of a process: seconds of the counted steps, losses, peak memory."""
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    steps = list(pairwise(ends))[max(0, warm - 1) :]
    seconds, processor = ([after[kind] - before[kind] for before, after in steps] for kind in (0, 1))
    return {"seconds": seconds, "processor": processor, "losses": losses, "peak_mib": peak / 2**20}


def paths(cells: Any) -> list[Path]:
    """Return the files of a cells table."""
    return [(cells.root / path).resolve() for path in cells.table["path"]]


if __name__ == "__main__":
    main()

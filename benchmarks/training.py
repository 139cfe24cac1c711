"""Images a second, memory and losses of `urnet train` against a plain PyTorch script, on CPUs and on a GPU.

    python benchmarks/training.py --device cpu --json training-cpu.json
    python benchmarks/training.py --device cpu --parts speed --widths 64 --repeats 2
    python benchmarks/training.py --device cuda --json training-cuda.json --seconds 240

Both train the same network (UR-Net before ResNet101, random weights, SGD) on the same phantom crops. Ours is
`urnet.train` itself, from the folder: audit, split, decoding, Lightning, augmentation; the plain one is
`plain/training.py`. Each run is a process of its own. On CPUs the kinds take turns, and the time of a step is a median,
by the clock and of processor time, which others on the machine disturb less:

- speed: paper size with the enhancer's width as it is (64) and narrow (16).
- memory: peak of the process, paper size, batches of 8, without and with `train.checkpointing`.
- losses: 50 steps of a small network from the same weights over the same batches, without augmentation; and how far the
  plain script is from itself where pixels are moved by 1e-7. `tests/training/test_parity.py` compares without rounding.
- processes: two of one thread each (DDP, gloo) against one of one thread.
- compile: `train.compile` and `train.checkpointing`, each and together, paper size; only where asked for.

On a GPU: the rate of bf16 matrix products; the plain script with and without TF32; what each of our measures adds, in a
loop over augmented batches; `urnet.train`. Useful operations are three times the forward pass's (2 × MAC) for a step.
A variant that fails is written down with its error, and one that the seconds do not reach is left out.
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
    """The steps that were to be measured are done."""


class Clock(Callback):
    """Notes when steps end and what they lost, writes it to a file, and ends the training.

    On a GPU only the first and the last counted step wait for it, so that the measurement does not slow the rest.
    """

    def __init__(self, path: Path, steps: int, warm: int):
        self.path, self.steps, self.warm = path, steps, warm
        self.ends: list[tuple[float, float]] = []
        self.losses: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        """One step more."""
        self.losses.append(outputs["loss"].detach())
        wait(module.device.type, len(self.losses), self.warm, self.steps)
        self.ends.append((time.perf_counter(), time.process_time()))
        if len(self.ends) == self.steps:
            if trainer.is_global_zero:
                told = figures(self.ends, [float(loss) for loss in self.losses], module.device.type, self.warm)
                self.path.write_text(json.dumps(told), encoding="utf-8")
            raise EnoughError


class Listener:
    """Urnet's reporter, who brings the clock."""

    def __init__(self, clock: Clock):
        self.clock = clock

    def update(self, task: str, share: float) -> None:
        """Ignore it."""

    def notify(self, message: str) -> None:
        """Ignore it."""

    def epoch_bar(self, stage: str, epochs: int) -> Callback:
        """The clock."""
        return self.clock


def main() -> None:
    """Print a table, and write all figures if asked to, after every run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--parts", nargs="+", default=["speed", "memory", "losses", "processes"], help="on CPUs")
    parser.add_argument("--widths", nargs="+", type=int, default=[16, 64], help="of part speed")
    parser.add_argument("--repeats", type=int, default=2, help="of parts speed and processes")
    parser.add_argument("--steps", type=int, default=5, help="counted in a run on CPUs")
    parser.add_argument("--threads", type=int, help="on CPUs; PyTorch's own choice by default")
    parser.add_argument("--seconds", type=float, default=240, help="that the GPU is used for")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)  # what the processes are started with
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
    """Rows that are printed and written as they come."""

    def __init__(self, path: Path | None, about: dict[str, Any]):
        self.path, self.content = path, about | {"load": [load()], "rows": []}

    def add(self, part: str, kind: str, **row: Any) -> None:
        """One row."""
        self.content["rows"].append({"part": part, "kind": kind, "load": load(), **row})
        shown = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()}
        print(f"{part:10} {kind:44}", *(f"{k}={v}" for k, v in shown.items() if not isinstance(v, list)), flush=True)
        if self.path is not None:
            self.path.write_text(json.dumps(self.content, indent=2) + "\n", encoding="utf-8")


# ---- on CPUs


def speed(folder: Path, report: Report, arguments: argparse.Namespace) -> None:
    """Images a second at paper size, wide and narrow, in turns; bf16 where the processor has instructions for it."""
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
            name: [statistics.median(step for one in told for step in one[key]) for key in ("seconds", "processor")]
            for name, told in turns.items()
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
    """Peak memory of the process over two steps at paper size."""
    options = PAPER | {"steps": 2, "warm": 0, "threads": arguments.threads, "folder": str(folder / "large")}
    peaks = {"plain": start("plain", options)["peak_mib"]}
    for checkpointing in (False, True):
        told = start("ours", options | {"out": str(folder / f"m{checkpointing}"), "checkpointing": checkpointing})
        peaks[f"ours{', checkpointing' * checkpointing}"] = told["peak_mib"]
    for kind, peak in peaks.items():
        report.add("memory", kind, peak_mib=peak, ratio=peak / peaks["plain"])


def losses(folder: Path, report: Report, arguments: argparse.Namespace) -> None:
    """The first 50 losses from the same weights over the same batches."""
    write_phantom(folder / "small", 720, size=SMALL["size"])
    options = SMALL | {"steps": 50, "warm": 0, "folder": str(folder / "small"), "threads": 1}
    ours = start("ours", options | {"out": str(folder / "same"), "still": True})
    trained = Run(folder / "same").cells().part("train")
    order = draw_epoch_order(trained.labels, balanced=False, per_class=None, seed=0, epoch=0)
    names = [Path(path).relative_to(folder / "small" / "cells").as_posix() for path in paths(trained)]
    (folder / "order.json").write_text(json.dumps([names[place] for place in order]), encoding="utf-8")
    options |= {"order": str(folder / "order.json"), "workers": 0}
    plain, moved = (start("plain", options | {"jitter": jitter}) for jitter in (0.0, 1e-7))
    for kind, told in (("plain", plain), ("plain, pixels moved by 1e-7", moved), ("ours", ours)):
        gaps = np.abs(np.subtract(told["losses"], plain["losses"]))
        report.add("losses", kind, first_gap=float(gaps[0]), largest_gap=float(gaps.max()), losses=told["losses"])


def processes(folder: Path, report: Report, arguments: argparse.Namespace) -> None:
    """Two processes of one thread each against one of one thread, the batch of a process alike."""
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
    """What compiling changes, alone and with checkpointing, at paper size."""
    options = PAPER | {"steps": arguments.steps + 2, "warm": 2, "threads": arguments.threads}
    variants = ([], ["compile"], ["checkpointing"], ["checkpointing", "compile"])
    base = None
    for switched in variants:
        place = {"folder": str(folder / "large"), "out": str(folder / "-".join(["c", *switched]))}
        told = start("ours", options | place | dict.fromkeys(switched, True))
        rate = options["batch"] / statistics.median(told["seconds"])
        base = base or rate
        name = ", ".join(["ours", *switched])
        report.add("compile", name, images_a_second=rate, ratio=rate / base, peak_mib=told["peak_mib"])


PARTS = {"speed": speed, "memory": memory, "losses": losses, "processes": processes, "compile": compiled}


# ---- on a GPU


def on_gpu(folder: Path, report: Report, until: float) -> None:
    """All variants, the most telling first, until the time is up."""
    options = PAPER | {"batch": 32, "device": "cuda", "workers": usable_cpus(), "warm": 8, "steps": 28}
    macs = count_macs(network(options), options["size"], 3)
    report.content |= {"gpu": torch.cuda.get_device_name(), "gmac_an_image": macs / 1e9}
    write_phantom(folder / "large", 96, size=200, donors=8)
    options |= {"folder": str(folder / "large")}
    rate: float | None = None
    plain: dict[str, float] = {}
    told = tried("products", {}, until)
    if "error" not in told:
        rate = told["tflops"]
    report.add("gpu", "bf16 matrix products", **told)
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
        told = tried(kind, asked, until)
        if "error" in told:
            report.add("gpu", name, **told)
            continue
        speed = asked["batch"] * len(told["seconds"]) / sum(told["seconds"])  # images a second
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
            peak_mib=told["peak_mib"],
            first_seconds=told.get("first_seconds"),
            last_loss=told["losses"][-1],
        )


def tried(kind: str, options: dict[str, Any], until: float) -> dict[str, Any]:
    """What a process says, or what went wrong with it."""
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
    """Run one kind in a process of its own; what it says in its last line."""
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
    told = json.loads(done.stdout.splitlines()[-1])
    if kind == "plain":
        told |= {key: told[key][max(0, warm - 1) :] for key in ("seconds", "processor")}
    return told


def run_ours(options: dict[str, Any]) -> None:
    """`urnet.train`, left after so many steps."""
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
    told = out.with_suffix(".json")
    clock = Clock(told, options["steps"], options["warm"])
    devices = options.get("devices", 1)
    try:
        train(options["folder"], "net4", out, overrides=overrides, reporter=Listener(clock), devices=devices)
    except Exception as error:  # from another process it comes as text
        if "EnoughError" not in f"{type(error).__name__} {error}":
            raise
    print(told.read_text(encoding="utf-8"))


def run_loop(options: dict[str, Any]) -> None:
    """Our measures one by one, without Lightning, over images that are on the device."""
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
    ends, found = [], []
    began = time.perf_counter()
    for step in range(options["steps"]):
        rows = slice(step % 4 * batch, (step % 4 + 1) * batch)
        images = augment(cells[rows] / 255, flips=True, rotation=True).contiguous(memory_format=layout)
        with torch.autocast(device, torch.bfloat16, enabled=options.get("bf16", False)):
            loss = F.cross_entropy(forward(images)[0], labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.detach())
        wait(device, len(found), options["warm"], options["steps"])
        ends.append((time.perf_counter(), time.process_time()))
    told = figures(ends, [float(loss) for loss in found], device, options["warm"])
    print(json.dumps(told | {"first_seconds": ends[0][0] - began}))


def run_products(_: dict[str, Any]) -> None:
    """TFLOP/s of bf16 matrix products, 8192 × 8192, on random numbers: the mean of twenty after five."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(5):
        a @ b
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(20):
        a @ b
    torch.cuda.synchronize()
    print(json.dumps({"tflops": 20 * 2e-12 * 8192**3 / (time.perf_counter() - began)}))


CHILDREN = {"ours": run_ours, "loop": run_loop, "products": run_products}


def network(options: dict[str, Any]) -> torch.nn.Module:
    """Both networks, random weights."""
    return build_joint("urnet", options["classifier"], 3, 3, enhancer_options={"width": options["width"]})


def wait(device: str, step: int, warm: int, last: int) -> None:
    """Let a GPU come to the end of the step, where the time counts."""
    if device == "cuda" and step in (warm, last):
        torch.cuda.synchronize()


def figures(ends: list[tuple[float, float]], found: list[float], device: str, warm: int) -> dict[str, Any]:
    """What a process has to say: seconds of the counted steps, losses, peak memory."""
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    steps = list(pairwise(ends))[max(0, warm - 1) :]
    seconds, processor = ([after[kind] - before[kind] for before, after in steps] for kind in (0, 1))
    return {"seconds": seconds, "processor": processor, "losses": found, "peak_mib": peak / 2**20}


def paths(cells: Any) -> list[Path]:
    """Files of a table's cells."""
    return [(cells.root / path).resolve() for path in cells.table["path"]]


if __name__ == "__main__":
    main()

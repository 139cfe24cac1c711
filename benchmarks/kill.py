"""Kill every command at random moments with SIGKILL, repeat it, and compare with a command that was not killed.

    python benchmarks/kill.py --kills 20 --out kill.json                  all commands, an hour on two cores
    python benchmarks/kill.py --kills 5 --only train,predict

Moments are drawn evenly over the duration of the command; a fifth of them lies in the first tenth of a second after
its output has its final name. The whole process group dies. A command has recovered when its repetition succeeds with
the same content. Leftovers are files and folders beside that, in the folder of the output and in the one for temporary
files. "Complete" counts commands that were killed after their last line: the repetition may say that the output exists
already.
"""

import argparse
import gzip
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from machine import describe, load

FROZEN = Path(__file__).parents[1] / "tests" / "frozen" / "0.1.0"
SMALL = (
    *("enhancer.width=1", "classifier.name=resnet10t", "classifier.options.channels=[4,4,4,4]"),
    *("classifier.options.stem_width=4", "classifier.pretrained=false", "classifier.weights=null", "input.size=32"),
    *("augment.per_class=12", "train.batch_size=16", "train.epochs=4", "pretrain.epochs=2", "pretrain.batch_size=16"),
)
TRAIN = ("train", "cells", "--recipe", "recipe.yaml", "--set", *SMALL)
COMMANDS = {
    "phantom": ("phantom", "--cells", "600", "--donors", "2", "--fields", "1", "--out", "out"),
    "destain": ("destain", "stained", "--size", "64", "--out", "out"),
    "audit": ("audit", "cells", "--out", "out.csv"),
    "split": ("split", "cells", "--augment-to", "200", "--out", "out"),
    "crop": ("crop", "fields.csv", "--size", "32", "--out", "out"),
    "train": (*TRAIN, "--out", "out"),
    "train folds": (*TRAIN, "split.folds=2", "--out", "out"),
    "distill": ("distill", "run", "--student", "recipe.yaml", "--out", "out", "--set", *SMALL[:3], "train.epochs=3"),
    "evaluate": ("evaluate", "run"),
    "evaluate --out": ("evaluate", "run", "--out", "out"),
    "predict": ("predict", "run", "cells", "--enhanced", "out-enhanced", "--cam", "out-cam", "--out", "out.csv"),
    "calibrate": ("calibrate", "run"),
    "differential": ("differential", "run", "fields.csv", "--out", "out"),
    "export onnx": ("export", "run", "--out", "out.onnx"),
    "export torch": ("export", "run", "--format", "torch", "--out", "out.pt2"),
    "export openvino": ("export", "run", "--format", "openvino", "--out", "out"),
    "export bioimageio": ("export", "run", "--format", "bioimageio", "--out", "out"),
    "export hub": ("export", "run", "--format", "hub", "--out", "out"),
    "compare": ("compare", "run", "copy", "--out", "out"),
    "stress": ("stress", "run", "run", "--out", "out"),
    "benchmark": (
        *("benchmark", "table3", "cells", "--folds", "2", "--scale", "laptop", "--only", "net1", "--out", "out"),
        *("--set", *SMALL, "train.epochs=2"),
    ),
    "demo": ("demo", "--out", "out"),
    "serve": ("serve", "run", "--port", "0", "--database", "out.db"),
}
TIMED = (".html", ".ckpt", "outcome.json", "results.csv", "-cost.", "table3.", "out.pt2", "out.db")
"""Parts of the names of files with times or serial numbers in them; of these only the names are compared."""
CODE = "from urnet.cli import main; main()"
DEMO = """
from urnet.cells import simulate
from urnet.recipe import load_recipe
from urnet.training import fit
draw = simulate.write_phantom
simulate.write_phantom = lambda folder, cells, **kw: draw(folder, 120, size=32, donors=6, **kw)
small = ["input.size=32", "enhancer.width=2", "classifier.name=test_resnet", "train.epochs=2"]
fit.load_recipe = lambda name, overrides=(): load_recipe(name, [*overrides, *small])
"""
"""Fewer cells and epochs than the demo has."""


@dataclass
class Result:
    """What became of a command that was killed.

    Attributes:
        seconds: its duration, unkilled.
        kills: how often it was killed.
        recovered: repetitions that ended with the same result.
        complete: kills after the last line of the command.
        leftovers: repetitions that left something.
        problems: what went wrong, with the moment.
    """

    seconds: float
    kills: int = 0
    recovered: int = 0
    complete: int = 0
    leftovers: int = 0
    problems: list[str] = field(default_factory=list)


class Started:
    """A command in a process group of its own."""

    def __init__(self, name: str, folder: Path):
        code = (DEMO if name == "demo" else "") + CODE
        environment = os.environ | {"TMPDIR": str(folder / "tmp"), "URNET_CACHE": str(folder / "cache")}
        (folder / "tmp").mkdir(exist_ok=True)
        self.folder, self.serves = folder, name == "serve"
        self.said = folder / "said.txt"
        with self.said.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, *COMMANDS[name]],
                cwd=folder,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def text(self) -> str:
        """What it has printed."""
        return self.said.read_text(encoding="utf-8", errors="replace")

    def end(self) -> int:
        """Wait for its end; a server is told to stop when it is ready."""
        while self.serves and "stop with Ctrl+C" not in self.text() and self.process.poll() is None:
            time.sleep(0.05)
        if self.serves:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(600)

    def kill(self) -> bool:
        """Kill the group; whether the process was still alive."""
        alive = self.process.poll() is None
        if alive:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        return alive


def inputs(folder: Path) -> Path:
    """Cells, a field, stained cells and two finished runs."""
    import numpy as np
    from PIL import Image

    for name in ("cells", "run", "field.tif", "fields.csv", "recipe.yaml"):
        copy = shutil.copytree if (FROZEN / name).is_dir() else shutil.copyfile
        copy(FROZEN / name, folder / name)
    shutil.copytree(folder / "run", folder / "copy")
    rng = np.random.default_rng(0)
    for number in range(60):
        place = folder / "stained" / "ab"[number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(90, 250, (64, 64, 3), dtype=np.uint8)).save(place)
    return folder


def state(folder: Path) -> dict[str, str]:
    """Files and folders, and what is in them."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name.split("/")[0] in ("cache", "tmp", "said.txt") or "tensorboard" in name:
            continue
        content = b"" if path.is_dir() or any(word in name for word in TIMED) else path.read_bytes()
        content = gzip.decompress(content) if name.endswith(".gz") else content
        content = re.sub(rb"\d{4}-\d\d-\d\d \d\d:\d\d[^\"<]*", b"", content)
        content = re.sub(rb'"parity": \{[^}]*\}', b"", content)
        found[name] = hashlib.sha256(content).hexdigest()
    return found | {f"tmp/{path.name}": "" for path in (folder / "tmp").iterdir()}


def tell(name: str, result: Result) -> None:
    """Print a row of the table."""
    row = (result.seconds, result.kills, result.recovered, result.complete, result.leftovers)
    print(f"{name:<20}{row[0]:>8.1f}{row[1]:>8}{row[2]:>11}{row[3]:>10}{row[4]:>11}", flush=True)


def try_out(name: str, kills: int, rng: random.Random, work: Path) -> Result:
    """Kill a command many times."""
    source = inputs(Path(tempfile.mkdtemp(dir=work)))
    whole = Path(shutil.copytree(source, work / "whole" / name / "w"))
    started = time.perf_counter()
    command = Started(name, whole)
    code = command.end()
    result = Result(seconds=time.perf_counter() - started)
    if code not in (0, 1, -signal.SIGINT, 130) or "Traceback" in command.text():
        raise SystemExit(f"{name}: exit code {code}: {command.text()}")
    expected, last = state(whole), command.text().strip().splitlines()[-1]
    output = whole / next(word for word in reversed(COMMANDS[name]) if word.startswith("out") or word == "run")
    output = output.name if output.name != "run" else None
    tries = 0
    while result.kills < kills and tries < 5 * kills:
        tries += 1
        folder = Path(shutil.copytree(source, work / f"{name}-{tries}" / "w"))
        at_end = output is not None and result.kills % 5 == 4
        moment = rng.uniform(0, 0.1) if at_end else rng.uniform(0, result.seconds)
        command = Started(name, folder)
        if at_end:
            while not (folder / output).exists() and command.process.poll() is None:
                time.sleep(0.002)
        time.sleep(moment)
        if not command.kill():
            shutil.rmtree(folder.parent)
            continue
        result.kills += 1
        complete = command.text().strip().endswith(last)
        result.complete += complete
        repeated = Started(name, folder)
        again, now = repeated.end(), state(folder)
        where = f"{'after the output appeared, ' if at_end else ''}{moment:.2f} s"
        left = sorted(now.keys() - expected.keys())
        different = sorted(path for path in expected if now.get(path) != expected[path])
        exists = complete and again == 2 and "exists already" in repeated.text()
        if (again == code or again == 0 or exists) and not different:
            result.recovered += 1
        else:
            result.problems.append(f"{where}: exit code {again}, different: {different[:5]}; {repeated.text()[-300:]}")
        if left:
            result.leftovers += 1
            result.problems.append(f"{where}: left {left[:5]}")
        shutil.rmtree(folder.parent)
    return result


def main() -> None:
    """Print a row for each command, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--only", help="commands, with commas between")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    names = arguments.only.split(",") if arguments.only else list(COMMANDS)
    print(f"{'command':<20}{'seconds':>8}{'kills':>8}{'recovered':>11}{'complete':>10}{'leftovers':>11}", flush=True)
    results = {}
    for name in names:
        with tempfile.TemporaryDirectory() as work:
            rng = random.Random(f"{arguments.seed} {name}")
            results[name] = try_out(name, arguments.kills, rng, Path(work))
        tell(name, results[name])
        for problem in results[name].problems:
            print(f"    {problem}", flush=True)
        if arguments.out is not None:
            about = describe() | {"load": load(), "commands": {key: asdict(one) for key, one in results.items()}}
            arguments.out.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

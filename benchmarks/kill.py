"""Kill every command with SIGKILL at random moments, repeat it, and compare the result with that of a whole run.

    python benchmarks/kill.py --kills 20 --out kill.json                  all commands, an hour on two cores
    python benchmarks/kill.py --kills 5 --only train,predict

The moments are drawn evenly over the duration of the command. A fifth of them lies in the first 0.1 s after the output
has its final name. The whole process group is killed. A command has recovered if its repetition succeeds with the same
content. Leftovers are other files and folders, in the folder of the output and in the temporary folder. "Complete"
counts commands that were killed after their last line of output: the repetition may say that the output exists.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from commands import VOLATILE, build_commands, hash_outputs, write_inputs
from machine import describe, load

COMMANDS = build_commands(short=False) | {"serve": ("serve", "run", "--port", "0", "--database", "out.db")}
SERIAL = (*VOLATILE, "out.pt2", "out.db")
"""Files with times or serial numbers in them."""
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
"""Makes the demo shorter: fewer cells and epochs."""


@dataclass
class Result:
    """The results of killing one command.

    Attributes:
        seconds: duration without a kill.
        kills: number of kills.
        recovered: number of repetitions with the same result.
        complete: number of kills after the last line of output.
        leftovers: number of repetitions that left other files.
        problems: what went wrong, with the moment of the kill.
    """

    seconds: float
    kills: int = 0
    recovered: int = 0
    complete: int = 0
    leftovers: int = 0
    problems: list[str] = field(default_factory=list)


class RunningCommand:
    """A command in a process group of its own."""

    def __init__(self, name: str, folder: Path):
        code = (DEMO if name == "demo" else "") + CODE
        environment = os.environ | {"TMPDIR": str(folder / "tmp"), "URNET_CACHE": str(folder / "cache")}
        (folder / "tmp").mkdir(exist_ok=True)
        self.folder, self.serves = folder, name == "serve"
        self.output = folder / "output.txt"
        with self.output.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, *COMMANDS[name]],
                cwd=folder,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def text(self) -> str:
        """Read the output so far."""
        return self.output.read_text(encoding="utf-8", errors="replace")

    def end(self) -> int:
        """Wait for the end; stop a server when it is ready."""
        while self.serves and "stop with Ctrl+C" not in self.text() and self.process.poll() is None:
            time.sleep(0.05)
        if self.serves:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(600)

    def kill(self) -> bool:
        """Kill the process group; return whether the process was still alive."""
        alive = self.process.poll() is None
        if alive:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        return alive


def hash_state(folder: Path) -> dict[str, str]:
    """Hash all outputs, and list the temporary files."""
    return hash_outputs(folder, SERIAL) | {f"tmp/{path.name}": "" for path in (folder / "tmp").iterdir()}


def print_row(name: str, result: Result) -> None:
    """Print one row of the table."""
    row = (result.seconds, result.kills, result.recovered, result.complete, result.leftovers)
    print(f"{name:<20}{row[0]:>8.1f}{row[1]:>8}{row[2]:>11}{row[3]:>10}{row[4]:>11}", flush=True)


def measure_command(name: str, kills: int, rng: random.Random, work: Path) -> Result:
    """Kill a command many times, repeat it, and compare the results."""
    source = write_inputs(Path(tempfile.mkdtemp(dir=work)))
    whole = Path(shutil.copytree(source, work / "whole" / name / "w"))
    started = time.perf_counter()
    command = RunningCommand(name, whole)
    code = command.end()
    result = Result(seconds=time.perf_counter() - started)
    if code not in (0, 1, -signal.SIGINT, 130) or "Traceback" in command.text():
        raise SystemExit(f"{name}: exit code {code}: {command.text()}")
    expected, last = hash_state(whole), command.text().strip().splitlines()[-1]
    output = whole / next(word for word in reversed(COMMANDS[name]) if word.startswith("out") or word == "run")
    output = output.name if output.name != "run" else None
    tries = 0
    while result.kills < kills and tries < 5 * kills:
        tries += 1
        folder = Path(shutil.copytree(source, work / f"{name}-{tries}" / "w"))
        at_end = output is not None and result.kills % 5 == 4
        moment = rng.uniform(0, 0.1) if at_end else rng.uniform(0, result.seconds)
        command = RunningCommand(name, folder)
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
        repeated = RunningCommand(name, folder)
        code_again, now = repeated.end(), hash_state(folder)
        where = f"{'after the output appeared, ' if at_end else ''}{moment:.2f} s"
        left = sorted(now.keys() - expected.keys())
        different = sorted(path for path in expected if now.get(path) != expected[path])
        exists = complete and code_again == 2 and "exists already" in repeated.text()
        if (code_again in (0, code) or exists) and not different:
            result.recovered += 1
        else:
            result.problems.append(
                f"{where}: exit code {code_again}, different: {different[:5]}; {repeated.text()[-300:]}"
            )
        if left:
            result.leftovers += 1
            result.problems.append(f"{where}: left {left[:5]}")
        shutil.rmtree(folder.parent)
    return result


def main() -> None:
    """Measure each command, print a row for it, and write the table."""
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
            results[name] = measure_command(name, arguments.kills, rng, Path(work))
        print_row(name, results[name])
        for problem in results[name].problems:
            print(f"    {problem}", flush=True)
        if arguments.out is not None:
            about = describe() | {"load": load(), "commands": {key: asdict(one) for key, one in results.items()}}
            arguments.out.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

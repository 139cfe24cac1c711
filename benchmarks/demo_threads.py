"""Measure the duration of the demo on shared or limited CPUs.

    python benchmarks/demo_threads.py --epochs 2 --json demo-threads.json       a shorter demo, minutes
    python benchmarks/demo_threads.py                                           the demo as it is

The cases: free; on one core; under a cgroup quota of one CPU; beside one busy process. With `--spinning` also free and
beside the busy process with threads that spin while they wait (OpenMP's default). Measured are wall time and CPU time
(user and system, with children). The load before each case shows whether the machine was free. Linux only; the quota
needs the right to create a cgroup.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from machine import describe, load

CODE = """
import sys
import urnet.cpus
urnet.cpus.set_environment()
from urnet.cli import main
from urnet.recipe import load_recipe
from urnet.training import fit
epochs, folder = int(sys.argv[1]), sys.argv[2]
if epochs:
    fit.load_recipe = lambda name, overrides=(): load_recipe(name, [*overrides, f"train.epochs={epochs}"])
sys.argv = ["urnet", "demo", "--out", folder]
main()
"""
EARLY = "urnet.cpus.set_environment()\n"
"""Settings before torch is loaded, as in the command."""
NUMBERS = ("OMP_NUM_THREADS", "URNET_THREADS")
BUSY = "while True: pass"
PERIOD_US = 100_000


@contextmanager
def busy() -> Iterator[None]:
    """Run a process that is always busy."""
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def quota() -> Iterator[Path]:
    """Create a cgroup with one CPU, version 1 or 2.

    Raises:
        OSError: a cgroup cannot be created here.
    """
    top = Path("/sys/fs/cgroup")
    unified = (top / "cgroup.controllers").is_file()
    folder = (top if unified else top / "cpu") / f"urnet-demo-{os.getpid()}"
    folder.mkdir()
    try:
        if unified:
            (folder / "cpu.max").write_text(f"{PERIOD_US} {PERIOD_US}", encoding="ascii")
        else:
            (folder / "cpu.cfs_period_us").write_text(str(PERIOD_US), encoding="ascii")
            (folder / "cpu.cfs_quota_us").write_text(str(PERIOD_US), encoding="ascii")
        yield folder
    finally:
        time.sleep(0.5)
        with suppress(OSError):
            folder.rmdir()


def measure(
    epochs: int, limit_s: float, *, core: int | None = None, cgroup: Path | None = None, spinning: bool = False
) -> dict:
    """Run the demo once, and return its duration; None above the limit."""

    def settle() -> None:
        if core is not None:
            os.sched_setaffinity(0, {core})
        if cgroup is not None:
            (cgroup / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")

    before, burden = resource.getrusage(resource.RUSAGE_CHILDREN), load()
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        settings = {name: value for name, value in os.environ.items() if name not in NUMBERS}
        settings["URNET_CACHE"] = f"{folder}/cache"
        code = CODE.replace(EARLY, "") if spinning else CODE
        command = [sys.executable, "-c", code, str(epochs), f"{folder}/demo"]
        process = subprocess.Popen(command, env=settings, preexec_fn=settle, stdout=subprocess.DEVNULL)
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return {"wall_s": None, "limit_s": limit_s, "load_before": burden}
        wall = time.perf_counter() - begun
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if code:
        raise SystemExit(f"the demo ended with exit code {code}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": round(wall, 1), "cpu_s": round(cpu, 1), "load_before": burden}


def main() -> None:
    """Measure all cases, and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=0, help="of the training; the demo's own when 0")
    parser.add_argument("--limit", type=float, default=900, help="seconds for each case")
    parser.add_argument("--spinning", action="store_true", help="also with threads that spin while they wait")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    cases: dict[str, dict] = {}

    def case(name: str, **how) -> None:
        result = cases[name] = measure(arguments.epochs, arguments.limit, **how)
        free = cases["free"]["wall_s"]
        wall = result["wall_s"]
        ratio = f"{wall / free:.2f} x free" if wall and free else "over the limit"
        cpu = result.get("cpu_s", "-")
        print(f"{name:<32}{wall or '-':>8} s wall{cpu:>8} s CPU   {ratio}   load {result['load_before']}", flush=True)

    case("free")
    case("one core", core=min(os.sched_getaffinity(0)))
    try:
        with quota() as cgroup:
            case("quota of one CPU", cgroup=cgroup)
    except OSError as error:
        print(f"quota of one CPU: no cgroup can be made here ({error.strerror})")
    with busy():
        case("beside a busy process")
    if arguments.spinning:
        case("free, spinning", spinning=True)
        with busy():
            case("beside a busy process, spinning", spinning=True)
    if arguments.json is not None:
        about = describe() | {"epochs": arguments.epochs or "the demo's", "cases": cases}
        arguments.json.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Run the grids of several benchmarks in processes of one machine, without Ray.

    python benchmarks/pool.py PLAN.json --processes 12 --seconds 540

PLAN.json is a list of settings of `urnet benchmark` (cells, out, table, scale, folds, seeds, protocol, only,
overrides), run in this order. "table" may be "search" (see search.py; "towards" names the paired image), and
"only_folds" lists some of the folds. After --seconds no further run starts, and running ones are stopped.
`urnet benchmark` with the same settings continues them, or makes the tables.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, wait
from pathlib import Path

from urnet.cpus import usable_cpus

sys.path.insert(0, str(Path(__file__).parent))


def list_jobs(plan: dict) -> list[tuple]:
    """List the unfinished jobs of a plan, each with the cells and the audit of the grid."""
    from search import candidates

    from urnet.benchmark.grid import open_grid, unfinished_jobs
    from urnet.benchmark.run import plan_benchmark

    settings = {key: plan[key] for key in ("table", "folds", "scale", "protocol", "overrides", "only") if key in plan}
    search = plan["table"] == "search"
    if search:
        settings |= {"table": "table3", "only": ["net1"]}
    what = plan_benchmark(cells=plan["cells"], **settings)
    rows = candidates(what.rows[0].recipe, plan.get("only", []), plan.get("towards", "target")) if search else what.rows
    with open_grid(Path(plan["out"]), what.cells, rows[0].recipe, lambda what, share: None) as grid:
        todo = unfinished_jobs(grid.jobs(rows, plan.get("seeds", 1), what.folds))
    todo = [cell for cell in todo if cell.recipe.split.fold in plan.get("only_folds", range(what.folds))]
    print(f"{plan['out']}: {len(todo)} runs of {plan['table']}", flush=True)
    return [(cell, grid.cells, grid.audit) for cell in todo]


def run(cell: object, cells: object, audit: object, deadline: float) -> str:
    """Run one job."""
    import torch

    from urnet.benchmark.job import run_job

    if time.time() > deadline:
        return "not started"
    torch.set_num_threads(1)
    started = time.time()
    try:
        run_job(cell, cells, audit)
    except Exception as error:
        cell.fail(f"{type(error).__name__}: {error}")
        return f"{cell.title} failed: {error}"
    outcome = cell.outcome()
    return f"{cell.title}: {time.time() - started:.0f} s, accuracy {outcome['accuracy']:.3f}"


def main() -> None:
    """Run the plans."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plans", type=Path)
    parser.add_argument("--processes", type=int, default=usable_cpus())
    parser.add_argument("--seconds", type=float, default=float("inf"))
    arguments = parser.parse_args()
    started = time.time()
    deadline = started + arguments.seconds
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(arguments.processes, mp_context=context)
    pending = set()
    for plan in json.loads(arguments.plans.read_text(encoding="utf-8")):
        pending |= {pool.submit(run, *job, deadline) for job in list_jobs(plan)}
    while pending and time.time() < deadline:
        done, pending = wait(pending, timeout=2, return_when="FIRST_COMPLETED")
        for future in done:
            print(f"{time.time() - started:6.0f} s  {future.result()}", flush=True)
    print(f"{len(pending)} runs left", flush=True)
    for process in pool._processes.values():
        process.kill()
    os._exit(0)  # the pool would wait for the killed processes


if __name__ == "__main__":
    main()

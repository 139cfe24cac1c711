"""Is a student as good as its teacher? Teachers and their students on some folds, chosen by validation, then compared.

    python benchmarks/distillation.py CELLS OUT --folds 0 1 2 3 4 --processes 8 --set KEY=VALUE …

trains on every fold a teacher (`--teacher`, a recipe), from it a student in each of the variants below, and the same
student from the labels alone. Prints the best validation macro recall of each, mean over the folds; the test parts have
no say in that. Then the teacher is compared, on the test parts of these folds, with the student as shipped, with the
variant that is best on the validation parts, and with the student without a teacher: paired differences as those of
`urnet compare`. Run again after an interruption, it goes on.
"""

import argparse
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor, wait
from pathlib import Path

import pandas as pd

FOLDS = 5
VARIANTS: dict[str, list[str]] = {
    "student": [],
    "logits-0.9": ["distill.logits=0.9"],
    "temperature-4": ["distill.temperature=4"],
    "no-image": ["distill.image=0"],
}
ALONE = "alone"


def train_teacher(cells: Path, out: Path, teacher: str, fold: int, overrides: list[str]) -> None:
    """The laptop-scale teacher of one fold."""
    import torch

    from urnet.training.fit import train

    torch.set_num_threads(1)
    where = [*overrides, f"split.folds={FOLDS}", f"split.fold={fold}"]
    train(cells, teacher, out / "teacher" / f"fold{fold}", overrides=where, resume=True)


def train_student(cells: Path, out: Path, variant: str, fold: int, overrides: list[str], student: list[str]) -> None:
    """One student of one fold; `alone` learns from the labels."""
    import torch

    from urnet.training.distill import distill
    from urnet.training.fit import train

    torch.set_num_threads(1)
    folder = out / variant / f"fold{fold}"
    if variant == ALONE:
        where = [*overrides, *student, "distill=null", f"split.folds={FOLDS}", f"split.fold={fold}"]
        train(cells, "urnet-small", folder, overrides=where, resume=True)
    else:
        settings = [*VARIANTS[variant], *student]
        distill(out / "teacher" / f"fold{fold}", out=folder, overrides=settings, resume=True)


def validated(out: Path, kinds: list[str]) -> pd.DataFrame:
    """Best validation macro recall, a row a kind and a column a fold; kinds whose folds are all there."""
    rows = {}
    for kind in kinds:
        for folder in sorted((out / kind).glob("fold*")):
            if (folder / "model" / "config.json").is_file():
                history = pd.read_csv(folder / "history.csv")
                rows.setdefault(kind, {})[folder.name] = history["validation_macro_recall"].max()
    return pd.DataFrame(rows).T.dropna(axis=1, thresh=2).dropna()


def main() -> None:
    """Train in processes, then choose and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cells", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--teacher", default="net4-laptop")
    parser.add_argument("--folds", type=int, nargs="+", default=[0])
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=["student"])
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin nothing after them")
    parser.add_argument("--set", nargs="*", default=[], help="changes to all recipes that learn from labels")
    parser.add_argument("--student-set", nargs="*", default=[], help="changes to all students")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    deadline = time.time() + arguments.seconds
    kinds = [*arguments.variants, ALONE]
    cells, out, given, student = arguments.cells, arguments.out, arguments.set, arguments.student_set
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(arguments.processes, mp_context=context)
    begun = time.time()
    waiting, after = {}, {}

    def begin(kind: str, fold: int) -> None:
        if kind == "teacher":
            job = pool.submit(train_teacher, cells, out, arguments.teacher, fold, given)
            after[job] = fold
        else:
            job = pool.submit(train_student, cells, out, kind, fold, given, student)
        waiting[job] = f"{kind}, fold {fold}"

    for fold in arguments.folds:
        begin("teacher", fold)
    for fold in arguments.folds:
        begin(ALONE, fold)
    while waiting and time.time() < deadline:
        done, _ = wait(waiting, timeout=2, return_when="FIRST_COMPLETED")
        for job in done:
            error = job.exception()
            print(f"{time.time() - begun:6.0f} s  {waiting.pop(job)}{f': {error}' if error else ''}", flush=True)
            if job in after and not error:
                for variant in arguments.variants:
                    begin(variant, after[job])
    if waiting:
        print(f"not finished: {', '.join(waiting.values())}; the same command goes on", flush=True)
        for process in pool._processes.values():
            process.kill()
    table = validated(out, ["teacher", *kinds])
    print((100 * table.assign(mean=table.mean(axis=1))).round(1).to_string())
    chosen = table.loc[[name for name in arguments.variants if name in table.index]].mean(axis=1)
    if len(chosen) and "teacher" in table.index:
        kinds = dict.fromkeys(("teacher", "student", chosen.idxmax(), ALONE))
        compared(out, [name for name in kinds if name in table.index], list(table.columns))
    os._exit(0)  # the pool would wait for those that were ended


def compared(out: Path, kinds: list[str], folds: list[str]) -> None:
    """Paired differences on the test parts, to the teacher; predictions and differences are kept as CSV."""
    from urnet.evaluation.paired import paired_differences
    from urnet.evaluation.predictions import score_run_part
    from urnet.run_folder import Run

    tested: dict[str, list[pd.DataFrame]] = {kind: [] for kind in kinds}
    for kind in kinds:
        for fold in folds:
            run = Run.open(out / kind / fold)
            scored = score_run_part(run, "test", None)
            tested[kind].append(scored.to_frame().assign(seed=0, fold=run.recipe().split.fold))
            classes = scored.model.classes
    predictions = {kind: pd.concat(tables) for kind, tables in tested.items()}
    for kind, table in predictions.items():
        table.to_csv(out / f"{kind}.csv.gz", index=False)
        right = table["predicted"] == table["label"]
        recall = right.groupby([table["fold"], table["label"]]).mean().groupby("fold").mean()
        print(f"{kind}: macro recall {100 * recall.mean():.1f}, accuracy {100 * right.mean():.1f}, {len(table)} cells")
    table = paired_differences(predictions, [(kinds[0], kind) for kind in kinds[1:]], classes)
    table.to_csv(out / "differences.csv", index=False)
    for column in ("difference", "low", "high"):
        table[column] = (100 * table[column]).round(1)
    print(table[["first", "second", "metric", "difference", "low", "high", "chance", "cells"]].to_string(index=False))


if __name__ == "__main__":
    main()

"""Compare candidate recipes for joint enhancement on validation parts (nested cross-validation).

    python benchmarks/search.py OUT --baseline net1

reads a grid that `pool.py` ran with "table": "search". For each fold the candidate with the best macro recall on the
validation part of the fold is chosen (mean over the seeds), and tested on the test part of the fold. The result is the
value of choosing a recipe in this way. The best candidate on the validation parts of all folds is named as well.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd

from urnet.benchmark.plans import PlannedRow
from urnet.nets.enhancers.registry import artefact_free_options
from urnet.recipe import Recipe, load_recipe

RESIDUAL: dict[str, Any] = {"name": "urnet", "width": 8, "residual": True, **artefact_free_options("urnet")}
BOTH: dict[str, Any] = {"input": "both"}


def candidates(net1: Recipe, only: list[str], kind: str) -> list[PlannedRow]:
    """Return the candidates around a laptop-scale Net1, as rows of a grid.

    Args:
        net1: recipe that the candidates change.
        only: names of the candidates to return; all if empty.
        kind: paired image for the pre-training, a value of `pretrain.target`.
    """
    pretrain = load_recipe("net4-laptop").pretrain.model_dump() | {"epochs": 8}
    target = pretrain | {"target": kind}
    slow = {"enhancer_lr": 0.001}
    tried: dict[str, dict[str, Any]] = {
        "net1": {},
        "residual": {"enhancer": RESIDUAL, "train": slow},
        "both": {"enhancer": RESIDUAL, "classifier": BOTH, "train": slow},
        "target": {"enhancer": RESIDUAL, "pretrain": target, "train": slow},
        "target-both": {"enhancer": RESIDUAL, "pretrain": target, "classifier": BOTH, "train": slow},
        "target-both-auxiliary": {
            "enhancer": RESIDUAL,
            "pretrain": target,
            "classifier": BOTH,
            "train": slow | {"auxiliary": 10.0},
        },
        "target-both-fixed": {
            "enhancer": RESIDUAL,
            "pretrain": target,
            "classifier": BOTH,
            "train": {"enhancer_lr": 0.0},
        },
        "target-both-frozen": {
            "enhancer": RESIDUAL,
            "pretrain": target,
            "classifier": BOTH,
            "train": slow | {"frozen": 6},
        },
        "target-both-wide": {
            "enhancer": RESIDUAL | {"width": 16},
            "pretrain": target | {"epochs": 16},
            "classifier": BOTH,
            "train": slow | {"auxiliary": 10.0},
        },
        "both-auxiliary": {
            "enhancer": RESIDUAL,
            "pretrain": {"target": kind},
            "classifier": BOTH,
            "train": slow | {"auxiliary": 10.0},
        },
        "net1-long": {"train": {"epochs": 2 * net1.train.epochs}},
        "residual-long": {"enhancer": RESIDUAL, "train": slow | {"epochs": 2 * net1.train.epochs}},
        "target-both-auxiliary-long": {
            "enhancer": RESIDUAL,
            "pretrain": target,
            "classifier": BOTH,
            "train": slow | {"auxiliary": 10.0, "epochs": 2 * net1.train.epochs},
        },
    }
    unknown = sorted(set(only) - set(tried))
    if unknown:
        raise SystemExit(f"no candidate {unknown[0]}; there are {', '.join(tried)}")
    return [
        PlannedRow(n, n, net1.with_changes(name=n, **changes)) for n, changes in tried.items() if not only or n in only
    ]


def read_results(out: Path) -> pd.DataFrame:
    """Return the best validation macro recall, test accuracy and test macro recall of each finished run."""
    rows = []
    for path in sorted(out.glob("runs/*/*/benchmark/outcome.json")):
        outcome = json.loads(path.read_text(encoding="utf-8"))
        if outcome["status"] != "done":
            continue
        folder = path.parents[1]
        recipe = load_recipe(folder / "recipe.yaml")
        history = pd.read_csv(folder / "history.csv")
        rows.append(
            {
                "name": recipe.name,
                "seed": recipe.seed,
                "fold": recipe.split.fold,
                "validation": history["validation_macro_recall"].max(),
                "accuracy": outcome["accuracy"],
                "macro_recall": outcome["macro_recall"],
                "folder": folder,
            }
        )
    return pd.DataFrame(rows)


def main() -> None:
    """Choose by the validation parts, report by the test parts."""
    from urnet.benchmark.collect import read_portable_predictions
    from urnet.benchmark.job import Job
    from urnet.evaluation.paired import paired_differences

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--baseline", default="net1")
    arguments = parser.parse_args()
    runs = read_results(arguments.out)
    table = runs.groupby("name")[["validation", "accuracy", "macro_recall"]].mean()
    counts = runs.groupby("name").size()
    whole = counts[counts == counts.max()].index
    table = table.loc[whole].sort_values("validation", ascending=False)
    print((100 * table).round(1).assign(runs=counts).to_string())
    print(f"\nbest on all validation parts: {table.index[0]}")
    runs = runs[runs["name"].isin(whole)]
    means = runs.groupby(["fold", "name"])["validation"].mean().unstack()
    winners = means.idxmax(axis=1)
    print("chosen for each fold:", ", ".join(f"{fold}: {name}" for fold, name in winners.items()))
    frames = {"chosen": [], arguments.baseline: [], table.index[0]: []}
    for run in runs.to_dict("records"):
        for key, wanted in (
            ("chosen", winners[run["fold"]]),
            (arguments.baseline, arguments.baseline),
            (table.index[0], table.index[0]),
        ):
            if run["name"] == wanted:
                frames[key].append(
                    read_portable_predictions(Job(load_recipe(run["folder"] / "recipe.yaml"), run["folder"]))
                )
    whole_frames = {key: pd.concat(parts) for key, parts in frames.items()}
    classes = sorted(set(whole_frames["chosen"]["label"]))
    pairs = [(arguments.baseline, key) for key in whole_frames if key != arguments.baseline]
    differences = paired_differences(whole_frames, pairs, classes)
    for column in ("difference", "low", "high"):
        differences[column] = (100 * differences[column]).round(1)
    print(differences[["second", "metric", "difference", "low", "high", "chance"]].to_string(index=False))


if __name__ == "__main__":
    main()

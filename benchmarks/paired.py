"""The difference between two runs on the same test cells, with a paired interval.

    python benchmarks/paired.py RUN_A RUN_B

Reads both runs' `evaluation/test/predictions.csv`, which must be of the same cells, and prints B minus A for accuracy,
macro recall and each class's recall: 2,000 bootstrap replicates over source images, the same draws for both runs.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

REPLICATES = 2000


def figures(truth: np.ndarray, right: np.ndarray, weights: np.ndarray, classes: list[str]) -> list[float]:
    """Accuracy, macro recall, and the recall of each class, with weighted cells."""
    recalls = [np.average(right[truth == name], weights=weights[truth == name]) for name in classes]
    return [np.average(right, weights=weights), float(np.mean(recalls)), *recalls]


def main() -> None:
    """Compare two runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs=2)
    runs = parser.parse_args().runs
    a, b = (pd.read_csv(run / "evaluation" / "test" / "predictions.csv") for run in runs)
    if list(a["source"]) != list(b["source"]):
        raise SystemExit("the two runs were tested on different cells; train them with the same split.seed")
    truth, classes = a["label"].to_numpy(), sorted(set(a["label"]))
    right = [(table["predicted"] == table["label"]).to_numpy(float) for table in (a, b)]
    sources, groups = np.unique(a["source"], return_inverse=True)
    rng = np.random.default_rng(0)
    draws = []
    while len(draws) < REPLICATES:
        weights = np.bincount(rng.integers(len(sources), size=len(sources)), minlength=len(sources))[groups]
        if all(weights[truth == name].any() for name in classes):
            draws.append(np.subtract(*(figures(truth, r, weights, classes) for r in right[::-1])))
    one = np.ones(len(truth))
    values = np.subtract(*(figures(truth, r, one, classes) for r in right[::-1]))
    low, high = np.percentile(draws, [2.5, 97.5], axis=0)
    names = f"{runs[1].name} minus {runs[0].name}"
    print(f"{names}, points, {len(truth)} cells (95 % paired interval over {len(sources)} sources)")
    for name, value, lo, hi in zip(
        ["accuracy", "macro recall", *classes], 100 * values, 100 * low, 100 * high, strict=True
    ):
        could = "" if lo > 0 or hi < 0 else "  could be chance"
        print(f"  {name:<14}{value:+6.1f}  ({lo:+.1f} to {hi:+.1f}){could}")


if __name__ == "__main__":
    main()

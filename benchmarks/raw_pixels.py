"""Train a logistic regression on raw pixels, the baseline for a network, and compare it with a run.

    python benchmarks/raw_pixels.py RUN [--out baseline.json]

The regression is trained on the training and validation parts of the run (crops at the network's input size, with the
scaling of the run). The comparison with `evaluation/test/predictions.csv` of the run uses 2,000 paired bootstrap
replicates over cells.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from urnet.run_folder import Run

REPLICATES = 2000


def main() -> None:
    """Compare one run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    run = Run.open(arguments.run)
    model, cells = run.load_model(), run.cells()

    def pixels(part: str) -> tuple[np.ndarray, np.ndarray]:
        chosen = cells.part(part)
        return np.stack([model.prepare(chosen.read(i)).ravel() for i in range(len(chosen))]), chosen.labels

    (train, train_labels), (held, held_labels), (test, truth) = map(pixels, ("train", "validation", "test"))
    steps = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=2000))
    strengths = {"logisticregression__C": np.logspace(-5, -1, 5)}
    regression = GridSearchCV(steps, strengths, scoring="recall_macro", cv=5)
    regression.fit(np.concatenate([train, held]), np.concatenate([train_labels, held_labels]))
    baseline = regression.predict(test)
    predicted = pd.read_csv(run.folder / "evaluation" / "test" / "predictions.csv")
    names = {name: index for index, name in enumerate(model.classes)}
    ours = predicted["predicted"].map(names).to_numpy()
    if list(predicted["path"]) != list(cells.part("test").table["path"]):
        raise SystemExit(f"{run.folder}: predictions.csv is of other cells; run `urnet evaluate` again")

    rng = np.random.default_rng(0)
    draws = []
    for _ in range(REPLICATES):
        index = rng.integers(len(truth), size=len(truth))
        draws.append([recall_score(truth[index], p[index], average="macro") for p in (ours, baseline)])
    draws = np.array(draws)
    result = {
        "cells": len(truth),
        "macro_recall": _figure(recall_score(truth, ours, average="macro"), draws[:, 0]),
        "logistic_regression": _figure(recall_score(truth, baseline, average="macro"), draws[:, 1]),
    }
    difference = result["macro_recall"]["value"] - result["logistic_regression"]["value"]
    result["difference"] = _figure(difference, draws[:, 0] - draws[:, 1])
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n", encoding="utf-8")


def _figure(value: float, draws: np.ndarray) -> dict[str, object]:
    low, high = np.percentile(draws, [2.5, 97.5])
    return {"value": round(float(value), 4), "interval": [round(float(low), 4), round(float(high), 4)]}


if __name__ == "__main__":
    main()

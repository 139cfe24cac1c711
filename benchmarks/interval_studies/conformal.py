"""Coverage of the prediction sets.

A network of three classes is simulated at several epochs, which differ by random distortions of the logits. The epoch
with the lowest loss on the validation part is chosen, and the temperature is fitted there. New cells come from new
donors, whose logits are shifted with a spread between donors. The sets should contain the true class for 90 % of the
cells of each class.

Columns: `cells` of each class in the validation part and in the test part; `donors` in each of them; `spread` of the
logits between donors; `epochs` to choose from; `coverage` in per cent with the scores of the test part, as in the
product; `cross`, the same judged on the test part itself, by cross-conformal sets; `same`, with the scores of the
validation part, on which epoch and temperature were chosen; `size`, mean number of classes in a set; `ratio`, that size
relative to sets that know the distribution of the scores.
"""

import numpy as np
import pandas as pd

from urnet.calibration.conformal import conformal_scores, cross_sets, prediction_sets
from urnet.calibration.temperature import fit_temperature, softmax

CLASSES = 3
COVERAGE = 0.9
NEW_DONORS = 200
NEW_CELLS = 5
LINES = [
    {"cells": cells, "donors": donors, "spread": spread, "epochs": epochs}
    for cells, donors, spread, epochs in (
        (20, 20, 0.0, 50),
        (50, 50, 0.0, 50),
        (200, 200, 0.0, 50),
        (50, 50, 0.0, 1),
        (50, 3, 0.3, 50),
        (50, 8, 0.3, 50),
        (50, 20, 0.3, 50),
        (50, 8, 0.6, 50),
        (200, 20, 0.6, 50),
    )
]


def run(replicates: int, rng: np.random.Generator) -> pd.DataFrame:
    """Simulate all lines.

    Args:
        replicates: number of simulated trainings per line.
        rng: source of all random numbers.
    """
    return pd.DataFrame([line | simulate(replicates=replicates, rng=rng, **line) for line in LINES])


def simulate(
    *, cells: int, donors: int, spread: float, epochs: int, replicates: int, rng: np.random.Generator
) -> dict[str, float]:
    """Simulate a line; see the module's docstring."""
    covered: dict[str, list[float]] = {"coverage": [], "cross": [], "same": []}
    sizes, ideal = [], []
    for _ in range(replicates):
        distortion = np.eye(CLASSES) * 2 + 0.5 * rng.normal(size=(epochs, CLASSES, CLASSES))
        validation, labels, _ = draw(cells, donors, spread, rng)
        test, test_labels, test_donors = draw(cells, donors, spread, rng)
        new, new_labels, _ = draw(NEW_DONORS * NEW_CELLS, NEW_DONORS, spread, rng)
        losses = [-np.log(softmax(validation @ matrix)[np.arange(len(labels)), labels]).mean() for matrix in distortion]
        matrix = distortion[int(np.argmin(losses))]
        temperature = fit_temperature(validation @ matrix, labels)
        chosen, held_out, fresh = (softmax(part @ matrix, temperature) for part in (validation, test, new))
        for name, scores in (
            ("coverage", conformal_scores(held_out, test_labels)),
            ("same", conformal_scores(chosen, labels)),
        ):
            sets = prediction_sets(fresh, scores, COVERAGE)
            covered[name].append(sets[np.arange(len(sets)), new_labels].mean())
            if name == "coverage":
                sizes.append(sets.sum(axis=1).mean())
        sets = cross_sets(held_out, test_labels, test_donors, COVERAGE)
        covered["cross"].append(sets[np.arange(len(sets)), test_labels].mean())
        ideal.append(prediction_sets(fresh, conformal_scores(fresh, new_labels), COVERAGE).sum(axis=1).mean())
    means = {name: 100 * float(np.mean(values)) for name, values in covered.items()}
    return means | {"size": float(np.mean(sizes)), "ratio": float(np.mean(sizes) / np.mean(ideal))}


def draw(cells: int, donors: int, spread: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw features (N, K), labels (N,) and donors (N,) of a number of cells of each class."""
    labels = np.repeat(np.arange(CLASSES), cells)
    members = np.tile(np.arange(cells) % donors, CLASSES)
    shifts = rng.normal(0, spread, (donors, CLASSES))
    return np.eye(CLASSES)[labels] * 2 + rng.normal(size=(len(labels), CLASSES)) + shifts[members], labels, members

"""Measure the accuracy and calibration of classes proposed from the nucleus, on phantom cells.

    python benchmarks/proposals.py [--seeds 5] [--donors 12] [--cells 20]

For each seed, the same number of cells per class is drawn for each donor. The cells of half the donors are scored: with
the textbook rule, and with classifiers trained on 10, 30 and 100 cells per class of the other half. The mask of a cell
comes from its brightfield image. Intervals are 95 %, with donors drawn with replacement; every seed has donors of its
own. The confidence columns are its mean, the expected calibration error in 15 bins, the share of cells with at least
0.9, and the share of these that are right. Phantom classes overlap on purpose. No real cell is included.
"""

import argparse
from typing import Any

import numpy as np
import pandas as pd

from urnet.evaluation.metrics import score
from urnet.fields.labels.nuclear_features import FEATURES, nuclear_features
from urnet.fields.labels.propose import CLASSES, feature_table, fit_proposer, propose
from urnet.images.mask import segment_cell
from urnet.images.simulation.phantom import CROP_UM, draw_crop

LABELLED = (10, 30, 100)
FIRST_SEED = 100
SIZE = 48
WAYS = {  # known data of a cell besides its nucleus
    "mask and pixel size": (True, True),
    "mask": (True, False),
    "pixel size": (False, True),
    "neither": (False, False),
}


def draw(seed: int, donors: int, cells: int) -> dict[bool, pd.DataFrame]:
    """Draw phantom cells: features, donor and true class, with and without masks."""
    rows, truth = {True: [], False: []}, []
    for donor in range(donors):
        for label in CLASSES:
            for index in range(cells):
                crop = draw_crop(label, seed, donor, index, SIZE)
                rows[True].append(nuclear_features(crop.nuclei, segment_cell(crop.image)[0], CROP_UM / SIZE))
                rows[False].append(nuclear_features(crop.nuclei, None, CROP_UM / SIZE))
                truth.append({"donor": f"{seed}.{donor}", "half": donor % 2, "label": label})
    return {masked: pd.concat([feature_table(rows[masked]), pd.DataFrame(truth)], axis=1) for masked in rows}


def sample_per_class(cells: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """Sample a number of cells of each class."""
    return cells.groupby("label", group_keys=False).sample(count, random_state=seed)


def format_figure(figure: dict[str, Any]) -> str:
    """Format a value and its interval in percent."""
    ends = "" if figure["interval"] is None else f" [{', '.join(f'{100 * end:.1f}' for end in figure['interval'])}]"
    return f"{100 * figure['value']:.1f}{ends}"


def format_row(name: str, proposals: pd.DataFrame, truth: pd.DataFrame) -> str:
    """Format one line of the table."""
    confidence = proposals["confidence"].to_numpy()
    proposed = pd.Categorical(proposals["proposed"], categories=CLASSES).codes
    rest = np.repeat((1 - confidence[:, None]) / len(CLASSES), len(CLASSES), axis=1)
    rest[np.arange(len(rest)), proposed] = 1  # the proposed class is the greatest, whatever its confidence
    labels = pd.Categorical(truth["label"], categories=CLASSES).codes
    figures = score(labels, rest / rest.sum(axis=1, keepdims=True), CLASSES, truth["donor"].to_numpy())
    right = proposals["proposed"].to_numpy() == truth["label"].to_numpy()
    bins = np.minimum((confidence * 15).astype(int), 14)
    gap = sum(abs((confidence - right)[bins == number].sum()) for number in range(15)) / len(right)
    sure = confidence >= 0.9
    recalls = " ".join(f"{100 * figures['per_class'][label]['recall']['value']:5.1f}" for label in CLASSES)
    accuracy, macro_recall = format_figure(figures["accuracy"]), format_figure(figures["macro_recall"])
    return (
        f"  {name:<22} {accuracy:<19}  {macro_recall:<19}  {recalls}   "
        f"{100 * confidence.mean():5.1f} {100 * gap:5.1f}   {100 * sure.mean():5.1f} {100 * right[sure].mean():5.1f}"
    )


def main() -> None:
    """Print a table for each set of known data."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--donors", type=int, default=12)
    parser.add_argument("--cells", type=int, default=20, help="cells a class and donor")
    arguments = parser.parse_args()
    seeds = range(FIRST_SEED, FIRST_SEED + arguments.seeds)
    print(
        f"{arguments.seeds} seeds x {arguments.donors} donors x 3 x {arguments.cells} phantom cells of {SIZE} px; "
        "percent; half of each seed's donors are held out and scored\n"
        f"  {'':<22} {'accuracy':<19}  {'macro recall':<19}  {' '.join(name[:5] for name in CLASSES)}   "
        " conf  ECE   >=0.9 right"
    )
    all_drawn = {seed: draw(seed, arguments.donors, arguments.cells) for seed in seeds}
    for way, (masked, sized) in WAYS.items():
        unknown = [] if sized else [name for name in FEATURES if name.endswith("_um") or name.endswith("_um2")]
        drawn = {seed: both[masked].assign(**dict.fromkeys(unknown, np.nan)) for seed, both in all_drawn.items()}
        held = {seed: cells[cells["half"] == 1] for seed, cells in drawn.items()}
        truth = pd.concat(held.values())
        missed = truth["area"].isna().mean()
        print(f"known besides the nucleus: {way}; no nucleus detected in {100 * missed:.2f} %")
        print(format_row("textbook rule", pd.concat([propose(cells) for cells in held.values()]), truth))
        for count in LABELLED:
            proposals = []
            for seed, cells in drawn.items():
                labelled = sample_per_class(cells[cells["half"] == 0], count, seed)
                proposals.append(fit_proposer(labelled, labelled["label"].tolist()).propose(held[seed]))
            print(format_row(f"{count} labelled a class", pd.concat(proposals), truth))


if __name__ == "__main__":
    main()

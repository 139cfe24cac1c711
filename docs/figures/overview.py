"""Make the figure at the top of the README, `docs/images/overview.png`, from phantom fields.

    python docs/figures/overview.py WORK

WORK is a folder for the simulated fields, the model and the counts (about 30 minutes on two cores). What it holds
already is used again.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from tifffile import imread

from urnet.cli import run

OUT = Path(__file__).parents[1] / "images" / "overview.png"
OTHER = "other"
CLASSES = ("granulocyte", "lymphocyte", "monocyte", OTHER)
COLOURS = {"granulocyte": "#0b7285", "lymphocyte": "#c2410c", "monocyte": "#6d28d9", OTHER: "#868e96"}
REGION = (512, 512)
"""Height and width of the part of a field that is shown, in px."""


def command(out: Path, *arguments: str) -> None:
    """Run a command unless its output is there."""
    if not out.exists() and run(list(arguments)) != 0:
        raise SystemExit(f"urnet {' '.join(arguments)}: failed")


def brightfield_only(phantom: Path) -> Path:
    """Copy the brightfield images of phantom fields, so that their nuclei cannot be used."""
    folder = phantom / "brightfield"
    if not folder.exists():
        folder.mkdir()
        table = pd.read_csv(phantom / "fields" / "fields.csv")
        for name in table["field"]:
            shutil.copyfile(phantom / "fields" / name, folder / name)
        table.drop(columns="nuclei").to_csv(folder / "fields.csv", index=False)
    return folder


def name_other_objects(cells: Path) -> Path:
    """Label what lies at no true position: red cells and debris, which a person would call by that name."""
    labelled = cells / "labelled.csv"
    table = pd.read_csv(cells / "cells.csv")
    table["label"] = table["label"].fillna(OTHER)
    table.to_csv(labelled, index=False)
    return labelled


def compute(work: Path) -> None:
    """Simulate fields, train on the cells of 24 donors, count a sample of another donor."""
    phantom, sample = work / "phantom", work / "sample"
    donors = ("--donors", "24", "--cells", "72", "--fields", "48", "--seed", "3")
    command(phantom, "phantom", "--out", str(phantom), *donors)
    command(
        sample, *("phantom", "--out", str(sample), "--cells", "3", "--donors", "1", "--fields", "4", "--seed", "11")
    )
    fields, new = brightfield_only(phantom), brightfield_only(sample)
    truth = str(phantom / "fields" / "truth.csv")
    cells, model, crops = work / "cells", work / "run", work / "crops"
    command(cells, "crop", str(fields), "--out", str(cells), "--labels", truth, "--size", "48")
    settings = ("--set", "input.size=48", "train.epochs=30")
    labelled = name_other_objects(cells)
    command(model, "train", str(labelled), "--recipe", "quick", "--out", str(model), *settings)
    command(crops, "crop", str(new), "--out", str(crops), "--size", "48")
    table, enhanced = work / "predictions.csv", work / "enhanced"
    command(table, "predict", str(model), str(crops), "--out", str(table), "--enhanced", str(enhanced))
    command(work / "count", "differential", str(model), str(new), "--out", str(work / "count"))


def true_shares(cells: pd.DataFrame, truth: pd.DataFrame) -> pd.Series:
    """Return the share of each class among the objects found, by the nearest true position within 12 px."""
    labels = []
    for _, cell in cells.iterrows():
        here = truth[truth["field"] == cell["field"]]
        distance = np.hypot(here["x"] - cell["x"], here["y"] - cell["y"])
        labels.append(here["label"][distance.idxmin()] if distance.min() < 12 else OTHER)
    return pd.Series(labels).value_counts(normalize=True).reindex(CLASSES, fill_value=0.0)


def stretch(image: np.ndarray) -> np.ndarray:
    """Map the percentiles 0.5 and 99.5 to [0, 1]."""
    low, high = np.percentile(image, (0.5, 99.5))
    return np.clip((image - low) / (high - low), 0, 1)


def draw(work: Path) -> None:
    """Draw the four panels."""
    cells = pd.read_csv(work / "crops" / "cells.csv")
    predictions = pd.read_csv(work / "predictions.csv")
    cells = pd.concat([cells, predictions[["predicted", "rejected", *[f"p_{name}" for name in CLASSES]]]], axis=1)
    name = cells["field"].iloc[0]
    field = imread(work / "sample" / "brightfield" / name)[: REGION[0], : REGION[1]]
    inside = cells[
        (cells["field"] == name) & (cells["x"] < REGION[1]) & (cells["y"] < REGION[0]) & cells["rejected"].isna()
    ]
    alone = inside[(inside["edge"] == 0) & (inside["touching"] == 0) & (inside["predicted"] != OTHER)]
    chosen = alone.loc[alone[[f"p_{name}" for name in CLASSES]].max(axis=1).idxmax()]
    number = cells.index.get_loc(chosen.name)

    figure = Figure(figsize=(12, 3.7), facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 4, width_ratios=(2.3, 0.95, 1.3, 1.9), wspace=0.2, hspace=0.2)
    axes = figure.add_subplot(grid[:, 0])
    axes.imshow(stretch(field), cmap="gray")
    for _, cell in inside.iterrows():
        radius = cell["diameter"] / cell["scale"] / 2 * 1.25
        axes.add_patch(
            Rectangle(
                (cell["x"] - radius, cell["y"] - radius),
                2 * radius,
                2 * radius,
                fill=False,
                lw=1.3,
                ec=COLOURS[cell["predicted"]],
            )
        )
    axes.set_title("Unstained field: cells found and classified", fontsize=9, loc="left")
    axes.set_axis_off()

    raw = imread(work / "crops" / chosen["path"])
    enhanced = imread(predictions["enhanced"].iloc[number])
    for row, (image, title) in enumerate(((raw, "one cell, raw"), (enhanced, "enhanced"))):
        axes = figure.add_subplot(grid[row, 1])
        axes.imshow(stretch(image.astype(float)), cmap="gray")
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_axis_off()

    axes = figure.add_subplot(grid[:, 2])
    values = [100 * chosen[f"p_{name}"] for name in CLASSES][::-1]
    axes.barh(range(len(CLASSES)), values, height=0.45, color=[COLOURS[name] for name in CLASSES[::-1]])
    for row, (name, value) in enumerate(zip(CLASSES[::-1], values, strict=True)):
        axes.text(2, row + 0.3, f"{name} {value:.0f} %", va="bottom", fontsize=9)
    axes.set_xlim(0, 100)
    axes.set_ylim(-0.4, len(CLASSES) - 0.3)
    axes.set_yticks([])
    axes.set_xlabel("calibrated probability, %", fontsize=9)
    axes.set_title("Its class", fontsize=9, loc="left")

    axes = figure.add_subplot(grid[:, 3])
    count = pd.read_csv(work / "count" / "differential.csv").set_index("class").loc[list(CLASSES)]
    truth = 100 * true_shares(cells, pd.read_csv(work / "sample" / "fields" / "truth.csv"))
    for row, name in enumerate(CLASSES[::-1]):
        value, low, high = (count.loc[name, key] for key in ("percent", "low", "high"))
        axes.plot([low, high], [row, row], color=COLOURS[name], lw=3, solid_capstyle="round")
        axes.plot(value, row, "o", color=COLOURS[name], ms=8)
        axes.plot(truth[name], row, "|", color="black", ms=14, mew=2)
        axes.text(2, row + 0.3, f"{name} {value:.0f} ({low:.0f} to {high:.0f}) %", va="bottom", fontsize=9)
    axes.set_yticks([])
    axes.set_ylim(-0.4, len(CLASSES) - 0.3)
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of the objects found   (black: truth)", fontsize=9)
    axes.set_title("Differential with 95 % intervals", fontsize=9, loc="left")
    for axes in figure.axes:
        axes.tick_params(labelsize=8.5)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(OUT, dpi=130, bbox_inches="tight", pad_inches=0.1)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    compute(folder)
    draw(folder)

"""Measure what a calibrated run rejects: its test part, cells of unknown classes, and objects that are not cells.

    python benchmarks/rejection.py RUN --unknown CELLS --out rejection.csv

RUN is a finished run (`urnet train`, or `urnet calibrate`). CELLS is a table or folder; labels that are no classes of
the run are unknown cells. Other images are drawn with a fixed seed: phantom red cells, platelets and fragments; empty
spots; phantom white cells; noise; and degraded test cells of the run. Each line gives the area under the ROC curve of
the rejection score against the test part, with a 95 % interval, the rejected share, and the most common reason.

    python benchmarks/rejection.py RUN --unknown CELLS --distances

compares measures of the distance from the training cells on the same images: the Mahalanobis distance (one
Gaussian, or one for each class) and the distance to the tenth nearest training cell (Sun et al., ICML 2022), in the
features of each depth, in the last layer's, and as the largest over all depths.
"""

import argparse
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import gaussian_filter
from sklearn.metrics import roc_auc_score

from urnet.bundle.model import Model
from urnet.calibration.mahalanobis import fit_mahalanobis
from urnet.cells.read import read_cells
from urnet.cells.table import Cells
from urnet.evaluation.evaluate import evaluate
from urnet.images.simulation.optics import draw_imaging, simulate_brightfield
from urnet.images.simulation.particles import CROP_UM, paint_other_particle
from urnet.images.simulation.phantom import CLASS_FREQUENCY, Scene, draw_crop
from urnet.nets.features import find_last_layer, record_inputs
from urnet.run_folder import Run

COUNT = 100
NEIGHBOUR = 10


def main() -> None:
    """Print a table, and write it to a file if asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--unknown", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--distances", action="store_true")
    arguments = parser.parse_args()
    run = Run.open(arguments.run)
    model = run.load_model()
    known = model.read(run.cells().part("test"))
    others = {name: images for name, images in degrade(known).items() if len(images)}
    if model.config.channels == 1 and model.config.scaling.dtype == "uint8":
        others = draw_images(model) | others
    if arguments.unknown is not None:
        others = sample_unknown_cells(model, read_cells(arguments.unknown)) | others
    if arguments.distances:
        table = distances(run, model, known, others)
    else:
        table = rejections(model, known, others)
        print_trust(run)
    print(table.to_string(index=False, float_format="{:.3f}".format))
    if arguments.out is not None:
        table.to_csv(arguments.out, index=False, lineterminator="\n")


def sample_unknown_cells(model: Model, cells: Cells) -> dict[str, np.ndarray]:
    """Sample cells of each label that is no class of the model, (N, C, S, S) raw counts each."""
    unknown = {}
    for label in sorted(set(cells.table["label"]) - set(model.classes)):
        index = np.random.default_rng(0).permutation(np.flatnonzero(cells.table["label"] == label))[: 2 * COUNT]
        unknown[f"unknown: {label}"] = model.read(cells.where(np.isin(np.arange(len(cells)), index)))
    return unknown


def draw_images(model: Model) -> dict[str, np.ndarray]:
    """Draw grey phantoms of cells and other objects, under all imaging conditions of the simulation."""
    rng, edge = np.random.default_rng(0), 128

    def scene(paint: Callable[[Scene], None]) -> np.ndarray:
        canvas, imaging = Scene(edge, edge), draw_imaging(rng)
        paint(canvas)
        return model.resize_crop(_bytes(simulate_brightfield(canvas.phase, canvas.density, imaging, rng)))

    def bystander(canvas: Scene) -> None:
        canvas.add(paint_other_particle(rng, CROP_UM / edge), edge // 2, edge // 2)

    def cell(index: int) -> np.ndarray:
        label = list(CLASS_FREQUENCY)[index % 3]
        return model.resize_crop(draw_crop(label, 0, index % 8, index, edge).image)

    return {
        "red cell, platelet or fragment (phantom)": np.stack([scene(bystander) for _ in range(COUNT)]),
        "empty spot (phantom)": np.stack([scene(lambda canvas: None) for _ in range(COUNT)]),
        "white cell (phantom)": np.stack([cell(index) for index in range(COUNT)]),
        "noise": np.stack(
            [model.resize_crop(_bytes(0.5 + 0.15 * rng.standard_normal((edge, edge)))) for _ in range(COUNT)]
        ),
    }


def degrade(images: np.ndarray) -> dict[str, np.ndarray]:
    """Degrade test cells (N, C, S, S) in several ways; 8-bit counts are assumed to use the range 0 to 255."""
    rng = np.random.default_rng(0)
    top = 255.0 if images.dtype == np.uint8 else float(images.max())
    shares = images[rng.permutation(len(images))[:COUNT]] / top
    edge = shares.shape[-1]
    slope = np.linspace(-0.3, 0.3, edge)[:, None]

    def counts(values: np.ndarray) -> np.ndarray:
        clipped = top * np.clip(values, 0, 1)
        return clipped.astype(images.dtype) if images.dtype.kind == "f" else np.rint(clipped).astype(images.dtype)

    return {
        "blurred by 2 % of the edge": counts(gaussian_filter(shares, (0, 0, 0.02 * edge, 0.02 * edge))),
        "blurred by 4 % of the edge": counts(gaussian_filter(shares, (0, 0, 0.04 * edge, 0.04 * edge))),
        "half as bright": counts(0.5 * shares),
        "half again as bright": counts(1.5 * shares),
        "illumination ramp of 60 %": counts(shares * (1 + slope)),
        "noise of 10 % added": counts(shares + 0.1 * rng.standard_normal(shares.shape)),
    }


def _bytes(image: np.ndarray) -> np.ndarray:
    return np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)


def compute_features(model: Model, images: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """Compute the features (N, F) of all depths, and their number at each depth."""
    batches = list(model.outputs(model.config.scaling.apply(images)))
    return np.concatenate([outputs.features for outputs in batches]), batches[0].sizes


def rejections(model: Model, known: np.ndarray, others: dict[str, np.ndarray]) -> pd.DataFrame:
    """Build one row per kind of image: AUROC against the test part, rejected share, most common reason."""
    rejection, rng = model.calibration.rejection, np.random.default_rng(0)

    def judged(images: np.ndarray) -> tuple[np.ndarray, list[str]]:
        rows, features = model.measure_crops(images), compute_features(model, images)[0]
        return rejection.score(rows, features), rejection.reject(rows, features)

    ours, reasons = judged(known)
    rows = [("the run's own test part", len(known), np.nan, np.nan, np.nan, *_summarise_reasons(reasons))]
    for name, images in others.items():
        theirs, reasons = judged(images)
        value, replicates = _auroc(ours, theirs), []
        for _ in range(500):
            replicates.append(_auroc(rng.choice(ours, len(ours)), rng.choice(theirs, len(theirs))))
        rows.append((name, len(images), value, *np.quantile(replicates, [0.025, 0.975]), *_summarise_reasons(reasons)))
    return pd.DataFrame(rows, columns=["what", "images", "auroc", "low", "high", "rejected", "most common reason"])


def _summarise_reasons(reasons: list[str]) -> tuple[float, str]:
    counts = Counter(reason for reason in reasons if reason)
    return sum(counts.values()) / len(reasons), counts.most_common(1)[0][0] if counts else ""


def _auroc(known: np.ndarray, unknown: np.ndarray) -> float:
    return float(roc_auc_score([0] * len(known) + [1] * len(unknown), np.concatenate([known, unknown])))


def print_trust(run: Run) -> None:
    """Print temperature, prediction sets and rejection on the test part."""
    trust = evaluate(run).metrics["calibration"]
    for name, figure in (
        ("calibration error before", trust["expected_calibration_error"]["before"]),
        ("calibration error after", trust["expected_calibration_error"]["after"]),
        ("coverage of 90 % sets", trust["sets"]["covered"]),
        *((f"  {label}", figure) for label, figure in trust["sets"]["per_class"].items()),
        ("mean size of the sets", trust["sets"]["mean_size"]),
        ("false rejection", trust["rejection"]["rejected"]),
        *((f"  {label}", figure) for label, figure in trust["rejection"]["per_class"].items()),
    ):
        low, high = figure["interval"] or (np.nan, np.nan)
        print(f"{name:28s} {figure['value']:.3f} [{low:.3f}, {high:.3f}]")
    print(f"temperature {trust['temperature'][0]:.2f}\n")


def distances(run: Run, model: Model, known: np.ndarray, others: dict[str, np.ndarray]) -> pd.DataFrame:
    """Compute the AUROC of each kind of image (columns) for each measure of distance (rows)."""
    train = run.cells().part("train")
    images, labels = model.read(train), train.labels
    all_depths, last = {}, {}
    for name, part in {"train": images, "known": known, **others}.items():
        with record_inputs(find_last_layer(model.joint.classifier)) as caught:
            all_depths[name], sizes = compute_features(model, part)
        last[name] = torch.cat([x.flatten(1) for x in caught]).cpu().numpy()
    ends = np.cumsum(sizes)[:-1]
    depths = [{name: np.split(x, ends, axis=1)[d] for name, x in all_depths.items()} for d in range(len(sizes))]
    spaces = {**{f"map {d + 1}": depth for d, depth in enumerate(depths)}, "last layer": last}
    rows = []
    for kind, measure in (("one Gaussian", _gaussian), ("Gaussian a class", _gaussians), ("neighbour", _neighbour)):
        logs = {space: measure(features, labels) for space, features in spaces.items()}
        for space, values in logs.items():
            rows.append((kind, space, *(_auroc(values["known"], values[name]) for name in others)))
        maps = [values for space, values in logs.items() if space != "last layer"]
        for space, chosen in (("largest of the maps", maps), ("largest of all", list(logs.values()))):
            largest = {name: np.max([_standard(one)[name] for one in chosen], axis=0) for name in ("known", *others)}
            rows.append((kind, space, *(_auroc(largest["known"], largest[name]) for name in others)))
    return pd.DataFrame(rows, columns=["distance", "features", *others])


def _standard(logs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: (x - logs["train"].mean()) / logs["train"].std() for name, x in logs.items()}


def _gaussian(features: dict[str, np.ndarray], labels: np.ndarray) -> dict[str, np.ndarray]:
    fitted = fit_mahalanobis(features["train"], [features["train"].shape[1]])
    return {name: fitted.measure(x) for name, x in features.items()}


def _gaussians(features: dict[str, np.ndarray], labels: np.ndarray) -> dict[str, np.ndarray]:
    """Compute the Mahalanobis distance to the nearest class, with one covariance for all classes."""
    train = features["train"]
    means = [train[labels == k].mean(axis=0) for k in np.unique(labels)]
    within = fit_mahalanobis(train - np.stack(means)[np.unique(labels, return_inverse=True)[1]], [train.shape[1]])
    return {name: np.min([within.measure(x - mean) for mean in means], axis=0) for name, x in features.items()}


def _neighbour(features: dict[str, np.ndarray], labels: np.ndarray) -> dict[str, np.ndarray]:
    """Compute the log distance to the tenth nearest training cell, for features scaled to length 1."""
    unit = {name: x / np.linalg.norm(x, axis=1, keepdims=True) for name, x in features.items()}
    log_distances = {}
    for name, x in unit.items():
        near = np.sqrt(np.maximum(2 - 2 * x @ unit["train"].T, 1e-12))
        near.partition(NEIGHBOUR, axis=1)
        log_distances[name] = np.log(near[:, : NEIGHBOUR + (name == "train")].max(axis=1))
    return log_distances


if __name__ == "__main__":
    main()

"""Stress test: measure recall under defocus, blur, noise, gain and uneven illumination.

Another microscope takes other images; Zheng et al. (Sensors 2023, 23, 7605, section 4) name this limitation of their
work. The stress test perturbs the images of the test cells step by step. Every run gets the same images.

The perturbations change raw counts at the network's size, which are then rounded and clipped to the camera's range.
Lengths hold for a crop of 128 px and scale with the crop, as in `urnet.images.simulation.optics`. Noise scales as well,
so that it stays the same per area of the specimen. The five perturbations:

- defocus: Fresnel propagation of the recorded amplitude √I by a defocus of the unit of `Imaging.defocus`, px². The
  phase of the light is not recorded and assumed to be flat. So this is the part of the change that the image itself
  determines (a transfer of cos(z·k²/2)); both directions give the same.
- blur: Gaussian point spread, standard deviation in px.
- noise: Gaussian, standard deviation as a share of the range that the first run scales to [0, 1].
- gain: counts times 1 + severity, as with another lamp or exposure.
- ramp: illumination that changes by this share over the image, in a direction drawn for each cell.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import fft
from scipy.ndimage import gaussian_filter

from urnet.cells.read import read_recipe_cells
from urnet.cells.table import PARTS
from urnet.errors import CellsError, UrnetError
from urnet.evaluation.evaluate import OPTIMISTIC
from urnet.evaluation.figure_style import to_png
from urnet.evaluation.figures import draw_stress_curves
from urnet.evaluation.metrics import score
from urnet.evaluation.predictions import BATCH, Progress, ScoredCells, score_other_cells, score_run_part
from urnet.evaluation.runs import check_same_classes, name_runs, open_runs
from urnet.files.atomic import atomic_folder
from urnet.files.csv_tables import write_frame
from urnet.files.outputs import refuse_existing
from urnet.html_pages import create_environment
from urnet.images.simulation.optics import BACKGROUND, REFERENCE_PX, Imaging, simulate_brightfield
from urnet.run_folder import Run, check_not_within
from urnet.statistics.donors import choose_groups

SEED = 0
FORWARD = 16
"""Number of images in one forward pass. On a CPU, larger batches spend half their time on memory access."""


@dataclass(frozen=True)
class Perturbation:
    """A perturbation of images.

    Attributes:
        title: name in figures and tables.
        unit: unit of its severities.
        severities: steps in order; 0 is the unchanged image.
        apply: function of counts (B, C, S, S) float32, the severity, one random generator per image, and the span of
            counts that is scaled to [0, 1]. It returns counts of the same shape.
    """

    title: str
    unit: str
    severities: tuple[float, ...]
    apply: Callable[[np.ndarray, float, list[np.random.Generator], float], np.ndarray]


def _defocus(counts: np.ndarray, z: float, rngs: list[np.random.Generator], span: float) -> np.ndarray:
    S = counts.shape[-1]
    edge = S // 4  # reflected, so that nothing wraps around the edge
    black = min(0.0, float(counts.min()))
    amplitude = np.sqrt(np.pad(counts - black, ((0, 0), (0, 0), (edge, edge), (edge, edge)), mode="symmetric"))
    k = 2 * np.pi * fft.fftfreq(S + 2 * edge)
    phase = 0.5 * z * (S / REFERENCE_PX) ** 2 * (k[:, None] ** 2 + k**2)
    wave = fft.ifft2(fft.fft2(amplitude) * np.exp(-1j * phase).astype(np.complex64))
    return (np.abs(wave) ** 2 + black)[..., edge : edge + S, edge : edge + S]


def _blur(counts: np.ndarray, sigma: float, rngs: list[np.random.Generator], span: float) -> np.ndarray:
    return gaussian_filter(counts, sigma * counts.shape[-1] / REFERENCE_PX, axes=(2, 3), mode="nearest")


def _noise(counts: np.ndarray, sigma: float, rngs: list[np.random.Generator], span: float) -> np.ndarray:
    drawn = np.stack([rng.standard_normal(counts.shape[1:], dtype=np.float32) for rng in rngs])
    return counts + np.float32(sigma * span * counts.shape[-1] / REFERENCE_PX) * drawn


def _gain(counts: np.ndarray, change: float, rngs: list[np.random.Generator], span: float) -> np.ndarray:
    return counts * np.float32(1 + change)


def _ramp(counts: np.ndarray, share: float, rngs: list[np.random.Generator], span: float) -> np.ndarray:
    nothing = np.zeros(counts.shape[-2:], np.float32)
    conditions = [Imaging(ramp=share, angle=float(rng.uniform(0, 2 * np.pi))) for rng in rngs]
    lit = [
        simulate_brightfield(nothing, nothing, one, rng) / BACKGROUND for one, rng in zip(conditions, rngs, strict=True)
    ]
    return counts * np.stack(lit)[:, None]


PERTURBATIONS = {
    "defocus": Perturbation("Defocus", "px² of a 128 px crop", (0, 0.5, 1, 2, 4, 8), _defocus),
    "blur": Perturbation("Blur", "px of a 128 px crop", (0, 0.5, 1, 1.5, 2, 3), _blur),
    "noise": Perturbation("Noise", "share of the scaled range", (0, 0.01, 0.02, 0.04, 0.08, 0.16), _noise),
    "gain": Perturbation("Gain", "change of the counts", (-0.3, -0.2, -0.1, 0, 0.1, 0.2, 0.3), _gain),
    "ramp": Perturbation("Illumination ramp", "share over the image", (0, 0.1, 0.2, 0.3, 0.45, 0.6), _ramp),
}


@dataclass(frozen=True)
class StressTest:
    """The results of a stress test.

    Attributes:
        folder: folder with `stress.csv`, `donors.csv` if donors are known, `figures/` and `report.html`.
        table: one row per run, perturbation and severity: `run`, `perturbation`, `severity`, `unit`, `cells`,
            `method` and `groups` (of the intervals: "t interval over 8 donors", 8), then `accuracy`, `macro_recall` and
            `recall_<class>`, each with the ends of its 95 % interval (`…_low`, `…_high`; empty for a single group).
        donors: one row per run and donor, for unchanged images: `run`, `donor`, `cells`, `accuracy`, `macro_recall`,
            `recall_<class>`. Empty if no donor is known.
        warnings: what the reader should know.
    """

    folder: Path
    table: pd.DataFrame
    donors: pd.DataFrame
    warnings: list[str]

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.folder / "report.html"


def perturb(images: np.ndarray, name: str, severity: float, span: float) -> np.ndarray:
    """Perturb images. The same image always gets the same noise and the same direction of light.

    Args:
        images: (N, C, S, S) raw counts.
        name: key of `PERTURBATIONS`.
        severity: severity in its unit; 0 changes nothing.
        span: counts between the network's 0 and 1.

    Returns:
        (N, C, S, S) of the same type. Integers are rounded and clipped to their range.
    """
    if severity == 0:
        return images
    rngs = [np.random.default_rng((SEED, zlib.crc32(np.ascontiguousarray(image)))) for image in images]
    worse = PERTURBATIONS[name].apply(images.astype(np.float32), severity, rngs, span)
    if images.dtype.kind == "f":
        return worse.astype(images.dtype)
    limits = np.iinfo(images.dtype)
    return np.clip(np.rint(worse), limits.min, limits.max).astype(images.dtype)


def run_stress_test(
    runs: Sequence[Path | str],
    cells: Path | str,
    out: Path | str,
    *,
    split: str = "test",
    progress: Progress | None = None,
) -> StressTest:
    """Measure recall against each perturbation for every run.

    Args:
        runs: run folders, or folders of cross-validations: the test parts of their folds are pooled.
        cells: a table or folder. A run that was trained on it is tested on its own part. Other runs are tested on all
            cells, or on the part if there is a split column.
        out: new folder for the results.
        split: the part to test on.
        progress: called with the name of a step and the share of it that is done.

    Raises:
        RunError: a folder is no finished run, a run is named twice, runs know different classes, or `out` exists.
        CellsError: nothing in the part.
        ImageError: a cell cannot be read.
    """
    folders, cells, out = [Path(run) for run in runs], Path(cells), Path(out)
    if split not in PARTS:
        raise CellsError(f"split is {split!r}; it must be one of {', '.join(PARTS)}", code="evaluation.split_unknown")
    refuse_existing(out)
    check_not_within(out, cells)
    warnings: list[str] = []
    tested: dict[str, list[ScoredCells]] = {}
    for name, folder in name_runs(folders).items():
        tested[name], notes = _score_run(folder, cells, split, out, progress)
        warnings += [f"{name}: {note}" for note in notes]
    first = next(iter(tested.values()))[0]
    classes, scaling = first.model.classes, first.model.config.scaling
    for folder, parts in zip(folders, tested.values(), strict=True):
        check_same_classes(folders[0], classes, folder, parts[0].model.classes)
    tables = {name: pd.concat([one.cells.table for one in parts], ignore_index=True) for name, parts in tested.items()}
    rows: list[dict[str, Any]] = []
    donors: list[dict[str, Any]] = []
    for index, (name, parts) in enumerate(tested.items()):

        def done(share: float, index: int = index) -> None:
            if progress is not None:
                progress("stress", (index + share) / len(folders))

        rows += [{"run": name, **row} for row in _compute_curves(parts, tables[name], scaling.high - scaling.low, done)]
        donors += [{"run": name, **row} for row in _metrics_by_donor(parts, tables[name])]
    result = StressTest(out, pd.DataFrame(rows), pd.DataFrame(donors), [*warnings, *_different_cells_warning(tables)])
    dataset = cells.resolve().name + (f", {split} part" if first.cells.has_split else "")
    with atomic_folder(out) as staging:
        _write(result, staging, classes, dataset, first.cells.simulated)
    return result


def _score_run(
    folder: Path, cells: Path, split: str, out: Path, progress: Progress | None
) -> tuple[list[ScoredCells], list[str]]:
    """Score the test cells of a run, or of each fold; return them with warnings."""
    runs = open_runs(folder, split)
    notes = [OPTIMISTIC] if runs[0].recipe().protocol == "paper" else []
    if _is_trained_on(runs[0], cells):
        return [score_run_part(run, split, progress) for run in runs], notes
    run = Run.open(folder)  # refuses a cross-validation, whose folds would count each cell several times
    scored, _, more = score_other_cells(run, cells, split, out, progress)
    return [scored], [*notes, *more]


def _is_trained_on(run: Run, cells: Path) -> bool:
    """Return whether these cells are the run's own."""
    if cells.resolve() in (run.cells_path.resolve(), run.folder.resolve()):
        return True
    recipe = run.recipe()
    given = read_recipe_cells(cells, recipe)
    try:
        return run.has_cells(given)
    except UrnetError:  # its own cells are gone, so these are others
        return False


def _compute_curves(
    scored: list[ScoredCells], table: pd.DataFrame, span: float, done: Callable[[float], None]
) -> list[dict[str, Any]]:
    """Compute one row per perturbation and severity, over all folds together."""
    truth = np.concatenate([one.truth for one in scored])
    donors = table["donor"].tolist() if "donor" in table else None
    groups, intervals = choose_groups(donors, table["source"].tolist())
    classes = scored[0].model.classes
    steps = [(name, severity) for name, kind in PERTURBATIONS.items() for severity in kind.severities]
    rows = []
    for index, (name, severity) in enumerate(steps):
        probabilities = np.concatenate([_predict_perturbed(one, name, severity, span) for one in scored])
        metrics = score(truth, probabilities, list(classes), groups, cells=table["path"].tolist())
        row = {"perturbation": name, "severity": severity, "unit": PERTURBATIONS[name].unit, "cells": len(truth)}
        row["method"], row["groups"] = intervals["method"], intervals["groups"]
        figures = {"accuracy": metrics["accuracy"], "macro_recall": metrics["macro_recall"]}
        figures |= {f"recall_{label}": metrics["per_class"][label]["recall"] for label in classes}
        for key, figure in figures.items():
            row[key] = figure["value"]
            row[f"{key}_low"], row[f"{key}_high"] = figure["interval"] or (None, None)
        rows.append(row)
        done((index + 1) / len(steps))
    return rows


def _predict_perturbed(one: ScoredCells, name: str, severity: float, span: float) -> np.ndarray:
    if severity == 0:
        return one.probabilities
    batches = []
    for start in range(0, len(one.images), BATCH):
        worse = perturb(one.images[start : start + BATCH], name, severity, span)
        inputs = one.model.config.scaling.apply(worse)
        batches += [probabilities for probabilities, _ in one.model.forward(inputs, FORWARD)]
    return np.concatenate(batches)


def _metrics_by_donor(scored: list[ScoredCells], table: pd.DataFrame) -> list[dict[str, Any]]:
    """Compute one row per donor for unchanged images. The mean is over the classes that the donor has."""
    if "donor" not in table or not (table["donor"] != "").any():
        return []
    truth = np.concatenate([one.truth for one in scored])
    right = np.concatenate([one.probabilities.argmax(axis=1) for one in scored]) == truth
    rows = []
    for donor, members in table.groupby("donor").indices.items():
        hits, labels = right[members], truth[members]
        recalls = {
            f"recall_{label}": float(hits[labels == k].mean()) if (labels == k).any() else np.nan
            for k, label in enumerate(scored[0].model.classes)
        }
        means = {"accuracy": float(hits.mean()), "macro_recall": float(np.nanmean(list(recalls.values())))}
        rows.append({"donor": donor or "not known", "cells": len(members), **means, **recalls})
    return rows


def _different_cells_warning(tables: dict[str, pd.DataFrame]) -> list[str]:
    """Warn if the runs were not tested on the same cells."""
    sets = {name: sorted(table["source"]) for name, table in tables.items()}
    first = next(iter(sets.values()))
    if all(one == first for one in sets.values()):
        return []
    counts = ", ".join(f"{name} {len(sources):,}" for name, sources in sets.items())
    return [f"The runs have different test cells ({counts}), so a difference between curves can come from the cells."]


def _write(result: StressTest, folder: Path, classes: Sequence[str], dataset: str, simulated: str) -> None:
    pictures = [("macro_recall", "Macro recall", "macro_recall"), ("accuracy", "Accuracy", "accuracy")]
    pictures += [(f"recall_{k}", f"Recall: {label}", f"recall_{label}") for k, label in enumerate(classes, 1)]
    panels = {name: (f"{kind.title} ({kind.unit})", kind.severities) for name, kind in PERTURBATIONS.items()}
    drawn = [(file, title, to_png(draw_stress_curves(result.table, key, panels))) for file, title, key in pictures]
    template = create_environment("urnet.evaluation").get_template("stress.html.j2")
    page = template.render(
        dataset=dataset,
        simulated=simulated,
        warnings=result.warnings,
        rows=_to_records(result.table),
        donors=_to_records(result.donors),
        classes=classes,
        perturbations=PERTURBATIONS,
        runs=list(dict.fromkeys(result.table["run"])),
        figures=[(title, png) for _, title, png in drawn],
    )
    (folder / "figures").mkdir()
    for file, _, png in drawn:
        (folder / "figures" / f"{file}.png").write_bytes(png)
    for name, table in (("stress", result.table), ("donors", result.donors)):
        if len(table):
            rounded = table.map(lambda value: float(f"{value:.6g}") if isinstance(value, float) else value)
            write_frame(folder / f"{name}.csv", rounded)
    (folder / "report.html").write_text(page, encoding="utf-8", errors="backslashreplace", newline="\n")


def _to_records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Convert a table to rows, with None for undefined values."""
    return table.astype(object).where(table.notna(), None).to_dict("records")

"""Evaluate a run on one of its parts or on other cells: figures with intervals, pictures, and the report.

What stands here is the way from a run folder to `metrics.json`, `predictions.csv`, `figures/` and `report.html`; the
mathematics is in `metrics`, the drawing in `figures` and `galleries`, the page in `report`.
"""

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from importlib.metadata import version
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from urnet.bundle.model import Model
from urnet.cells.audit import format_counts
from urnet.cells.table import PARTS
from urnet.errors import CellsError, RecipeError, RunError
from urnet.evaluation import figures, galleries
from urnet.evaluation.calibration_metrics import calibration_metrics
from urnet.evaluation.figure_style import encode_png, to_png
from urnet.evaluation.metrics import choose_groups, score
from urnet.evaluation.predictions import Progress, ScoredCells, score_other_cells, score_run_part
from urnet.evaluation.report import Report, write_report
from urnet.files.atomic import atomic_folder
from urnet.files.csv_tables import write_frame
from urnet.files.outputs import refuse_existing
from urnet.names import donor_key
from urnet.nets.gradcam import grad_cam, overlay
from urnet.nets.pixel_range import PixelRange
from urnet.run_folder import Run

OPTIMISTIC = (
    "Protocol paper is optimistic: the epoch was chosen by accuracy on the test part, which is augmented and balanced "
    "as well."
)
SHOWN_PER_CLASS = 2
MISTAKES = 12
VERSIONS = ("urnet", "torch", "timm", "lightning", "numpy", "captum")


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found and where it is.

    Attributes:
        folder: holds `metrics.json`, `predictions.csv`, `figures/`, `report.html`.
        metrics: the content of `metrics.json`.
    """

    folder: Path
    metrics: dict[str, Any]

    @property
    def report(self) -> Path:
        """The page to open."""
        return self.folder / "report.html"


def evaluate(
    run: Run | Path | str,
    cells: Path | str | None = None,
    *,
    split: str = "test",
    out: Path | str | None = None,
    expect: str | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate a trained run.

    Args:
        run: a run folder, or the folder of a cross-validation, whose folds' test parts are then pooled.
        cells: other cells; used whole where they have no split column. The run's own when not given.
        split: the part to evaluate.
        out: where the results go; `evaluation/<split>` in the run when not given, which is written anew.
        expect: the first digits of the model's digest; another model is refused.
        progress: called with what is done and the share of it.

    Raises:
        RunError: no trained run there, cells with labels that the model does not know, or `out` exists.
        CellsError: nothing in the part.
        ImageError: a cell cannot be read.
    """
    folder = run.folder if isinstance(run, Run) else Path(run)
    if split not in PARTS:
        raise CellsError(f"split is {split!r}; it must be one of {', '.join(PARTS)}")
    target = None if out is None else Path(out)
    if target is not None:
        refuse_existing(target)
    if cells is not None:
        runs, cells = [Run.open(folder)], Path(cells)
        one, name, warnings = score_other_cells(runs[0], cells, split, target, progress, expect)
        scored = [one]
    else:
        runs, name = open_runs(folder, split), split
        scored = [score_run_part(one, split, progress, expect) for one in runs]
        warnings = _excluded_note(runs[0])
        if len(runs) > 1:
            pooled = f"{len(runs)} folds are pooled: every cell was tested once, by a model that had not seen it."
            warnings = [pooled, *warnings]
    note = _differential_note(scored[0].model, name if cells is None else "")
    place = target or folder / "evaluation" / name
    with atomic_folder(place, replace_files=cells is None and target is None) as staging:
        metrics = _write_files(runs, scored, staging, name, warnings, note, progress)
    return Evaluation(place, metrics)


def name_runs(folders: Sequence[Path]) -> dict[str, Path]:
    """Run folders by their own names; with their parents' where two are called alike.

    Raises:
        RunError: there is none, or one is there twice.
    """
    if not folders:
        raise RunError("no run given; name one run folder at least")
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = ["/".join(folder.resolve().parts[-2:]) for folder in folders]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RunError(f"{twice[0]} is named twice; name each run once")
    return dict(zip(names, folders, strict=True))


def open_runs(folder: Path, split: str = "test") -> list[Run]:
    """The folds of a cross-validation in their order, or the one run that a folder is.

    Args:
        folder: a run folder, or the folder of a cross-validation; of a benchmark's row, the folds of its first seed.
        split: the part that is wanted; folds are pooled over their test parts alone.

    Raises:
        RunError: neither, a bundle, or some folds are not trained to the end.
        CellsError: another part of a cross-validation.
    """
    Run(folder).refuse_bundle()
    paths = [*folder.glob("fold*/recipe.yaml"), *folder.glob("seed0-fold*/recipe.yaml")]
    numbered = [(path.parent.name.rpartition("fold")[2], Run(path.parent)) for path in paths]
    found = {int(number): run for number, run in numbered if number.isdecimal()}
    if not found:
        return [Run.open(folder)]
    for run in found.values():
        run.refuse_bundle()
    if split != "test":
        raise CellsError(f"{folder}: a cross-validation pools its test parts; evaluate one fold's {split} part instead")
    expected = next(iter(found.values())).recipe().split.folds
    done = sum(run.finished for run in found.values())
    if done != expected:
        raise RunError(f"{folder}: {done} of {expected} folds are trained; finish them with `urnet train … --resume`")
    return [found[number] for number in sorted(found)]


def _write_files(
    runs: list[Run],
    scored: list[ScoredCells],
    folder: Path,
    name: str,
    warnings: list[str],
    note: str,
    progress: Progress | None,
) -> dict[str, Any]:
    """Fill a folder, and return the metrics."""
    run, model, recipe = runs[0], scored[0].model, runs[0].recipe()
    table = pd.concat([one.cells.table for one in scored], ignore_index=True)
    truth = np.concatenate([one.truth for one in scored])
    probabilities = np.concatenate([one.probabilities for one in scored])
    donors = table["donor"].tolist() if "donor" in table else None
    groups, description = choose_groups(donors, table["source"].tolist())
    known = {donor_key(donor) for donor in run.donors("train")}
    seen = known & {donor_key(donor) for donor in donors or []}
    if description["unit"] == "donor" and len(runs) == 1 and seen:
        description["note"] = (
            f"Whole donors were drawn, but {len(seen)} of these {description['groups']} gave cells to training too, "
            "so the intervals say nothing of donors not seen."
        )
    metrics = score(truth, probabilities, list(model.classes), groups)
    simulated = scored[0].cells.simulated
    warnings = [*warnings, *metrics.pop("notes")]
    counts = _class_counts(runs, scored)
    pixels = reduce(add, (one.pixels for one in scored)) if recipe.enhancer.name != "none" else None
    if pixels is not None and pixels.warning:
        warnings.append(f"{pixels.warning[:1].upper()}{pixels.warning[1:]}.")
    optimistic = [OPTIMISTIC] if recipe.protocol == "paper" else []
    if progress is not None:
        progress("draw", 0.0)
    pictures = _draw_figures(runs, scored, truth, probabilities, metrics, counts, pixels)
    if "grad_cam" not in {file for file, *_ in pictures}:
        warnings.append(f"No Grad-CAM: classifier {recipe.classifier.name} makes no feature maps that it could show.")
    metrics |= {
        "protocol": recipe.protocol,
        "optimistic": bool(optimistic),
        "part": name,
        "recipe": recipe.name,
        "seed": recipe.seed,
        "split_seed": recipe.split.seed,
        "epoch": [one.model.config.epoch for one in scored] if len(scored) > 1 else model.config.epoch,
        "intervals": description,
        "differential_note": note,
        "simulated": simulated,
        "folds": _metrics_by_fold(scored) if len(scored) > 1 else None,
        "enhanced": None if pixels is None else _pixel_range(pixels),
        "calibration": calibration_metrics(scored, groups),
        "warnings": [*optimistic, *warnings],
        "versions": {package: version(package) for package in VERSIONS} | {"python": platform.python_version()},
    }
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(
        json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
    predictions = pd.concat([one.to_frame() for one in scored], ignore_index=True)
    if len(scored) > 1:
        predictions["fold"] = np.repeat(np.arange(len(scored)), [len(one.truth) for one in scored])
    write_frame(folder / "predictions.csv", predictions)
    for file, _, _, png in pictures:
        (folder / "figures" / f"{file}.png").write_bytes(png)
    report = Report(
        title=f"{recipe.name}: {name}",
        run=run.folder.name if len(runs) == 1 else f"{run.folder.parent.name} ({len(runs)} folds)",
        dataset=_describe_dataset(metrics, name, model),
        protocol=recipe.protocol,
        metrics=metrics,
        intervals=description,
        counts=counts,
        recipe=recipe.to_yaml(),
        versions=metrics["versions"],
        seed=recipe.seed,
        simulated=simulated,
        figures=[(title, caption, png) for _, title, caption, png in pictures],
        mistakes=_worst_mistakes(scored),
        warnings=warnings,
    )
    write_report(folder / "report.html", report)
    if progress is not None:
        progress("draw", 1.0)
    return metrics


def _differential_note(model: Model, part: str) -> str:
    """Why the differential is not the one that `urnet differential` would state; the part is one of the run's own."""
    if model.calibration is None:
        return "Counted, not corrected: the model is not calibrated."
    if part == model.calibration.reference_part:
        return "Counted, not corrected: the correction was measured on these very cells and would give the true shares."
    return "Counted, not corrected for the classifier's confusion; urnet differential corrects it."


def _class_counts(runs: list[Run], scored: list[ScoredCells]) -> pd.DataFrame:
    """Cells by class and part; of a cross-validation, by the fold that tests them."""
    if len(runs) == 1:
        counts = runs[0].counts()
        return counts[[part for part in counts if part in PARTS]]
    columns = {f"fold {k}": one.cells.table["label"].value_counts() for k, one in enumerate(scored)}
    return pd.DataFrame(columns).reindex(list(scored[0].model.classes)).fillna(0).astype(int)


def _excluded_note(run: Run) -> list[str]:
    """What of the run's own table is not counted."""
    reasons = run.excluded_reasons()
    if not reasons:
        return []
    return [f"{len(reasons)} images of the table are no cells of their own and are left out: {format_counts(reasons)}."]


def _pixel_range(pixels: PixelRange) -> dict[str, float]:
    """Smallest and largest pixel of the enhanced images, and the share outside [0, 1]."""
    return {"minimum": pixels.minimum, "maximum": pixels.maximum, "share_outside": pixels.share_outside}


def _metrics_by_fold(scored: list[ScoredCells]) -> list[dict[str, float | int]]:
    """Cells, accuracy and macro recall of each fold, to show their spread."""
    return [{"fold": fold, "n": len(one.truth), **one.summary()} for fold, one in enumerate(scored)]


def _describe_dataset(metrics: dict[str, Any], name: str, model: Model) -> str:
    scaling = model.config.scaling
    return (
        f"{metrics['n']:,} images ({name}); input {model.config.size} × {model.config.size} px, "
        f"{'grey' if model.config.channels == 1 else 'colour'}, {scaling.dtype} counts {scaling.low:g} to "
        f"{scaling.high:g} scaled to 0 to 1"
    )


def _draw_figures(
    runs: list[Run],
    scored: list[ScoredCells],
    truth: np.ndarray,
    probabilities: np.ndarray,
    metrics: dict[str, Any],
    counts: pd.DataFrame,
    pixels: PixelRange | None,
) -> list[tuple[str, str, str, bytes]]:
    """File name, title, caption and PNG of each figure."""
    run, one, classes = runs[0], scored[0], scored[0].model.classes
    first = " Of the first fold." if len(runs) > 1 else ""
    paper = run.recipe().protocol == "paper"
    pictures = [
        (
            "confusion",
            "Confusion matrix",
            "Rows are the true classes, columns what the model called them.",
            figures.draw_confusion_matrix(metrics["confusion_matrix"], classes),
        )
    ]
    history = run.history()
    if len(history):  # the file may have been removed
        pictures.append(
            (
                "curves",
                "Loss and accuracy over the epochs",
                "The mark is the epoch whose weights are kept."
                + first
                + (" Under protocol paper the validation curves are those of the test part." if paper else ""),
                figures.draw_training_curves(history, one.model.config.epoch),
            )
        )
    shown = one.examples(SHOWN_PER_CLASS)
    titles = [classes[k] for k in one.truth[shown]]
    columns = 4 if len(shown) % 4 == 0 and len(shown) % 6 else 6  # full rows where they can be had
    inputs = one.inputs(shown)
    raw = [channels_last(image) for image in inputs]
    if pixels is not None:
        _, enhanced = next(one.model.forward(inputs, len(inputs)))
        pictures.append(
            (
                "gallery",
                "Raw and enhanced",
                "What the enhancer makes of cells of each class; it serves the classifier, not the eye. The enhanced "
                f"pixels of all cells lie between {pixels.minimum:.2f} and {pixels.maximum:.2f}.",
                galleries.draw_gallery(raw, [channels_last(image) for image in enhanced], titles, columns=columns),
            )
        )
    overlays = _grad_cam_overlays(one.model, inputs)
    called = [classes[k] for k in one.probabilities[shown].argmax(axis=1)]
    if overlays:
        pictures.append(
            (
                "grad_cam",
                "Grad-CAM",
                "What spoke for the class that the model named, from blue (nothing) to red (most), over the raw image; "
                "an arrow gives that class where it is not the true one.",
                galleries.draw_grad_cam(raw, overlays, titles, called, columns=columns),
            )
        )
    pictures += [
        (
            "reliability",
            "Reliability",
            "Whether a stated probability means what it says: accuracy against confidence.",
            figures.draw_reliability(truth, probabilities),
        ),
        ("class_counts", "Cells by class and part", "", figures.draw_class_counts(counts)),
    ]
    return [(file, title, caption, to_png(figure)) for file, title, caption, figure in pictures]


def _grad_cam_overlays(model: Model, inputs: np.ndarray) -> list[np.ndarray]:
    """Grad-CAM over each input; none where the classifier makes no feature maps."""
    import torch

    try:
        maps = grad_cam(model.joint, torch.from_numpy(inputs))
    except (RecipeError, ValueError):
        return []
    return [overlay(channels_last(image), heat) for image, heat in zip(inputs, maps, strict=True)]


def _worst_mistakes(scored: list[ScoredCells]) -> list[tuple[str, bytes]]:
    """The cells that were most confidently wrong."""
    wrong = []
    for one in scored:
        confidence, chosen = one.probabilities.max(axis=1), one.probabilities.argmax(axis=1)
        wrong += [(float(confidence[i]), one, int(i)) for i in np.flatnonzero(chosen != one.truth)]
    wrong.sort(key=lambda item: -item[0])
    pictures = []
    for confidence, one, index in wrong[:MISTAKES]:
        classes = one.model.classes
        guess, true = classes[int(one.probabilities[index].argmax())], classes[int(one.truth[index])]
        caption = f"{one.cells.table['path'].iloc[index]}: {true}, called {guess} at {confidence:.0%}"
        pictures.append((caption, encode_png(channels_last(one.inputs(index)))))
    return pictures


def channels_last(image: np.ndarray) -> np.ndarray:
    """(C, S, S) as (S, S) or (S, S, 3)."""
    return np.moveaxis(image, 0, -1) if image.shape[0] == 3 else image[0]

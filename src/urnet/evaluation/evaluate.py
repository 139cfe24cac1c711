"""Evaluate a trained run: metrics with intervals, predictions, figures and a report.

`evaluate` scores the cells, computes the metrics and writes `metrics.json`, `predictions.csv`, `figures/` and
`report.html`. The mathematics is in `metrics`, the drawing in `report_figures`, the page in `report`.
"""

import json
import platform
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
from urnet.errors import CellsError
from urnet.evaluation.calibration_metrics import calibration_metrics
from urnet.evaluation.judgement import judge
from urnet.evaluation.metrics import score
from urnet.evaluation.predictions import Progress, ScoredCells, score_other_cells, score_run_part
from urnet.evaluation.report import Report, write_report
from urnet.evaluation.report_figures import draw_report_figures, find_worst_mistakes
from urnet.evaluation.result import Evaluation
from urnet.evaluation.runs import open_runs
from urnet.files.atomic import atomic_folder
from urnet.files.csv_tables import write_frame
from urnet.files.outputs import refuse_existing
from urnet.names import donor_key
from urnet.run_folder import Run
from urnet.statistics.donors import choose_groups

OPTIMISTIC = (
    "Protocol paper is optimistic: the epoch was chosen by accuracy on the test part, which is augmented and balanced "
    "as well."
)
VERSIONS = ("urnet", "torch", "timm", "lightning", "numpy", "captum")
"""Packages whose versions stand in the results."""
SAME_CORRELATION = 0.98
"""Correlation of enhanced with raw images from which the two are called almost the same."""


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
        run: a run folder, or the folder of a cross-validation: the test parts of its folds are pooled.
        cells: other cells than the run's own. Without a split column all of them are evaluated.
        split: the part to evaluate: `train`, `validation` or `test`.
        out: new folder for the results. Default: `evaluation/<split>` in the run, which is replaced.
        expect: the first digits of the model's digest. Another model is refused.
        progress: called with the name of a step and the share of it that is done.

    Raises:
        RunError: the folder is no trained run, the labels are no classes of the model, or `out` exists.
        CellsError: the part is empty.
        ImageError: a cell cannot be read.
    """
    folder = run.folder if isinstance(run, Run) else Path(run)
    if split not in PARTS:
        raise CellsError(f"split is {split!r}; it must be one of {', '.join(PARTS)}", code="evaluation.split_unknown")
    target = None if out is None else Path(out)
    if target is not None:
        refuse_existing(target)
    if cells is not None:
        runs, cells = [Run.open(folder)], Path(cells)
        part, name, warnings = score_other_cells(runs[0], cells, split, target, progress, expect)
        scored = [part]
    else:
        runs, name = open_runs(folder, split), split
        scored = [score_run_part(fold, split, progress, expect) for fold in runs]
        warnings = _describe_excluded(runs[0])
        if len(runs) > 1:
            pooled = f"{len(runs)} folds are pooled: every cell was tested once, by a model that had not seen it."
            warnings = [pooled, *warnings]
    folder = target or folder / "evaluation" / name
    with atomic_folder(folder, replace_files=cells is None and target is None) as staging:
        metrics, predictions = _write_results(runs, scored, staging, name, warnings, cells is None, progress)
    return Evaluation(folder, metrics, predictions)


def _write_results(
    runs: list[Run],
    scored: list[ScoredCells],
    folder: Path,
    name: str,
    warnings: list[str],
    own_part: bool,
    progress: Progress | None,
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Write all files into the folder; return the metrics and the predictions."""
    run, model, recipe = runs[0], scored[0].model, runs[0].recipe()
    table = pd.concat([part.cells.table for part in scored], ignore_index=True)
    truth = np.concatenate([part.truth for part in scored])
    probabilities = np.concatenate([part.probabilities for part in scored])
    donors = table["donor"].tolist() if "donor" in table else None
    groups, intervals = choose_groups(donors, table["source"].tolist())
    shared = {donor_key(donor) for donor in run.donors("train")} & {donor_key(donor) for donor in donors or []}
    if intervals["unit"] == "donor" and len(runs) == 1 and shared:
        intervals["note"] = (
            f"The intervals are over donors, but {len(shared)} of these {intervals['groups']} gave cells to "
            "training too, so the intervals say nothing of new donors."
        )
    metrics = score(truth, probabilities, list(model.classes), groups, cells=table["path"].tolist())
    simulated, optimistic = scored[0].cells.simulated, recipe.protocol == "paper"
    warnings = [*warnings, *metrics.pop("notes")]
    counts = _count_classes(runs, scored)
    enhanced = _describe_enhanced(scored) if recipe.enhancer.name != "none" else None
    warnings += _warn_about_enhanced(scored) if enhanced else []
    if progress is not None:
        progress("draw", 0.0)
    figures = draw_report_figures(runs, scored, truth, probabilities, metrics, counts, enhanced)
    if "grad_cam" not in {figure.name for figure in figures}:
        warnings.append(f"No Grad-CAM: classifier {recipe.classifier.name} has no feature maps to show.")
    known = None if donors is None or "" in donors else len({donor_key(donor) for donor in donors})
    overlap = (
        None
        if any(part.seen_in_training is None for part in scored)
        else (any(part.seen_in_training for part in scored) or (len(runs) == 1 and bool(shared)))
    )
    judgement = judge(
        metrics,
        intervals,
        known,
        simulated=simulated,
        optimistic=optimistic or (own_part and name == "validation"),
        overlap=overlap,
    )
    metrics = {"judgement": judgement.to_json()} | metrics
    metrics |= {
        "protocol": recipe.protocol,
        "optimistic": optimistic,
        "part": name,
        "recipe": recipe.name,
        "seed": recipe.seed,
        "split_seed": recipe.split.seed,
        "epoch": [part.model.config.epoch for part in scored] if len(scored) > 1 else model.config.epoch,
        "donors": known,
        "intervals": intervals,
        "differential_note": _describe_differential(model, name if own_part else ""),
        "simulated": simulated,
        "folds": _score_folds(scored) if len(scored) > 1 else None,
        "enhanced": enhanced,
        "calibration": calibration_metrics(scored, groups),
        "warnings": [*[OPTIMISTIC] * optimistic, *warnings],
        "versions": {package: version(package) for package in VERSIONS} | {"python": platform.python_version()},
    }
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(
        json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
    predictions = pd.concat([part.to_frame() for part in scored], ignore_index=True)
    if len(scored) > 1:
        predictions["fold"] = np.repeat(np.arange(len(scored)), [len(part.truth) for part in scored])
    write_frame(folder / "predictions.csv", predictions)
    for figure in figures:
        (folder / "figures" / f"{figure.name}.png").write_bytes(figure.png)
    report = Report(
        title=f"{recipe.name}: {name}",
        run=run.folder.name if len(runs) == 1 else f"{run.folder.parent.name} ({len(runs)} folds)",
        dataset=_describe_dataset(metrics, name, model),
        protocol=recipe.protocol,
        judgement=judgement,
        metrics=metrics,
        intervals=intervals,
        counts=counts,
        recipe=recipe.to_yaml(),
        versions=metrics["versions"],
        seed=recipe.seed,
        simulated=simulated,
        figures=figures,
        mistakes=find_worst_mistakes(scored),
        warnings=warnings,
    )
    write_report(folder / "report.html", report)
    if progress is not None:
        progress("draw", 1.0)
    return metrics, predictions


def _describe_differential(model: Model, part: str) -> str:
    """Explain why the differential differs from that of `urnet differential`; `part` is one of the run's own, or ""."""
    if model.calibration is None:
        return "Counted, not corrected: the model is not calibrated."
    if part == model.calibration.reference_part:
        return "Counted, not corrected: the correction was measured on these very cells and would give the true shares."
    return "Counted, not corrected for the classifier's confusion; urnet differential corrects it."


def _count_classes(runs: list[Run], scored: list[ScoredCells]) -> pd.DataFrame:
    """Count cells by class and part; for a cross-validation, by class and fold."""
    if len(runs) == 1:
        counts = runs[0].counts()
        return counts[[part for part in counts if part in PARTS]]
    columns = {f"fold {k}": part.cells.table["label"].value_counts() for k, part in enumerate(scored)}
    return pd.DataFrame(columns).reindex(list(scored[0].model.classes)).fillna(0).astype(int)


def _describe_excluded(run: Run) -> list[str]:
    """State how many images of the run's table are not evaluated, and why."""
    reasons = run.excluded_reasons()
    if not reasons:
        return []
    return [f"{len(reasons)} images of the table are no cells of their own and are left out: {format_counts(reasons)}."]


def _describe_enhanced(scored: list[ScoredCells]) -> dict[str, float | None]:
    """Summarise the enhanced pixels: range, share outside [0, 1], and mean correlation with the raw images."""
    pixels = reduce(add, (part.pixels for part in scored))
    correlation = np.concatenate([part.correlation for part in scored])
    return {
        "minimum": pixels.minimum,
        "maximum": pixels.maximum,
        "share_outside": pixels.share_outside,
        "correlation": float(np.nanmean(correlation)) if np.isfinite(correlation).any() else None,
    }


def _warn_about_enhanced(scored: list[ScoredCells]) -> list[str]:
    """Warn if enhanced images leave [0, 1], or hardly differ from the raw ones."""
    warning = reduce(add, (part.pixels for part in scored)).warning
    warnings = [f"{warning[:1].upper()}{warning[1:]}."] if warning else []
    correlation = _describe_enhanced(scored)["correlation"]
    if correlation is not None and correlation >= SAME_CORRELATION:
        warnings.append(
            f"The enhanced images are almost the raw images (mean correlation {correlation:.3f}). Do not expect to see "
            "more in them; compare with a run without enhancer to learn whether the classifier gains."
        )
    return warnings


def _score_folds(scored: list[ScoredCells]) -> list[dict[str, float | int]]:
    """Compute cells, accuracy and macro recall of each fold."""
    return [{"fold": fold, "n": len(part.truth), **part.summary()} for fold, part in enumerate(scored)]


def _describe_dataset(metrics: dict[str, Any], name: str, model: Model) -> str:
    scaling = model.config.scaling
    return (
        f"{metrics['n']:,} images ({name}); input {model.config.size} × {model.config.size} px, "
        f"{'grey' if model.config.channels == 1 else 'colour'}, {scaling.dtype} counts {scaling.low:g} to "
        f"{scaling.high:g} scaled to 0 to 1"
    )

"""Evaluate a run on one of its parts or on other cells: figures with intervals, pictures, and the report.

What stands here is the way from a run folder to `metrics.json`, `predictions.csv`, `figures/` and `report.html`; the
mathematics is in `metrics`, the drawing in `figures` and `gradcam`, the page in `report`.
"""

import json
import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from urnet.bundle import Model
from urnet.cells.audit import audit_cells
from urnet.cells.copies import copy_key
from urnet.cells.pixels import fit_input
from urnet.cells.table import PARTS, Cells, read_cells
from urnet.errors import CellsError, ImageError, RunError
from urnet.evaluation import figures
from urnet.evaluation.gradcam import grad_cam, overlay
from urnet.evaluation.metrics import interval_groups, score
from urnet.evaluation.report import Report, write_report
from urnet.training.data import paper_test
from urnet.training.run import Run, refuse_existing

SHOWN_PER_CLASS = 2
MISTAKES = 12
VERSIONS = ("urnet", "torch", "timm", "lightning", "numpy", "captum")

Progress = Callable[[str, float], None]


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


@dataclass(frozen=True)
class _Scored:
    """Cells with the inputs that a model saw and what it made of them; rows may repeat under protocol `paper`."""

    model: Model
    cells: Cells
    inputs: np.ndarray
    probabilities: np.ndarray
    enhanced: np.ndarray
    truth: np.ndarray


def evaluate(
    run: Run | Path | str,
    cells: Path | str | None = None,
    *,
    split: str = "test",
    out: Path | str | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate a trained run.

    Args:
        run: a run folder, or the folder of a cross-validation, whose folds' test parts are then pooled.
        cells: other cells; used whole where they have no split column. The run's own when not given.
        split: the part to evaluate.
        out: where the results go; `evaluation/<split>` in the run when not given, which is written anew.
        progress: called with what is done and the share of it.

    Raises:
        RunError: no trained run there, cells with labels that the model does not know, or `out` exists.
        CellsError: nothing in the part.
        ImageError: a cell cannot be read.
    """
    folder = run.folder if isinstance(run, Run) else Path(run)
    if split not in PARTS:
        raise CellsError(f"split is {split!r}; it must be one of {', '.join(PARTS)}")
    if out is not None:
        refuse_existing(Path(out))
    folds = sorted(folder.glob("fold*/recipe.yaml"), key=lambda path: int(path.parent.name.removeprefix("fold") or 0))
    if folds and cells is None:
        runs = [Run.open(path.parent) for path in folds]
        expected = runs[0].recipe().split.folds
        if expected != len(runs) or not all(one.finished for one in runs):
            done = sum(one.finished for one in runs)
            raise RunError(
                f"{folder}: {done} of {expected} folds are trained; finish them with `urnet train … --resume`"
            )
        scored = [_own_part(one, split, progress) for one in runs]
        warnings = [f"{len(runs)} folds are pooled: every cell was tested once, by a model that had not seen it."]
        if split != "test":
            raise CellsError(
                f"{folder}: a cross-validation pools its test parts; evaluate one fold's {split} part instead"
            )
    else:
        runs = [Run.open(folder)]
        if cells is None:
            scored, warnings = [_own_part(runs[0], split, progress)], []
        else:
            one, warnings = _other_cells(runs[0], Path(cells), split, progress)
            scored = [one]
    name = split if cells is None else f"{Path(cells).resolve().stem}-{split}"
    target = Path(out) if out is not None else folder / "evaluation" / name
    return _write(runs, scored, target, name, warnings, progress)


def _own_part(run: Run, split: str, progress: Progress | None) -> _Scored:
    model, recipe = run.load_model(), run.recipe()
    cells = run.cells().part(split)
    if not len(cells):
        raise CellsError(f"{run.folder}: no cells in the {split} part of this run")
    return _score_cells(model, cells, progress, augmented_test=recipe.protocol == "paper" and split == "test", run=run)


def _other_cells(run: Run, path: Path, split: str, progress: Progress | None) -> tuple[_Scored, list[str]]:
    """Cells that the run does not know: copies and padding count once, and cells that training saw are counted."""
    model, recipe = run.load_model(), run.recipe()
    cells = read_cells(path, tile=recipe.tile, image=recipe.image, target=recipe.target, classes=recipe.classes)
    unknown = sorted(set(cells.classes) - set(model.classes))
    if unknown:
        raise RunError(
            f"{path}: label(s) {', '.join(unknown)} are no classes of {run.folder} ({', '.join(model.classes)}); "
            "evaluate cells of the same task, or merge the labels in the recipe (classes)"
        )
    cells = replace(cells, classes=model.classes)
    warnings = []
    if cells.has_split:
        cells = cells.part(split)
        if not len(cells):
            raise CellsError(f"{path}: no cells in the {split} part")
    audit = audit_cells(cells, near=False, progress=(lambda share: progress("audit", share)) if progress else None)
    audit.raise_leaks(allow_leaks=True)
    left_out = [reason.split(" ")[0] for reason in audit.left_out if reason]
    if left_out:
        kinds = ", ".join(f"{left_out.count(kind)} {kind}" for kind in dict.fromkeys(left_out))
        warnings.append(f"{len(left_out)} image(s) are not counted: {kinds} (see `urnet audit`).")
    keys = [key for key, kept in zip(audit.keys, audit.distinct, strict=True) if kept]
    cells = cells.where(audit.distinct)
    if not len(cells):
        raise CellsError(f"{path}: no usable cells; see `urnet audit`")
    trained = run.cells().part("train")
    known = {copy_key(trained.read(index)) for index in range(len(trained))}
    seen = sum(key in known for key in keys)
    if seen:
        warnings.append(
            f"{seen} of {len(cells)} cells were in the training part of this run; the figures are too good."
        )
    return _score_cells(model, cells, progress), warnings


def _score_cells(
    model: Model, cells: Cells, progress: Progress | None, *, augmented_test: bool = False, run: Run | None = None
) -> _Scored:
    config = model.config
    raw = []
    for index in range(len(cells)):
        crop = cells.read(index)
        depth = config.scaling.dtype
        if depth not in (str(crop.dtype), "any"):
            raise ImageError(
                f"{cells.table['path'].iloc[index]}: {crop.dtype} pixels, but the model was trained on {depth}; "
                "convert the images"
            )
        raw.append(fit_input(crop, config.size, config.channels))
        if progress is not None:
            progress("read cells", (index + 1) / len(cells))
    images, truth = np.stack(raw), cells.labels
    if augmented_test and run is not None:
        images, truth, origin = paper_test(images, truth, run.recipe())
        cells = replace(cells, table=cells.table.iloc[origin].reset_index(drop=True))
    inputs = config.scaling.apply(images)
    probabilities, enhanced = [], []
    for p, e in model.forward(inputs):
        probabilities.append(p)
        enhanced.append(e)
        if progress is not None:
            progress("classify", sum(map(len, probabilities)) / len(inputs))
    return _Scored(model, cells, inputs, np.concatenate(probabilities), np.concatenate(enhanced), truth)


def _write(
    runs: list[Run], scored: list[_Scored], folder: Path, name: str, warnings: list[str], progress: Progress | None
) -> Evaluation:
    run, model, recipe = runs[0], scored[0].model, runs[0].recipe()
    table = pd.concat([one.cells.table for one in scored], ignore_index=True)
    truth = np.concatenate([one.truth for one in scored])
    probabilities = np.concatenate([one.probabilities for one in scored])
    donors = table["donor"].tolist() if "donor" in table else None
    groups, description = interval_groups(donors, table["source"].tolist())
    metrics = score(truth, probabilities, list(model.classes), groups)
    simulated = ", ".join(sorted(set(table["simulated"]) - {""})) if "simulated" in table else ""
    warnings = [*warnings, *metrics.pop("notes")]
    if recipe.protocol == "paper":
        warnings.insert(
            0,
            "Protocol paper is optimistic: the epoch was chosen by accuracy on the test part, which is augmented and "
            "balanced as well.",
        )
    metrics |= {
        "protocol": recipe.protocol,
        "optimistic": recipe.protocol == "paper",
        "part": name,
        "recipe": recipe.name,
        "seed": recipe.seed,
        "split_seed": recipe.split.seed,
        "epoch": [one.model.config.epoch for one in scored] if len(scored) > 1 else model.config.epoch,
        "intervals": description,
        "simulated": simulated,
        "warnings": warnings,
        "versions": {package: version(package) for package in VERSIONS} | {"python": platform.python_version()},
    }
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(
        json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
    _write_predictions(folder / "predictions.csv", table, model.classes, truth, probabilities, scored)
    pictures = _pictures(run, scored, truth, probabilities, metrics, progress)
    for file, _, _, png in pictures:
        (folder / "figures" / f"{file}.png").write_bytes(png)
    report = Report(
        title=f"{recipe.name}: {name}",
        run=run.folder.name if len(runs) == 1 else f"{run.folder.parent.name} ({len(runs)} folds)",
        dataset=_dataset(metrics, name, model),
        protocol=recipe.protocol,
        metrics=metrics,
        intervals=description,
        counts=_counts(run),
        recipe=recipe.to_yaml(),
        versions=metrics["versions"],
        seed=recipe.seed,
        simulated=simulated,
        figures=[(title, caption, png) for _, title, caption, png in pictures],
        mistakes=_mistakes(scored),
        warnings=warnings,
    )
    write_report(folder / "report.html", report)
    return Evaluation(folder, metrics)


def _dataset(metrics: dict[str, Any], name: str, model: Model) -> str:
    scaling = model.config.scaling
    return (
        f"{metrics['n']:,} images of the part {name}; input {model.config.size} × {model.config.size} px, "
        f"{'grey' if model.config.channels == 1 else 'colour'}, {scaling.dtype} counts {scaling.low:g} to "
        f"{scaling.high:g} scaled to 0 to 1"
    )


def _counts(run: Run) -> pd.DataFrame:
    """Cells by class and part, with what was left out."""
    cells = run.cells()
    part = cells.table["split"].replace("", "left out")
    counts = pd.crosstab(cells.table["label"], part).reindex(index=list(cells.classes), fill_value=0)
    return counts[[c for c in (*PARTS, "left out") if c in counts]]


def _write_predictions(
    path: Path,
    table: pd.DataFrame,
    classes: tuple[str, ...],
    truth: np.ndarray,
    probabilities: np.ndarray,
    scored: list[_Scored],
) -> None:
    rows: dict[str, Any] = {
        "path": table["path"],
        "label": [classes[k] for k in truth],
        "predicted": [classes[k] for k in probabilities.argmax(axis=1)],
        **{f"p_{name}": probabilities[:, k].round(6) for k, name in enumerate(classes)},
    }
    rows |= {column: table[column] for column in ("source", "donor") if column in table}
    if len(scored) > 1:
        rows["fold"] = np.repeat(np.arange(len(scored)), [len(one.truth) for one in scored])
    pd.DataFrame(rows).to_csv(path, index=False, encoding="utf-8", lineterminator="\n")


def _pictures(
    run: Run,
    scored: list[_Scored],
    truth: np.ndarray,
    probabilities: np.ndarray,
    metrics: dict[str, Any],
    progress: Progress | None,
) -> list[tuple[str, str, str, bytes]]:
    """File name, title, caption and PNG of each figure."""
    one, classes = scored[0], scored[0].model.classes
    pictures = [
        (
            "confusion",
            "Confusion matrix",
            "Rows are the true classes; cells and per cent of the row.",
            figures.confusion_figure(metrics["confusion_matrix"], classes),
        )
    ]
    history = run.history()
    if len(history):
        pictures.append(
            (
                "curves",
                "Loss and accuracy over the epochs",
                "The mark is the epoch whose weights are kept."
                + (" Of the first fold." if len(scored) > 1 else "")
                + (" Under protocol paper the validation curves are those of the test part." if _is_paper(run) else ""),
                figures.curves_figure(history, one.model.config.epoch),
            )
        )
    shown = _examples(one)
    titles = [classes[k] for k in one.truth[shown]]
    raw = [_picture(image) for image in one.inputs[shown]]
    if run.recipe().enhancer.name != "none":
        pictures.append(
            (
                "gallery",
                "Raw and enhanced",
                "What the enhancer makes of cells of each class; it serves the classifier, not the eye.",
                figures.gallery_figure(raw, [_picture(image) for image in one.enhanced[shown]], titles),
            )
        )
    if progress is not None:
        progress("Grad-CAM", 0.5)
    overlays = _overlays(one, shown)
    pictures.append(
        (
            "grad_cam",
            "Grad-CAM",
            "What spoke for the predicted class, from blue (nothing) to red (most), over the raw image.",
            figures.cam_figure(raw, overlays, titles),
        )
    )
    pictures.append(
        (
            "reliability",
            "Reliability",
            "Whether a stated probability means what it says: accuracy against confidence.",
            figures.reliability_figure(truth, probabilities),
        )
    )
    pictures.append(("class_counts", "Cells by class and part", "", figures.class_counts_figure(_counts(run))))
    return [(file, title, caption, figures.to_png(figure)) for file, title, caption, figure in pictures]


def _is_paper(run: Run) -> bool:
    return run.recipe().protocol == "paper"


def _examples(one: _Scored) -> np.ndarray:
    """A few cells of each class, the same ones at every call."""
    generator = np.random.default_rng(0)
    chosen = []
    for index in range(len(one.model.classes)):
        members = np.flatnonzero(one.truth == index)
        chosen.append(generator.permutation(members)[:SHOWN_PER_CLASS])
    return np.concatenate(chosen)


def _overlays(one: _Scored, index: np.ndarray) -> list[np.ndarray]:
    import torch

    inputs = torch.from_numpy(one.inputs[index]).to(one.model.device)
    maps = grad_cam(one.model.joint, inputs)
    return [overlay(_picture(image), heat) for image, heat in zip(one.inputs[index], maps, strict=True)]


def _mistakes(scored: list[_Scored]) -> list[tuple[str, bytes]]:
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
        pictures.append((caption, figures.image_png(_picture(one.inputs[index]))))
    return pictures


def _picture(image: np.ndarray) -> np.ndarray:
    """(C, S, S) as (S, S) or (S, S, 3)."""
    return np.moveaxis(image, 0, -1) if image.shape[0] == 3 else image[0]

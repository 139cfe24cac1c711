"""The figures of an evaluation's report, and its worst mistakes as images."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
import pandas as pd

from urnet.bundle.model import Model
from urnet.errors import RecipeError
from urnet.evaluation import figures, galleries
from urnet.evaluation.figure_style import encode_png, to_png
from urnet.evaluation.predictions import ScoredCells
from urnet.nets.gradcam import grad_cam, overlay
from urnet.run_folder import Run

EXAMPLES_PER_CLASS = 2
MISTAKES = 6


@dataclass(frozen=True)
class ReportFigure:
    """A figure of a report.

    Attributes:
        name: name of its file, without ending.
        title: heading.
        caption: what it shows, and how to read it; "" for none.
        png: the image.
    """

    name: str
    title: str
    caption: str
    png: bytes


@dataclass(frozen=True)
class Mistake:
    """A cell that was classified wrongly.

    Attributes:
        path: of the image.
        true: its label.
        predicted: the model's class.
        probability: of the predicted class.
        png: the image.
    """

    path: str
    true: str
    predicted: str
    probability: float
    png: bytes

    @property
    def name(self) -> str:
        """The last two parts of the path."""
        return "/".join(PurePath(self.path).parts[-2:])


def draw_report_figures(
    runs: list[Run],
    scored: list[ScoredCells],
    truth: np.ndarray,
    probabilities: np.ndarray,
    metrics: Mapping[str, Any],
    counts: pd.DataFrame,
    enhanced: Mapping[str, float | None] | None,
) -> list[ReportFigure]:
    """Draw the figures of an evaluation.

    Args:
        runs: the run, or the folds of a cross-validation.
        scored: the cells of each.
        truth: (N,) class indices of all cells.
        probabilities: (N, K) of all cells.
        metrics: from `urnet.evaluation.metrics.score`.
        counts: cells by class (rows) and part (columns).
        enhanced: range and correlation of the enhanced images; None without an enhancer.
    """
    run, first, classes = runs[0], scored[0], scored[0].model.classes
    of_first = " Shown: the first fold." if len(runs) > 1 else ""
    drawn = [
        ReportFigure(
            "confusion",
            "Confusion matrix",
            "Rows: true class. Columns: predicted class.",
            to_png(figures.draw_confusion_matrix(metrics["confusion_matrix"], classes)),
        )
    ]
    history = run.history()
    if len(history):  # the file may have been removed
        test_part = " Under protocol paper the validation curves are those of the test part."
        drawn.append(
            ReportFigure(
                "curves",
                "Loss and accuracy over the epochs",
                "The dotted line marks the epoch whose weights are kept."
                + of_first
                + test_part * (run.recipe().protocol == "paper"),
                to_png(figures.draw_training_curves(history, first.model.config.epoch)),
            )
        )
    shown = first.examples(EXAMPLES_PER_CLASS)
    titles = [classes[k] for k in first.truth[shown]]
    columns = 4 if len(shown) % 4 == 0 and len(shown) % 6 else 6  # full rows if possible
    inputs = first.inputs(shown)
    raw = [channels_last(image) for image in inputs]
    if enhanced is not None:
        _, images = next(first.model.forward(inputs, len(inputs)))
        drawn.append(
            ReportFigure(
                "gallery",
                "Raw and enhanced",
                _describe_gallery(enhanced) + of_first,
                to_png(
                    galleries.draw_gallery(raw, [channels_last(image) for image in images], titles, columns=columns)
                ),
            )
        )
    overlays = _draw_overlays(first.model, inputs)
    if overlays:
        predicted = [classes[k] for k in first.probabilities[shown].argmax(axis=1)]
        drawn.append(
            ReportFigure(
                "grad_cam",
                "Grad-CAM: where the classifier looked",
                "Upper rows: raw images. Lower rows: the same images, coloured by how much each region spoke for the "
                "predicted class: blue nothing, red most. Each image has its own scale, so colours cannot be compared "
                "between cells. An arrow names the predicted class if it is wrong." + of_first,
                to_png(galleries.draw_grad_cam(raw, overlays, titles, predicted, columns=columns)),
            )
        )
    drawn.append(
        ReportFigure(
            "reliability",
            "Reliability of the probabilities",
            "Of cells with a probability of 80 %, 80 % should be right: the points should lie on the dotted line.",
            to_png(figures.draw_reliability(truth, probabilities)),
        )
    )
    drawn.append(ReportFigure("class_counts", "Cells by class and part", "", to_png(figures.draw_class_counts(counts))))
    return drawn


def find_worst_mistakes(scored: list[ScoredCells], count: int = MISTAKES) -> list[Mistake]:
    """Find the wrong predictions with the highest probability.

    Args:
        scored: the cells of each run.
        count: number of mistakes at most.
    """
    wrong = []
    for part in scored:
        confidence, predicted = part.probabilities.max(axis=1), part.probabilities.argmax(axis=1)
        wrong += [(float(confidence[i]), part, int(i)) for i in np.flatnonzero(predicted != part.truth)]
    wrong.sort(key=lambda item: -item[0])
    return [
        Mistake(
            path=str(part.cells.table["path"].iloc[index]),
            true=part.model.classes[int(part.truth[index])],
            predicted=part.model.classes[int(part.probabilities[index].argmax())],
            probability=confidence,
            png=encode_png(channels_last(part.inputs(index))),
        )
        for confidence, part, index in wrong[:count]
    ]


def channels_last(image: np.ndarray) -> np.ndarray:
    """Move the channels of an image (C, S, S) to the end: (S, S) for grey, (S, S, 3) for colour."""
    return np.moveaxis(image, 0, -1) if image.shape[0] == 3 else image[0]


def _describe_gallery(enhanced: Mapping[str, float | None]) -> str:
    text = "The enhancer is trained to help the classifier, not the eye."
    if enhanced["correlation"] is not None:
        text += f" Correlation of enhanced with raw images: {enhanced['correlation']:.3f} on average (1 = the same)."
    return f"{text} The enhanced pixels lie between {enhanced['minimum']:.2f} and {enhanced['maximum']:.2f}."


def _draw_overlays(model: Model, inputs: np.ndarray) -> list[np.ndarray]:
    """Lay Grad-CAM over each input; the list is empty if the classifier has no feature maps."""
    import torch

    try:
        maps = grad_cam(model.joint, torch.from_numpy(inputs))
    except (RecipeError, ValueError):
        return []
    return [overlay(channels_last(image), heat) for image, heat in zip(inputs, maps, strict=True)]

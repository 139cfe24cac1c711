"""The figures of an evaluation: confusion matrix, training curves, class counts, reliability, stress test."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from urnet.evaluation.figure_style import (
    BAR_COLORS,
    BLUE,
    CURVE_STYLES,
    FAINT,
    INK,
    MATRIX_COLORS,
    MAX_BANDS,
    ORANGE,
    WIDTH,
    create_figure,
    line_styles,
    styled,
    truncate,
    wrap_label,
)
from urnet.evaluation.metrics import CALIBRATION_BINS, bin_confidence


@styled
def draw_confusion_matrix(matrix: Sequence[Sequence[int]] | np.ndarray, classes: Sequence[str]) -> Figure:
    """Draw a confusion matrix: counts, and per cent of each true class (the diagonal is the recall).

    Args:
        matrix: (K, K) counts, rows truth.
        classes: K names.
    """
    matrix = np.asarray(matrix)
    K = len(classes)
    small = K > 6
    figure = create_figure(WIDTH, min(WIDTH - 0.5, 1.4 + 0.85 * K))
    axes = figure.add_subplot()

    def format_cell(count: int, percent: float) -> str:
        return str(count) if small or np.isnan(percent) else f"{count:,}\n{percent:.0f} %"

    draw_matrix(axes, matrix, format_cell, max(4, 11 - K // 2) if small else 10)
    slanted = K > 4 or max(map(len, classes)) > 12
    across = [truncate(name, 24) if slanted else wrap_label(name, 14) for name in classes]
    down = [f"{wrap_label(name, 14)}\n(n = {n:,})" for name, n in zip(classes, matrix.sum(axis=1), strict=True)]
    axes.set_xticks(range(K), across)
    axes.set_yticks(range(K), across if small else down)
    if slanted:
        axes.tick_params(axis="x", labelrotation=40)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axes.tick_params(length=0, labelsize=8 if small else 9)
    axes.set_xlabel("predicted")
    axes.set_ylabel("truth")
    return figure


@styled
def draw_training_curves(history: pd.DataFrame, chosen_epoch: int | None = None) -> Figure:
    """Draw loss and accuracy by epoch, with the chosen epoch marked.

    Args:
        history: Columns `stage` ("pretrain" or "train"), `epoch`, `train_loss`, `validation_loss`, `train_accuracy`,
            `validation_accuracy`, `validation_macro_recall`; NaN if a stage has no such value.
        chosen_epoch: epoch of joint training. Default: the first with the highest validation macro recall. The mark of
            pre-training is at its lowest validation loss, or training loss without validation.
    """
    pretraining, training = (history[history["stage"] == stage] for stage in ("pretrain", "train"))
    panels: list[tuple[str, pd.DataFrame, dict[str, str], int | None]] = []
    losses = {"train_loss": "training", "validation_loss": "validation"}
    if len(pretraining):
        watched = "validation_loss" if pretraining["validation_loss"].notna().any() else "train_loss"
        lowest = _best_epoch(pretraining, watched, largest=False)
        panels.append(("Pre-training: loss (logarithmic)", pretraining, losses, lowest))
    if len(training):
        if chosen_epoch is None:
            chosen_epoch = _best_epoch(training, "validation_macro_recall", largest=True)
        rates = {
            "train_accuracy": "training accuracy",
            "validation_accuracy": "validation accuracy",
            "validation_macro_recall": "validation macro recall",
        }
        panels.append(("Joint training: loss", training, losses, chosen_epoch))
        panels.append(("Joint training: accuracy and macro recall", training, rates, chosen_epoch))
    if not panels:
        raise ValueError('history without a row of stage "pretrain" or "train": expected at least one epoch')
    figure = create_figure(WIDTH, 0.2 + 2.3 * len(panels))
    for axes, panel in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        _draw_curves(axes, *panel)
    if len(training):
        figure.axes[-1].yaxis.set_major_formatter(_percent())
    if len(pretraining) and (pretraining["train_loss"] > 0).all():
        figure.axes[0].set_yscale("log")
    return figure


@styled
def draw_reliability(truth: np.ndarray, probabilities: np.ndarray) -> Figure:
    """Draw accuracy against confidence over the 15 bins of the expected calibration error (Guo et al., 2017, Fig. 1).

    Args:
        truth: (N,) class indices.
        probabilities: (N, K).
    """
    confidence, right, bins = bin_confidence(np.asarray(truth), np.asarray(probabilities))
    count = np.bincount(bins, minlength=CALIBRATION_BINS)
    filled = count > 0
    accuracy = np.bincount(bins, right, CALIBRATION_BINS)[filled] / count[filled]
    mean = np.bincount(bins, confidence, CALIBRATION_BINS)[filled] / count[filled]
    error = float(np.sum(count[filled] * np.abs(accuracy - mean)) / len(bins))
    figure = create_figure(WIDTH, 4.6)
    top, bottom = figure.subplots(2, sharex=True, height_ratios=[3, 1])
    top.grid(True)
    top.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=":", label="perfect calibration")
    top.vlines(mean, mean, accuracy, color=ORANGE, alpha=0.5, linewidth=3, label="gap")
    top.scatter(
        mean,
        accuracy,
        s=18 + 90 * count[filled] / count.max(),
        color=BLUE,
        zorder=3,
        clip_on=False,
        label="cells of one bin",
    )
    top.set(xlim=(0, 1), ylim=(-0.02, 1.02), ylabel="accuracy", title=f"Expected calibration error {100 * error:.1f} %")
    top.yaxis.set_major_formatter(_percent())
    top.xaxis.set_major_formatter(_percent())
    top.legend(loc="upper left")
    bottom.grid(True, axis="y")
    bottom.bar((np.arange(CALIBRATION_BINS) + 0.5) / CALIBRATION_BINS, count, 0.9 / CALIBRATION_BINS, color=BLUE)
    bottom.set(xlabel="confidence of the prediction", ylabel="cells")
    bottom.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
    return figure


@styled
def draw_class_counts(counts: pd.DataFrame) -> Figure:
    """Draw the number of cells of each class in each part.

    Args:
        counts: Rows classes, columns parts (train, validation, test, …).
    """
    parts, K = list(counts.columns), len(counts)
    figure = create_figure(WIDTH, 0.8 + K * (0.25 + 0.22 * len(parts)))
    axes = figure.add_subplot()
    draw_count_bars(axes, counts, BAR_COLORS, "cells", ticks=5, space=1.14)
    axes.set_yticks(range(K), [wrap_label(str(name), 16) for name in counts.index])
    axes.invert_yaxis()
    figure.legend(loc="outside upper right", ncols=min(4, len(parts)), handlelength=1, columnspacing=1.2)
    return figure


@styled
def draw_stress_curves(table: pd.DataFrame, metric: str, panels: Mapping[str, tuple[str, Sequence[float]]]) -> Figure:
    """Draw a metric against the severity of each perturbation: one panel per perturbation, one line per run.

    Args:
        table: columns `run`, `perturbation`, `severity`, the metric and the ends of its interval (`<metric>_low`,
            `<metric>_high`). Bands show the intervals of up to three runs.
        metric: a column of the table, a fraction.
        panels: title with unit, and severities, of each perturbation. Severities are drawn evenly spaced.
    """
    runs = list(dict.fromkeys(table["run"]))
    legend = 0.25 * len(runs) + 0.1
    figure = create_figure(WIDTH, 1.75 * len(panels) + legend)
    least = np.nanmin(table[[metric, f"{metric}_low"]].astype(float).to_numpy())
    for axes, (name, (title, severities)) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels.items(),
                                                 strict=True):  # fmt: skip
        axes.grid(True)
        axes.set(title=title, ylim=(min(0.98 * least, 0.9), 1.01))
        axes.yaxis.set_major_formatter(_percent())
        axes.set_xticks(range(len(severities)), [f"{severity:g}" for severity in severities])
        if min(severities) < 0:
            axes.axvline(list(severities).index(0), color=FAINT, linewidth=1)
        for run, style in zip(runs, line_styles(len(runs)), strict=True):
            rows = table[(table["run"] == run) & (table["perturbation"] == name)].set_index("severity")
            keys = [metric, f"{metric}_low", f"{metric}_high"]
            x, (y, low, high) = np.arange(len(severities)), rows.loc[list(severities), keys].to_numpy(float).T
            if len(runs) <= MAX_BANDS:
                axes.fill_between(x, low, high, color=style["color"], alpha=0.13, linewidth=0)
            axes.plot(x, y, markersize=4, label=truncate(run, 44), **style)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper left", handlelength=3.5)
    return figure


def draw_matrix(axes: Axes, matrix: np.ndarray, format_cell: Callable[[int, float], str], size: float) -> None:
    """Draw the cells of a confusion matrix, coloured by their per cent of each true class.

    Args:
        axes: where to draw.
        matrix: (K, K) counts, rows truth.
        format_cell: function of count and per cent (NaN without true cells) that gives the text of a cell.
        size: font size.
    """
    K = len(matrix)
    support = matrix.sum(axis=1, keepdims=True)
    percent = np.divide(100 * matrix, support, out=np.full(matrix.shape, np.nan), where=support > 0)
    axes.imshow(np.nan_to_num(percent), cmap=MATRIX_COLORS, vmin=0, vmax=110)
    for row, column in np.ndindex(K, K):
        share = percent[row, column]
        axes.text(
            column,
            row,
            format_cell(matrix[row, column], share),
            ha="center",
            va="center",
            color="white" if share > 60 else INK,
            fontsize=size,
            fontweight="bold" if row == column else "normal",
        )
    axes.set_xticks(np.arange(K + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(K + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.4)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)


def draw_count_bars(
    axes: Axes, counts: pd.DataFrame, colors: Sequence[str], label: str, *, ticks: int, space: float
) -> None:
    """Draw a group of horizontal bars per class, a bar per part.

    Args:
        axes: where to draw.
        counts: rows classes, columns parts.
        colors: colours of the parts.
        label: label of the x axis.
        ticks: number of ticks at most.
        space: length of the x axis in multiples of the longest bar.
    """
    parts = list(counts.columns)
    thickness = 0.8 / len(parts)
    for index, part in enumerate(parts):
        y = np.arange(len(counts)) + (index - (len(parts) - 1) / 2) * thickness
        bars = axes.barh(y, counts[part], thickness * 0.92, color=colors[index % len(colors)], label=str(part))
        axes.bar_label(bars, [f"{count:,.0f}" for count in counts[part]], padding=3, fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=ticks))
    axes.set_xlim(0, max(1, counts.to_numpy().max()) * space)


def _percent() -> PercentFormatter:
    """Create a formatter for fractions."""
    return PercentFormatter(1, decimals=0, symbol=" %")


def _best_epoch(rows: pd.DataFrame, column: str, *, largest: bool) -> int | None:
    if column not in rows or not rows[column].notna().any():
        return None
    return int(rows.loc[rows[column].idxmax() if largest else rows[column].idxmin(), "epoch"])


def _draw_curves(axes: Axes, title: str, rows: pd.DataFrame, lines: Mapping[str, str], mark: int | None) -> None:
    axes.grid(True)
    axes.set(title=title, xlabel="epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    if len(rows) == 1:
        axes.set_xticks(rows["epoch"])
        axes.margins(x=1)
    for (column, label), (colour, dash) in zip(lines.items(), CURVE_STYLES, strict=False):
        known = rows[rows[column].notna()] if column in rows else rows[:0]
        if len(known):
            dot = "o" if len(known) == 1 else None
            axes.plot(known["epoch"], known[column], dash, color=colour, label=label, marker=dot)
    if mark is not None:
        axes.axvline(mark, color=INK, linewidth=1, linestyle=":", label=f"chosen epoch ({mark})")
    axes.legend(loc="best", handlelength=1.8, labelspacing=0.3)

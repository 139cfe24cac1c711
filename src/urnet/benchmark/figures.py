"""The figures of a comparison: the paper's Figs. 1, 3, 4 and 5 for these cells, and differences with intervals.

They are 7.2 inches wide, in the style of `urnet.evaluation.figures`. Rows have the order of the table. Entries without
a finished run are left out. Up to 25 entries are legible, in curves up to eight.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy import special

from urnet.benchmark.row import ResultRow
from urnet.evaluation.figure_style import (
    BAR_COLORS,
    BLUE,
    FAINT,
    INK,
    ORANGE,
    create_figure,
    line_styles,
    styled,
    truncate,
    wrap_label,
)
from urnet.evaluation.figures import draw_count_bars, draw_matrix
from urnet.evaluation.galleries import add_cam_legend, compute_limits, group_titles, show_image
from urnet.evaluation.paired import NO_INTERVAL, NO_VERDICT
from urnet.statistics.donors import LEVEL, choose_groups

WIDTH = 7.2  # inches
ROW = 0.27
LABEL = 40  # letters of a row's title
MAX_BANDS = 4


@styled
def draw_confusion_matrix(entries: Sequence[ResultRow]) -> Figure:
    """Draw the confusion matrices of all entries (the paper's Fig. 4a), each row in per cent, with counts.

    With more than four classes there are no counts and no per cent signs.
    """
    entries = _with_metrics(entries)
    classes = list(entries[0].metrics["classes"])
    K, N = len(classes), len(entries)
    columns = min(N, 2 if N <= 4 else 3) if K > 4 else min(N, 2 if N <= 4 else 3 if N <= 9 else 4)
    rows = -(-N // columns)
    edge = min(2.6, (WIDTH - 0.8) / columns)
    figure = create_figure(0.8 + columns * edge, rows * (edge + 0.3) + 0.8)
    grid = figure.subplots(rows, columns, squeeze=False)
    size = max(4.5, min(9, 20 * edge / K)) if K > 4 else 9 if edge > 2 else 7

    def format_cell(count: int, percent: float) -> str:
        return "–" if np.isnan(percent) else f"{percent:.0f}" if K > 4 else f"{percent:.0f} %\n{count:,}"

    for index, axes in enumerate(grid.flat):
        if index >= N:
            axes.set_axis_off()
            continue
        draw_matrix(axes, np.asarray(entries[index].metrics["confusion_matrix"]), format_cell, size)
        axes.set_title(wrap_label(entries[index].title, int(9 * edge)), fontsize=9.5 if edge > 2 else 8.5)
        axes.set_xticks(range(K), [""] * K)
        axes.set_yticks(range(K), [truncate(name, 16) for name in classes] if index % columns == 0 else [""] * K)
        if index + columns >= N:
            axes.set_xticks(
                range(K), [truncate(name, 16) for name in classes], rotation=40, ha="right", rotation_mode="anchor"
            )
        axes.tick_params(length=0, labelsize=8 if K <= 6 else 6.5)
    figure.supxlabel("predicted", fontsize=9.5)
    figure.supylabel("truth", fontsize=9.5)
    return figure


@styled
def draw_training_curves(entries: Sequence[ResultRow]) -> Figure:
    """Draw loss and accuracy of joint training of all entries (the paper's Figs. 4b and 4c).

    Lines are means over folds and seeds. With up to four entries, bands show minimum and maximum.
    """
    entries = [entry for entry in _with_metrics(entries) if len(entry.history)]
    paper = bool(entries) and all(entry.recipe.protocol == "paper" for entry in entries)
    part = "validation (test part)" if paper else "validation"
    panels = [
        [("train_loss", "Loss, training"), ("validation_loss", f"Loss, {part}")],
        [("train_accuracy", "Accuracy, training"), ("validation_accuracy", f"Accuracy, {part}")],
    ]
    lines = -(-len(entries) // 3)
    figure = create_figure(WIDTH, 4.9 + 0.2 * lines)
    grid = figure.subplots(2, 2, sharex=True, sharey="row")
    for axes, (column, title) in zip(grid.flat, (panel for row in panels for panel in row), strict=True):
        axes.grid(True)
        axes.set_title(title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        for entry, style in zip(entries, line_styles(len(entries)), strict=True):
            training = entry.history[entry.history["stage"] == "train"]
            by_epoch = training.groupby("epoch")[column].agg(["mean", "min", "max"]).dropna()
            if len(entries) <= MAX_BANDS:
                axes.fill_between(by_epoch.index, by_epoch["min"], by_epoch["max"], color=style["color"], alpha=0.12,
                                  linewidth=0)  # fmt: skip
            every = max(1, len(by_epoch) // 8)
            axes.plot(
                by_epoch.index,
                by_epoch["mean"],
                markersize=4,
                markevery=every,
                label=truncate(entry.title, 30),
                **style,
            )
    for axes in grid[1]:
        axes.set_xlabel("epoch")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=3, handlelength=3.2, columnspacing=1.2)
    return figure


@styled
def draw_class_counts(before: pd.DataFrame, after: pd.DataFrame) -> Figure:
    """Draw the images of each class before and after augmentation and balancing (the paper's Figs. 1c and 1d).

    Args:
        before: Rows classes, columns parts (`train`, `test`, …).
        after: As `before`.
    """
    parts, K = list(before.columns), len(before)
    figure = create_figure(WIDTH, 1.0 + K * (0.2 + 0.2 * len(parts)))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, counts, title in zip(panels, (before, after), ("Before", "After balancing"), strict=True):
        draw_count_bars(axes, counts, BAR_COLORS[::2], "images", ticks=4, space=1.2)
        axes.set_title(title)
    panels[0].set_yticks(range(K), [wrap_label(str(name), 16) for name in before.index])
    panels[0].invert_yaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=len(parts), handlelength=1)
    return figure


@styled
def draw_accuracy(entries: Sequence[ResultRow], published: Mapping[str, float]) -> Figure:
    """Draw the accuracy of each entry with interval and single runs, and the paper's value (after its Fig. 5b).

    Args:
        entries: The rows.
        published: The paper's accuracy by name of the entry, a fraction; some or all may be missing.
    """
    entries = _with_metrics(entries)
    figure, axes = _create_row_axes([entry.title for entry in entries])
    for y, entry in enumerate(entries):
        figure_of_merit = entry.metrics["accuracy"]
        done = entry.runs[entry.runs["status"] == "done"]
        if len(done) > 1:
            runs = 100 * done["accuracy"].astype(float)
            axes.scatter(runs, [y] * len(runs), s=9, color="#9fb0bc", label="single fold or seed", zorder=2)
        if figure_of_merit["interval"]:
            low, high = (100 * end for end in figure_of_merit["interval"])
            axes.plot([low, high], [y, y], color=BLUE, linewidth=2, label="95 % interval", zorder=3)
        axes.scatter(100 * figure_of_merit["value"], y, s=34, color=BLUE, label="here", zorder=4)
        if entry.name in published:
            axes.scatter(100 * published[entry.name], y, s=40, marker="x", color=ORANGE, linewidth=1.8,
                         label="paper, its own cells", zorder=4)  # fmt: skip
    axes.set_xlabel("accuracy, %")
    _add_legend(figure, axes)
    return figure


@styled
def draw_gallery(
    examples: Mapping[str, Sequence[np.ndarray]], raw: Sequence[np.ndarray], labels: Sequence[str]
) -> Figure:
    """Draw the same cells, raw and through every enhancer, one row each (the paper's Figs. 3a and 5a).

    Args:
        examples: M enhanced images by title, each (H, W), (H, W, 1) or (H, W, 3); they may leave [0, 1].
        raw: M images of the same cells, in [0, 1].
        labels: M class names; neighbours of the same class share one title.
    """
    return _draw_grid({"raw": raw, **examples}, labels)


@styled
def draw_cam_gallery(
    examples: Mapping[str, Sequence[np.ndarray]], raw: Sequence[np.ndarray], labels: Sequence[str]
) -> Figure:
    """Draw Grad-CAM of the same cells for every entry, over the raw image (the paper's Fig. 3b).

    Args:
        examples: M maps (H, W) by title, in [0, 1], from `urnet.nets.gradcam.grad_cam`.
        raw: M images, each (H, W), (H, W, 1) or (H, W, 3), in [0, 1].
        labels: M class names; neighbours of the same class share one title.
    """
    from urnet.nets.gradcam import overlay

    rows = {
        title: [overlay(image, np.asarray(cam, np.float32)) / 255 for image, cam in zip(raw, cams, strict=True)]
        for title, cams in examples.items()
    }
    figure = _draw_grid({"raw": raw, **rows}, labels, below=0.3)
    add_cam_legend(figure, 0.14)
    return figure


@styled
def draw_cam_share(entries: Sequence[ResultRow]) -> Figure:
    """Draw the share of Grad-CAM on the cell: mean with interval, quartiles over cells, share of a uniform map.

    Args:
        entries: Rows; those without a column `cam_share` in their predictions are left out.
    """
    entries = [entry for entry in _with_metrics(entries) if "cam_share" in entry.predictions]
    figure, axes = _create_row_axes([entry.title for entry in entries])
    for y, entry in enumerate(entries):
        rows = entry.predictions[entry.predictions["cam_share"].notna()]
        if not len(rows):
            continue
        shares = 100 * rows["cam_share"].to_numpy(float)
        mean, half = _mean_with_error(shares, rows)
        axes.plot(np.quantile(shares, [0.25, 0.75]), [y, y], color=BAR_COLORS[2], linewidth=7, solid_capstyle="butt",
                  label="half of the cells", zorder=2)  # fmt: skip
        if not np.isnan(half):
            axes.plot([mean - half, mean + half], [y, y], color=BLUE, linewidth=2, label="95 % interval", zorder=3)
        axes.scatter(mean, y, s=30, color=BLUE, label="mean", zorder=4)
        if "cam_chance" in rows:
            chance = 100 * rows["cam_chance"].astype(float).mean()
            axes.plot([chance, chance], [y - 0.4, y + 0.4], color=ORANGE, linewidth=2, label="uniform map", zorder=3)
    axes.set_xlabel("Grad-CAM on the cell, %")
    _add_legend(figure, axes)
    return figure


@styled
def draw_differences(differences: pd.DataFrame, titles: Mapping[str, str] | None = None) -> Figure:
    """Draw a forest plot of paired differences: filled if the difference counts, hollow if it could be chance.

    A diamond is a difference without a verdict, a cross one without an interval.

    Args:
        differences: From `urnet.evaluation.paired.paired_differences`.
        titles: Titles of the runs, by name.
    """
    titles = titles or {}
    pairs = list(dict.fromkeys(zip(differences["first"], differences["second"], strict=True)))
    metrics = list(dict.fromkeys(differences["metric"]))
    columns = min(3, len(metrics))
    blocks = -(-len(metrics) // columns)
    names = [f"{truncate(titles.get(b, b), 22)} − {truncate(titles.get(a, a), 22)}" for a, b in pairs]
    figure = create_figure(WIDTH, blocks * (0.85 + ROW * len(pairs)) + 0.3)
    grid = figure.subplots(blocks, columns, squeeze=False, sharey=True)
    for index, axes in enumerate(grid.flat):
        if index >= len(metrics):
            axes.set_axis_off()
            continue
        rows = differences[differences["metric"] == metrics[index]].set_index(["first", "second"])
        for y, pair in enumerate(pairs):
            if pair in rows.index:
                _draw_difference(axes, y, rows.loc[pair])
        axes.axvline(0, color=INK, linewidth=1)
        axes.grid(True, axis="x")
        metric = metrics[index].replace("macro_recall", "macro recall").replace("recall_", "recall: ")
        axes.set_title(wrap_label(metric, 14), fontsize=9)
        axes.set_xlabel("points", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.tick_params(axis="y", length=0)
    for axes in grid[:, 0]:
        axes.set_yticks(range(len(pairs)), names, fontsize=7.5)
    grid[0, 0].set_ylim(len(pairs) - 0.4, -0.6)
    _add_legend(figure, *(axes for axes in grid.flat if axes.axison))
    return figure


def _with_metrics(entries: Sequence[ResultRow]) -> list[ResultRow]:
    return [entry for entry in entries if entry.metrics is not None]


def _create_row_axes(names: Sequence[str]) -> tuple[Figure, Axes]:
    """Create axes with a named row for each entry, the first on top."""
    figure = create_figure(WIDTH, 1.0 + (ROW + 0.02) * len(names))
    axes = figure.add_subplot()
    axes.grid(True, axis="x")
    axes.set_yticks(range(len(names)), [truncate(name, LABEL) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8))
    return figure, axes


def _add_legend(figure: Figure, *panels: Axes) -> None:
    """Add a legend above the figure, with each mark once."""
    handles = [pair for axes in panels for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    marks = {label: handle for handle, label in reversed(handles)}
    if marks:
        figure.legend(
            marks.values(),
            marks.keys(),
            loc="outside upper right",
            ncols=len(marks),
            handlelength=1.6,
            columnspacing=1.2,
        )


def _mean_with_error(values: np.ndarray, rows: pd.DataFrame) -> tuple[float, float]:
    """Compute the mean and half the width of its 95 % interval (NaN for one group), with groups of similar cells.

    It is a t interval with a cluster-robust standard error (Cameron and Miller, J. Hum. Resour. 50, 2015, section VI).
    """
    donors = rows["donor"].tolist() if "donor" in rows else None
    groups, description = choose_groups(donors, rows["source"].tolist())
    G, mean = description["groups"], float(values.mean())
    if G < 2:
        return mean, np.nan
    sums = np.bincount(groups, values - mean)
    t = special.stdtrit(G - 1, (1 + LEVEL) / 2)
    return mean, float(t * np.sqrt(G / (G - 1) * np.sum(sums**2)) / len(values))


def _draw_difference(axes: Axes, y: int, row: pd.Series) -> None:
    if np.isnan(row["difference"]):
        return
    value = 100 * row["difference"]
    if np.isnan(row["low"]):
        axes.scatter(value, y, s=26, marker="x", color=FAINT, linewidth=1.4, label=NO_INTERVAL, zorder=3)
        return
    counts = not row["note"] and not row["chance"]
    colour, label, marker = (BLUE, "counts", "o") if counts else (FAINT, "could be chance", "o")
    if row["note"]:
        label, marker = NO_VERDICT, "D"
    axes.plot([100 * row["low"], 100 * row["high"]], [y, y], color=colour, linewidth=1.8)
    face = colour if counts else "white"
    axes.scatter(value, y, s=26, marker=marker, facecolor=face, edgecolor=colour, linewidth=1.4, label=label, zorder=3)


def _draw_grid(rows: Mapping[str, Sequence[np.ndarray]], labels: Sequence[str], below: float = 0.0) -> Figure:
    """Draw a row of images for each title, titles on the left, with space `below`; sizes in inches."""
    M = len(labels)
    if not M or any(len(images) != M for images in rows.values()):
        counts = ", ".join(f"{len(images)} {name}" for name, images in rows.items())
        raise ValueError(f"{counts} images for {M} labels: expected the same number, and at least one")
    left, gap = 1.45, 0.04
    wide = min(1.1 if len(rows) <= 8 else 0.8, (WIDTH - left) / M - gap)
    tall = wide * max(image.shape[0] / image.shape[1] for images in rows.values() for image in images)
    limits, feet = {}, []
    for name, images in rows.items():
        limits[name], foot = compute_limits(name, images)
        feet += foot
    heads = group_titles(labels, M, wide + gap)
    head = 0.1 + 0.16 * max(text.count("\n") + 1 for text in heads.values())
    bottom = below + 0.15 * len(feet) + 0.08
    width, height = max(3.6, left + M * (wide + gap)), head + len(rows) * (tall + gap) + bottom
    figure = Figure(figsize=(width, height))
    for index, text in heads.items():
        figure.text((left + index * (wide + gap)) / width, 1 - (head - 0.04) / height, text, fontsize=9,
                    fontweight="bold", va="bottom")  # fmt: skip
    for line, (name, images) in enumerate(rows.items()):
        y = height - head - line * (tall + gap) - tall
        figure.text(
            (left - 0.08) / width, (y + tall / 2) / height, wrap_label(name, 16), ha="right", va="center", fontsize=9
        )
        for index, image in enumerate(images):
            x = left + index * (wide + gap)
            show_image(figure.add_axes((x / width, y / height, wide / width, tall / height)), image, limits[name])
    figure.text(0.06 / width, (below + 0.05) / height, "\n".join(feet), fontsize=8, color=FAINT, va="bottom")
    return figure

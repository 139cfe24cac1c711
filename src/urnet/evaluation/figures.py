"""The figures of an evaluation, in one house style, drawn without pyplot.

All are at most 4.8 inches wide, so that their text stays legible on a page of 400 px. Grey images of one row share
their limits, which are [0, 1] unless the row leaves it widely; what a figure clips or rescales, it says in its foot.
"""

import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import wraps

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import colormaps, font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from urnet.evaluation.metrics import CALIBRATION_BINS, calibration_bins

WIDTH = 4.8  # inches
INK, FAINT = "#1b2a34", "#6b7c87"
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"  # Okabe and Ito's, told apart by colour-blind eyes
SHADES = ("#225ea8", "#41b6c4", "#a1dab4", "#253494")  # of the same family as the confusion matrix
MATRIX = "YlGnBu"
MOST_OUTSIDE = 0.05  # share of a row's pixels outside [0, 1] up to which it is clipped, not rescaled

# Class names in any script, where the machine has a font for it.
_FALLBACK = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "PingFang SC")
_STYLE = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": False,
    "axes.axisbelow": True,
    "grid.color": "#e3e9ed",
    "grid.linewidth": 0.8,
    "text.color": INK,
    "text.parse_math": False,  # a class may be called CD4$
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "white",
}


def _styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    @wraps(draw)
    def drawn(*args: object, **kwargs: object) -> Figure:
        fonts = ["DejaVu Sans", *(name for name in _FALLBACK if name in font_manager.get_font_names())]
        with matplotlib.rc_context({**_STYLE, "font.family": fonts}):
            return draw(*args, **kwargs)

    return drawn


def to_png(figure: Figure, dpi: int = 200) -> bytes:
    """Render a figure as PNG bytes; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


@_styled
def confusion_figure(matrix: Sequence[Sequence[int]] | np.ndarray, classes: Sequence[str]) -> Figure:
    """Confusion matrix: counts, and per cent of each true class (its diagonal is the recall).

    Args:
        matrix: (K, K) counts, rows truth.
        classes: K names.
    """
    matrix = np.asarray(matrix)
    K = len(classes)
    support = matrix.sum(axis=1, keepdims=True)
    percent = np.divide(100 * matrix, support, out=np.full(matrix.shape, np.nan), where=support > 0)
    small = K > 6
    size = 7 if small else 10
    figure = _figure(WIDTH, 1.3 + (WIDTH - 1.6) * min(1, K / 4) if K < 4 else WIDTH - 0.2)
    axes = figure.add_subplot()
    axes.imshow(np.nan_to_num(percent), cmap=MATRIX, vmin=0, vmax=110)
    for row in range(K):
        for column in range(K):
            share = percent[row, column]
            text = f"{matrix[row, column]:,}" + ("" if small or np.isnan(share) else f"\n{share:.0f} %")
            colour = "white" if share > 60 else INK
            bold = "bold" if row == column else "normal"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=size, fontweight=bold)
    names = [_wrap(name, 14) for name in classes]
    slanted = K > 4 or max(map(len, classes)) > 12
    axes.set_xticks(range(K), names, rotation=40 if slanted else 0, ha="right" if slanted else "center")
    axes.set_yticks(range(K), [f"{name}\n(n = {int(n):,})" for name, n in zip(names, support[:, 0], strict=True)])
    axes.tick_params(length=0, labelsize=8 if small else 9)
    axes.set_xticks(np.arange(K + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(K + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("truth")
    return figure


@_styled
def curves_figure(history: pd.DataFrame, chosen_epoch: int | None = None) -> Figure:
    """Loss and accuracy by epoch, with the chosen epoch marked.

    Args:
        history: Columns `stage` ("pretrain" or "train"), `epoch`, `train_loss`, `validation_loss`, `train_accuracy`,
            `validation_accuracy`, `validation_macro_recall`; NaN where a stage has no such figure.
        chosen_epoch: Of joint training; without it, the first with the highest validation macro recall. Pre-training
            is marked at its lowest validation loss.
    """
    pretraining, training = (history[history["stage"] == stage] for stage in ("pretrain", "train"))
    if chosen_epoch is None:
        chosen_epoch = _best(training, "validation_macro_recall", largest=True)
    panels: list[tuple[str, pd.DataFrame, int | None, list[tuple[str, str, str, str]]]] = []
    losses = [("train_loss", "training", BLUE, "--"), ("validation_loss", "validation", ORANGE, "-")]
    if len(pretraining):
        lowest = _best(pretraining, "validation_loss", largest=False)
        panels.append(("Pre-training: mean squared error", pretraining, lowest, losses))
    if len(training):
        panels.append(("Joint training: loss", training, chosen_epoch, losses))
        rates = [
            ("train_accuracy", "training accuracy", BLUE, "--"),
            ("validation_accuracy", "validation accuracy", ORANGE, "-"),
            ("validation_macro_recall", "validation macro recall", GREEN, "-"),
        ]
        panels.append(("Joint training: accuracy and macro recall", training, chosen_epoch, rates))
    figure = _figure(WIDTH, 0.2 + 2.3 * max(1, len(panels)))
    for axes, (title, rows, mark, lines) in zip(
        figure.subplots(max(1, len(panels)), squeeze=False)[:, 0], panels, strict=False
    ):
        axes.grid(True)
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        dots = "o" if len(rows) < 2 else None
        for column, label, colour, dash in lines:
            if column in rows and rows[column].notna().any():
                seen = rows[rows[column].notna()]
                axes.plot(seen["epoch"], seen[column], dash, color=colour, label=label, marker=dots)
        if mark is not None:
            axes.axvline(mark, color=INK, linewidth=1, linestyle=":", label=f"chosen epoch ({mark})")
        if lines is losses and title.startswith("Pre"):
            axes.set_yscale("log")
        if lines is not losses:
            axes.set_ylim(None, min(1.02, axes.get_ylim()[1]))
        axes.legend(loc="best", handlelength=1.8, labelspacing=0.3)
    return figure


@_styled
def gallery_figure(
    raw: Sequence[np.ndarray],
    enhanced: Sequence[np.ndarray],
    titles: Sequence[str],
    targets: Sequence[np.ndarray] | None = None,
    *,
    target_name: str = "target",
    columns: int = 6,
) -> Figure:
    """Raw cells above what the enhancer makes of them (the paper's Fig. 3a), and their paired targets if given.

    Args:
        raw: N images, each (H, W), (H, W, 1) or (H, W, 3), as the network sees them, in [0, 1].
        enhanced: N images of the same cells; they may leave [0, 1].
        titles: N class names; one that repeats its left neighbour's is written once.
        targets: N paired images, in [0, 1].
        target_name: What the targets are, for the row's label.
        columns: Cells side by side, after which a new block starts.
    """
    rows = {"raw": raw, "enhanced": enhanced} | ({target_name: targets} if targets is not None else {})
    figure, _ = _grid(rows, titles, columns)
    return figure


@_styled
def cam_figure(
    raw: Sequence[np.ndarray], overlays: Sequence[np.ndarray], titles: Sequence[str], *, columns: int = 6
) -> Figure:
    """Raw cells above their Grad-CAM overlays, blue to red (the paper's Fig. 3b).

    Args:
        raw: N images, each (H, W), (H, W, 1) or (H, W, 3), in [0, 1].
        overlays: N images (H, W, 3), uint8, from `gradcam.overlay`.
        titles: N names; one that repeats its left neighbour's is written once.
        columns: Cells side by side, after which a new block starts.
    """
    scaled = [np.asarray(image) / 255 for image in overlays]
    figure, _ = _grid({"raw": raw, "Grad-CAM": scaled}, titles, columns)
    bar = figure.colorbar(
        ScalarMappable(cmap=colormaps["jet"]), ax=figure.axes, location="bottom", shrink=0.5, aspect=30, pad=0.03
    )
    bar.set_ticks([0, 1], labels=["no weight", "most"])
    bar.ax.tick_params(length=0, labelsize=8)
    bar.outline.set_visible(False)
    return figure


@_styled
def reliability_figure(truth: np.ndarray, probabilities: np.ndarray) -> Figure:
    """Accuracy against confidence, over the same 15 bins as the expected calibration error (Guo et al., 2017, Fig. 1).

    Args:
        truth: (N,) class indices.
        probabilities: (N, K).
    """
    confidence, right, bins = calibration_bins(np.asarray(truth), np.asarray(probabilities))
    count = np.bincount(bins, minlength=CALIBRATION_BINS)
    filled = count > 0
    accuracy = np.bincount(bins, right, CALIBRATION_BINS)[filled] / count[filled]
    mean = np.bincount(bins, confidence, CALIBRATION_BINS)[filled] / count[filled]
    error = float(np.sum(count[filled] * np.abs(accuracy - mean)) / len(bins))
    figure = _figure(WIDTH, 4.6)
    top, bottom = figure.subplots(2, sharex=True, height_ratios=[3, 1])
    top.grid(True)
    top.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=":", label="perfect calibration")
    top.vlines(mean, np.minimum(mean, accuracy), np.maximum(mean, accuracy), color=ORANGE, alpha=0.45, linewidth=3)
    top.plot(mean, accuracy, "-", color=BLUE, linewidth=1)
    top.scatter(mean, accuracy, s=18 + 90 * count[filled] / count.max(), color=BLUE, zorder=3, label="cells, by bin")
    top.set(xlim=(0, 1), ylim=(-0.02, 1.02), ylabel="accuracy", title=f"Expected calibration error {error:.3f}")
    top.legend(loc="upper left")
    bottom.grid(True, axis="y")
    bottom.bar((np.arange(CALIBRATION_BINS) + 0.5) / CALIBRATION_BINS, count, 0.9 / CALIBRATION_BINS, color=BLUE)
    bottom.set(xlabel="confidence of the prediction", ylabel="cells")
    bottom.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
    return figure


@_styled
def class_counts_figure(counts: pd.DataFrame) -> Figure:
    """Cells of each class in each part.

    Args:
        counts: Rows classes, columns parts (train, validation, test, …).
    """
    parts, K = list(counts.columns), len(counts)
    thick = 0.8 / len(parts)
    figure = _figure(WIDTH, 0.8 + K * (0.25 + 0.22 * len(parts)))
    axes = figure.add_subplot()
    for index, part in enumerate(parts):
        where = np.arange(K) + (index - (len(parts) - 1) / 2) * thick
        bars = axes.barh(where, counts[part], thick * 0.92, color=SHADES[index % len(SHADES)], label=str(part))
        axes.bar_label(bars, [f"{count:,.0f}" for count in counts[part]], padding=3, fontsize=8)
    axes.set_yticks(range(K), [_wrap(str(name), 16) for name in counts.index])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("cells")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axes.set_xlim(0, max(1, counts.to_numpy().max()) * 1.14)
    figure.legend(loc="outside upper right", ncols=min(4, len(parts)), handlelength=1, columnspacing=1.2)
    return figure


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def _wrap(name: str, width: int) -> str:
    return "\n".join(textwrap.wrap(textwrap.shorten(name, 3 * width, placeholder=" …"), width)) or name


def _best(rows: pd.DataFrame, column: str, *, largest: bool) -> int | None:
    if column not in rows or not rows[column].notna().any():
        return None
    return int(rows.loc[rows[column].idxmax() if largest else rows[column].idxmin(), "epoch"])


def _grid(
    rows: Mapping[str, Sequence[np.ndarray]], titles: Sequence[str], columns: int
) -> tuple[Figure, dict[str, tuple[float, float]]]:
    """Rows of images in blocks of `columns` cells, and the limits each row is shown with."""
    N = len(titles)
    if not N or any(len(images) != N for images in rows.values()):
        found = ", ".join(f"{len(images)} {name}" for name, images in rows.items())
        raise ValueError(f"{found} images for {N} titles: expected the same number, and one at least")
    columns = min(columns, N)
    blocks = -(-N // columns)
    side = (WIDTH - 0.3) / columns
    limits, feet = {}, []
    for name, images in rows.items():
        limits[name], foot = _limits(name, images)
        feet += foot
    figure = _figure(WIDTH, blocks * (len(rows) * side + 0.28) + 0.18 * len(feet) + 0.3)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    grid = figure.subplots(blocks * len(rows), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for index, title in enumerate(titles):
        block, column = divmod(index, columns)
        for line, (name, images) in enumerate(rows.items()):
            axes = grid[block * len(rows) + line, column]
            _show(axes, np.asarray(images[index]), limits[name])
            if column == 0:
                axes.text(-0.06, 0.5, name, rotation=90, ha="right", va="center", fontsize=8, color=FAINT,
                          transform=axes.transAxes)  # fmt: skip
            if line == 0 and (column == 0 or title != titles[index - 1]):
                axes.set_title(_wrap(str(title), 13), fontsize=8)
    if feet:
        figure.supxlabel("\n".join(feet), fontsize=7.5, color=FAINT)
    return figure, limits


def _limits(name: str, images: Sequence[np.ndarray]) -> tuple[tuple[float, float], list[str]]:
    """What is shown as black and as white in a whole row, and what the foot must say about it."""
    pixels = np.concatenate([np.asarray(image).ravel() for image in images])
    outside = float(np.mean((pixels < 0) | (pixels > 1)))
    if outside == 0:
        return (0.0, 1.0), []
    if outside <= MOST_OUTSIDE:
        share = f"{100 * outside:.1f} %" if outside >= 0.001 else "under 0.1 %"
        return (0.0, 1.0), [f"{name}: {share} of the pixels lie outside [0, 1] and are clipped"]
    low, high = (float(end) for end in np.quantile(pixels, [0.005, 0.995]))
    return (low, max(high, low + 1e-6)), [f"{name}: black is {low:.2f} and white is {high:.2f}, in all cells alike"]


def _show(axes: matplotlib.axes.Axes, image: np.ndarray, limits: tuple[float, float]) -> None:
    low, high = limits
    shown = np.clip((image.astype(np.float64) - low) / (high - low), 0, 1)
    if shown.ndim == 3 and shown.shape[2] == 1:
        shown = shown[..., 0]
    axes.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")

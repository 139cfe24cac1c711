"""The figures of an evaluation, in one house style, drawn without pyplot.

All are at most 4.4 inches wide, so that their text stays legible on a page of 400 px. Grey images of one row share
their limits, which are [0, 1] unless the row leaves it widely; what a figure clips or rescales, it says in its foot.
"""

import io
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from urnet.evaluation.metrics import CALIBRATION_BINS, calibration_bins

WIDTH = 4.4  # inches
INK, FAINT = "#1b2a34", "#6b7c87"
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"  # Okabe and Ito's, told apart by colour-blind eyes
LINES = ((BLUE, "--"), (ORANGE, "-"), (GREEN, "-"))
SHADES = ("#08519c", "#4292c6", "#9ecae1", "#c6dbef")  # of the same family as the confusion matrix
MANY = (BLUE, ORANGE, GREEN, "#cc79a7", INK, "#56b4e9", "#e69f00")
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
DOTS = ("o", "s", "^", "D", "v", "P")  # so that lines are told apart in grey as well
BANDS = 3  # with more lines than this, their bands would hide each other
MATRIX = "Blues"
CAM = "jet"  # blue to red, as the paper's Fig. 3b
MOST_OUTSIDE = 0.05  # share of a row's pixels outside [0, 1] up to which it is clipped, not rescaled

# Class names in any script, where the machine has a font for it.
_FALLBACK = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "PingFang SC")
_STYLE = {
    "font.size": 10.5,
    "axes.titlesize": 10.5,
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
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "lines.linewidth": 1.6,
    "legend.frameon": True,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "legend.fontsize": 9,
    "figure.facecolor": "white",
}


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw a figure in the house style."""

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
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the name is legible in the report's text
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def image_png(image: np.ndarray) -> bytes:
    """Encode an image (H, W), (H, W, 1) or (H, W, 3) as PNG, pixel by pixel: 0 black, 1 white, the rest clipped."""
    pixels = np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels).save(buffer, "png")
    return buffer.getvalue()


@styled
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
    figure = new_figure(WIDTH, min(WIDTH - 0.5, 1.4 + 0.85 * K))
    axes = figure.add_subplot()
    axes.imshow(np.nan_to_num(percent), cmap=MATRIX, vmin=0, vmax=110)
    for row in range(K):
        for column in range(K):
            share = percent[row, column]
            axes.text(
                column,
                row,
                str(matrix[row, column]) if small or np.isnan(share) else f"{matrix[row, column]:,}\n{share:.0f} %",
                ha="center",
                va="center",
                color="white" if share > 60 else INK,
                fontsize=max(4, 11 - K // 2) if small else 10,
                fontweight="bold" if row == column else "normal",
            )
    slanted = K > 4 or max(map(len, classes)) > 12
    across = [cut(name, 24) if slanted else wrap(name, 14) for name in classes]
    down = [f"{wrap(name, 14)}\n(n = {n:,})" for name, n in zip(classes, support[:, 0], strict=True)]
    axes.set_xticks(range(K), across)
    axes.set_yticks(range(K), across if small else down)
    if slanted:
        axes.tick_params(axis="x", labelrotation=40)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axes.tick_params(length=0, labelsize=8 if small else 9)
    axes.set_xticks(np.arange(K + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(K + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("truth")
    return figure


@styled
def curves_figure(history: pd.DataFrame, chosen_epoch: int | None = None) -> Figure:
    """Loss and accuracy by epoch, with the chosen epoch marked.

    Args:
        history: Columns `stage` ("pretrain" or "train"), `epoch`, `train_loss`, `validation_loss`, `train_accuracy`,
            `validation_accuracy`, `validation_macro_recall`; NaN where a stage has no such figure.
        chosen_epoch: Of joint training; without it, the first with the highest validation macro recall. Pre-training
            is marked at its lowest validation loss, or training loss where there is no other.
    """
    pretraining, training = (history[history["stage"] == stage] for stage in ("pretrain", "train"))
    panels: list[tuple[str, pd.DataFrame, dict[str, str], int | None]] = []
    losses = {"train_loss": "training", "validation_loss": "validation"}
    if len(pretraining):
        watched = "validation_loss" if pretraining["validation_loss"].notna().any() else "train_loss"
        lowest = _best(pretraining, watched, largest=False)
        panels.append(("Pre-training: loss (logarithmic)", pretraining, losses, lowest))
    if len(training):
        if chosen_epoch is None:
            chosen_epoch = _best(training, "validation_macro_recall", largest=True)
        rates = {
            "train_accuracy": "training accuracy",
            "validation_accuracy": "validation accuracy",
            "validation_macro_recall": "validation macro recall",
        }
        panels.append(("Joint training: loss", training, losses, chosen_epoch))
        panels.append(("Joint training: accuracy and macro recall", training, rates, chosen_epoch))
    if not panels:
        raise ValueError('history without a row of stage "pretrain" or "train": expected one epoch at least')
    figure = new_figure(WIDTH, 0.2 + 2.3 * len(panels))
    for axes, panel in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        _curves(axes, *panel)
    if len(pretraining) and (pretraining["train_loss"] > 0).all():
        figure.axes[0].set_yscale("log")
    return figure


@styled
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
    return _grid(rows, titles, columns)


@styled
def cam_figure(
    raw: Sequence[np.ndarray],
    overlays: Sequence[np.ndarray],
    titles: Sequence[str],
    called: Sequence[str] | None = None,
    *,
    columns: int = 6,
) -> Figure:
    """Raw cells above their Grad-CAM overlays, blue to red (the paper's Fig. 3b).

    Args:
        raw: N images, each (H, W), (H, W, 1) or (H, W, 3), in [0, 1].
        overlays: N images (H, W, 3), uint8, from `gradcam.overlay`.
        titles: N names; one that repeats its left neighbour's is written once.
        called: N names of the classes that the maps speak for, written into a map where it is not the cell's title.
        columns: Cells side by side, after which a new block starts.
    """
    scaled = [np.asarray(image) / 255 for image in overlays]
    figure = _grid({"raw": raw, "Grad-CAM": scaled}, titles, columns, below=0.35)
    for map_axes, title, name in zip(figure.axes[1::2], titles, called or titles, strict=True):
        if name != title:
            box = {"facecolor": "black", "alpha": 0.65, "linewidth": 0, "pad": 1.2}
            style = {"fontsize": 6.5, "color": "white", "ha": "center", "va": "bottom", "bbox": box}
            map_axes.text(0.5, 0.04, f"→ {cut(name, 12)}", transform=map_axes.transAxes, **style)
    cam_legend(figure, 0.22)
    return figure


def cam_legend(figure: Figure, bottom: float) -> None:
    """Write what the colours of Grad-CAM mean below the pictures, `bottom` inches above the figure's edge."""
    width, height = figure.get_size_inches()
    axes = figure.add_axes((0.5 - 0.8 / width, bottom / height, 1.6 / width, 0.08 / height))
    axes.imshow(np.linspace(0, 1, 256)[None], cmap=CAM, aspect="auto")
    axes.set_axis_off()
    for place, text, side in ((0, "no weight ", "right"), (1, " most", "left")):
        axes.text(place, 0.5, text, ha=side, va="center", fontsize=9, transform=axes.transAxes)


@styled
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
    figure = new_figure(WIDTH, 4.6)
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
    top.set(xlim=(0, 1), ylim=(-0.02, 1.02), ylabel="accuracy", title=f"Expected calibration error {error:.3f}")
    top.legend(loc="upper left")
    bottom.grid(True, axis="y")
    bottom.bar((np.arange(CALIBRATION_BINS) + 0.5) / CALIBRATION_BINS, count, 0.9 / CALIBRATION_BINS, color=BLUE)
    bottom.set(xlabel="confidence of the prediction", ylabel="cells")
    bottom.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
    return figure


@styled
def class_counts_figure(counts: pd.DataFrame) -> Figure:
    """Cells of each class in each part.

    Args:
        counts: Rows classes, columns parts (train, validation, test, …).
    """
    parts, K = list(counts.columns), len(counts)
    thick = 0.8 / len(parts)
    figure = new_figure(WIDTH, 0.8 + K * (0.25 + 0.22 * len(parts)))
    axes = figure.add_subplot()
    for index, part in enumerate(parts):
        where = np.arange(K) + (index - (len(parts) - 1) / 2) * thick
        bars = axes.barh(where, counts[part], thick * 0.92, color=SHADES[index % len(SHADES)], label=str(part))
        axes.bar_label(bars, [f"{count:,.0f}" for count in counts[part]], padding=3, fontsize=9)
    axes.set_yticks(range(K), [wrap(str(name), 16) for name in counts.index])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("cells")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axes.set_xlim(0, max(1, counts.to_numpy().max()) * 1.14)
    figure.legend(loc="outside upper right", ncols=min(4, len(parts)), handlelength=1, columnspacing=1.2)
    return figure


@styled
def stress_figure(table: pd.DataFrame, metric: str, panels: Mapping[str, tuple[str, Sequence[float]]]) -> Figure:
    """A figure of merit against the severity of each perturbation, a panel each, a line a run.

    Args:
        table: `run`, `perturbation`, `severity`, the metric, and the ends of its interval, `<metric>_low` and
            `<metric>_high`; intervals are drawn as bands of up to three runs.
        metric: a column of it, a fraction.
        panels: title of each perturbation with its unit, and its severities, which are drawn evenly spaced.
    """
    runs = list(dict.fromkeys(table["run"]))
    legend = 0.25 * len(runs) + 0.1
    figure = new_figure(WIDTH, 1.75 * len(panels) + legend)
    least = np.nanmin(table[[metric, f"{metric}_low"]].astype(float).to_numpy())
    for axes, (name, (title, severities)) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels.items(),
                                                 strict=True):  # fmt: skip
        axes.grid(True)
        axes.set(title=title, ylim=(min(0.98 * least, 0.9), 1.01))
        axes.set_xticks(range(len(severities)), [f"{severity:g}" for severity in severities])
        if min(severities) < 0:
            axes.axvline(list(severities).index(0), color=FAINT, linewidth=1)
        for run, look in zip(runs, line_looks(len(runs)), strict=True):
            rows = table[(table["run"] == run) & (table["perturbation"] == name)].set_index("severity")
            keys = [metric, f"{metric}_low", f"{metric}_high"]
            x, (y, low, high) = np.arange(len(severities)), rows.loc[list(severities), keys].to_numpy(float).T
            if len(runs) <= BANDS:
                axes.fill_between(x, low, high, color=look["color"], alpha=0.13, linewidth=0)
            axes.plot(x, y, markersize=4, label=cut(run, 44), **look)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper left", handlelength=3.5)
    return figure


def line_looks(count: int) -> list[dict[str, Any]]:
    """Colour, dash and marker of each of several lines, told apart by colour-blind eyes and in grey."""
    return [
        {"color": MANY[k % len(MANY)], "linestyle": DASHES[k % len(DASHES)], "marker": DOTS[k % len(DOTS)]}
        for k in range(count)
    ]


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches, whose parts make room for each other."""
    return Figure(figsize=(width, height), layout="constrained")


def wrap(name: str, width: int) -> str:
    """A name in lines of so many letters, three at most."""
    return "\n".join(textwrap.wrap(cut(name, 3 * width), width))


def cut(name: str, length: int) -> str:
    """A name of so many letters at most."""
    return name if len(name) <= length else name[: length - 1] + "…"


def _best(rows: pd.DataFrame, column: str, *, largest: bool) -> int | None:
    if column not in rows or not rows[column].notna().any():
        return None
    return int(rows.loc[rows[column].idxmax() if largest else rows[column].idxmin(), "epoch"])


def _curves(axes: Axes, title: str, rows: pd.DataFrame, lines: Mapping[str, str], mark: int | None) -> None:
    axes.grid(True)
    axes.set(title=title, xlabel="epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    if len(rows) == 1:
        axes.set_xticks(rows["epoch"])
        axes.margins(x=1)
    for (column, label), (colour, dash) in zip(lines.items(), LINES, strict=False):
        seen = rows[rows[column].notna()] if column in rows else rows[:0]
        if len(seen):
            dot = "o" if len(seen) == 1 else None
            axes.plot(seen["epoch"], seen[column], dash, color=colour, label=label, marker=dot)
    if mark is not None:
        axes.axvline(mark, color=INK, linewidth=1, linestyle=":", label=f"chosen epoch ({mark})")
    axes.legend(loc="best", handlelength=1.8, labelspacing=0.3)


def _grid(rows: Mapping[str, Sequence[np.ndarray]], titles: Sequence[str], columns: int, below: float = 0.0) -> Figure:
    """Rows of images in blocks of `columns` cells, with room `below`; all sizes in inches."""
    N = len(titles)
    if not N or any(len(images) != N for images in rows.values()):
        found = ", ".join(f"{len(images)} {name}" for name, images in rows.items())
        raise ValueError(f"{found} images for {N} titles: expected the same number, and one at least")
    columns = min(columns, N)
    blocks = -(-N // columns)
    limits, feet = {}, []
    for name, images in rows.items():
        limits[name], foot = shared_limits(name, images)
        feet += foot
    left, gap = 0.22, 0.05
    wide = min(1.5, (WIDTH - left) / columns - gap)
    tall = wide * max(image.shape[0] / image.shape[1] for images in rows.values() for image in images)
    heads = group_heads(titles, columns, wide + gap)
    head = 0.1 + 0.15 * max(text.count("\n") + 1 for text in heads.values())
    block_height = head + len(rows) * (tall + gap)
    width, height = max(2.4, left + columns * (wide + gap)), blocks * block_height + 0.2 * len(feet) + below + 0.05
    figure = Figure(figsize=(width, height))
    for index in range(N):
        block, column = divmod(index, columns)
        x, top = left + column * (wide + gap), height - block * block_height - head
        if index in heads:
            figure.text(x / width, (top + 0.04) / height, heads[index], fontsize=9, fontweight="bold", va="bottom")
        for line, (name, images) in enumerate(rows.items()):
            y = top - line * (tall + gap) - tall
            show_image(
                figure.add_axes((x / width, y / height, wide / width, tall / height)), images[index], limits[name]
            )
            if column == 0:
                figure.text(0.13 / width, (y + tall / 2) / height, name, rotation=90, ha="center", va="center",
                            fontsize=9, color=FAINT)  # fmt: skip
    figure.text(left / width, (below + 0.05) / height, "\n".join(feet), fontsize=8.5, color=FAINT, va="bottom")
    return figure


def group_heads(titles: Sequence[str], columns: int, step: float) -> dict[int, str]:
    """The titles to write, by index: where a class begins, wrapped to the columns it spans."""
    starts = [i for i in range(len(titles)) if i % columns == 0 or titles[i] != titles[i - 1]]
    heads = {}
    for start, following in zip(starts, [*starts[1:], len(titles)], strict=True):
        heads[start] = wrap(titles[start], max(6, int((following - start) * step / 0.085)))
    return heads


def shared_limits(name: str, images: Sequence[np.ndarray]) -> tuple[tuple[float, float], list[str]]:
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


def show_image(axes: Axes, image: np.ndarray, limits: tuple[float, float]) -> None:
    """Show (H, W), (H, W, 1) or (H, W, 3) with the first limit black and the second white."""
    low, high = limits
    shown = np.clip((np.asarray(image, dtype=np.float64) - low) / (high - low), 0, 1)
    if shown.ndim == 3 and shown.shape[2] == 1:
        shown = shown[..., 0]
    axes.set_axis_off()
    axes.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")

"""Galleries: the same cells in rows of images: raw, enhanced, with Grad-CAM.

The images of one row have the same limits: [0, 1], unless many pixels lie outside. The foot of a figure says what was
clipped or rescaled.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from urnet.evaluation.figure_style import FAINT, WIDTH, styled, truncate, wrap_label

MAX_CLIPPED = 0.05
"""Share of a row's pixels outside [0, 1] up to which they are clipped, not rescaled."""


@styled
def draw_gallery(
    raw: Sequence[np.ndarray],
    enhanced: Sequence[np.ndarray],
    titles: Sequence[str],
    targets: Sequence[np.ndarray] | None = None,
    *,
    target_name: str = "target",
    columns: int = 6,
) -> Figure:
    """Draw raw cells above the enhanced ones (the paper's Fig. 3a), and their paired targets if given.

    Args:
        raw: N images, each (H, W), (H, W, 1) or (H, W, 3), as the network sees them, in [0, 1].
        enhanced: N images of the same cells; they may leave [0, 1].
        titles: N class names; neighbours of the same class share one title.
        targets: N paired images, in [0, 1].
        target_name: label of the row of targets.
        columns: number of cells side by side in one block.
    """
    rows = {"raw": raw, "enhanced": enhanced} | ({target_name: targets} if targets is not None else {})
    return _draw_grid(rows, titles, columns)


@styled
def draw_grad_cam(
    raw: Sequence[np.ndarray],
    overlays: Sequence[np.ndarray],
    titles: Sequence[str],
    called: Sequence[str] | None = None,
    *,
    columns: int = 6,
) -> Figure:
    """Draw raw cells above their Grad-CAM overlays, blue to red (the paper's Fig. 3b).

    Args:
        raw: N images, each (H, W), (H, W, 1) or (H, W, 3), in [0, 1].
        overlays: N images (H, W, 3), uint8, from `urnet.nets.gradcam.overlay`.
        titles: N class names; neighbours of the same class share one title.
        called: N names of the explained classes, written into the map if it is not the cell's title.
        columns: number of cells side by side in one block.
    """
    scaled = [np.asarray(image) / 255 for image in overlays]
    figure = _draw_grid({"raw": raw, "Grad-CAM": scaled}, titles, columns, below=0.35)
    for map_axes, title, name in zip(figure.axes[1::2], titles, called or titles, strict=True):
        if name != title:
            box = {"facecolor": "black", "alpha": 0.65, "linewidth": 0, "pad": 1.2}
            style = {"fontsize": 6.5, "color": "white", "ha": "center", "va": "bottom", "bbox": box}
            map_axes.text(0.5, 0.04, f"→ {truncate(name, 12)}", transform=map_axes.transAxes, **style)
    add_cam_legend(figure, 0.22)
    return figure


def add_cam_legend(figure: Figure, bottom: float) -> None:
    """Add the legend of Grad-CAM's colours below the images, `bottom` inches above the figure's edge."""
    from urnet.nets.gradcam import COLOUR_MAP

    width, height = figure.get_size_inches()
    axes = figure.add_axes((0.5 - 0.8 / width, bottom / height, 1.6 / width, 0.08 / height))
    axes.imshow(np.linspace(0, 1, 256)[None], cmap=COLOUR_MAP, aspect="auto")
    axes.set_axis_off()
    for place, text, side in ((0, "no weight ", "right"), (1, " most", "left")):
        axes.text(place, 0.5, text, ha=side, va="center", fontsize=9, transform=axes.transAxes)


def group_titles(titles: Sequence[str], columns: int, step: float) -> dict[int, str]:
    """Choose the titles to write, by index: at the first cell of each class, wrapped to the columns that it spans."""
    starts = [i for i in range(len(titles)) if i % columns == 0 or titles[i] != titles[i - 1]]
    heads = {}
    for start, following in zip(starts, [*starts[1:], len(titles)], strict=True):
        heads[start] = wrap_label(titles[start], max(6, int((following - start) * step / 0.085)))
    return heads


def compute_limits(name: str, images: Sequence[np.ndarray]) -> tuple[tuple[float, float], list[str]]:
    """Compute the values of black and white of a row, and the notes for the foot."""
    pixels = np.concatenate([np.asarray(image).ravel() for image in images])
    outside = float(np.mean((pixels < 0) | (pixels > 1)))
    if outside == 0:
        return (0.0, 1.0), []
    if outside <= MAX_CLIPPED:
        share = f"{100 * outside:.1f} %" if outside >= 0.001 else "under 0.1 %"
        return (0.0, 1.0), [f"{name}: {share} of the pixels lie outside [0, 1] and are clipped"]
    low, high = (float(end) for end in np.quantile(pixels, [0.005, 0.995]))
    return (low, max(high, low + 1e-6)), [f"{name}: black is {low:.2f} and white is {high:.2f}, in all cells"]


def show_image(axes: Axes, image: np.ndarray, limits: tuple[float, float]) -> None:
    """Show an image (H, W), (H, W, 1) or (H, W, 3) with black and white at the limits."""
    low, high = limits
    shown = np.clip((np.asarray(image, dtype=np.float64) - low) / (high - low), 0, 1)
    if shown.ndim == 3 and shown.shape[2] == 1:
        shown = shown[..., 0]
    axes.set_axis_off()
    axes.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")


def _draw_grid(
    rows: Mapping[str, Sequence[np.ndarray]], titles: Sequence[str], columns: int, below: float = 0.0
) -> Figure:
    """Draw rows of images in blocks of `columns` cells, with space `below`; sizes in inches."""
    N = len(titles)
    if not N or any(len(images) != N for images in rows.values()):
        counts = ", ".join(f"{len(images)} {name}" for name, images in rows.items())
        raise ValueError(f"{counts} images for {N} titles: expected the same number, and at least one")
    columns = min(columns, N)
    blocks = -(-N // columns)
    limits, feet = {}, []
    for name, images in rows.items():
        limits[name], foot = compute_limits(name, images)
        feet += foot
    left, gap = 0.22, 0.05
    wide = min(1.5, (WIDTH - left) / columns - gap)
    tall = wide * max(image.shape[0] / image.shape[1] for images in rows.values() for image in images)
    heads = group_titles(titles, columns, wide + gap)
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

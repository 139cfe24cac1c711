"""The common style of all figures, drawn without pyplot.

Figures are at most 4.4 inches wide, so that their text is legible on a page of 400 px.
"""

import io
import textwrap
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

WIDTH = 4.4  # inches
INK, FAINT = "#1b2a34", "#6b7c87"
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"  # of Okabe and Ito, safe for colour-blind readers
CURVE_STYLES = ((BLUE, "--"), (ORANGE, "-"), (GREEN, "-"))
BAR_COLORS = ("#08519c", "#4292c6", "#9ecae1", "#c6dbef")  # the colours of the confusion matrix
LINE_COLORS = (BLUE, ORANGE, GREEN, "#cc79a7", INK, "#56b4e9", "#e69f00")
LINE_DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
LINE_MARKERS = ("o", "s", "^", "D", "v", "P")  # distinguish lines in grey, too
MAX_BANDS = 3  # the bands of more lines would hide each other
MATRIX_COLORS = "Blues"

# Fonts for class names in other scripts.
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
    """Decorate a function that draws a figure, so that it uses the common style."""

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
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the report's text has the name as well
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def encode_png(image: np.ndarray) -> bytes:
    """Encode an image (H, W), (H, W, 1) or (H, W, 3) as PNG, pixel by pixel: 0 black, 1 white, the rest clipped."""
    pixels = np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels).save(buffer, "png")
    return buffer.getvalue()


def create_figure(width: float, height: float) -> Figure:
    """Create an empty figure with constrained layout; sizes in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def line_styles(count: int) -> list[dict[str, Any]]:
    """Choose colour, dash and marker of each line, safe for colour-blind readers and in grey."""
    return [
        {
            "color": LINE_COLORS[k % len(LINE_COLORS)],
            "linestyle": LINE_DASHES[k % len(LINE_DASHES)],
            "marker": LINE_MARKERS[k % len(LINE_MARKERS)],
        }
        for k in range(count)
    ]


def wrap_label(name: str, width: int) -> str:
    """Break a name into at most three lines of `width` letters."""
    return "\n".join(textwrap.wrap(truncate(name, 3 * width), width))


def truncate(name: str, length: int) -> str:
    """Shorten a name to at most `length` letters."""
    return name if len(name) <= length else name[: length - 1] + "…"

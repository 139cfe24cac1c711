"""The house style of all figures, drawn without pyplot.

All are at most 4.4 inches wide, so that their text stays legible on a page of 400 px.
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
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"  # Okabe and Ito's, told apart by colour-blind eyes
CURVE_STYLES = ((BLUE, "--"), (ORANGE, "-"), (GREEN, "-"))
BAR_COLORS = ("#08519c", "#4292c6", "#9ecae1", "#c6dbef")  # of the same family as the confusion matrix
LINE_COLORS = (BLUE, ORANGE, GREEN, "#cc79a7", INK, "#56b4e9", "#e69f00")
LINE_DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
LINE_MARKERS = ("o", "s", "^", "D", "v", "P")  # so that lines are told apart in grey as well
MAX_BANDS = 3  # with more lines than this, their bands would hide each other
MATRIX_COLORS = "Blues"

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


def encode_png(image: np.ndarray) -> bytes:
    """Encode an image (H, W), (H, W, 1) or (H, W, 3) as PNG, pixel by pixel: 0 black, 1 white, the rest clipped."""
    pixels = np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels).save(buffer, "png")
    return buffer.getvalue()


def create_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches, whose parts make room for each other."""
    return Figure(figsize=(width, height), layout="constrained")


def line_styles(count: int) -> list[dict[str, Any]]:
    """Colour, dash and marker of each of several lines, told apart by colour-blind eyes and in grey."""
    return [
        {
            "color": LINE_COLORS[k % len(LINE_COLORS)],
            "linestyle": LINE_DASHES[k % len(LINE_DASHES)],
            "marker": LINE_MARKERS[k % len(LINE_MARKERS)],
        }
        for k in range(count)
    ]


def wrap_label(name: str, width: int) -> str:
    """A name in lines of so many letters, three at most."""
    return "\n".join(textwrap.wrap(truncate(name, 3 * width), width))


def truncate(name: str, length: int) -> str:
    """A name of so many letters at most."""
    return name if len(name) <= length else name[: length - 1] + "…"

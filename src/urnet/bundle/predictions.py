"""Predictions of a model in memory: a table, arrays, a figure, and how they are shown in a notebook."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from urnet.bundle.crops import CropSource

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_PLOTTED = 24
"""Number of crops that a figure shows unless another is asked for."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions for N images.

    Attributes:
        classes: the K class names, in the order of the probabilities.
        table: a row an image, as `to_frame` returns it.
        crops: the images; they are read again for a figure.

    Example:
        >>> predictions = urnet.load("run").predict("cells/disc")
        >>> predictions.probabilities.shape
        (20, 3)
        >>> list(predictions.to_frame()[["path", "predicted"]])
        ['path', 'predicted']
        >>> figure = predictions.plot()
    """

    classes: tuple[str, ...]
    table: pd.DataFrame
    crops: Sequence[CropSource]

    def __len__(self) -> int:
        return len(self.table)

    @property
    def labels(self) -> np.ndarray:
        """Predicted class names, (N,); "" where an image could not be used."""
        return self.table["predicted"].to_numpy(dtype=object)

    @property
    def probabilities(self) -> np.ndarray:
        """Probabilities of the classes, (N, K); NaN where an image could not be used."""
        return self.table[[f"p_{name}" for name in self.classes]].to_numpy(dtype=np.float64)

    @property
    def rejected(self) -> np.ndarray:
        """Whether an image shows no countable cell, (N,); always false for a model without calibration."""
        return self.table["rejected"].to_numpy() != "" if "rejected" in self.table else np.zeros(len(self), bool)

    @property
    def failed(self) -> np.ndarray:
        """Whether an image could not be used, (N,)."""
        return self.table["error"].to_numpy() != ""

    @property
    def counts(self) -> dict[str, int]:
        """Number of countable cells by predicted class, without rejected cells and failed images."""
        counted = self.labels[~self.rejected & ~self.failed]
        return {name: int((counted == name).sum()) for name in self.classes}

    def to_frame(self) -> pd.DataFrame:
        """Return a table with one row per image.

        Returns:
            Columns `path` ("" for arrays), `predicted`, `p_<class>` and `error`. A calibrated model adds two columns.
            `rejected` is the reason why a crop shows no countable cell ("" if it does). `set` holds the classes that
            cannot be ruled out, joined by `|`.
        """
        return self.table.copy()

    def plot(self, *, columns: int = 6, maximum: int = MAX_PLOTTED) -> "Figure":
        """Draw crops with their predicted class and its probability in per cent.

        Args:
            columns: crops in a row.
            maximum: number of crops to draw, from the first.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        shown = np.flatnonzero(~self.failed)[:maximum]
        columns = max(1, min(columns, len(shown)))
        rows = max(1, -(-len(shown) // columns))
        figure = Figure((1.5 * columns, 1.8 * rows), layout="constrained")
        FigureCanvasAgg(figure)
        for place, index in enumerate(shown):
            axes = figure.add_subplot(rows, columns, place + 1)
            axes.imshow(_to_display(self.crops[index].read()), cmap="gray", vmin=0, vmax=1)
            reason = self.table["rejected"].iloc[index] if self.rejected[index] else ""
            title = reason or f"{self.labels[index]} {100 * np.nanmax(self.probabilities[index]):.0f} %"
            axes.set_title(title, fontsize=8, color="#a33b00" if reason else "black", parse_math=False)
            axes.set_axis_off()
        return figure

    def __repr__(self) -> str:
        counts = ", ".join(f"{name} {count}" for name, count in self.counts.items())
        rejected, failed = int(self.rejected.sum()), int(self.failed.sum())
        return f"Predictions for {len(self)} images: {counts}; {rejected} rejected, {failed} could not be used"

    def _repr_html_(self) -> str:
        table = self.table.to_html(max_rows=20, float_format="{:.3f}".format, border=0)
        return f"<p>{escape(repr(self))}</p>{table}"

    def __getitem__(self, column: str) -> pd.Series:
        """Return a column of the table."""
        return self.table[column]

    def __getattr__(self, name: str) -> Any:
        # Up to version 0.1.0 `Model.predict` returned the table itself.
        if name.startswith("_") or not hasattr(pd.DataFrame, name):
            raise AttributeError(f"'Predictions' object has no attribute {name!r}")
        warnings.warn(
            f"Predictions.{name} will be removed in the next release; use predictions.to_frame().{name}",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(self.table, name)


def _to_display(crop: np.ndarray) -> np.ndarray:
    """Scale a crop to its own range, [0, 1]."""
    low, high = float(crop.min()), float(crop.max())
    return (crop.astype(np.float32) - low) / max(high - low, 1e-12)

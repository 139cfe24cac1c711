"""The result of an evaluation, for Python and notebooks."""

import html
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from urnet.html_pages import format_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, repr=False)
class Evaluation:
    """The result of an evaluation. In a notebook it shows the judgement, the classes and the confusion matrix.

    Attributes:
        folder: folder with `metrics.json`, `predictions.csv`, `figures/` and `report.html`.
        metrics: content of `metrics.json`.
        predictions: content of `predictions.csv`: one row per image with `path`, `label`, `predicted` and `p_<class>`.

    Example:
        >>> evaluation = urnet.evaluate("run")  # doctest: +SKIP
        >>> evaluation.classes["recall"]  # doctest: +SKIP
        >>> evaluation.plot().savefig("confusion.png")  # doctest: +SKIP
    """

    folder: Path
    metrics: dict[str, Any]
    predictions: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.folder / "report.html"

    @property
    def judgement(self) -> str:
        """The sentences that open the report."""
        judgement = self.metrics["judgement"]
        return " ".join(judgement[key] for key in ("accuracy", "confusion", "data", "verdict"))

    @property
    def classes(self) -> pd.DataFrame:
        """One row per class.

        Columns: `cells`, then `recall`, `precision` and `f1`, each with the ends of its 95 % interval (`…_low`,
        `…_high`), as fractions. Undefined values are NaN.
        """
        rows = {}
        for name, figures in self.metrics["per_class"].items():
            row: dict[str, Any] = {"cells": figures["support"]}
            for key in ("recall", "precision", "f1"):
                row[key] = figures[key]["value"]
                row[f"{key}_low"], row[f"{key}_high"] = figures[key]["interval"] or (None, None)
            rows[name] = row
        frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("class")
        return frame.astype({column: float for column in frame if column != "cells"})

    @property
    def confusion_matrix(self) -> pd.DataFrame:
        """Number of cells: a row per true class, a column per predicted class."""
        names = self.metrics["classes"]
        index, columns = pd.Index(names, name="true"), pd.Index(names, name="predicted")
        return pd.DataFrame(self.metrics["confusion_matrix"], index=index, columns=columns)

    def plot(self) -> "Figure":
        """Draw the confusion matrix."""
        from urnet.evaluation.figures import draw_confusion_matrix

        return draw_confusion_matrix(self.metrics["confusion_matrix"], self.metrics["classes"])

    def __repr__(self) -> str:
        accuracy = format_interval(self.metrics["accuracy"])
        return (
            f"<Evaluation of {self.metrics['recipe']} on {self.metrics['part']}: {self.metrics['n']:,} cells, "
            f"accuracy {accuracy} %, report {self.report}>"
        )

    def _repr_html_(self) -> str:
        percent = self.classes.mul({column: 1 if column == "cells" else 100 for column in self.classes}).round(1)
        tables = percent.rename(columns=lambda name: name if name == "cells" else f"{name}, %"), self.confusion_matrix
        shown = "".join(frame.to_html() for frame in tables)
        return f"<p>{html.escape(self.judgement)}</p>{shown}<p>Report: {html.escape(str(self.report))}</p>"

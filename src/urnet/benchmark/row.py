"""One row of a comparison: a recipe and the results of its runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from urnet.recipe import Recipe


@dataclass(frozen=True, eq=False)
class ResultRow:
    """A recipe with its results, pooled over folds and seeds.

    Attributes:
        name: key of the row: `net4`, `resunet-vgg16`.
        title: name in tables and figures: `Net4`, `ResUNet + VGG16`.
        recipe: recipe of its runs, apart from seed and fold.
        runs: one row per run: `seed`, `repeat`, `fold`, `status` (`done`, `failed` or `missing`), `error`; for finished
            runs also `accuracy`, `macro_recall`, `train_seconds`, `images_per_second`, `epoch`.
        predictions: one row per test cell and seed: `path`, `label`, `predicted`, `p_<class>`, `source`, `seed`,
            `repeat`, `fold`; `donor` and `cam_share` if known. Empty if no run is finished.
        history: one row per epoch: `seed`, `repeat`, `fold` and the columns of a run's history.csv.
        metrics: from `urnet.evaluation.metrics.score`; None if no run is finished.
        parameters, macs: of enhancer and classifier together, for one image at the input size.
        device: GPU or processor of the training.
        examples: a few cells, the same for every row: `raw` and `enhanced` (M, C, S, S), `label` (M,); `cam` (M, S, S)
            if the classifier has feature maps. Empty if there are none.
    """

    name: str
    title: str
    recipe: Recipe
    runs: pd.DataFrame
    predictions: pd.DataFrame
    history: pd.DataFrame
    metrics: dict[str, Any] | None
    parameters: int
    macs: int
    device: str
    examples: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every run is finished."""
        return bool((self.runs["status"] == "done").all())

    def mean(self, column: str) -> float:
        """Compute the mean of a column of `runs` over the finished runs; NaN if there is none."""
        return float(self.runs.loc[self.runs["status"] == "done", column].astype(float).mean())


def describe_run(run: Mapping[str, Any]) -> str:
    """Name one run of a row: its seed, its fold, and its repeat if it is not the first one."""
    repeat = f"repeat {run['repeat']}, " if run.get("repeat") else ""
    return f"seed {run['seed']}, {repeat}fold {run['fold']}"

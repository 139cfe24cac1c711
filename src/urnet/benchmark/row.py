"""One row of a comparison: a recipe, and what all its runs gave."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from urnet.recipe import Recipe


@dataclass(frozen=True, eq=False)
class ResultRow:
    """A recipe and its runs, pooled over folds and seeds.

    Attributes:
        name: key of the row: `net4`, `resunet-vgg16`.
        title: what tables and figures print: `Net4`, `ResUNet + VGG16`.
        recipe: of its runs, apart from seed and fold.
        runs: a row a run: `seed, fold, status, error`, and of those done `accuracy, macro_recall, train_seconds,
            images_per_second, epoch`. `status` is `done`, `failed` or `missing`.
        predictions: a row a tested cell and seed: `path, label, predicted, p_<class>…, source, seed, fold`, where known
            `donor` and `cam_share`. Empty while no run is done.
        history: a row an epoch: `seed, fold` before the columns of a run's history.csv.
        metrics: of the predictions, as `urnet.evaluation.metrics.score` gives them; none while no run is done.
        parameters, macs: of enhancer and classifier together, for one image at the input size.
        device: what it was trained on.
        examples: the same few cells for every row of a comparison: `raw`, `enhanced` (M, C, S, S), `label` (M,) and,
            where the classifier has feature maps, `cam` (M, S, S). Empty while there are none.
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
        """Whether every run is done."""
        return bool((self.runs["status"] == "done").all())

    def mean(self, column: str) -> float:
        """Mean of a column of `runs` over the runs that are done; NaN without any."""
        return float(self.runs.loc[self.runs["status"] == "done", column].astype(float).mean())

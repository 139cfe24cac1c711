"""Propose granulocyte, monocyte or lymphocyte from the nucleus, for a person to confirm. A proposal is never a label.

`propose` is a textbook rule, the same for every laboratory. `fit_proposer` trains a classifier on a few cells that a
person has labelled, with any classes.

The rule is the table `TEXTBOOK`: the typical value and the deviation of each feature of the nucleus, for each class. It
is a naive Bayes classifier with equal priors. Features that a cell lacks are left out: the sizes in µm without a pixel
size, and the share of the nucleus in the cell without a mask. A further class, "other", has a uniform likelihood, and
lowers the confidence where no class fits.

Sources: B. J. Bain, "Blood Cells: A Practical Guide", 5th ed., 2015, chapter 3, and B. F. Rodak and J. H. Carr,
"Clinical Hematology Atlas", 5th ed., 2017 (diameters, N:C ratios, shapes: a small lymphocyte's nucleus is about as wide
as a red cell; segmented granulocytes have N:C 1:3 and two to five lobes, bands 1:2; lymphocytes 2:1 to 5:1; that of
monocytes varies, taken here as 1:2 to 2:1, and their nucleus is kidney- or horseshoe-shaped); J. Arneth, "Die
neutrophilen weißen Blutkörperchen bei Infektions-Krankheiten", Jena 1904 (number of lobes); G. W. Schmid-Schönbein,
Y. Y. Shih and S. Chien, "Morphometry of human leukocytes", Blood 56, 866, 1980 (cells in suspension are smaller than on
a smear).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from urnet.errors import CellsError
from urnet.fields.labels.nuclear_features import FEATURES

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

CLASSES = ("granulocyte", "lymphocyte", "monocyte")

TEXTBOOK: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float], float]] = {
    # feature: (typical value, deviation) of a granulocyte, a lymphocyte, a monocyte; range of all values
    # N:C 1:3 to 1:2; 2:1 to 5:1; 1:2 to 2:1. The outlines of nucleus and cell add 0.07.
    "ratio": ((0.29, 0.08), (0.75, 0.11), (0.50, 0.18), 1.0),
    # Two to five equal lobes: 1/√n, in Arneth's frequencies; a disc, to an oval of 1.2:1; from a bean to a horseshoe.
    "thickness": ((0.58, 0.09), (0.96, 0.05), (0.75, 0.12), 0.7),
    # From the smallest in suspension to the largest on a smear.
    "cell_diameter_um": ((11.5, 3.5), (9.0, 3.0), (15.0, 5.0), 25.0),
    # The same times the root of the N:C share. Used without a mask only: with one it adds nothing to the others.
    "diameter_um": ((6.2, 1.7), (7.0, 2.0), (9.7, 3.2), 15.0),
}
"""Textbook values of each feature, in the order of `CLASSES`."""

LOBE_FREQUENCIES = {
    # 1, 2, 3, 4, 5 and more. Arneth's 5, 35, 41, 17 and 2 %, half of each seen as one less, since lobes lie over one
    # another and filaments are thinner than the optics resolve; folded monocytes and cleft lymphocytes look lobed.
    "granulocyte": (0.225, 0.38, 0.29, 0.095, 0.01),
    "lymphocyte": (0.97, 0.02, 0.005, 0.0025, 0.0025),
    "monocyte": (0.87, 0.10, 0.02, 0.005, 0.005),
}
"""Frequencies of 1, 2, 3, 4, and 5 or more visible lobes, by class."""

OTHER_PRIOR = 0.05
"""Prior probability that a nucleus is of none of the classes."""

CLASSIFIER_FEATURES = (
    "ratio",
    "lobes",
    "neck",
    "thickness",
    "roundness",
    "solidity",
    "elongation",
    "concavity",
    "concavities",
    "branches",
    "skeleton",
    "texture",
    "cell_diameter_um",
    "diameter_um",
)
"""Features of a trained classifier, where the labelled cells have them; `area` in px² replaces unknown sizes in µm.

Brightness is left out: it changes with exposure and staining from slide to slide."""

MIN_LABELLED_PER_CLASS = 3
"""Smallest number of labelled cells per class for a cross-validated confidence."""


def feature_table(features: Sequence[dict[str, float] | None]) -> pd.DataFrame:
    """Arrange the features of cells in a table.

    Args:
        features: result of `nuclear_features` for each cell.

    Returns:
        One row per cell with the columns of `FEATURES`, all NaN where there is no nucleus.
    """
    return pd.DataFrame([row or {} for row in features], columns=list(FEATURES), dtype=float)


def propose(features: pd.DataFrame) -> pd.DataFrame:
    """Propose a class for each cell by the textbook rule.

    Args:
        features: one row per cell, from `feature_table`.

    Returns:
        `proposed`, one of `CLASSES`, and `confidence`, 0 to 1, with the index of `features`; `""` and 0 where there is
        no nucleus. Where no class fits, the nearest class is proposed with a confidence below 0.5.

    Raises:
        CellsError: a column is missing.
    """
    _check_columns(features, [*TEXTBOOK, "lobes"])
    evidence = np.tile(np.append(np.zeros(len(CLASSES)), np.log(OTHER_PRIOR)), (len(features), 1))  # (N, K + 1)
    evidence[:, :-1] += np.log((1 - OTHER_PRIOR) / len(CLASSES))
    masked = features["ratio"].notna().to_numpy()
    for name, (*typical, span) in TEXTBOOK.items():
        value = features[name].to_numpy(float)
        if name == "diameter_um":
            value = np.where(masked, np.nan, value)
        middle, deviation = np.array(typical).T
        fit = -(((value[:, None] - middle) / deviation) ** 2) / 2 - np.log(deviation * np.sqrt(2 * np.pi))
        evidence += np.nan_to_num(np.column_stack([fit, np.where(np.isnan(value), 0, -np.log(span))]))
    lobes = np.clip(features["lobes"].fillna(1).to_numpy(), 1, 5).astype(int) - 1
    often = np.array([*(LOBE_FREQUENCIES[name] for name in CLASSES), (0.2,) * 5])  # (K + 1, 5)
    evidence += np.log(often[:, lobes]).T
    probabilities = np.exp(evidence - evidence.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return _table(probabilities[:, :-1], CLASSES, features)


@dataclass(frozen=True)
class Proposer:
    """A classifier of nuclei, trained on a few labelled cells.

    Args:
        classes: the K classes, sorted.
        columns: features that the classifier uses.
        agreement: cross-validated macro recall on the labelled cells.
        temperature: divisor of the scores that calibrates the confidence.
    """

    classes: tuple[str, ...]
    columns: tuple[str, ...]
    agreement: float
    temperature: float
    _pipeline: "Pipeline"

    def propose(self, features: pd.DataFrame) -> pd.DataFrame:
        """Propose a class for each cell, as the function `propose` does.

        Args:
            features: one row per cell, from `feature_table`.

        Raises:
            CellsError: a column of the training is missing, or NaN for all cells.
        """
        from scipy.special import softmax

        _check_columns(features, ["area", *self.columns])
        here = features["area"].notna()
        unknown = [name for name in self.columns if here.any() and features.loc[here, name].isna().all()]
        if unknown:
            raise CellsError(
                f"the labelled cells have {', '.join(unknown)}, which none of these cells has. Give these cells a mask "
                "and a pixel size as well, or label cells without",
                code="fields.features_missing",
            )
        probabilities = np.full((len(features), len(self.classes)), np.nan)
        if here.any():
            scores = self._pipeline.predict_log_proba(features.loc[here, list(self.columns)])
            probabilities[here] = softmax(scores / self.temperature, axis=1)
        return _table(probabilities, self.classes, features)


def fit_proposer(features: pd.DataFrame, labels: Sequence[str]) -> Proposer:
    """Train a logistic regression on the nuclei of labelled cells, with a cross-validated confidence.

    The confidence is a softmax whose temperature is fitted to the cross-validated scores. Its targets are a little
    below 1 (after J. Platt, Advances in Large Margin Classifiers, 1999, section 2), so that a few correct cells do not
    lead to certainty.

    Args:
        features: one row per cell, from `feature_table`.
        labels: label of each cell; cells with the label `""` and cells without a nucleus are ignored.

    Raises:
        CellsError: the lengths differ, there are fewer than two classes, or a class has too few cells.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax
    from sklearn.metrics import recall_score
    from sklearn.model_selection import StratifiedKFold

    if len(features) != len(labels):
        raise CellsError(
            f"{len(features)} cells with {len(labels)} labels; each cell needs one, which may be empty",
            code="fields.label_count",
        )
    _check_columns(features, ["area", *CLASSIFIER_FEATURES])
    names = np.array([str(label) for label in labels], dtype=object)
    usable = features["area"].notna().to_numpy() & (names != "")
    features, names = features[usable], names[usable]
    classes, truth, counts = np.unique(names.astype(str), return_inverse=True, return_counts=True)
    few = [f"{name} ({count})" for name, count in zip(classes, counts, strict=True) if count < MIN_LABELLED_PER_CLASS]
    if len(classes) < 2 or few:
        counted = ", ".join(few) or f"{len(classes)} class(es)"
        raise CellsError(
            f"labelled cells with a nucleus: {counted}; a classifier needs at least two classes with "
            f"{MIN_LABELLED_PER_CLASS} cells each. Label more cells, or use the textbook rule",
            code="fields.too_few_labelled",
        )
    known = features.notna().all()
    columns = [name for name in CLASSIFIER_FEATURES if known[name]]
    columns += [] if known["diameter_um"] else ["area"]
    given = features[columns]

    folds = StratifiedKFold(int(min(5, counts.min())), shuffle=True, random_state=0)
    scores = np.empty((len(given), len(classes)))
    for train, test in folds.split(given, truth):
        scores[test] = _pipeline().fit(given.iloc[train], truth[train]).predict_log_proba(given.iloc[test])
    # If all N cells are right, the estimated probability that the next one is right is (N + 1) / (N + 2).
    right = (len(truth) + 1) / (len(truth) + 2)
    targets = np.full(scores.shape, (1 - right) / (len(classes) - 1))  # (N, K)
    targets[np.arange(len(truth)), truth] = right
    fitted = minimize_scalar(
        lambda power: -(targets * log_softmax(scores / np.exp(power), axis=1)).sum(),
        bounds=(-np.log(8), np.log(8)),
        method="bounded",
    )
    return Proposer(
        classes=tuple(map(str, classes)),
        columns=tuple(columns),
        agreement=float(recall_score(truth, scores.argmax(axis=1), average="macro")),
        temperature=float(np.exp(fitted.x)),
        _pipeline=_pipeline().fit(given, truth),
    )


def _pipeline() -> "Pipeline":
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(
        SimpleImputer(strategy="median", keep_empty_features=True),
        StandardScaler(),
        LogisticRegression(class_weight="balanced", max_iter=2000),
    )


def _table(probabilities: np.ndarray, classes: Sequence[str], features: pd.DataFrame) -> pd.DataFrame:
    """Return the best class and its probability; `""` and 0 without a nucleus."""
    here = features["area"].notna().to_numpy()
    probabilities = np.where(here[:, None], probabilities, 0.0)
    best = probabilities.argmax(axis=1) if len(features) else np.zeros(0, dtype=int)
    proposed = np.where(here, np.array(classes, dtype=object)[best], "")
    return pd.DataFrame({"proposed": proposed, "confidence": probabilities.max(axis=1)}, index=features.index)


def _check_columns(features: pd.DataFrame, needed: Sequence[str]) -> None:
    missing = [name for name in needed if name not in features]
    if missing:
        raise CellsError(
            f"the features lack {', '.join(missing)}; build them with feature_table(nuclear_features(…))",
            code="fields.features_missing",
        )

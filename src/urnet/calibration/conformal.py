"""Split conformal prediction: sets of classes that hold the true class at a chosen rate, for each class.

The score of a cell for a class is 1 − p(class) (Sadinle, Lei and Wasserman, J. Am. Stat. Assoc. 114, 223, 2019). A
class is in the set of a cell if its score is at most a quantile of the scores of held-out cells of that class
(Mondrian; Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005, section 4.5), so that the rate
also holds for rare classes. It holds on average, for cells drawn like the held-out ones: not for another microscope,
and not for crops without a cell. Nothing may have been chosen on the held-out cells, neither the network's epoch nor
the temperature: that costs the rate one to three points.

Where the held-out cells themselves are judged, each gets its set from the scores of the others (`cross_sets`; Vovk,
"Cross-conformal predictors", Ann. Math. Artif. Intell. 74, 2015, with one network for all folds).
"""

import re
from collections.abc import Iterable, Sequence
from itertools import compress

import numpy as np

COVERAGE = 0.9
"""Default share of each class's cells whose prediction set holds the true class."""
FOLDS = 10
"""Maximum number of folds of the held-out cells, where they are judged by each other."""


def describe_coverage(coverage: float) -> str:
    """Describe what a prediction set guarantees.

    Args:
        coverage: share of each class's cells whose set holds the true class.
    """
    return f"the true class is among them for at least {100 * coverage:g} % of cells like those of the calibration"


def join_set(names: Iterable[str]) -> str:
    r"""Join class names by `|` into the text of a prediction set; `|` and `\` in a name become `\|` and `\\`."""
    return "|".join(re.sub(r"([|\\])", r"\\\1", name) for name in names)


def name_sets(sets: np.ndarray, classes: Sequence[str]) -> list[str]:
    """Write prediction sets (N, K) as text, with `join_set`."""
    return [join_set(compress(classes, row)) for row in sets]


def split_set(text: str) -> list[str]:
    """Read the class names of a prediction set that `join_set` wrote."""
    return [re.sub(r"\\(.)", r"\1", name) for name in re.findall(r"(?:[^|\\]|\\.)+", text)]


def conformal_scores(probabilities: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """Compute the scores of held-out cells for their own class.

    Args:
        probabilities: (N, K).
        labels: (N,) class indices.

    Returns:
        For each class, the scores 1 − p(class) of its cells, (N_k,) ascending, float64.
    """
    return [np.sort(1 - probabilities[labels == k, k]) for k in range(probabilities.shape[1])]


def conformal_quantile(scores: np.ndarray, coverage: float) -> float:
    """Find the smallest score that at least a share `coverage` of new scores do not exceed, on average.

    Args:
        scores: (N,) ascending, of held-out cells.
        coverage: in (0, 1).

    Returns:
        The ⌈(N + 1)·coverage⌉-th smallest score; infinity if there are too few scores.
    """
    rank = int(np.ceil((len(scores) + 1) * coverage - 1e-9))
    return float(scores[rank - 1]) if rank <= len(scores) else np.inf


def prediction_sets(probabilities: np.ndarray, scores: Sequence[np.ndarray], coverage: float) -> np.ndarray:
    """Find the classes that cannot be ruled out.

    Args:
        probabilities: (N, K) of new cells.
        scores: of each class, from `conformal_scores`.
        coverage: share of each class's cells whose set holds it, in (0, 1).

    Returns:
        (N, K) booleans. The most probable class is always in the set; so is a class with too few held-out cells.

    Raises:
        ValueError: the coverage is not between 0 and 1.
    """
    if not 0 < coverage < 1:
        raise ValueError(f"coverage is {coverage}; it must lie between 0 and 1, as 0.9")
    limits = np.array([conformal_quantile(s, coverage) for s in scores])  # (K,)
    sets = 1 - probabilities <= limits + 1e-12
    sets[np.arange(len(sets)), probabilities.argmax(axis=1)] = True
    return sets


def cross_sets(probabilities: np.ndarray, labels: np.ndarray, groups: np.ndarray, coverage: float) -> np.ndarray:
    """Find the classes that cannot be ruled out for held-out cells, each by the scores of the cells of other groups.

    Args:
        probabilities: (N, K) of the held-out cells.
        labels: (N,) class indices.
        groups: (N,) what belongs together, such as donors or source images. More than `FOLDS` groups are put together
            into as many folds.
        coverage: share of each class's cells whose set holds it, in (0, 1).

    Returns:
        (N, K) booleans, as `prediction_sets`.
    """
    codes = np.unique(groups, return_inverse=True)[1]
    order = np.random.default_rng(0).permutation(codes.max(initial=0) + 1)
    folds = order[codes] % FOLDS
    sets = np.empty(probabilities.shape, dtype=bool)
    for fold in np.unique(folds):
        inside = folds == fold
        scores = conformal_scores(probabilities[~inside], labels[~inside])
        sets[inside] = prediction_sets(probabilities[inside], scores, coverage)
    return sets

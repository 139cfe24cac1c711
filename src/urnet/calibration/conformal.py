"""Sets of classes that hold the true one at a chosen rate, class by class: split conformal prediction.

A class is in the set of a cell unless the cell speaks against it more than most held-out cells of that class did
against theirs. The score is 1 − p(class) (Sadinle, Lei and Wasserman, J. Am. Stat. Assoc. 114, 223, 2019), the quantile
is taken for each class on its own (Mondrian; Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World",
2005, section 4.5), so that the rate holds for rare classes too. It holds for cells drawn as the held-out ones were, on
average over such draws: not for another microscope, and not for what is no cell.
"""

import re
from collections.abc import Iterable, Sequence

import numpy as np

COVERAGE = 0.9
"""Share of each class's cells whose prediction set holds it, unless another is asked for."""


def describe_coverage(coverage: float) -> str:
    """What a prediction set promises, in words.

    Args:
        coverage: that was asked for.
    """
    return f"the true class is among them for at least {100 * coverage:g} % of cells like those calibrated on"


def join_set(names: Iterable[str]) -> str:
    r"""Join class names by `|`, as tables show a prediction set; `|` and `\` in a name become `\|` and `\\`."""
    return "|".join(re.sub(r"([|\\])", r"\\\1", name) for name in names)


def split_set(text: str) -> list[str]:
    """Read the class names of a prediction set that `join_set` wrote."""
    return [re.sub(r"\\(.)", r"\1", name) for name in re.findall(r"(?:[^|\\]|\\.)+", text)]


def conformal_scores(probabilities: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """What held-out cells say against their own class.

    Args:
        probabilities: (N, K).
        labels: (N,) class indices.

    Returns:
        For each class the scores 1 − p(class) of its cells, (N_k,) ascending, float64.
    """
    return [np.sort(1 - probabilities[labels == k, k]) for k in range(probabilities.shape[1])]


def conformal_quantile(scores: np.ndarray, coverage: float) -> float:
    """The least score that at least a share `coverage` of new scores stay within, on average.

    Args:
        scores: (N,) ascending, of held-out cells.
        coverage: in (0, 1).

    Returns:
        The ⌈(N + 1)·coverage⌉-th least; infinity where there are too few to tell.
    """
    rank = int(np.ceil((len(scores) + 1) * coverage - 1e-9))
    return float(scores[rank - 1]) if rank <= len(scores) else np.inf


def prediction_sets(probabilities: np.ndarray, scores: Sequence[np.ndarray], coverage: float) -> np.ndarray:
    """The classes that cannot be ruled out.

    Args:
        probabilities: (N, K) of new cells.
        scores: of each class, from `conformal_scores`.
        coverage: share of each class's cells whose set holds it, in (0, 1).

    Returns:
        (N, K) booleans. The most probable class is always in the set; a class with too few held-out cells as well.

    Raises:
        ValueError: the coverage is not between 0 and 1.
    """
    if not 0 < coverage < 1:
        raise ValueError(f"coverage is {coverage}; it must lie between 0 and 1, as 0.9")
    limits = np.array([conformal_quantile(s, coverage) for s in scores])  # (K,)
    sets = 1 - probabilities <= limits + 1e-12
    sets[np.arange(len(sets)), probabilities.argmax(axis=1)] = True
    return sets

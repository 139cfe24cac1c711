"""Agreement of labellers: Cohen's kappa of each two of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations


@dataclass(frozen=True)
class Agreement:
    """Agreement of two labellers on the cells that both labelled.

    Attributes:
        first, second: names of the labellers.
        cells: number of cells that both labelled.
        agreed: number of cells with equal labels.
        kappa: Cohen's kappa; none where it is undefined.
    """

    first: str
    second: str
    cells: int
    agreed: int
    kappa: float | None


def measure_agreement(labels: Mapping[str, Mapping[str, str]]) -> list[Agreement]:
    """Compute Cohen's kappa (Cohen 1960) of each two labellers who labelled the same cells.

    Args:
        labels: for each labeller, the label of each cell.
    """
    agreements = []
    for first, second in combinations(sorted(labels), 2):
        both = sorted(labels[first].keys() & labels[second].keys())
        if both:
            ours, theirs = ([labels[name][cell] for cell in both] for name in (first, second))
            agreed = sum(one == other for one, other in zip(ours, theirs, strict=True))
            agreements.append(Agreement(first, second, len(both), agreed, _kappa(ours, theirs)))
    return agreements


def _kappa(ours: list[str], theirs: list[str]) -> float | None:
    """Compute Cohen's kappa; none where agreement by chance is certain."""
    from sklearn.metrics import cohen_kappa_score

    return None if len({*ours, *theirs}) == 1 else float(cohen_kappa_score(ours, theirs))

"""Texts of a sample's shares: one name and one format for each figure, in reports, on pages and on the command line."""

import math
from dataclasses import dataclass

import numpy as np

from urnet.counting.sample import Sample
from urnet.html_pages import NO_VALUE
from urnet.statistics.proportions import counting_limits

COUNTED = "Counted"
"""Column for the number of accepted cells that the model called a class."""
COUNTED_PERCENT = "Counted, %"
"""Column for their share of all accepted cells, not corrected."""
CORRECTED_PERCENT = "Corrected, % (95 % interval)"
"""Column for the estimate: the adjusted count, which corrects for the model's confusion and rejection."""
EYE_COUNTS = (100, 200, 500)
"""Numbers of cells that laboratories count by eye."""
EXPLANATION = (
    "Counted: cells that the model called this class. Corrected: the estimate of their share, given how often the "
    "model confuses and rejects cells of each class. Use the corrected share."
)
"""Explanation of the three columns."""


@dataclass(frozen=True)
class ShareTexts:
    """Texts of one class of a sample.

    Attributes:
        name: the class.
        counted: number of accepted cells that the model called this class.
        counted_percent: their share in per cent, or a dash.
        corrected_percent: the estimate in per cent, or a dash.
        interval: its 95 % interval in per cent, `2.1–5.3`.
        by_eye: 95 % limits in per cent of the same share, counted by eye without a mistake in each of `EYE_COUNTS`
            cells; dashes without cells.
    """

    name: str
    counted: str
    counted_percent: str
    corrected_percent: str
    interval: str
    by_eye: tuple[str, ...]

    @property
    def corrected(self) -> str:
        """The estimate with its interval, `3.4 (2.1–5.3)`; a dash if it is not known."""
        return NO_VALUE if self.corrected_percent == NO_VALUE else f"{self.corrected_percent} ({self.interval})"


def list_share_texts(sample: Sample) -> list[ShareTexts]:
    """Format the shares of a sample, a class after the other.

    Args:
        sample: the counted sample.

    Example:
        >>> sample = count_sample("s", np.eye(2)[[0, 0, 1]], ["", "", ""], np.array([[9, 1, 0], [1, 9, 0]]), ("a", "b"))
        >>> [texts.counted for texts in list_share_texts(sample)]
        ['2', '1']
    """
    return [
        ShareTexts(
            name,
            f"{int(sample.counts[k]):,}",
            format_percent(sample.raw[k]),
            format_percent(sample.adjusted[k]),
            _format_ends(sample.adjusted_interval[k]),
            tuple(
                NO_VALUE
                if math.isnan(sample.adjusted[k])
                else _format_ends(counting_limits(sample.adjusted[k : k + 1], cells)[0])
                for cells in EYE_COUNTS
            ),
        )
        for k, name in enumerate(sample.classes)
    ]


def format_percent(share: float) -> str:
    """Format a share in per cent with one decimal; a dash where it is not known."""
    return NO_VALUE if math.isnan(share) else f"{100 * share:.1f}"


def _format_ends(ends: np.ndarray) -> str:
    return "–".join(f"{100 * end:.1f}" for end in ends)

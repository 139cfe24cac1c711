"""Convergence: find rows whose training was stopped while the validation loss was still falling."""

import math
from collections.abc import Sequence

import pandas as pd

from urnet.benchmark.row import ResultRow

LAST = 0.2
"""Share of the epochs, at the end, in which the loss of a converged training is flat."""
FLAT = 0.02
"""Largest gain in these epochs, as a share of the gain of the whole training, that counts as flat."""


def warn_undertrained(entries: Sequence[ResultRow]) -> list[str]:
    """Write a sentence that names the undertrained rows; none if there are none.

    Args:
        entries: rows of a comparison. Rows with fewer than five epochs are not judged.
    """
    titles = [entry.title for entry in entries if len(entry.history) and is_undertrained(entry.history)]
    if not titles:
        return []
    return [
        f"Undertrained: the validation loss of {', '.join(titles)} was still falling in the last fifth of the epochs. "
        "With more epochs the differences can change."
    ]


def is_undertrained(history: pd.DataFrame) -> bool:
    """Return whether the validation loss, as a mean over runs, gained in the last fifth of the epochs.

    Args:
        history: one row per epoch and run: `stage`, `epoch`, `validation_loss`.
    """
    rows = history[history["stage"] == "train"]
    loss = rows.groupby("epoch")["validation_loss"].mean().dropna().to_numpy()
    last = math.ceil(LAST * len(loss))
    if len(loss) < 1 / LAST:
        return False
    before, after = loss[:-last].min(), loss[-last:].min()
    return bool(before - after > FLAT * (loss[0] - after))

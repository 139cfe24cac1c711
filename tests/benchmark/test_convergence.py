"""Undertrained rows are found by their validation loss."""

import numpy as np
import pandas as pd
import pytest

from urnet.benchmark.convergence import is_undertrained
from urnet.benchmark.render import TableData, to_latex, to_markdown


def history(*losses: np.ndarray) -> pd.DataFrame:
    frames = [
        pd.DataFrame({"stage": "train", "epoch": np.arange(1, len(loss) + 1), "validation_loss": loss, "fold": fold})
        for fold, loss in enumerate(losses)
    ]
    return pd.concat([pd.DataFrame({"stage": ["pretrain"], "epoch": [1], "validation_loss": [0.1]}), *frames])


@pytest.mark.parametrize(
    ("loss", "undertrained"),
    [
        (np.linspace(1, 0.2, 20), True),
        (0.2 + 0.8 * np.exp(-np.arange(20)), False),
        (np.r_[np.linspace(1, 0.2, 10), np.linspace(0.2, 0.4, 10)], False),  # overfitted: the best epoch is chosen
        (np.linspace(1, 0.2, 4), False),  # too short to be judged
        (np.full(20, np.nan), False),
    ],
)
def test_a_loss_that_falls_in_the_last_fifth_of_the_epochs_is_undertrained(loss, undertrained):
    assert is_undertrained(history(loss)) == undertrained
    assert is_undertrained(history(loss, loss)) == undertrained


def test_the_warning_stands_above_the_table():
    table = TableData("Table", [["Model", "%"]], [["Net1", "1.0"]], ["note"], ["Undertrained: Net1."])
    for text in (to_markdown(table), to_latex(table)):
        assert text.index("Undertrained") < text.index("Model") < text.rindex("note")

"""Intervals of one model's metrics over donors.

The columns of the table are the constants of a line, then per metric the coverage in per cent and the mean length
relative to an oracle.
"""

import numpy as np
import pandas as pd

DONORS = (8, 12, 20)


def run(replicates: int, rng: np.random.Generator) -> pd.DataFrame:
    """Simulate all lines.

    Args:
        replicates: number of simulated tests per line.
        rng: source of all random numbers.
    """
    return pd.DataFrame({"donors": list(DONORS), "replicates": replicates})

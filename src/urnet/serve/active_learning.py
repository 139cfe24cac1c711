"""Which cells are worth a person's look first: those that the model is least sure of, and of these no two alike."""

import numpy as np

BAND_CELLS = 500
"""Cells of about the same uncertainty, among which the most different come first."""

PROJECTED_DIMENSIONS = 64
"""Features are projected onto so many random directions, which keeps their distances (Johnson and Lindenstrauss)."""


def compute_uncertainty(probabilities: np.ndarray) -> np.ndarray:
    """How unsure a model is, 1 minus the margin between its first two classes.

    Scheffer, Decomain and Wrobel, "Active hidden Markov models for information extraction", IDA 2001.

    Args:
        probabilities: (N, K).

    Returns:
        (N,) 0 where it is sure, 1 where two classes are equally likely.
    """
    second, first = np.sort(probabilities, axis=1)[:, -2:].T
    return 1.0 - (first - second)


def project_features(features: np.ndarray) -> np.ndarray:
    """Features as short vectors of about the same distances; the same ones at every call.

    Args:
        features: (N, F).

    Returns:
        (N, D) float32, of rows that had length 1.
    """
    rows = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    directions = np.random.default_rng(0).standard_normal((features.shape[1], PROJECTED_DIMENSIONS)) / np.sqrt(
        PROJECTED_DIMENSIONS
    )
    return (rows @ directions).astype(np.float32)


def rank_cells(unsure: np.ndarray, features: np.ndarray, band: int = BAND_CELLS) -> np.ndarray:
    """Uncertainty first, in bands, then diversity within each.

    A band begins with its most uncertain cell and goes on with the one farthest from all before it (greedy k-centre:
    Sener and Savarese, "Active learning for convolutional neural networks: a core-set approach", ICLR 2018).

    Args:
        unsure: (N,) from `compute_uncertainty`.
        features: (N, D) from `project_features`.
        band: cells that count as equally uncertain.

    Returns:
        (N,) indices, the most informative first.
    """
    falling = np.argsort(-unsure, kind="stable")
    bands = [falling[start : start + band] for start in range(0, len(falling), band)]
    return np.concatenate([chosen[_farthest_first(features[chosen])] for chosen in bands] or [falling])


def _farthest_first(points: np.ndarray) -> np.ndarray:
    """Indices of points (M, D), the first one first, then always the one farthest from those taken."""
    order = np.zeros(len(points), dtype=np.int64)
    nearest = np.full(len(points), np.inf)
    for place in range(1, len(points)):
        last = order[place - 1]
        nearest = np.minimum(nearest, np.square(points - points[last]).sum(axis=1))
        nearest[last] = -1.0  # taken
        order[place] = nearest.argmax()
    return order

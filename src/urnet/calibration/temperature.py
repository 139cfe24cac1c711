"""Temperature scaling: one number that calibrates the probabilities.

C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, section 4.2,
https://arxiv.org/abs/1706.04599. Dividing all logits by one positive number changes no decision.
"""

import numpy as np

_LOG_TEMPERATURE_LIMITS = (-4.0, 7.0)
"""Limits of the logarithm of the temperature; logits reach hundreds after few batches of batch normalisation."""


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Find the temperature with the lowest cross-entropy.

    The labels are smoothed by the weight of one cell in N + 2 (after Platt, 1999), so that a few cells without a
    mistake do not lead to certainty. Among many cells this makes no difference.

    Args:
        logits: (N, K), of cells that were not used in training.
        labels: (N,) class indices.

    Returns:
        The number that divides the logits: above 1 for an overconfident network, and 1 without cells.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    N, K = logits.shape
    if not N:
        return 1.0
    smoothing = 1 / (N + 2)
    targets = np.full((N, K), smoothing / K)
    targets[np.arange(N), labels] += 1 - smoothing

    def loss(log: float) -> float:
        return -float((targets * log_softmax(logits.astype(np.float64) / np.exp(log), axis=1)).sum(axis=1).mean())

    return float(np.exp(minimize_scalar(loss, bounds=_LOG_TEMPERATURE_LIMITS, method="bounded").x))


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Compute the softmax of logits (N, K) divided by a temperature, in float64, which keeps close classes apart."""
    from scipy import special

    return special.softmax(np.asarray(logits, dtype=np.float64) / temperature, axis=1)

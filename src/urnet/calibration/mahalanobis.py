"""Mahalanobis distance of a cell from the training cells, in a trained network's features.

K. Lee, K. Lee, H. Lee, J. Shin, "A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial
Attacks", NeurIPS 2018, https://arxiv.org/abs/1807.03888: Mahalanobis distances at several depths of the network. Here
one Gaussian describes the training cells at each depth, not one for each class. The largest distance counts, because
the last layers learn to ignore differences that the first layers show. `benchmarks/rejection.py` compares other choices
on debris, empty spots and badly taken cells (docs/results).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from urnet.errors import RunError

EXPLAINED_VARIANCE = 0.99
"""Share of the features' variance that the principal components explain."""

MIN_CELLS_PER_COMPONENT = 8
"""Minimum number of training cells per principal component."""


@dataclass(frozen=True, eq=False)
class MahalanobisDistance:
    """A Gaussian at each depth of a network.

    Attributes:
        centre: (F,) float32, mean of the training cells' features; all depths in one row.
        whiten: for each depth (D, F_d) float32; maps centred features to unit variance.
        spread: (depths, 2) mean and standard deviation of the logarithm of the training cells' distances.
    """

    centre: np.ndarray
    whiten: tuple[np.ndarray, ...]
    spread: np.ndarray

    def measure(self, features: np.ndarray) -> np.ndarray:
        """Measure cells with features (N, F), in standard deviations of the log distance of training cells, (N,).

        0 is a typical training cell. The depth with the largest distance counts.

        Raises:
            RunError: the network has another number of features (code `model.calibration_invalid`).
        """
        if features.shape[1] != len(self.centre):
            raise RunError(
                f"the calibration describes {len(self.centre)} features, and the network has {features.shape[1]}; "
                "make it with `urnet calibrate`",
                code="model.calibration_invalid",
            )
        return ((self._log_distances(features) - self.spread[:, 0]) / self.spread[:, 1]).max(axis=1)

    def _log_distances(self, features: np.ndarray) -> np.ndarray:
        """Compute the logarithms of the distances at each depth, (N, depths)."""
        sizes = np.cumsum([axes.shape[1] for axes in self.whiten])[:-1]
        parts = np.split(features - self.centre, sizes, axis=1)
        lengths = [np.linalg.norm(part @ axes.T, axis=1) for part, axes in zip(parts, self.whiten, strict=True)]
        return np.log(np.maximum(np.stack(lengths, axis=1), 1e-6)).astype(np.float64)


def fit_mahalanobis(features: np.ndarray, sizes: Sequence[int]) -> MahalanobisDistance:
    """Fit a Gaussian to the training cells at each depth.

    Args:
        features: (N, F) of the training cells, all depths in one row.
        sizes: number of features at each depth; together F.
    """
    centre = features.mean(axis=0)
    whiten = tuple(_whitening(part) for part in np.split(features - centre, np.cumsum(sizes)[:-1], axis=1))
    fitted = MahalanobisDistance(centre.astype(np.float32), whiten, np.array([[0.0, 1.0]] * len(whiten)))
    logs = fitted._log_distances(features)
    spread = np.stack([logs.mean(axis=0), np.maximum(logs.std(axis=0), 1e-3)], axis=1)
    return MahalanobisDistance(fitted.centre, whiten, spread)


def _whitening(x: np.ndarray) -> np.ndarray:
    """Compute the map (D, F) from centred features (N, F) to uncorrelated ones of unit variance.

    Standardise the features, reduce them to principal components, and shrink the variances of these towards their mean
    (Ledoit and Wolf, J. Multivar. Anal. 88, 365, 2004).
    """
    from sklearn.covariance import ledoit_wolf_shrinkage

    std = x.std(axis=0)
    scale = np.where(std > 1e-6 * max(float(std.max()), 1e-30), std, np.inf).astype(np.float64)
    _, singular, axes = np.linalg.svd(x / scale, full_matrices=False)
    variance = singular**2 / len(x)
    if not variance.sum() > 0:
        return np.zeros((1, x.shape[1]), np.float32)
    share = np.cumsum(variance) / variance.sum()
    D = max(1, min(int(np.searchsorted(share, EXPLAINED_VARIANCE)) + 1, len(x) // MIN_CELLS_PER_COMPONENT))
    variances, axes = variance[:D], axes[:D]  # (D,), (D, F)
    shrinkage = ledoit_wolf_shrinkage(x / scale @ axes.T, assume_centered=True) if D > 1 else 0.0
    shrunk = (1 - shrinkage) * variances + shrinkage * variances.mean()
    return (axes / scale / np.sqrt(shrunk)[:, None]).astype(np.float32)

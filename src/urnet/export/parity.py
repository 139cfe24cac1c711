"""Whether a graph that left Python still says what the model says: the gate before an export or an engine is used."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from urnet.errors import RunError

if TYPE_CHECKING:
    from urnet.bundle import Model, Outputs

LIMIT = 1e-4
"""Largest difference of a probability."""
ENHANCED_LIMIT = 1e-3
"""Largest root mean square difference of an enhanced image, of its range of 1: a quarter of a grey level in 256."""

FEATURES_LIMIT = 1e-3
"""Largest difference of a feature, of the largest feature of its cell."""

BATCH = 16

Run = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Raw counts (B, C, S, S) float32 → probabilities (B, K), enhanced images (B, C, S, S) and features (B, F)."""


@dataclass(frozen=True)
class Parity:
    """How far a graph is from its model.

    Attributes:
        cells: number of cells compared.
        difference: the largest of a probability.
        changed: cells whose class, or whose rejection, is another one.
        enhanced: the largest of an enhanced image, root mean square.
        features: the largest of a feature, of the largest feature of its cell.
    """

    cells: int
    difference: float
    changed: int
    enhanced: float
    features: float

    def __str__(self) -> str:
        return (
            f"probabilities differ by at most {self.difference:.1e}, enhanced images by {self.enhanced:.1e} (rms), "
            f"features by {self.features:.1e} (relative); {self.changed} of {self.cells} decisions changed"
        )

    @property
    def held(self) -> bool:
        """Whether all differences are within the limits; one that is no number is not."""
        limits = (LIMIT, ENHANCED_LIMIT, FEATURES_LIMIT)
        figures = (self.difference, self.enhanced, self.features)
        return all(figure <= limit for figure, limit in zip(figures, limits, strict=True)) and not self.changed


def compare(model: "Model", run: Run, counts: np.ndarray) -> Parity:
    """Run crops through a model and a graph, the first by itself and the rest in batches.

    Args:
        model: the reference.
        run: the graph.
        counts: (N, C, S, S) raw counts, from `Model.fit` or `Model.read`.

    Raises:
        RunError: the graph gives arrays of other shapes, or there are no crops.
    """
    if not len(counts):
        raise RunError("no cells to compare the export with the model on; give at least one")
    difference = enhanced = relative = 0.0
    changed = 0
    for start, stop in [(0, 1), *((n, min(n + BATCH, len(counts))) for n in range(1, len(counts), BATCH))]:
        images = counts[start:stop]
        expected = next(model.outputs(model.config.scaling.apply(images), len(images)))
        found = run(images.astype(np.float32))
        _check_shapes(expected, found)
        probabilities, picture, features = found
        squares = np.square(picture - expected.enhanced).mean(axis=(1, 2, 3))
        largest = np.abs(expected.features).max(axis=1, keepdims=True)
        difference = max(difference, _largest(np.abs(probabilities - expected.probabilities)))
        enhanced = max(enhanced, _largest(np.sqrt(squares)))
        relative = max(relative, _largest(np.abs(features - expected.features) / np.maximum(largest, 1e-12)))
        other = probabilities.argmax(axis=1) != expected.probabilities.argmax(axis=1)
        if model.calibration is not None:
            reasons = (model.reject(images, seen) for seen in (expected.features, features))
            other |= np.array([before != after for before, after in zip(*reasons, strict=True)])
        changed += int(other.sum())
    return Parity(len(counts), difference, changed, enhanced, relative)


def check(model: "Model", run: Run, counts: np.ndarray) -> Parity:
    """As `compare`, but a graph that is not its model's is refused.

    Raises:
        RunError: a probability differs by more than 1e-4, an enhanced image by more than 1e-3 (root mean square), a
            feature by more than 1e-3 (relative), or a decision changes; the message gives the figures.
    """
    parity = compare(model, run, counts)
    if not parity.held:
        raise RunError(
            f"the graph does not say what the model says: {parity} (allowed: {LIMIT:g}, {ENHANCED_LIMIT:g}, "
            f"{FEATURES_LIMIT:g} and 0)"
        )
    return parity


def _largest(values: np.ndarray) -> float:
    """The largest of some values, infinity where one is no number."""
    return float(values.max()) if np.isfinite(values).all() else float("inf")


def _check_shapes(expected: "Outputs", found: tuple[np.ndarray, ...]) -> None:
    wanted = [array.shape for array in (expected.probabilities, expected.enhanced, expected.features)]
    shapes = [array.shape for array in found]
    if shapes != wanted:
        raise RunError(f"the graph gives arrays of the shapes {shapes}, the model {wanted}")

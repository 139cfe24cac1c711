"""Parity: compare the outputs of an exported graph with those of its model, before it is used."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from urnet.errors import RunError

if TYPE_CHECKING:
    from urnet.bundle.model import Model, Outputs

PROBABILITY_LIMIT = 1e-4
"""Largest allowed difference of a probability."""
ENHANCED_LIMIT = 1e-3
"""Largest allowed root mean square difference of an enhanced image with range 1: a quarter of a grey level in 256."""

FEATURES_LIMIT = 1e-3
"""Largest allowed difference of a feature, relative to the largest feature of its cell."""

BATCH_SIZE = 16

OUTPUT_TOLERANCE, LOGARITHM_TOLERANCE, FEATURE_TOLERANCE = 1e-5, 1e-4, 1e-4
"""Largest relative differences of a graph from its network that are rounding, at the start of an engine.

Measured over 15 enhancers and eight classifiers: at most 2e-7 for outputs, 5e-7 for logarithms, 6e-6 for features.
"""

_MIN_PROBABILITY = 1e-30
"""Smallest probability that is compared by its logarithm, near the limit of float32."""

GraphFunction = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Raw counts (B, C, S, S) float32 → probabilities (B, K), enhanced images (B, C, S, S) and features (B, F)."""


@dataclass(frozen=True)
class Parity:
    """Differences of a graph from its model.

    Attributes:
        cells: number of cells compared.
        difference: largest difference of a probability.
        changed: number of cells with another class or another rejection.
        enhanced: largest difference of an enhanced image, root mean square.
        features: largest difference of a feature, relative to the largest feature of its cell.
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
    def within_limits(self) -> bool:
        """Whether all differences are within the limits; NaN is not."""
        limits = (PROBABILITY_LIMIT, ENHANCED_LIMIT, FEATURES_LIMIT)
        figures = (self.difference, self.enhanced, self.features)
        return all(figure <= limit for figure, limit in zip(figures, limits, strict=True)) and not self.changed


def compare_outputs(model: "Model", run: GraphFunction, counts: np.ndarray) -> Parity:
    """Compare a model and a graph on crops: the first crop alone, the others in batches.

    Args:
        model: the reference.
        run: the graph.
        counts: (N, C, S, S) raw counts, from `Model.resize_crop` or `Model.read`.

    Raises:
        RunError: the graph gives arrays of other shapes (code `model.graph_differs`), or there are no crops (code
            `export.no_cells`).
    """
    if not len(counts):
        raise RunError("no cells to compare the export and the model; give at least one", code="export.no_cells")
    difference = enhanced = relative = 0.0
    changed = 0
    for start, stop in [(0, 1), *((n, min(n + BATCH_SIZE, len(counts))) for n in range(1, len(counts), BATCH_SIZE))]:
        images = counts[start:stop]
        expected = next(model.outputs(model.config.scaling.apply(images), len(images)))
        outputs = run(images.astype(np.float32))
        _check_shapes(expected, outputs)
        probabilities, picture, features = outputs
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


def check_parity(model: "Model", run: GraphFunction, counts: np.ndarray) -> Parity:
    """Compare as `compare_outputs`, and refuse a graph with other outputs.

    Raises:
        RunError: a probability differs by more than 1e-4, an enhanced image by more than 1e-3 (root mean square), a
            feature by more than 1e-3 (relative), or a decision changes (code `model.graph_differs`).
    """
    parity = compare_outputs(model, run, counts)
    if not parity.within_limits:
        raise RunError(
            f"the graph and the model have different outputs: {parity} (allowed: {PROBABILITY_LIMIT:g}, "
            f"{ENHANCED_LIMIT:g}, {FEATURES_LIMIT:g} and 0)",
            code="model.graph_differs",
        )
    return parity


def _largest(values: np.ndarray) -> float:
    """Return the largest value, infinity if one is NaN."""
    return float(values.max()) if np.isfinite(values).all() else float("inf")


def _check_shapes(expected: "Outputs", outputs: tuple[np.ndarray, ...]) -> None:
    wanted = [array.shape for array in (expected.probabilities, expected.enhanced, expected.features)]
    shapes = [array.shape for array in outputs]
    if shapes != wanted:
        raise RunError(f"the graph gives arrays of the shapes {shapes}, the model {wanted}", code="model.graph_differs")


@dataclass(frozen=True)
class Agreement:
    """Differences of a graph from its network on fixed inputs.

    Attributes:
        images: number of images compared.
        probabilities: largest difference of a probability.
        logarithms: largest difference of the logarithm of a probability, over the largest logarithm or 1.
        enhanced: largest root mean square difference of an enhanced image, over the largest value or 1.
        features: largest difference of a feature, of the largest feature at its depth.
    """

    images: int
    probabilities: float
    logarithms: float
    enhanced: float
    features: float

    def __str__(self) -> str:
        return (
            f"on {self.images} images, probabilities differ by {self.probabilities:.1e} "
            f"(allowed {OUTPUT_TOLERANCE:g}), their logarithms by {self.logarithms:.1e} ({LOGARITHM_TOLERANCE:g}), "
            f"enhanced images by {self.enhanced:.1e} ({OUTPUT_TOLERANCE:g}) and features by {self.features:.1e} "
            f"({FEATURE_TOLERANCE:g})"
        )

    @property
    def within_limits(self) -> bool:
        """Whether all differences are within the limits; NaN is not."""
        figures = (self.probabilities, self.logarithms, self.enhanced, self.features)
        limits = (OUTPUT_TOLERANCE, LOGARITHM_TOLERANCE, OUTPUT_TOLERANCE, FEATURE_TOLERANCE)
        return all(figure <= limit for figure, limit in zip(figures, limits, strict=True))


def fixed_counts(model: "Model") -> np.ndarray:
    """Draw two fixed images for the start of an engine: a cell with gradients and stripes, and noise.

    Both use the whole range of the scaling, so that many units of the network are active.

    Returns:
        (2, C, S, S) raw counts, float32.
    """
    config = model.config
    size = config.size
    y, x = np.mgrid[:size, :size] / (size - 1) * 2 - 1  # -1 to 1
    radius, angle = np.hypot(x - 0.1, y + 0.05), np.arctan2(y, x)
    planes = []
    for channel in range(config.channels):
        picture = 0.5 + 0.25 * x * (channel - 1 or 1) + 0.1 * y
        picture += 0.2 * (radius < 0.7) - 0.5 * (radius < 0.35 + 0.08 * np.cos((3 + channel) * angle))
        picture += 0.1 * np.sin(2 * np.pi * (2 + channel) * x**2) + 0.05 * np.cos(np.pi * np.arange(size))[:, None]
        planes.append(picture.clip(0, 1))
    noise = np.random.default_rng(0).uniform(0, 1, (config.channels, size, size))
    shares = np.stack([np.stack(planes), noise])  # (2, C, S, S)
    low, high = config.scaling.low, config.scaling.high
    return (low + shares * (high - low)).astype(np.float32)


def check_graph(model: "Model", run: GraphFunction, sample: np.ndarray | None = None) -> Agreement:
    """Compare a float32 graph with its network, on fixed inputs.

    Args:
        model: the reference, on the CPU.
        run: the graph.
        sample: (N, C, S, S) further raw counts to compare on.

    Raises:
        RunError: a difference exceeds its limit, or the shapes differ (code `model.graph_differs`).
    """
    counts = fixed_counts(model)
    if sample is not None:
        counts = np.concatenate([counts, sample.astype(np.float32)])
    expected = next(model.outputs(model.config.scaling.apply(counts), len(counts)))
    outputs = run(counts)
    _check_shapes(expected, outputs)
    probabilities, enhanced, features = (array.astype(np.float64) for array in outputs)
    known = (expected.probabilities > _MIN_PROBABILITY) & (probabilities > _MIN_PROBABILITY)
    with np.errstate(all="ignore"):
        logarithms = np.where(known, np.log(expected.probabilities), 0.0)
        change = np.where(known, np.log(probabilities) - logarithms, 0.0)
    depths = np.cumsum(expected.sizes)[:-1]
    relative = [
        np.abs(part - right) / np.maximum(np.abs(right).max(axis=1, keepdims=True), 1e-12)
        for part, right in zip(
            np.split(features, depths, axis=1), np.split(expected.features, depths, axis=1), strict=True
        )
    ]
    agreement = Agreement(
        len(counts),
        _largest(np.abs(probabilities - expected.probabilities)),
        _largest(np.abs(change)) / max(1.0, _largest(np.abs(logarithms))),
        _largest(np.sqrt(np.square(enhanced - expected.enhanced).mean(axis=(1, 2, 3))))
        / max(1.0, _largest(np.abs(expected.enhanced))),
        max(map(_largest, relative)),
    )
    if not agreement.within_limits:
        raise RunError(f"the graph and the network have different outputs: {agreement}", code="model.graph_differs")
    return agreement

"""The parity check: what it accepts and refuses, and its figures."""

import numpy as np
import pytest

from urnet.bundle.model import Model, Outputs
from urnet.export.parity import check_parity, compare_outputs
from urnet.images.scale import Scaling

COUNTS = np.arange(20 * 4, dtype=np.uint8).reshape(20, 1, 2, 2)


class Calm:
    """A calibration that rejects images with a first feature above 1."""

    temperature = 1.0

    def reject(self, rows, features):
        return ["unlike" if row[0] > 1 else "" for row in features]


class Fake(Model):
    """A model of two classes whose probability is the mean of its image."""

    def __init__(self, calibration=None):
        self.config = type("Config", (), {"scaling": Scaling(0.0, 255.0, "uint8")})
        self.calibration = calibration

    def outputs(self, inputs, batch_size=64):
        yield Outputs(None, *graph(inputs * 255), (2,))

    def measure_crops(self, images, seen=None):
        return [{}] * len(images)


def graph(counts):
    """Compute the outputs of the model in another way."""
    scaled = (counts / 255).astype(np.float32)
    mean = scaled.mean(axis=(1, 2, 3))
    features = np.stack([mean, mean + 1], axis=1)
    return np.stack([mean, 1 - mean], axis=1).astype(np.float64), scaled, features


def changed(**change):
    """Change one output of the graph."""

    def run(counts):
        found = dict(zip(("probabilities", "enhanced", "features"), graph(counts), strict=True))
        return tuple(change.get(name, lambda array: array)(array) for name, array in found.items())

    return run


def test_equal_graphs_pass():
    parity = check_parity(Fake(), graph, COUNTS)
    assert (parity.cells, parity.changed) == (20, 0)
    assert max(parity.difference, parity.enhanced, parity.features) < 1e-6


def test_cells_come_alone_and_in_batches():
    sizes = []
    check_parity(Fake(), lambda counts: sizes.append(len(counts)) or graph(counts), COUNTS)
    assert sizes[0] == 1
    assert sum(sizes) == 20
    assert max(sizes) > 1


def test_graphs_get_float32_counts():
    kinds = set()
    check_parity(Fake(), lambda counts: kinds.add(counts.dtype) or graph(counts), COUNTS)
    assert kinds == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    "change",
    [
        {"probabilities": lambda p: p + np.array([2e-4, -2e-4])},
        {"probabilities": lambda p: p * np.nan},
        {"enhanced": lambda x: x + 2e-3},
        {"enhanced": lambda x: x + np.inf},
        {"features": lambda x: x * 1.01},
    ],
    ids=["probabilities", "nan", "enhanced", "inf", "features"],
)
def test_differences_beyond_the_limits_are_refused(change, raises_code):
    with raises_code("model.graph_differs") as caught:
        check_parity(Fake(), changed(**change), COUNTS)
    assert "probabilities differ by at most" in str(caught.value)


def test_differences_within_the_limits_are_reported():
    run = changed(probabilities=lambda p: p + np.array([5e-5, -5e-5]), enhanced=lambda x: x + 5e-4)
    parity = check_parity(Fake(), run, COUNTS)
    assert parity.difference == pytest.approx(5e-5, rel=1e-3)
    assert parity.enhanced == pytest.approx(5e-4, rel=1e-2)


def test_a_decision_may_not_change_however_small_the_difference(raises_code):
    close = np.full((3, 1, 2, 2), 127.5, np.float32)
    run = changed(probabilities=lambda p: p + np.array([-5e-5, 5e-5]))
    assert compare_outputs(Fake(), run, close).changed == 3
    with raises_code("model.graph_differs"):
        check_parity(Fake(), run, close)


def test_a_rejection_may_not_change():
    bright = np.full((2, 1, 2, 2), 255, np.uint8)  # first feature 1
    run = changed(features=lambda x: x + np.float32(1e-5))
    assert compare_outputs(Fake(), run, bright).changed == 0
    assert compare_outputs(Fake(Calm()), run, bright).changed == 2


def test_other_shapes_are_refused(raises_code):
    with raises_code("model.graph_differs"):
        check_parity(Fake(), changed(features=lambda x: x[:, :1]), COUNTS)


def test_parity_needs_a_cell(raises_code):
    with raises_code("export.no_cells"):
        check_parity(Fake(), graph, COUNTS[:0])

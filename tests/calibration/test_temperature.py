"""The temperature: a known one is recovered, and none changes a decision."""

import numpy as np
import pytest

from urnet.calibration.temperature import fit_temperature, softmax


def drawn(count: int, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw labels, and logits that are `temperature` times the true ones."""
    rng = np.random.default_rng(0)
    honest = rng.normal(0, 2, (count, 3))
    labels = np.array([rng.choice(3, p=p) for p in softmax(honest)])
    return temperature * honest, labels


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_a_known_temperature_is_found(temperature):
    assert fit_temperature(*drawn(4000, temperature)) == pytest.approx(temperature, rel=0.1)


def test_a_few_cells_without_a_mistake_do_not_lead_to_certainty():
    logits = np.array([[3.0, 0, 0], [0, 3, 0], [0, 0, 3]] * 2)
    sure = softmax(logits, fit_temperature(logits, logits.argmax(axis=1))).max()
    assert 0.8 < sure < 0.99


def test_no_cells_no_change():
    assert fit_temperature(np.empty((0, 3)), np.empty(0, int)) == 1


def test_no_decision_changes_however_close():
    logits = np.array([[0.1, np.nextafter(np.float32(0.1), np.float32(1)), 0]], dtype=np.float32)
    for temperature in (0.02, 1.0, 50.0):
        assert softmax(logits, temperature).argmax() == 1

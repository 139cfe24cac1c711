"""Prediction sets have the intended coverage for each class, with any classifier."""

import numpy as np
import pytest

from urnet.calibration.conformal import conformal_quantile, conformal_scores, prediction_sets

SHARES = (0.7, 0.25, 0.05)


def drawn(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of a poor and overconfident classifier, and labels."""
    labels = rng.choice(3, count, p=SHARES)
    logits = rng.normal(0, 3, (count, 3))
    logits[np.arange(count), labels] += 2
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), labels


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_each_class_is_covered_as_often_as_asked(coverage):
    rng, found = np.random.default_rng(0), []
    for _ in range(100):
        scores = conformal_scores(*drawn(rng, 1000))
        probabilities, labels = drawn(rng, 1000)
        covered = prediction_sets(probabilities, scores, coverage)[np.arange(1000), labels]
        found.append([covered[labels == k].mean() for k in range(3)])
    assert np.allclose(np.mean(found, axis=0), coverage, atol=0.015)


def test_the_most_probable_class_is_always_in_the_set():
    probabilities = np.array([[0.4, 0.3, 0.3], [0.1, 0.2, 0.7]])
    nobody = [np.full(100, 0.001)] * 3
    assert prediction_sets(probabilities, nobody, 0.5).tolist() == [[True, False, False], [False, False, True]]


def test_a_class_with_too_few_cells_cannot_be_ruled_out():
    scores = [np.full(100, 0.001), np.full(8, 0.001), np.empty(0)]
    assert prediction_sets(np.array([[0.99, 0.01, 0.0]]), scores, 0.9).tolist() == [[True, True, True]]
    assert prediction_sets(np.array([[0.99, 0.01, 0.0]]), scores, 0.8).tolist() == [[True, False, True]]


def test_the_quantile_is_the_ranked_score():
    scores = np.arange(1, 10) / 10
    assert conformal_quantile(scores, 0.9) == 0.9
    assert conformal_quantile(scores, 0.91) == np.inf
    assert conformal_quantile(scores, 0.5) == 0.5


@pytest.mark.parametrize("coverage", [0, 1, 90])
def test_a_coverage_outside_0_and_1_is_refused(coverage):
    with pytest.raises(ValueError, match="between 0 and 1"):
        prediction_sets(np.ones((1, 1)), [np.ones(1)], coverage)

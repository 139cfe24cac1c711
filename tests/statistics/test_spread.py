"""The spread between donors is found where it is, and few donors say little about it."""

import numpy as np
import pytest

from urnet.statistics.spread import SPREADS, describe_differences, weigh_spreads


def draw(rng, donors: int, cells: int, spread: float, classes: int = 3) -> np.ndarray:
    """Draw confusions (D, K, K + 1) of donors whose logits have this spread."""
    rates = 0.1 / (classes - 1) + (0.9 - 0.1 / (classes - 1)) * np.eye(classes)
    odds = rates * np.exp(rng.normal(0, spread, (donors, classes, classes)))
    odds /= odds.sum(axis=2, keepdims=True)
    called = [[rng.multinomial(cells, odds[d, k]) for k in range(classes)] for d in range(donors)]
    return np.concatenate([called, np.zeros((donors, classes, 1), dtype=int)], axis=2)


@pytest.mark.parametrize("spread", [0.0, 0.3, 0.6, 1.2])
def test_many_donors_show_their_spread(spread):
    weights = weigh_spreads(draw(np.random.default_rng(0), 60, 300, spread))
    assert weights.sum() == pytest.approx(1)
    assert weights @ SPREADS == pytest.approx(spread, abs=0.12, rel=0.3)


def test_one_donor_says_nothing_and_more_donors_say_more():
    rng = np.random.default_rng(1)
    alone, none = weigh_spreads(draw(rng, 1, 200, 0)), weigh_spreads(np.zeros((0, 3, 4)))
    assert alone == pytest.approx(none)
    tables = draw(rng, 40, 200, 0)
    means = [weigh_spreads(tables[:number]) @ SPREADS for number in (1, 5, 40)]
    assert means[0] > means[1] > means[2]


def test_the_order_of_donors_and_classes_is_irrelevant():
    tables = draw(np.random.default_rng(2), 7, 30, 0.5)
    order = [2, 0, 1]
    turned = tables[::-1][:, order][:, :, [*order, 3]]
    assert weigh_spreads(turned) == pytest.approx(weigh_spreads(tables))


def test_classes_that_a_donor_lacks_are_no_error():
    tables = draw(np.random.default_rng(3), 6, 40, 0.4)
    tables[:3, 2] = 0
    tables[:, 0, 1:] = 0  # never called another class
    assert np.isfinite(weigh_spreads(tables)).all()


def test_the_description_names_what_is_known_of_donors():
    assert "8 donors" in describe_differences(8)
    assert "too few" in describe_differences(3)
    assert "usual" in describe_differences(0)

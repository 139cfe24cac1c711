"""The plain stack of convolutions has as many parameters as another enhancer."""

import pytest
import torch

from urnet.nets import count_macs, count_parameters, create_enhancer
from urnet.nets.enhancers.plain import Plain, match_plain_width


@pytest.mark.parametrize("depth", [1, 4, 18])
@pytest.mark.parametrize("fold", [1, 4])
@pytest.mark.parametrize(("name", "width"), [("urnet", 4), ("urnet", 8), ("unet", 16), ("rsgunet", 16)])
def test_it_has_nearly_as_many_parameters_as_another_enhancer(name, width, fold, depth):
    wanted = count_parameters(create_enhancer(name, 3, width=width))

    def size(width: int) -> int:
        with torch.device("meta"):
            return count_parameters(Plain(3, width, depth, fold))

    found = match_plain_width(3, wanted, depth, fold)
    assert size(found) == pytest.approx(wanted, rel=0.05)
    others = [abs(size(w) - wanted) for w in (found - 1, found + 1) if w >= 1]
    assert all(abs(size(found) - wanted) <= other for other in others)


def test_width_is_at_least_one():
    assert match_plain_width(1, 0) == 1


def test_folding_costs_less_on_each_pixel():
    full, folded = (create_enhancer("plain", 1, width=16, depth=4, fold=fold) for fold in (1, 4))
    assert count_macs(folded, 64, 1) < count_macs(full, 64, 1) / 8


def test_layers_are_convolution_norm_and_activation_alone():
    layers = [type(layer).__name__ for layer in create_enhancer("plain", 1, width=4, depth=3).body.layers]
    assert layers == ["Conv2d", "BatchNorm2d", "ReLU"] * 3

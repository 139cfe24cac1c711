"""UR-Net's five changes to ResUNet, each on its own, and the networks' reference sizes."""

import pytest
import torch

from urnet.nets import count_macs, count_parameters, create_classifier, create_enhancer
from urnet.nets.enhancers.urnet import SqueezeExcitation, overlap_tile

SWITCHES = ["padded", "strided", "leaky", "skip_conv", "attention"]
ALL_OFF = dict.fromkeys(SWITCHES, False)


def build(width: int = 4, **options) -> torch.nn.Module:
    torch.manual_seed(0)
    return create_enhancer("urnet", 1, width=width, **options).eval()


@pytest.mark.parametrize("switch", SWITCHES)
def test_each_switch_changes_the_network(switch):
    full, ablated = build(), build(**{switch: False})
    x = torch.rand(2, 1, 40, 40)
    for layer in full.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None  # running statistics as they really are, so that the deep scales count
    full.train()(x)
    ablated.load_state_dict(full.eval().state_dict(), strict=False)
    assert (full(x) - ablated(x)).abs().max() > 0.01


@pytest.mark.parametrize("switch", ["strided", "skip_conv", "attention"])
def test_what_a_switch_adds_it_also_takes_away(switch):
    assert count_parameters(build(**{switch: False})) < count_parameters(build())


@pytest.mark.parametrize("off", [*([switch] for switch in SWITCHES), SWITCHES])
@pytest.mark.parametrize("size", [200, 41, 16])
def test_every_ablation_keeps_the_shape_and_trains(off, size):
    enhancer = build(width=2, **dict.fromkeys(off, False)).train()
    x = torch.rand(2, 1, size, size)
    y = enhancer(x)
    assert y.shape == x.shape
    y.square().mean().backward()
    assert all(p.grad is not None for p in enhancer.parameters())


def test_with_all_changes_off_it_is_resunet():
    resunet = create_enhancer("resunet", 1, width=4).eval()
    assert count_parameters(build(**ALL_OFF)) == count_parameters(resunet)

    padded = build(**{**ALL_OFF, "padded": True})
    padded.load_state_dict(resunet.state_dict())
    x = torch.rand(2, 1, 41, 41)
    assert torch.equal(padded(x), resunet(x))


@pytest.mark.parametrize("strided", [True, False])
@pytest.mark.parametrize("size", [2, 16, 40, 41, 199, 200])
def test_overlap_tile_is_the_smallest_that_covers_the_image(strided, size):
    body = build(width=1, padded=False, strided=strided).body
    fed, returned = overlap_tile(size, strided=strided)
    assert body(torch.rand(1, 1, fed, fed)).shape[-1] == returned
    assert size <= returned < size + 16


@pytest.mark.parametrize("strided", [True, False])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("size", [40, 41])
def test_output_lies_on_the_input_pixel_for_pixel(strided, padded, size):
    enhancer = build(strided=strided, padded=padded)
    for parameter in enhancer.parameters():
        torch.nn.init.zeros_(parameter)
    body = enhancer.body  # opened: the one way across the top scale
    for layer in (body.encoder[0].shortcut, body.skip[0], body.decoder[0].shortcut, body.head):
        torch.nn.init.ones_(layer.weight[:1, :1])
    x = torch.rand(2, 1, size, size)
    torch.testing.assert_close(enhancer(x), x)


@pytest.mark.parametrize("strided", [True, False])
def test_valid_convolutions_see_no_border(strided):
    body = build(padded=False, strided=strided, attention=False).body
    fed, _ = overlap_tile(40, strided=strided)
    x = torch.rand(1, 1, fed + 16, fed + 16)
    torch.testing.assert_close(body(x)[..., 16:, 16:], body(x[..., 16:, 16:]))


def test_squeeze_excitation_follows_equations_1_and_2():
    torch.manual_seed(0)
    attention = SqueezeExcitation(80)
    l1, l2 = attention.excite[0], attention.excite[2]
    assert l1.weight.shape == (5, 80)
    x = torch.randn(2, 80, 3, 4)
    for b in range(2):
        s = torch.stack([x[b, c].sum() / (3 * 4) for c in range(80)])  # Eq. 1
        hidden = (l1.weight @ s + l1.bias).clamp(min=0)
        e = 1 / (1 + torch.exp(-(l2.weight @ hidden + l2.bias)))  # Eq. 2
        torch.testing.assert_close(attention(x)[b], torch.stack([e[c] * x[b, c] for c in range(80)]))


def test_attention_stands_before_every_transposed_convolution():
    body = build(width=16).body
    assert [a.excite[0].in_features for a in body.attention] == [up.in_channels for up in body.up] == [32, 64, 128, 256]


def test_reference_size_of_urnet():
    with torch.device("meta"):
        enhancer = create_enhancer("urnet", 3)
    assert count_parameters(enhancer) / 1e6 == pytest.approx(36.1, abs=0.05)
    assert count_macs(enhancer.body, 200, 3) / 1e9 == pytest.approx(33.5, abs=0.05)
    assert count_macs(enhancer, 200, 3) / 1e9 == pytest.approx(35.9, abs=0.05)


@pytest.mark.parametrize(("name", "millions"), [("unet", 31.0), ("unetpp", 36.2), ("resunet", 32.4)])
def test_reference_size_of_its_kin(name, millions):
    with torch.device("meta"):
        assert count_parameters(create_enhancer(name, 3)) / 1e6 == pytest.approx(millions, abs=0.05)


def test_reference_size_of_resnet101():
    with torch.device("meta"):
        classifier = create_classifier("resnet101", 3)
    assert count_macs(classifier, 200, 3) / 1e9 == pytest.approx(6.7, abs=0.05)


def test_count_macs_of_a_layer_by_hand_and_leaves_the_module_as_it_was():
    layer = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8)).train()
    before = {name: x.clone() for name, x in layer.state_dict().items()}
    assert count_macs(layer, 10, 3) == 10 * 10 * 8 * (3 * 9 + 1)
    assert layer.training
    assert all(torch.equal(x, before[name]) for name, x in layer.state_dict().items())


def test_deep_supervision_averages_four_heads():
    torch.manual_seed(0)
    enhancer = create_enhancer("unetpp", 1, width=4, deep_supervision=True)
    heads = enhancer.body.head
    assert len(heads) == 4
    for k, head in enumerate(heads):
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.constant_(head.bias, float(k))
    torch.testing.assert_close(enhancer(torch.rand(2, 1, 20, 20)), torch.full((2, 1, 20, 20), 1.5))


def test_gradients_reach_every_parameter_under_deep_supervision():
    torch.manual_seed(0)
    enhancer = create_enhancer("unetpp", 1, width=4, deep_supervision=True).eval()
    enhancer(torch.rand(2, 1, 40, 40)).square().mean().backward()
    assert all(p.grad.any() for p in enhancer.parameters())

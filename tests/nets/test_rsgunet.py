"""RSGUNet: its size, its range, and its two differences from U-Net."""

import pytest
import torch

from urnet.nets import count_macs, count_parameters, create_enhancer


def build(channels: int = 1, **options) -> torch.nn.Module:
    torch.manual_seed(0)
    return create_enhancer("rsgunet", channels, **options).eval()


@pytest.mark.parametrize(("channels", "parameters"), [(1, 1_450_891), (3, 1_451_383)])
def test_size_at_width_16(channels, parameters):
    assert count_parameters(build(channels)) == parameters
    assert count_macs(build(channels), 208, channels) == pytest.approx(0.53e9, rel=0.02)


def test_layers_are_those_of_the_published_network():
    body = build(3).body
    convolutions = [layer for layer in body.modules() if isinstance(layer, torch.nn.Conv2d)]
    up = [layer for layer in body.modules() if isinstance(layer, torch.nn.ConvTranspose2d)]
    assert [layer.out_channels for layer in convolutions if layer.stride == (2, 2)] == [16, 16, 32, 64, 128]
    assert {layer.kernel_size for layer in convolutions} == {(3, 3)}
    assert sorted(layer.out_channels for layer in up) == [3, 16, 32, 64]
    assert (body.dense[0].in_features, body.dense[0].out_features) == (256, 128)


@pytest.mark.parametrize("scale", [1e-3, 1, 1e3])
def test_output_stays_in_its_range_whatever_the_input(scale):
    y = build()(scale * torch.randn(2, 1, 40, 40))
    assert y.min() >= -0.06 - 1e-6
    assert y.max() <= 1.10 + 1e-6


def test_it_starts_with_an_output_that_depends_on_the_image():
    y = build(3)(torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    assert y.std() > 0.02
    assert not torch.allclose(y[0], y[1], atol=0.02)


def test_one_pixel_is_felt_everywhere_through_the_mean_of_the_whole_image():
    network, x = build().double(), torch.rand(1, 1, 256, 256).double()
    changed = x.clone()
    changed[..., 0, 0] += 1
    far = (network(changed) - network(x))[..., 192:, 192:].abs()
    assert far.max() > 0


def test_range_scaling_multiplies_by_the_stem():
    network = build(width=4).body
    seen = {}
    network.stem.register_forward_hook(lambda _module, _inputs, y: seen.update(stem=y))
    network.decoder[0].register_forward_hook(lambda _module, _inputs, y: seen.update(last=y))
    network.last_up.register_forward_hook(lambda _module, inputs, _output: seen.update(scaled=inputs[0]))
    network(torch.rand(1, 1, 32, 32))
    torch.testing.assert_close(seen["scaled"], seen["stem"] * seen["last"])


@pytest.mark.slow
def test_it_learns_to_copy_an_image():
    torch.manual_seed(0)
    network, coarse = build(width=8).train(), torch.rand(4, 1, 4, 4)
    x = torch.nn.functional.interpolate(coarse, 32, mode="bilinear")
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    errors = []
    for _ in range(80):
        loss = (network(x) - x).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        errors.append(loss.item())
    assert errors[-1] < errors[0] / 3

"""Dynamic filters: they change the luminance only; the three variants."""

import pytest
import torch
import torch.nn.functional as F

from urnet.nets import create_enhancer
from urnet.nets.baselines.dynamic_filters import convolve, identity_filter, luminance

VARIANTS = ["dynamic", "static", "streams"]


def build(channels: int = 3, **options) -> torch.nn.Module:
    """An enhancer whose filters differ from image to image, as after some training."""
    torch.manual_seed(0)
    enhancer = create_enhancer("dynamic", channels, **options)
    for name, parameter in enhancer.named_parameters():
        if "head.weight" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return enhancer


def images(channels: int = 3, size: int = 20, batch: int = 4) -> torch.Tensor:
    x = torch.rand(batch, channels, size, size, generator=torch.Generator().manual_seed(0))
    return x * torch.linspace(0.2, 1, batch).view(-1, 1, 1, 1)


def chroma(x: torch.Tensor) -> torch.Tensor:
    """Cb and Cr of ITU-R BT.601, (B, 2, H, W)."""
    y = luminance(x)[:, 0]
    return torch.stack([(x[:, 2] - y) / 1.772, (x[:, 0] - y) / 1.402], dim=1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_changes_luminance_and_leaves_chroma(variant):
    x = images()
    y = build(variant=variant)(x)
    assert (luminance(y) - luminance(x)).abs().max() > 0.05
    torch.testing.assert_close(chroma(y), chroma(x), atol=1e-5, rtol=1e-5)


def test_luminance_of_white_is_one_and_grey_is_its_own():
    torch.testing.assert_close(luminance(torch.ones(1, 3, 2, 2)), torch.ones(1, 1, 2, 2))
    x = images(1)
    assert luminance(x) is x


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("channels", [1, 3])
def test_it_starts_near_the_identity(variant, channels):
    torch.manual_seed(0)
    x = images(channels, 40)
    y = create_enhancer("dynamic", channels, variant=variant)(x)
    assert 0 < (y - x).abs().max() < 0.1


@pytest.mark.parametrize("size", [2, 3, 5, 6, 7])
def test_the_unchanged_filter_changes_nothing(size):
    x = images(1, 9)
    torch.testing.assert_close(convolve(x, identity_filter(size).expand(len(x), -1, -1)), x)


@pytest.mark.parametrize("size", [3, 5])
def test_each_image_is_filtered_by_its_own_filter(size):
    x, filters = images(1, 9), torch.randn(4, size, size)
    for i in range(len(x)):
        padded = F.pad(x[i : i + 1], [size // 2] * 4, mode="reflect")
        expected = F.conv2d(padded, filters[i].view(1, 1, size, size))
        torch.testing.assert_close(convolve(x, filters)[i : i + 1], expected)


def test_an_even_filter_reaches_further_right_and_down():
    shifted = torch.zeros(1, 6, 6)
    shifted[0, 5, 5] = 1
    x = images(1, 12, batch=1)
    torch.testing.assert_close(convolve(x, shifted)[..., :9, :9], x[..., 3:, 3:])


def test_dynamic_filters_differ_between_images():
    enhancer, y = build(1).eval(), images(1)
    filters = enhancer.body.filters(y)
    assert filters.shape == (4, 6, 6)
    assert not torch.allclose(filters[0], filters[3], atol=1e-3)


def test_static_filter_is_one_for_all_images_in_eval():
    enhancer = build(1, variant="static")
    for _ in range(5):
        enhancer(images(1))
    enhancer.eval()
    filters = enhancer.body.filters(images(1))
    assert torch.equal(filters, enhancer.body.mean.expand_as(filters))
    x = images(1)
    torch.testing.assert_close(enhancer(2 * x), 2 * enhancer(x))


def test_static_filter_is_the_mean_over_the_training_part():
    enhancer, x = build(1, variant="static"), images(1)
    predictor = enhancer.body.predict
    wanted = predictor(x).mean(dim=0)
    assert not torch.allclose(enhancer.body.mean, wanted, atol=1e-3)
    for _ in range(200):
        enhancer(x)
    torch.testing.assert_close(enhancer.body.mean, wanted, atol=1e-3, rtol=1e-3)
    kept = enhancer.body.mean.clone()
    enhancer.eval()(x)
    assert torch.equal(enhancer.body.mean, kept)
    assert "body.mean" in enhancer.state_dict()


@pytest.mark.parametrize("streams", [1, 3])
def test_streams_are_views_with_weights_that_sum_to_one(streams):
    enhancer, x = build(variant="streams", streams=streams).eval(), images()
    views, weights = enhancer.views(x), enhancer.view_weights()
    assert views.shape == (4, streams + 1, 3, 20, 20)
    assert weights.shape == (streams + 1,)
    assert torch.equal(views[:, -1], x)
    with torch.no_grad():
        enhancer.scores.copy_(torch.linspace(-3, 5, streams + 1))
    weights = enhancer.view_weights()
    assert (weights > 0).all()
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0))
    mixed = sum(weight * view for weight, view in zip(weights, views.unbind(1), strict=True))
    torch.testing.assert_close(enhancer(x), mixed)


def test_only_streams_have_views():
    assert [hasattr(build(variant=variant), "views") for variant in VARIANTS] == [False, False, True]


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_it_learns_a_sharpening_filter(variant):
    torch.manual_seed(0)
    x = F.avg_pool2d(torch.rand(8, 1, 26, 26), 3, 1)
    sharpening = identity_filter(3)[None].expand(8, -1, -1) * 2 - 1 / 9
    target = convolve(x, sharpening)
    enhancer = create_enhancer("dynamic", 1, variant=variant, size=3)
    optimiser = torch.optim.AdamW(enhancer.parameters(), lr=3e-3)
    before = (x - target).square().mean()
    for _ in range(150):
        loss = (enhancer(x) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < before / 5

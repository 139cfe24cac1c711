"""The losses between enhanced and target images."""

import pytest
import torch
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from urnet.nets.baselines.huang2018_loss import BETAS, Adversary, count_scales, ms_ssim, total_variation
from urnet.training.losses import build_enhancement_loss


def smooth(batch: int = 2, channels: int = 1, size: int = 48, seed: int = 0) -> torch.Tensor:
    """Images with structure at several scales, in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.zeros(batch, channels, size, size)
    for coarse in (3, 6, 12):
        noise = torch.rand(batch, channels, coarse, coarse, generator=generator)
        x = x + torch.nn.functional.interpolate(noise, size, mode="bilinear") / 3
    return x


def huang(size: int = 48, channels: int = 1, **options) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_enhancement_loss("huang2018", channels=channels, size=size, **options)


def test_mse():
    loss = build_enhancement_loss("mse", channels=1, size=4)
    x, y = smooth(size=4), smooth(size=4, seed=1)
    torch.testing.assert_close(loss(x, y), (x - y).square().mean())
    assert list(loss.parameters()) == []


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [16, 48, 200])
def test_equal_images_leave_only_their_own_roughness(channels, size):
    x = smooth(1, channels, size)
    loss = huang(size, channels)
    torch.testing.assert_close(loss(x, x), 100 * total_variation(x), atol=1e-3, rtol=1e-3)
    flat = torch.full_like(x, 0.5)
    torch.testing.assert_close(loss(flat, flat), torch.tensor(0.0), atol=1e-3, rtol=0)


@pytest.mark.parametrize("perceptual", [None, "packaged"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_nearer_the_lower(channels, perceptual):
    loss = huang(channels=channels, perceptual=perceptual)
    x, other = smooth(2, channels), smooth(2, channels, seed=1)
    values = [loss(torch.lerp(x, other, share), x).item() for share in (0, 0.25, 0.5, 1)]
    assert values == sorted(values)
    assert values[-1] > 50


def test_terms_have_the_weights_of_the_authors():
    x, y = smooth(), smooth(seed=1)
    terms = 500 * (1 - ms_ssim(x, y, 3)) + 750 * (x - y).abs().mean() + 100 * total_variation(x)
    torch.testing.assert_close(huang()(x, y), terms)


@pytest.mark.parametrize(
    ("size", "number"), [(11, 1), (16, 1), (22, 2), (43, 2), (44, 3), (87, 3), (88, 4), (176, 5), (2000, 5)]
)
def test_small_images_have_fewer_scales(size, number):
    assert count_scales(size) == number
    assert huang(size).scales == number


def test_ms_ssim_agrees_with_torchmetrics():
    x, y = smooth(3, 3, 200), smooth(3, 3, 200, seed=1)
    near = torch.lerp(x, y, 0.3)
    torch.testing.assert_close(
        ms_ssim(near, x, 5), multiscale_structural_similarity_index_measure(near, x, data_range=1.0)
    )
    cut = tuple(beta / sum(BETAS[:3]) for beta in BETAS[:3])
    torch.testing.assert_close(
        ms_ssim(near, x, 3), multiscale_structural_similarity_index_measure(near, x, data_range=1.0, betas=cut)
    )


@pytest.mark.parametrize("size", [16, 24, 96])
@pytest.mark.parametrize("kind", ["equal", "opposite", "constant", "outside"])
def test_gradients_are_finite_and_reach_every_pixel(size, kind):
    target = smooth(2, 1, size)
    enhanced = {
        "equal": target,
        "opposite": 1 - target,
        "constant": torch.full_like(target, 0.5),
        "outside": 3 * target - 1,
    }[kind].clone()
    enhanced.requires_grad_()
    huang(size)(enhanced, target).backward()
    assert enhanced.grad.isfinite().all()
    if kind == "outside":
        assert (enhanced.grad[(enhanced < 0) | (enhanced > 1)] != 0).all()


def test_values_outside_count_as_black_and_white_but_can_be_mended():
    target = smooth()
    enhanced = (target + 2).requires_grad_()
    similarity = ms_ssim(enhanced, target, 3)
    torch.testing.assert_close(similarity, ms_ssim(torch.ones_like(target), target, 3))
    similarity.backward()
    assert enhanced.grad.any()


def test_total_variation_is_that_of_a_ramp():
    ramp = torch.linspace(0, 1, 11).expand(1, 1, 11, 11)
    torch.testing.assert_close(total_variation(ramp), torch.tensor(0.01))


def test_half_precision_is_compared_in_single():
    x, y = smooth(), smooth(seed=1)
    loss = huang()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = loss(x.bfloat16(), y)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, loss(x.bfloat16().float(), y))


def test_perceptual_network_is_neither_trained_nor_saved():
    loss = huang(channels=3, perceptual="packaged").train()
    assert list(loss.parameters()) == []
    assert loss.state_dict() == {}
    x = smooth(2, 3).requires_grad_()
    before = loss(x, smooth(2, 3, seed=1))
    before.backward()
    assert x.grad.isfinite().all()
    assert loss(x, smooth(2, 3, seed=1)) == before  # its batch norm does not follow the batches


@pytest.mark.slow
def test_vgg19_is_read_from_a_file_under_torchvisions_names(tmp_path):
    from torchvision.models import vgg

    torch.manual_seed(0)
    features = vgg.make_layers(vgg.cfgs["E"])
    path = tmp_path / "vgg19.pth"
    torch.save({f"features.{name}": x for name, x in features.state_dict().items()}, path)
    loss = huang(32, 3, perceptual=str(path)).perceptual
    x, y = smooth(1, 3, 32), smooth(1, 3, 32, seed=1)
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    expected = []
    for last in (3, 17, 35):  # relu1_2, relu3_4, relu5_4
        a, b = (features[: last + 1]((image - mean) / std) for image in (x, y))
        expected.append((a - b).square().mean() / b.square().mean())
    torch.testing.assert_close(loss(x, y), sum(expected) / 3)


@pytest.mark.slow
def test_weights_of_another_network_name_the_key(tmp_path, raises_code):
    path = tmp_path / "other.pth"
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, path)
    with raises_code("weights.other_network") as caught:
        huang(perceptual=str(path))
    assert all(part in str(caught.value) for part in (f"pretrain.perceptual={path}", "'vgg19'"))
    torch.save({"features.0.weight": torch.zeros(32, 3, 3, 3)}, path)
    with raises_code("weights.other_network") as caught:
        huang(perceptual=str(path))
    assert f"pretrain.perceptual={path}" in str(caught.value)
    with raises_code("weights.missing"):
        huang(perceptual=str(tmp_path / "none.pth"))


def test_adversary_and_enhancer_learn_against_each_other():
    torch.manual_seed(0)
    adversary = Adversary(weight=2.0)
    dark, bright = 0.2 * torch.rand(8, 1, 16, 16), 0.2 * torch.rand(8, 1, 16, 16) + 0.8
    optimiser = torch.optim.AdamW(adversary.parameters(), lr=1e-2)
    for _ in range(30):
        loss = adversary(dark, bright)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert (adversary.discriminate(bright) > 0).all()
    assert (adversary.discriminate(dark) < 0).all()

    plain, reversed_ = dark.clone().requires_grad_(), dark.clone().requires_grad_()
    torch.nn.functional.softplus(adversary.discriminate(plain)).mean().backward()
    adversary(reversed_, bright).backward()
    torch.testing.assert_close(reversed_.grad, -2 * plain.grad)
    hidden = dark - 1e-1 * reversed_.grad / reversed_.grad.abs().max()
    assert adversary.discriminate(hidden).mean() > adversary.discriminate(dark).mean()


def test_adversary_counts_only_in_training():
    loss = huang(adversarial=1.0)
    x, y = smooth(), smooth(seed=1)
    assert loss.train()(x, y) > huang()(x, y)
    torch.testing.assert_close(loss.eval()(x, y), huang()(x, y))
    assert {name.partition(".")[0] for name, _ in loss.named_parameters()} == {"adversary"}
    loss.train()(x, y).backward()
    assert all(p.grad is not None and p.grad.any() for p in loss.parameters())


def test_mistakes_name_the_key(raises_code):
    with raises_code("recipe.loss_unknown"):
        build_enhancement_loss("huang", channels=1, size=32)
    with raises_code("recipe.loss_size"):
        huang(10)
    for options in ({"perceptual": "packaged"}, {"adversarial": 1.0}):
        with raises_code("recipe.loss_options"):
            build_enhancement_loss("mse", channels=1, size=32, **options)

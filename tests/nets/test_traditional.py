"""Fixed enhancers against their definitions, in numpy, scikit-image, Pillow and PyWavelets."""

import numpy as np
import pytest
import pywt
import torch
from PIL import Image, ImageOps
from scipy.ndimage import uniform_filter
from scipy.sparse import lil_array
from scipy.sparse.linalg import spsolve
from skimage.filters import unsharp_mask

from urnet.nets import count_macs, create_enhancer, list_enhancers
from urnet.nets.baselines.traditional import gaussian_blur, list_traditional

SMOOTHING = ["guided", "bilateral", "wavelet", "wls"]


def cell(size: int = 64, noise: float = 0.02) -> np.ndarray:
    """A textured disc on an even background, (size, size) float32 in [0, 1]."""
    y, x = np.mgrid[:size, :size] - size / 2
    inside = np.hypot(x, y) < size / 4
    image = np.where(inside, 0.4 + 0.05 * np.sin(x / 2), 0.6) + np.random.default_rng(0).normal(0, noise, x.shape)
    return image.clip(0, 1).astype(np.float32)


def enhance(name: str, image: np.ndarray, **options) -> np.ndarray:
    """Run one image, (H, W) or (H, W, 3)."""
    x = torch.from_numpy(np.atleast_3d(image)).permute(2, 0, 1)[None].float()
    return create_enhancer(name, x.shape[1], **options)(x)[0].permute(1, 2, 0).numpy().squeeze()


def test_all_of_the_papers_section_and_of_sharmas_list_are_there():
    wanted = {"clahe", "retinex", "unsharp", "guided", "homomorphic", "wavelet", "bilateral", "equalise", "wls"}
    assert set(list_traditional()) == wanted
    assert wanted <= set(list_enhancers())


@pytest.mark.parametrize("name", list_traditional())
def test_has_no_parameters_and_returns_pixels(name):
    enhancer = create_enhancer(name, 3)
    assert list(enhancer.parameters()) == []
    x = 1.4 * torch.rand(2, 3, 40, 40) - 0.2
    x.requires_grad_()
    y = enhancer(x)
    assert y.dtype == torch.float32
    assert 0 <= y.min() < y.max() <= 1
    assert not y.requires_grad


@pytest.mark.parametrize("name", list_traditional())
def test_autocast_changes_nothing(name):
    enhancer = create_enhancer(name, 1)
    x = torch.from_numpy(cell())[None, None]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = enhancer(x)
    assert torch.equal(mixed, enhancer(x))


@pytest.mark.parametrize("name", list_traditional())
def test_only_the_luminance_of_colour_changes(name):
    image = 0.3 + 0.4 * np.random.default_rng(0).random((40, 40, 3))
    # away from 0 and 1, where clipping would change the colour
    change = enhance(name, image) - image
    free = (np.abs(enhance(name, image) - 0.5) < 0.499).all(axis=2)
    assert free.mean() > 0.3
    assert np.abs(change).max() > 0.01
    np.testing.assert_allclose(np.ptp(change, axis=2)[free], 0, atol=1e-5)


@pytest.mark.parametrize("name", list_traditional())
def test_grey_pixels_in_three_channels_give_what_one_channel_gives(name):
    image = cell()
    colour = enhance(name, np.repeat(image[..., None], 3, axis=2))
    # levels of 8 bits may fall on either side of a rounding
    tolerance = 0.02 if name in ("clahe", "equalise") else 1e-4
    assert np.quantile(np.abs(colour - enhance(name, image)[..., None]), 0.99) <= tolerance


@pytest.mark.parametrize("name", list_traditional())
def test_size_can_be_counted_without_pixels(name):
    assert count_macs(create_enhancer(name, 3), 200, 3) >= 0


@pytest.mark.parametrize("name", [name for name in list_traditional() if name not in ("clahe", "equalise", "retinex")])
def test_an_even_image_stays(name):
    even = np.full((40, 40), 0.3, np.float32)
    np.testing.assert_allclose(enhance(name, even), even, atol=1e-5)


@pytest.mark.parametrize("name", SMOOTHING)
def test_smoothing_takes_noise_and_leaves_the_edge(name):
    clean, noisy = cell(noise=0), cell(noise=0.02)
    smooth = enhance(name, noisy)
    corner = np.s_[:12, :12]
    assert smooth[corner].std() < 0.6 * noisy[corner].std()
    across = np.s_[30:34]
    assert np.ptp(smooth[across]) > 0.8 * np.ptp(clean[across])
    assert np.square(smooth - clean).mean() < np.square(noisy - clean).mean()


@pytest.mark.parametrize("sigma", [0.5, 2.0, 40.0])
def test_blur_is_scipys_with_mirrored_borders(sigma):
    from scipy.ndimage import gaussian_filter

    image = np.random.default_rng(0).random((23, 31))
    expected = gaussian_filter(image, sigma, mode="mirror", radius=max(1, round(3 * sigma)))
    found = gaussian_blur(torch.from_numpy(image)[None, None].float(), sigma)[0, 0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_unsharp_is_scikit_images():
    image = cell(96)
    expected = unsharp_mask(image, radius=2, amount=1.5)
    inside = np.s_[10:-10, 10:-10]  # the borders are continued in another way there
    np.testing.assert_allclose(enhance("unsharp", image, sigma=2.0, amount=1.5)[inside], expected[inside], atol=0.002)


def test_equalise_is_pillows():
    levels = (cell() * 255).astype(np.uint8)
    expected = np.asarray(ImageOps.equalize(Image.fromarray(levels)))
    np.testing.assert_allclose(enhance("equalise", levels / np.float32(255)) * 255, expected, atol=1)


def test_clahe_raises_local_contrast_and_the_clip_limits_it():
    image = 0.5 + 0.1 * (cell() - 0.5)
    ranges = [np.ptp(enhance("clahe", image, clip=clip, tiles=2)) for clip in (1.0, 4.0, 40.0)]
    assert np.ptp(image) < ranges[0] < ranges[1] < ranges[2]


def test_retinex_does_not_see_the_brightness_of_the_lamp():
    image = cell()
    np.testing.assert_allclose(enhance("retinex", 0.5 * image), enhance("retinex", image), atol=1e-4)


def test_homomorphic_takes_an_illumination_ramp():
    ramp = np.linspace(0.6, 1, 64)[None]
    image = cell(noise=0)
    background = np.s_[:12]

    def slope(pixels: np.ndarray) -> float:
        row = np.log(pixels[background]).mean(axis=0)
        return row[50] - row[14]

    assert abs(slope(enhance("homomorphic", image * ramp, low=0.0))) < 0.6 * abs(slope(image * ramp))
    assert slope(enhance("homomorphic", image * ramp, low=1.0, high=1.0)) == pytest.approx(
        slope(image * ramp), rel=1e-3
    )


def test_guided_filter_is_hes():
    image, radius, epsilon = cell().astype(float), 3, 0.004

    def mean(x: np.ndarray) -> np.ndarray:
        return uniform_filter(x, 2 * radius + 1, mode="mirror")

    variance = mean(image**2) - mean(image) ** 2
    a = variance / (variance + epsilon)
    expected = mean(a) * image + mean((1 - a) * mean(image))
    np.testing.assert_allclose(enhance("guided", image, radius=radius, epsilon=epsilon), expected, atol=1e-4)


def test_bilateral_filter_is_its_definition():
    image, radius, sigma, contrast = cell(16).astype(float), 2, 1.5, 0.1
    padded = np.pad(image, radius, mode="reflect")
    total = weights = 0
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            near = padded[radius + dy : radius + dy + 16, radius + dx : radius + dx + 16]
            weight = np.exp(-(dx**2 + dy**2) / (2 * sigma**2) - (near - image) ** 2 / (2 * contrast**2))
            total, weights = total + weight * near, weights + weight
    found = enhance("bilateral", image, radius=radius, sigma=sigma, contrast=contrast)
    np.testing.assert_allclose(found, total / weights, atol=1e-5)


@pytest.mark.parametrize("size", [64, 41])
def test_wavelet_is_pywavelets_with_soft_thresholds(size):
    image = cell(size).astype(float)
    approximation, *details = pywt.wavedec2(image, "db2", mode="reflect", level=2)
    finest = np.sort(np.abs(details[-1][2]).ravel())
    threshold = finest[len(finest) // 2] / 0.6745 * np.sqrt(2 * np.log(size**2))
    soft = [tuple(pywt.threshold(x, threshold, "soft") for x in level) for level in details]
    expected = pywt.waverec2([approximation, *soft], "db2", mode="reflect")[:size, :size]
    np.testing.assert_allclose(enhance("wavelet", image, levels=2, strength=1.0), expected, atol=1e-4)


def test_wls_solves_farbmans_equation():
    image, smoothness, alpha = cell(12).astype(float), 0.5, 1.2
    log, index = np.log(image), np.arange(144).reshape(12, 12)
    system = lil_array((144, 144))
    system.setdiag(1)
    for a, b in [
        *zip(index[:, :-1].flat, index[:, 1:].flat, strict=True),
        *zip(index[:-1].flat, index[1:].flat, strict=True),
    ]:
        weight = smoothness / (abs(log.flat[a] - log.flat[b]) ** alpha + 1e-4)
        system[a, a] += weight
        system[b, b] += weight
        system[a, b] -= weight
        system[b, a] -= weight
    expected = spsolve(system.tocsc(), image.ravel()).reshape(12, 12)
    np.testing.assert_allclose(enhance("wls", image, smoothness=smoothness, alpha=alpha), expected, atol=1e-5)


def test_options_out_of_range_are_named(raises_code):
    with raises_code("recipe.enhancer_option") as caught:
        create_enhancer("clahe", 1, clip=0.5)
    assert all(part in str(caught.value) for part in ("'clahe'", "clip", "0.5", "equal to 1"))
    with raises_code("recipe.enhancer_option") as caught:
        create_enhancer("wls", 1, sigma=2.0)
    assert all(part in str(caught.value) for part in ("'wls'", "'sigma'", "smoothness, alpha"))
    assert create_enhancer("unsharp", 1, sigma=2)(torch.rand(1, 1, 20, 20)).shape == (1, 1, 20, 20)

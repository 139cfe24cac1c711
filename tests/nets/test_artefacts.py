"""Enhanced images lie in [0, 1], without a checkerboard and without edge artefacts.

Measured are networks with random weights after a few steps, relative to the contrast of what they make of textured
images. The paper's forms fail each measure, ours pass all.
"""

from functools import cache

import pytest
import torch
from torch import Tensor, nn

from urnet.nets import Enhancer, create_enhancer, list_enhancers
from urnet.nets.baselines.traditional import gaussian_blur
from urnet.nets.enhancers.registry import artefact_free_options, list_enhancer_options

SIZE = 96
BOUNDED = [name for name in list_enhancers() if artefact_free_options(name)]
FORMS = [
    *((name, {"residual": residual}) for name in BOUNDED for residual in (False, True)),
    ("plain", {"fold": 4}),
    ("unetpp", {"deep_supervision": True}),
    *(("urnet", {switch: False}) for switch in ("padded", "strided", "leaky", "skip_conv", "attention")),
]
FIXED = ["none", "dynamic", "clahe", "retinex", "unsharp", "homomorphic", "equalise", "guided", "bilateral"]
"""Others that work on whole images; RSGUNet has its authors' transposed convolutions and zero borders."""


def textured(count: int, size: int = SIZE, *, sigma: float = 1.5, seed: int = 0) -> Tensor:
    """Draw smooth noise with a standard deviation of 0.12 about 0.5, (count, 1, size, size)."""
    x = gaussian_blur(torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(seed)), sigma)
    return ((x - x.mean()) / x.std() * 0.12 + 0.5).clamp(0, 1)


@cache
def settled(name: str, options: tuple = ()) -> Enhancer:
    """Build an enhancer with random weights, take a few steps, and let its batch norms follow."""
    torch.manual_seed(0)
    small = {option: 4 for option in ("width", "depth") if option in list_enhancer_options(name)}
    enhancer = create_enhancer(name, 1, **small, **dict(options)).train()
    if any(True for _ in enhancer.parameters()):
        optimiser = torch.optim.SGD(enhancer.parameters(), lr=0.05)
        for step in range(3):
            x = textured(4, seed=step + 1)
            optimiser.zero_grad()
            (enhancer(x) - x.flip(0)).square().mean().backward()
            optimiser.step()
        for layer in enhancer.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 0.5
        with torch.no_grad():
            for step in range(6):
                enhancer(textured(4, seed=step + 10))
    return enhancer.eval()


def ours(name: str, options: dict) -> Enhancer:
    return settled(name, tuple((artefact_free_options(name) | options).items()))


def checkerboard(y: Tensor) -> float:
    """Compute the root mean square of the part that alternates from pixel to pixel (Nyquist frequency)."""
    height, width = y.shape[-2:]
    power = torch.fft.fft2(y).abs().square() / (height * width) ** 2
    rows, columns = power[..., height // 2, :].sum(dim=-1), power[..., :, width // 2].sum(dim=-1)
    return float((rows + columns - power[..., height // 2, width // 2]).max().sqrt())


@torch.no_grad()
def measures(enhancer: Enhancer) -> dict[str, float]:
    """Measure artefacts, relative to the standard deviation of enhanced textures.

    - pattern, checkerboard: standard deviation, and its part at Nyquist frequency, amid an enhanced constant image
    - edge: largest difference of its outermost 4 px, on any side, to its middle
    - fixed: checkerboard in the difference of an enhanced image and the same one moved by a pixel, moved back
    """
    contrast = float(enhancer(textured(4)).std(dim=(2, 3)).mean())
    flat = torch.cat([enhancer(torch.full((1, 1, SIZE, SIZE), level)) for level in (0.2, 0.5, 0.8)])
    middle = flat[..., 32:64, 32:64]
    sides = (flat[..., :4, :], flat[..., -4:, :], flat[..., :4], flat[..., -4:])
    edges = torch.stack([side.mean(dim=(2, 3)) for side in sides])
    large = textured(4, SIZE + 32, sigma=4.0)
    here, moved = enhancer(large[..., 16:-16, 16:-16]), enhancer(large[..., 17:-15, 17:-15])
    difference = here[..., 33:65, 33:65] - moved[..., 32:64, 32:64]
    found = {
        "pattern": float(middle.std(dim=(2, 3)).max()),
        "checkerboard": checkerboard(middle),
        "edge": float((edges - middle.mean(dim=(2, 3))).abs().max()),
        "fixed": checkerboard(difference),
    }
    return {name: value / contrast for name, value in found.items()}


@pytest.mark.parametrize(("name", "options"), FORMS)
def test_ours_is_a_picture(name, options):
    enhancer = ours(name, options)
    found = measures(enhancer)
    assert max(found["pattern"], found["checkerboard"], found["edge"]) < 1e-3, found
    assert found["fixed"] < 0.1, found


@pytest.mark.parametrize("name", FIXED)
def test_enhancers_without_scales_are_free_of_artefacts(name):
    found = measures(settled(name))
    assert max(found.values()) < 0.01, found


@pytest.mark.parametrize("name", ["unet", "unetpp", "resunet", "urnet"])
def test_the_papers_form_has_a_checkerboard_and_an_edge(name):
    found = measures(settled(name))
    assert found["checkerboard"] > 0.3, found
    assert found["edge"] > 0.3, found
    assert found["fixed"] > 0.15, found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "artefact", "gone"),
    [({"padding_mode": "zeros"}, "edge", "checkerboard"), ({"upsample": "transposed"}, "checkerboard", None)],
)
def test_each_switch_takes_its_own_artefact_away(changed, artefact, gone):
    found = measures(ours("urnet", changed))
    assert found[artefact] > 0.1, found
    assert gone is None or found[gone] < 0.02, found


def test_folding_leaves_a_pattern_unless_it_is_averaged():
    assert measures(settled("plain", (("fold", 4),)))["pattern"] > 0.3


@pytest.mark.parametrize("name", BOUNDED)
@pytest.mark.parametrize("residual", [False, True])
def test_a_bounded_output_stays_in_0_to_1_whatever_the_weights(name, residual):
    torch.manual_seed(0)
    options = {option: 4 for option in ("width", "depth") if option in list_enhancer_options(name)}
    enhancer = create_enhancer(name, 1, residual=residual, **options, **artefact_free_options(name))
    for parameter in enhancer.parameters():
        nn.init.normal_(parameter, std=3.0)
    for x in (textured(2, 40), torch.zeros(2, 1, 40, 40), torch.ones(2, 1, 40, 40)):
        y = enhancer(x)
        assert 0 <= y.min() <= y.max() <= 1


@pytest.mark.parametrize("name", BOUNDED)
@pytest.mark.parametrize("training", [True, False])
def test_a_bounded_residual_starts_as_the_identity(name, training):
    enhancer = create_enhancer(name, 1, residual=True, **artefact_free_options(name)).train(training)
    x = torch.linspace(0, 1, 41 * 41).reshape(1, 1, 41, 41).repeat(2, 1, 1, 1)
    y = enhancer(x)
    torch.testing.assert_close(y, x.clamp(0.01, 0.99), atol=1e-6, rtol=0)


def test_a_bounded_output_keeps_its_precision_under_autocast():
    enhancer = ours("urnet", {"residual": True})
    x = textured(2, 40)
    with torch.autocast("cpu", torch.bfloat16):
        y = enhancer(x)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, enhancer(x), atol=0.02, rtol=0)


@pytest.mark.parametrize("size", [2, 3, 16, 17, 31, 33])
@pytest.mark.parametrize("name", BOUNDED)
def test_small_images_can_be_reflected(name, size):
    y = ours(name, {})(textured(2, size, sigma=0.5))
    assert y.shape == (2, 1, size, size)
    assert y.isfinite().all()

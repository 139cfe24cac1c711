"""Grad-CAM on the paper's classifiers, behind an enhancer, and its overlay."""

import numpy as np
import pytest
import torch
from torch import nn

from urnet.nets.classifiers import find_cam_layer
from urnet.nets.gradcam import grad_cam, overlay
from urnet.nets.joint import build_joint


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return build_joint("unet", "resnet10t", 3, 1, enhancer_options={"width": 2}).eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(5, 1, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg16", "resnet101", "densenet121", "mobilenetv2_100"])
def test_the_papers_classifiers(name):
    torch.manual_seed(0)
    model = build_joint("none", name, 3, 3).eval()
    maps = grad_cam(model, torch.rand(2, 3, 64, 64), torch.tensor([0, 2]))
    assert maps.shape == (2, 64, 64)
    assert maps.dtype == np.float32
    assert np.isfinite(maps).all()
    assert maps.min() >= 0
    assert set(maps.max(axis=(1, 2)).tolist()) <= {0.0, 1.0}


def test_equals_the_papers_equations(model, images):
    kept = []
    hook = find_cam_layer(model.classifier).register_forward_hook(lambda *call: kept.append(call[2]))
    logits = model(images)
    hook.remove()
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), kept[0])
    expected = torch.relu((gradient.mean(dim=(2, 3), keepdim=True) * kept[0]).sum(dim=1, keepdim=True)).detach()
    expected = nn.functional.interpolate(expected, size=(64, 64), mode="bilinear", align_corners=False)[:, 0]
    expected = expected / expected.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)
    found = grad_cam(model, images, torch.full((5,), 1))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_points_at_what_decides():
    class Bright(nn.Module):
        """Classifier that calls bright images class 1."""

        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(inplace=True), nn.AvgPool2d(4))
            self.features[0].weight.data.fill_(1.0)
            self.feature_info = [{"module": "features", "num_chs": 1}]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen = self.features(x).relu_().mean(dim=(1, 2, 3))
            return torch.stack([-seen, seen], dim=1)

    class Joint(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = Bright()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.classifier(x)

    image = torch.zeros(1, 1, 32, 32)
    image[..., 20:24, 8:12] = 1.0
    (cam,) = grad_cam(Joint(), image)
    row, column = np.unravel_index(cam.argmax(), cam.shape)
    assert 20 <= row < 24
    assert 8 <= column < 12
    assert cam[:12].max() == 0
    assert grad_cam(Joint(), image, torch.tensor([0])).max() == 0


def test_without_targets_explains_the_predicted_class(model, images):
    predicted = model(images).argmax(dim=1)
    np.testing.assert_allclose(grad_cam(model, images), grad_cam(model, images, predicted), atol=1e-6)


def test_batches_do_not_matter(model, images):
    np.testing.assert_allclose(grad_cam(model, images, batch_size=2), grad_cam(model, images), atol=1e-5)


@pytest.mark.parametrize("frozen", [False, True])
def test_the_model_does_not_change(images, frozen):
    model = build_joint("unet", "resnet10t", 3, 1, enhancer_options={"width": 2}).train()
    model.enhancer.eval()
    model.classifier.requires_grad_(not frozen)
    parameter = next(model.enhancer.parameters())
    parameter.grad = torch.ones_like(parameter)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    required = [each.requires_grad for each in model.parameters()]
    with torch.no_grad():
        grad_cam(model, images)
    assert [module.training for module in model.modules()] == modes
    assert [each.requires_grad for each in model.parameters()] == required
    assert torch.equal(parameter.grad, torch.ones_like(parameter))
    assert all(each.grad is None for each in model.parameters() if each is not parameter)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_works_within_inference_mode(model, images):
    with torch.inference_mode():
        maps = grad_cam(model, images.clone())
    assert maps.shape == (5, 64, 64)


def test_no_images_no_maps(model):
    assert grad_cam(model, torch.zeros(0, 1, 64, 64)).shape == (0, 64, 64)


def test_shapes_are_checked(model, images):
    with pytest.raises(ValueError, match=r"\(4,\)"):
        grad_cam(model, images, torch.zeros(4, dtype=torch.long))


@pytest.mark.parametrize("shape", [(8, 6), (8, 6, 1), (8, 6, 3)])
def test_overlay_runs_from_blue_to_red(shape):
    cam = np.zeros((8, 6), np.float32)
    cam[4:] = 1
    shown = overlay(np.full(shape, 0.5), cam)
    assert shown.shape == (8, 6, 3)
    assert shown.dtype == np.uint8
    red, _, blue = shown[0, 0].astype(int)
    assert blue > red + 50
    red, _, blue = shown[7, 0].astype(int)
    assert red > blue + 50


def test_overlay_keeps_the_cell_visible_and_clips():
    image = np.array([[-1.0, 0.0, 1.0, 3.0]])
    shown = overlay(image, np.full((1, 4), 0.5)).astype(int).sum(axis=2)[0]
    assert shown[0] == shown[1]
    assert shown[2] == shown[3]
    assert shown[2] - shown[1] > 300


def test_overlay_of_another_size():
    with pytest.raises(ValueError, match="same height and width"):
        overlay(np.zeros((8, 8)), np.zeros((4, 4)))


def test_refuses_feature_maps_with_channels_last(raises_code) -> None:
    model = build_joint("none", "test_vit", 3, 3)
    with raises_code("recipe.no_feature_maps"):
        grad_cam(model, torch.rand(1, 3, 160, 160))

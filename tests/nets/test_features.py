"""Features are recorded in the pass that classifies, for every kind of classifier and enhancer."""

import pytest
import torch

from urnet.nets import JointModel, build_joint
from urnet.nets.features import extract_features, find_last_layer, record_inputs

CASES = [
    ("none", "test_byobnet", {}),
    ("none", "test_vit", {"img_size": 32}),
    ("none", "vgg11", {}),
    ("none", "mobilenetv2_050", {}),
    ("none", "swin_tiny_patch4_window7_224", {"img_size": 32, "window_size": 2}),
    ("urnet", "resnet10t", {}),
    ("dynamic", "test_byobnet", {}),
    ("none", "shahzad2022", {"backbones": ["test_byobnet", "resnet10t"], "width": 4}),
]


def joint(enhancer: str, classifier: str, options: dict) -> JointModel:
    torch.manual_seed(0)
    more = {"urnet": {"width": 4}, "dynamic": {"variant": "streams", "streams": 2}}.get(enhancer, {})
    return build_joint(enhancer, classifier, 3, 1, enhancer_options=more, classifier_options=options).eval()


@pytest.mark.slow
@pytest.mark.parametrize(("enhancer", "classifier", "options"), CASES)
def test_one_row_an_image_and_the_logits_as_without(enhancer, classifier, options):
    model, images = joint(enhancer, classifier, options), torch.rand(3, 1, 32, 32)
    with torch.inference_mode():
        logits, enhanced, features = extract_features(model, images)
        alone = [torch.cat(extract_features(model, image[None])[2], dim=1) for image in images]
        expected, picture = model.enhance_and_classify(images)
    assert torch.equal(logits, expected)
    assert torch.equal(enhanced, picture)
    assert len(features) >= 2
    assert all(x.ndim == 2 and len(x) == 3 for x in features)
    assert torch.allclose(torch.cat(features, dim=1), torch.cat(alone), atol=1e-4)
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.modules())


def test_maps_are_averaged_over_space():
    model = joint("none", "swin_tiny_patch4_window7_224", {"img_size": 32, "window_size": 2})
    with torch.inference_mode():
        features = extract_features(model, torch.rand(2, 1, 32, 32))[2]
    assert [x.shape[1] for x in features] == [stage["num_chs"] for stage in model.classifier.feature_info]


def test_views_are_averaged_with_their_weights():
    model = joint("dynamic", "test_byobnet", {})
    with torch.inference_mode():
        images = torch.rand(2, 1, 32, 32)
        mixed = extract_features(model, images)[2][0]
        views, weights = model.enhancer.views(images), model.enhancer.view_weights()
        model.enhancer = torch.nn.Identity()
        each = torch.stack([extract_features(model, views[:, v])[2][0] for v in range(len(weights))], dim=1)
    assert torch.allclose(mixed, (each * weights[:, None]).sum(dim=1), atol=1e-5)


@pytest.mark.slow
def test_the_last_layer_makes_the_logits():
    model = joint("none", "vgg11", {})
    layer = find_last_layer(model.classifier)
    with torch.inference_mode(), record_inputs(layer) as caught:
        logits = model(torch.rand(2, 1, 32, 32))
        assert torch.allclose(layer(caught[0]), logits, atol=1e-5)

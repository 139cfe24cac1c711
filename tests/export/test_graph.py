"""The graph gives the results of the model for every enhancer, in the formats torch and ONNX."""

import io
import zipfile

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from urnet.bundle.config import ModelConfig
from urnet.bundle.model import Model
from urnet.calibration.calibration import Calibration
from urnet.calibration.confusion import ReferenceCells
from urnet.calibration.mahalanobis import MahalanobisDistance
from urnet.calibration.rejection import Rejection
from urnet.export.graph import Graph, capture
from urnet.export.onnx_format import open_onnx, to_onnx
from urnet.export.parity import check_parity
from urnet.export.torch_format import open_torch, to_torch
from urnet.images.scale import Scaling
from urnet.nets import list_enhancers
from urnet.nets.enhancers.registry import artefact_free_options

SIZE = 32
NARROW = {name: {"width": 2} for name in ("unet", "resunet", "unetpp", "urnet")}
SLOW = ("clahe", "resunet", "rsgunet", "unetpp", "urnet", "wavelet")
"""Seconds each in ONNX: in torch's form here, in ONNX by `benchmarks/exports.py`; urnet also by test_formats.py."""


class Small(torch.nn.Module):
    """A small classifier that is captured in no time, so that tests measure enhancers."""

    feature_info = ()

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 5, stride=4)
        self.fc = torch.nn.Linear(4, 3)

    def get_classifier(self):
        return self.fc

    def forward(self, x):
        return self.fc(self.conv(x).relu().mean(dim=(2, 3)))


def build(enhancer="none", channels=1, *, options=None, classifier="test_byobnet", size=SIZE, **classifier_options):
    """A model with random weights, scaled from 16-bit counts."""
    torch.manual_seed(0)
    config = ModelConfig(
        name="random",
        classes=("a", "b", "c"),
        size=size,
        channels=channels,
        scaling=Scaling(100.0, 4000.0, "uint16"),
        enhancer={"name": enhancer, **NARROW.get(enhancer, {}), **(options or {})},
        classifier={"name": classifier, **classifier_options},
    )
    model = Model(config, config.build())
    for tensor in model.joint.parameters():  # away from where layers start, so that none of them does nothing
        tensor.data += 0.02 * torch.randn_like(tensor)
    return model


def crops(model: Model, count: int = 5) -> np.ndarray:
    """Draw raw counts, (N, C, S, S), some of them beyond the limits of the scaling."""
    rng = np.random.default_rng(1)
    config = model.config
    return rng.integers(0, 5000, (count, config.channels, config.size, config.size)).astype(np.uint16)


def calibrated(model: Model, temperature: float) -> Model:
    """The same model with a temperature, and checks that pass every crop."""
    features = next(model.outputs(model.config.scaling.apply(crops(model, 2)))).features.shape[1]
    distance = MahalanobisDistance(np.zeros(features), (np.eye(features),), np.array([[0.0, 1.0]]))
    rejection = Rejection((), np.zeros((0, 101)), np.zeros((0, 3)), 0.0, distance)
    reference = ReferenceCells(np.full((1, 3), 1 / 3), np.zeros(1, int), np.zeros(1, bool))
    scores = tuple(np.zeros(1) for _ in range(3))
    model.calibration = Calibration(
        model.classes, temperature, scores, rejection, reference, "test", "test", {"test": 1}, false_rejection=0.02
    )
    return model


@pytest.fixture(scope="module")
def plain():
    """A model without enhancer, and its graph in ONNX."""
    model = build()
    return model, to_onnx(model)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("enhancer", "options"),
    [
        *((name, {}) for name in list_enhancers() if name != "wls"),
        *(
            (name, {"residual": True, **artefact_free_options(name)})
            for name in list_enhancers()
            if artefact_free_options(name)
        ),
    ],
)
def test_every_enhancer(enhancer, options, tmp_path):
    channels = 1 if list_enhancers().index(enhancer) % 2 else 3  # both for each in benchmarks/exports.py
    model = build(enhancer, channels, options=options)
    model.joint.classifier = Small()
    path = tmp_path / "graph"
    if enhancer in SLOW:
        path.write_bytes(to_torch(model))
        check_parity(model, open_torch(path), crops(model))
    else:
        path.write_bytes(to_onnx(model))
        check_parity(model, open_onnx(path), crops(model))


@pytest.mark.slow
def test_grey_with_a_classifier_of_timm(plain):
    model, onnx = plain
    assert check_parity(model, open_onnx(onnx), crops(model)).cells == 5


@pytest.mark.slow
def test_calibrated_views_beside_the_raw_image_in_onnx():
    model = calibrated(build("dynamic", options={"variant": "streams"}, input="both"), 0.4)
    check_parity(model, open_onnx(to_onnx(model)), crops(model))


@pytest.mark.slow
def test_fused_classifier_in_onnx():
    model = build(channels=3, classifier="shahzad2022", backbones=["test_byobnet", "test_resnet"], width=2)
    check_parity(model, open_onnx(to_onnx(model)), crops(model))


def test_the_temperature_is_in_the_graph():
    model = build()
    counts = torch.from_numpy(crops(model).astype(np.float32))
    with torch.inference_mode():
        sharp, flat = (Graph(one)(counts)[0].double().log() for one in (model, calibrated(build(), 3.0)))
    contrasts = (sharp[:, :1] - sharp[:, 1:]) / (flat[:, :1] - flat[:, 1:])
    assert torch.allclose(contrasts, torch.tensor(3.0, dtype=torch.float64), rtol=1e-2)


def test_an_enhancer_outside_torch_is_refused(raises_code):
    with raises_code("export.not_exportable"):
        capture(build("wls"))


@pytest.mark.slow
def test_the_graph_holds_no_path_of_this_computer(plain):
    model, onnx = plain
    for content in (onnx, to_torch(model)):
        assert b"graph.py" not in content
        assert b"site-packages" not in content


@pytest.mark.slow
def test_a_pt2_file_holds_nothing_pickled(tmp_path):
    content = io.BytesIO(to_torch(build()))
    with zipfile.ZipFile(content) as archive:
        for name in archive.namelist():
            assert not archive.read(name).startswith((b"\x80", b"PK")), name  # a pickle, or torch.save's archive of one


@pytest.mark.slow
def test_the_onnx_graph_describes_itself(plain):
    proto = onnx.load_from_string(plain[1])
    onnx.checker.check_model(proto)
    assert [one.version for one in proto.opset_import if one.domain == ""] == [20]
    about = {one.key: one.value for one in proto.metadata_props}
    assert about["classes"] == '["a", "b", "c"]'
    assert about["digest"] == plain[0].digest()
    shape = proto.graph.input[0].type.tensor_type.shape
    assert [dim.dim_param or dim.dim_value for dim in shape.dim] == ["batch", 1, SIZE, SIZE]


def test_an_opset_can_be_chosen():
    model = build()
    model.joint.classifier = Small()
    proto = onnx.load_from_string(to_onnx(model, 18))
    assert [one.version for one in proto.opset_import if one.domain == ""] == [18]


@pytest.mark.parametrize("opset", [0, 7, 17, 99])
def test_an_unknown_opset_is_refused(opset, raises_code):
    with raises_code("export.opset_invalid"):
        to_onnx(build(), opset)


def test_weights_beyond_one_file_are_refused_before_the_work(monkeypatch, raises_code):
    monkeypatch.setattr("urnet.export.onnx_format._MAX_WEIGHT_BYTES", 1000)
    with raises_code("export.too_large"):
        to_onnx(build())


def test_a_corrupt_onnx_file_is_named(tmp_path, raises_code):
    path = tmp_path / "model.onnx"
    for content in (b"no graph", b""):
        path.write_bytes(content)
        with raises_code("model.graph_unusable") as caught:
            open_onnx(path)
        assert str(path) in str(caught.value)
    with raises_code("model.graph_unusable"):
        open_onnx(tmp_path / "absent.onnx")


def test_an_onnx_graph_of_another_program_is_refused(raises_code):
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "other", ends[:1], ends[1:])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(proto)
    with raises_code("model.graph_unusable"):
        open_onnx(proto.SerializeToString())

"""Engines: the same results as PyTorch for any batch, and what happens without an engine."""

import hashlib
import json
import logging
import platform
import shutil
from importlib.metadata import version
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from urnet.bundle.model import Model
from urnet.errors import RunError
from urnet.export import engine as engines
from urnet.export.engine import TorchEngine, choose_engine
from urnet.export.parity import check_graph, compare_outputs
from urnet.images.read import read_image

GRAPHS = [
    pytest.param(name, marks=pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed"))
    for name, package in engines.PACKAGES.items()
]


@pytest.fixture(scope="module")
def folder(trained, trained_graph, tmp_path_factory):
    """A bundle with its graph; not to be changed."""
    folder = shutil.copytree(trained.model, tmp_path_factory.mktemp("engine") / "bündel")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("urnet.export.engine_graph.to_onnx", lambda model: trained_graph)
        choose_engine(Model.load(folder), "onnx")
    return folder


@pytest.fixture
def model(folder, tmp_path) -> Model:
    """A model whose folder may be changed."""
    return Model.load(shutil.copytree(folder, tmp_path / "bündel"))


@pytest.fixture(scope="module")
def crops(trained, shapes) -> np.ndarray:
    model = trained.load_model()
    return np.stack(
        [model.resize_crop(read_image(path)) for path in sorted(shapes.rglob("*.png"))[::3]]
    )  # (20, 1, 24, 24)


@pytest.fixture
def content(folder, monkeypatch) -> bytes:
    """The graph, which is not exported again, because that takes seconds."""
    content = graph_of(folder).read_bytes()
    monkeypatch.setattr("urnet.export.engine_graph.to_onnx", lambda model: content)
    return content


def graph_of(folder):
    return next(folder.glob("engine-*.onnx"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torch", *GRAPHS])
def test_every_engine_has_the_outputs_of_the_model(model, crops, name):
    engine = choose_engine(model, name, crops)
    assert engine.name == name
    parity = compare_outputs(model, engine.run, crops)
    assert parity.within_limits
    assert parity.difference < 1e-5


@pytest.mark.parametrize("name", ["torch", *GRAPHS])
def test_outputs_of_an_image_do_not_depend_on_its_batch(model, crops, name):
    engine = choose_engine(model, name, crops, len(crops))
    whole = engine.run(crops)
    for size in (1, 3, 10):
        parts = [engine.run(crops[start : start + size]) for start in range(0, len(crops), size)]
        for one, other in zip(whole, map(np.concatenate, zip(*parts, strict=True)), strict=True):
            # PyTorch's sigmoid rounds the last values of a tensor in another way than those before them.
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-6 if name == "torch" else 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", GRAPHS)
def test_outputs_do_not_depend_on_the_number_of_threads(model, crops, name):
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(choose_engine(model, name, crops).run(crops))
    finally:
        torch.set_num_threads(before)
    assert all(np.array_equal(one, other) for one, other in zip(*found, strict=True))


def test_a_graph_is_exported_for_many_images_and_used_for_few(model, crops, content):
    assert choose_engine(model, "auto", crops, 3).name in engines.PACKAGES
    graph_of(model.folder).unlink()
    assert choose_engine(model, "auto", crops, 3).name == "torch"
    assert not list(model.folder.glob("engine-*.onnx"))
    assert choose_engine(model, "auto", crops, 10**6).name in engines.PACKAGES
    assert graph_of(model.folder).is_file()


def test_a_model_that_cannot_be_exported_is_run_by_torch(model, crops):
    graph_of(model.folder).unlink()
    model.joint.enhancer.exportable = False
    assert choose_engine(model, "auto", crops, 10**6).name == "torch"


@pytest.mark.slow
@pytest.mark.parametrize("sample", [True, False])
def test_a_graph_is_compared_at_every_start(model, crops, monkeypatch, sample):
    compared = []
    monkeypatch.setattr(engines, "check_graph", lambda model, run, sample: compared.append(sample))
    for _ in range(2):
        choose_engine(model, "onnx", crops if sample else None)
    assert len(compared) == 2
    assert [path.suffix for path in model.folder.glob("engine-*")] == [".onnx"]  # no record of trust beside it


def liar(source, threads):
    return lambda counts: (np.full((len(counts), 3), 1 / 3), np.zeros(counts.shape), np.zeros((len(counts), 5)))


def test_an_engine_with_other_outputs_is_not_used(model, crops, content, monkeypatch, caplog, raises_code):
    for name in ("open_onnx", "open_openvino"):
        monkeypatch.setattr(engines, name, liar)
    with raises_code("model.graph_differs"):
        choose_engine(model, "onnx", crops)
    with caplog.at_level(logging.WARNING, "urnet"):
        assert choose_engine(model, "auto", crops).name == "torch"
    assert "engine onnx is not used" in caplog.text


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:2000], lambda b: b"x" * 500])
def test_a_damaged_graph_is_exported_again(model, crops, content, damage, caplog):
    path = graph_of(model.folder)
    path.write_bytes(damage(content))
    with caplog.at_level(logging.WARNING, "urnet"):
        engine = choose_engine(model, "onnx", crops)
    assert "is exported again" in caplog.text
    assert compare_outputs(model, engine.run, crops).within_limits
    assert path.read_bytes() == content


def test_a_graph_that_came_with_a_model_is_not_used(model, crops, content, monkeypatch, tmp_path):
    choose_engine(model, "onnx", crops)
    assert engines.CachedGraph(model).is_valid
    monkeypatch.setenv("URNET_CACHE", str(tmp_path / "another user"))
    assert not engines.CachedGraph(model).is_valid
    choose_engine(model, "onnx", crops)
    assert engines.CachedGraph(model).is_valid


def test_a_graph_of_other_weights_is_detected(model, crops, content, caplog):
    import onnx

    path = graph_of(model.folder)
    graph = onnx.load_from_string(content)
    for weights in graph.graph.initializer:
        if weights.dims and weights.data_type == onnx.TensorProto.FLOAT:
            weights.raw_data = (1.5 * onnx.numpy_helper.to_array(weights)).tobytes()
    path.write_bytes(graph.SerializeToString())
    with caplog.at_level(logging.WARNING, "urnet"):
        engine = choose_engine(model, "onnx", crops)
    assert "is exported again" in caplog.text
    assert compare_outputs(model, engine.run, crops).within_limits
    assert path.read_bytes() == content


def test_graphs_of_older_weights_are_removed(model, crops, content):
    old = graph_of(model.folder)
    with torch.no_grad():
        next(model.joint.classifier.parameters()).mul_(1.5)
    model.save(model.folder)
    new = engines.CachedGraph(Model.load(model.folder))
    assert not new.is_valid
    new.export()
    assert [path.name for path in model.folder.glob("engine-*")] == [new.path.name]
    assert old != new.path


def changed(content: bytes, number: int, amount: float) -> bytes:
    """Change one value of a float tensor of a graph."""
    import onnx

    graph = onnx.load_from_string(content)
    tensor = graph.graph.initializer[number]
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.flat[values.size // 2] += amount
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return graph.SerializeToString()


def vectors(content: bytes) -> list[int]:
    """List the numbers of the tensors that are biases, or scales and shifts of a normalisation."""
    import onnx

    found = enumerate(onnx.load_from_string(content).graph.initializer)
    return [n for n, one in found if one.data_type == onnx.TensorProto.FLOAT and len(one.dims) == 1 and one.dims[0] > 1]


@pytest.mark.slow
@pytest.mark.parametrize("name", GRAPHS)
def test_one_changed_bias_of_any_layer_is_found(model, crops, content, name):
    """A change that the fixed images do not show must not change real cells beyond the limits."""
    numbers, missed = vectors(content)[:: 1 if name == "onnx" else 4], []
    assert len(numbers) > 10
    for number in numbers:
        run = getattr(engines, f"open_{name}")(changed(content, number, 0.5), 1)
        if not is_refused(model, run):
            missed.append(number)
            parity = compare_outputs(model, run, crops)
            assert parity.changed == 0
            assert parity.difference < 1e-4
    assert len(missed) <= len(numbers) / 4


def is_refused(model, run) -> bool:
    try:
        check_graph(model, run)
    except RunError as error:
        return error.code == "model.graph_differs"
    return False


@pytest.mark.slow
def test_a_changed_graph_is_replaced_despite_its_record(model, crops, content, caplog):
    """An earlier version trusted a graph by its hash in the file beside it."""
    path = graph_of(model.folder)
    path.write_bytes(changed(content, vectors(content)[0], 3.0))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    engine = f"onnx {version('onnxruntime')} on {platform.node()}"
    path.with_suffix(".json").write_text(json.dumps({"sha256": digest, "parity": {engine: "fine"}}), encoding="utf-8")
    with caplog.at_level(logging.WARNING, "urnet"):
        engine = choose_engine(model, "onnx")
    assert "is exported again" in caplog.text
    assert compare_outputs(model, engine.run, crops).within_limits
    assert path.read_bytes() == content


def with_external_data(content: bytes, target: str, nested: bool) -> bytes:
    """Move one tensor of a graph to another file."""
    import onnx

    graph = onnx.load_from_string(content)
    tensor = onnx.TensorProto(name="outside", dims=[4], data_type=onnx.TensorProto.FLOAT)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=target)
    if nested:
        node = onnx.helper.make_node("Constant", [], ["outside"], value=tensor)
        branch = onnx.helper.make_graph([node], "branch", [], [onnx.helper.make_tensor_value_info("outside", 1, [4])])
        choice = onnx.helper.make_node("If", ["never"], ["chosen"], then_branch=branch, else_branch=branch)
        graph.graph.node.append(choice)
    else:
        graph.graph.initializer.append(tensor)
    return graph.SerializeToString()


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("target", ["../secret.bin", "/secret.bin", "secret.bin"])
@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_never_names_another_file(model, content, tmp_path, raises_code, opened, name, target, nested):
    path = graph_of(model.folder)
    secret = (path.parent / target).resolve() if target != "/secret.bin" else tmp_path / "secret.bin"
    secret.write_bytes(b"x" * 16)
    target = str(secret) if target.startswith("/") else target
    path.write_bytes(with_external_data(content, target, nested))
    with opened() as files, raises_code("model.external_data"):
        getattr(engines, f"open_{name}")(path, 1)
    assert str(secret) not in files
    engine = choose_engine(model, name)  # made anew
    assert engine.name == name
    assert path.read_bytes() == content


def test_a_link_in_place_of_a_graph_is_not_followed(model, content, tmp_path):
    path = graph_of(model.folder)
    (tmp_path / "another.onnx").write_bytes(b"mine")
    path.unlink()
    path.symlink_to(tmp_path / "another.onnx")
    choose_engine(model, "onnx")
    assert not path.is_symlink()
    assert path.read_bytes() == content
    assert (tmp_path / "another.onnx").read_bytes() == b"mine"


def test_a_full_disk_does_not_stop_an_engine(model, crops, content, monkeypatch, caplog):
    graph_of(model.folder).unlink()

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("urnet.export.engine_graph.atomic_file", full)
    with caplog.at_level(logging.WARNING, "urnet"):
        engine = choose_engine(model, "onnx", crops)
    assert "cannot be stored (No space left on device)" in caplog.text
    assert compare_outputs(model, engine.run, crops).within_limits


@pytest.mark.slow
def test_a_model_in_memory_has_its_graph_in_memory(model, crops, content):
    alone = Model(model.config, model.joint, model.calibration)
    for name in engines.PACKAGES:
        if find_spec(engines.PACKAGES[name]):
            assert compare_outputs(model, choose_engine(alone, name).run, crops).within_limits


def test_engines_that_are_unknown_or_not_installed(model, monkeypatch, raises_code):
    with raises_code("engine.unknown"):
        choose_engine(model, "tensorrt")
    monkeypatch.setattr("urnet.optional_packages.find_spec", lambda name: None)
    for name, package in (("openvino", 'pip install "urnet[openvino]"'), ("onnx", "onnxruntime")):
        with raises_code("package.missing") as caught:
            choose_engine(model, name)
        assert package in str(caught.value)
    assert choose_engine(model, "auto").name == "torch"


def short_of_memory(engine: TorchEngine, most: int) -> list[int]:
    """Limit an engine's memory to a number of images; return the batch sizes that it tries."""
    graph, tried = engine.graph, []

    def run(images):
        tried.append(len(images))
        if len(images) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return graph(images)

    engine.graph = run
    return tried


def test_a_full_memory_halves_the_batch_with_one_warning(model, crops, caplog, raises_code):
    expected = TorchEngine(model).run(crops)
    engine = TorchEngine(model)
    tried = short_of_memory(engine, 10)
    with caplog.at_level(logging.WARNING, "urnet"):
        found = [engine.run(crops) for _ in range(2)]
    assert tried == [16, 8, 8, 4, 8, 8, 4]
    assert [record.getMessage() for record in caplog.records] == [
        "the memory of cpu is full at 16 images per batch; continuing with 8"
    ]
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(found[0], expected, strict=True))
    short_of_memory(engine, 0)
    with raises_code("engine.memory"):
        engine.run(crops)


def test_half_precision_has_a_parity_too(model, crops):
    engine = TorchEngine(model, half=True)
    assert engine.name == "torch-float16"
    found = engine.run(crops)
    assert all(array.dtype == np.float32 for array in found)
    assert (
        compare_outputs(model, engine.run, crops).difference
        > compare_outputs(model, TorchEngine(model).run, crops).difference
    )


def test_the_batches_of_torch_are_even(model):
    assert [TorchEngine(model, images).size for images in (1, 12, 17, 40, 1000)] == [1, 12, 9, 14, 16]

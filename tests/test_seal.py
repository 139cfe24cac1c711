"""The seal of a model: changes that it detects or ignores, and no traceback for any damage to a bundle."""

import json
import logging
import shutil
import threading
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import urnet
from urnet.bundle.config import ModelConfig, check_config
from urnet.bundle.files import seal_bundle
from urnet.bundle.model import Model
from urnet.bundle.seal import read_seal
from urnet.cli import run as command
from urnet.errors import RunError, UrnetError
from urnet.fields.cropping.settings import CropSettings
from urnet.images.read import read_image
from urnet.images.scale import Scaling

JSON_FILES = ("config.json", "calibration.json", "crop.json", "seal.json")


@pytest.fixture(scope="module")
def sealed(trained, tmp_path_factory):
    """A sealed bundle with all of its files; not to be changed."""
    folder = tmp_path_factory.mktemp("sealed") / "model"
    model = trained.load_model()
    model.cropping = CropSettings(size=24, nuclei="*_dapi.tif", diameter_um=(5.0, 20.0))
    model.save(folder)
    return folder


@pytest.fixture
def bundle(sealed, tmp_path):
    """A copy that may be changed."""
    return shutil.copytree(sealed, tmp_path / "model")


def edit(path, change) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")


def zero(path, start=-20_000, length=10_000) -> None:
    content = bytearray(path.read_bytes())
    content[start : start + length or None] = bytes(length)
    path.write_bytes(content)


def rename(data) -> None:
    data["classes"] = data["classes"][1:] + data["classes"][:1]


TAMPERED = {
    "temperature": ("calibration.json", lambda p: edit(p, lambda data: data.update(temperature=0.02))),
    "classes": ("config.json", lambda p: edit(p, rename)),
    "scaling": ("config.json", lambda p: edit(p, lambda data: data["scaling"].update(high=300.0))),
    "weights": ("model.safetensors", zero),
    "scores": ("calibration.safetensors", lambda p: zero(p, -300, 200)),
    "size of crops": ("crop.json", lambda p: edit(p, lambda data: data.update(size=32))),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_a_changed_file_breaks_the_seal(bundle, name, raises_code):
    file, change = TAMPERED[name]
    change(bundle / file)
    with raises_code("model.seal_broken") as caught:
        Model.load(bundle)
    assert f"{file} was changed" in str(caught.value)


@pytest.mark.parametrize("file", ["calibration.json", "crop.json"])
def test_a_missing_or_added_file_breaks_the_seal(bundle, file, raises_code):
    content = (bundle / file).read_bytes()
    (bundle / file).unlink()
    with raises_code("model.seal_broken") as caught:
        Model.load(bundle)
    assert f"{file} is missing" in str(caught.value)
    seal_bundle(bundle)
    Model.load(bundle)
    (bundle / file).write_bytes(content)
    with raises_code("model.seal_broken") as caught:
        Model.load(bundle)
    assert f"{file} was added" in str(caught.value)


def test_changes_of_format_keep_the_seal(bundle, sealed):
    """Line endings and indentation, as version control and editors change them; the order of tensors."""
    from safetensors.numpy import load_file, save_file

    for name in JSON_FILES:
        data = json.loads((bundle / name).read_text(encoding="utf-8"))
        text = json.dumps(dict(reversed(data.items())), indent=4).replace("\n", "\r\n")
        (bundle / name).write_bytes(text.encode())
    weights = load_file(bundle / "model.safetensors")
    save_file(weights, bundle / "model.safetensors", metadata={"written by": "another program"})
    model = Model.load(bundle)
    assert model.is_sealed
    assert model.digest() == Model.load(sealed).digest()


def test_one_digest_everywhere(bundle, trained, tmp_path, capsys):
    model = Model.load(bundle)
    assert read_seal(bundle).digest == model.digest()
    in_memory = Model(model.config, model.joint, model.calibration, model.cropping)
    assert in_memory.digest() == model.digest()
    (bundle / "seal.json").unlink()
    assert Model.load(bundle).digest() == model.digest()
    assert command(["about", str(trained.folder)]) == 0
    assert trained.load_model().digest() in capsys.readouterr().out


def test_a_model_without_a_seal_opens_with_a_warning(bundle, caplog):
    (bundle / "seal.json").unlink()
    with caplog.at_level(logging.WARNING, "urnet"):
        models = [Model.load(bundle) for _ in range(2)]
    assert [model.is_sealed for model in models] == [False, False]
    assert caplog.text.count("this model is not sealed") == 1


@pytest.mark.slow
def test_calibrating_renews_the_seal(trained, tmp_path, capsys):
    run = shutil.copytree(trained.folder, tmp_path / "run")
    cells = tmp_path / "run/cells.csv"
    text = cells.read_text(encoding="utf-8").splitlines()
    from urnet.run_folder import Run

    before, root = Run(run).load_model().digest(), Run(trained.folder).cells().root
    cells.write_text("\n".join([text[0], *(f"{(root / line).resolve()}" for line in text[1:])]), encoding="utf-8")
    edit(run / "model/calibration.json", lambda data: data.update(temperature=0.02))
    assert command(["calibrate", str(run), "--false-rejection", "0.1"]) == 0
    after = Run(run).load_model()
    assert after.is_sealed
    assert after.digest() != before
    assert after.digest() in capsys.readouterr().out
    edit(run / "model/config.json", rename)
    assert command(["calibrate", str(run)]) == 2


def commands(run, cells, out) -> dict[str, list[str]]:
    """Every command that takes --expect."""
    return {
        "about": ["about", str(run)],
        "predict": ["predict", str(run), str(cells), "--out", f"{out}.csv"],
        "differential": ["differential", str(run), str(cells), "--out", str(out)],
        "evaluate": ["evaluate", str(run), "--out", str(out)],
        "export": ["export", str(run), "--format", "torch", "--out", f"{out}.pt2"],
        "serve": ["serve", str(run), "--port", "0", "--database", f"{out}.db"],
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", list(commands("", "", "")))
def test_another_model_than_expected_is_refused(trained, shapes, tmp_path, capsys, name):
    digest = trained.load_model().digest()
    arguments = commands(trained.folder, shapes, tmp_path / "out")[name]
    for wrong in ("0" * 32, digest[:9] + ("0" if digest[9] != "0" else "1"), digest[:7], "no digest", digest + "0"):
        assert command([*arguments, "--expect", wrong]) == 2
    assert digest in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    if name != "serve":
        assert command([*arguments, "--expect", digest[:8].upper()]) == 0


def test_an_expected_model_in_python(trained, raises_code):
    digest = urnet.load(trained.folder).digest()
    assert urnet.load(trained.folder, expect=digest).digest() == digest
    with raises_code("model.unexpected"):
        urnet.load(trained.folder, expect="f" * 8)
    with raises_code("model.expectation_invalid"):
        urnet.load(trained.folder, expect="f" * 7)


@pytest.mark.slow
def test_exports_carry_the_digest(bundle, trained_graph, shapes, tmp_path, monkeypatch):
    import onnx

    from urnet.export import onnx_format
    from urnet.export.formats import export_run
    from urnet.export.openvino_format import to_openvino

    def describe_again(model, opset=None) -> bytes:
        """Write the properties of this model into the graph of the same weights."""
        graph = onnx.load_from_string(trained_graph)
        del graph.metadata_props[:]
        onnx.helper.set_model_props(graph, onnx_format.graph_properties(model))
        return graph.SerializeToString()

    monkeypatch.setattr(onnx_format, "to_onnx", describe_again)
    model = Model.load(bundle)
    export_run(bundle, "hub", tmp_path / "hub", cells=shapes / "disc")
    properties = onnx.load(tmp_path / "hub/model.onnx").metadata_props
    assert {one.key: one.value for one in properties}["digest"] == model.digest()
    copy = Model.load(tmp_path / "hub", expect=model.digest())
    assert copy.is_sealed
    assert model.digest() in (tmp_path / "hub/README.md").read_text(encoding="utf-8")
    if find_spec("openvino"):
        to_openvino((tmp_path / "hub/model.onnx").read_bytes(), tmp_path)
        assert model.digest() in (tmp_path / "model.xml").read_text(encoding="utf-8")


# What a bundle from elsewhere may hold: every field of every file is changed in every way.

WRONG = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.sampled_from([0, -1, 9000, 8192, 10**9, 1e-6, 1e308, float("nan"), float("inf"), "", [], {}, [[]], "../x"]),
    st.sampled_from(["hf-hub:someone/x", "local-dir:/etc", "/etc/passwd", "x" * 300, "a\nb", "\ud800", ["a", "a"]]),
    st.text(max_size=8),
    st.integers(1, 2000).map(nested := lambda depth: json.loads("[" * depth + "]" * depth) if depth < 900 else depth),
    st.lists(st.integers(-5, 9000), max_size=4),
    st.dictionaries(st.sampled_from(["name", "checkpoint_path", "pretrained_cfg", "file"]), st.text(max_size=4)),
)


def places(data, at=()):
    """List the keys that lead to each value."""
    if at:
        yield at
    items = data.items() if isinstance(data, dict) else enumerate(data[:3]) if isinstance(data, list) else ()
    for key, value in items:
        yield from places(value, (*at, key))


def mutated(data, at, value, action):
    for key in at[:-1]:
        data = data[key]
    if action == "delete":
        del data[at[-1]]
    elif action == "add" and isinstance(data, dict):
        data["checkpoint_path"] = value
    else:
        data[at[-1]] = value


class HangError(Exception):
    """Opening a bundle took too long."""


def opened_or_refused(folder, images) -> np.ndarray | None:
    """Return probabilities and reasons of a bundle; none if it is refused. Any other error fails the test."""
    ended: list = []

    def work() -> None:
        try:
            table = Model.load(folder).predict(images, on_error="record").to_frame()
            ended.append(table.drop(columns="path").to_json())
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(60)
    if not ended:
        raise HangError
    if isinstance(ended[0], UrnetError):
        assert "\n" not in str(ended[0])
        assert ended[0].code not in ("error", "run.unusable"), ended[0]
        return None
    if isinstance(ended[0], BaseException):
        raise ended[0]
    return ended[0]


@pytest.fixture(scope="module")
def usual(sealed, shapes):
    images = [read_image(path) for path in sorted(shapes.rglob("*.png"))[::12]]
    return images, opened_or_refused(sealed, images)


@pytest.mark.slow
@pytest.mark.parametrize("is_sealed", [True, False])
@pytest.mark.parametrize("file", JSON_FILES)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(draw=st.data())
def test_any_field_of_any_file_is_refused_or_makes_no_difference(
    sealed, usual, tmp_path_factory, file, is_sealed, draw
):
    folder = tmp_path_factory.mktemp("mutated") / "model"
    shutil.copytree(sealed, folder)
    data = json.loads((folder / file).read_text(encoding="utf-8"))
    at = draw.draw(st.sampled_from(sorted(places(data), key=str)))
    mutated(data, at, draw.draw(WRONG), draw.draw(st.sampled_from(["replace", "replace", "delete", "add"])))
    (folder / file).write_text(json.dumps(data), encoding="utf-8")
    if not is_sealed and file != "seal.json":
        (folder / "seal.json").unlink()
    images, expected = usual
    found = opened_or_refused(folder, images)
    if is_sealed:
        assert found is None or found == expected
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["model.safetensors", "calibration.safetensors"])
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(draw=st.data())
def test_any_damage_to_tensors_is_refused(sealed, usual, tmp_path_factory, file, draw):
    folder = tmp_path_factory.mktemp("mutated") / "model"
    shutil.copytree(sealed, folder)
    content = bytearray((folder / file).read_bytes())
    length = int.from_bytes(content[:8], "little")
    kind = draw.draw(st.sampled_from(["cut", "header", "values", "dtype", "length", "empty"]))
    if kind == "cut":
        del content[draw.draw(st.integers(0, len(content) - 1)) :]
    elif kind == "header":
        content[draw.draw(st.integers(8, 8 + length - 1))] ^= draw.draw(st.integers(1, 255))
    elif kind == "values":
        start = draw.draw(st.integers(8 + length, len(content) - 1))
        content[start : start + 4] = draw.draw(st.binary(min_size=4, max_size=4))[: len(content[start : start + 4])]
    elif kind == "dtype":
        content = content.replace(b'"F32"', b'"I32"', 1)
    elif kind == "length":
        content[:8] = draw.draw(st.integers(0, 2**64 - 1)).to_bytes(8, "little")
    else:
        content.clear()
    (folder / file).write_bytes(content)
    if draw.draw(st.booleans()):
        (folder / "seal.json").unlink()
        opened_or_refused(folder, usual[0])
    else:
        assert opened_or_refused(folder, usual[0]) in (None, usual[1])
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize(
    "options",
    [
        {"width": 1024},
        {"checkpoint_path": "/etc/passwd"},
        {"pretrained_cfg": {"file": "/etc/passwd"}},
        {"pretrained_cfg_overlay": {"file": "/etc/passwd"}},
        {"pretrained_strict": False},
        {"cache_dir": "/tmp"},
        {"features_only": True},
        {"norm_layer": "../x"},
    ],
)
@pytest.mark.parametrize("network", ["enhancer", "classifier"])
def test_options_that_name_files_or_need_much_memory_are_refused(bundle, opened, options, network, tmp_path):
    edit(bundle / "config.json", lambda data: data[network].update(options))
    (bundle / "seal.json").unlink()
    with opened() as files, pytest.raises(RunError) as caught:
        Model.load(bundle)
    assert caught.value.code in ("model.config_invalid", "model.weights_invalid")
    assert "/etc/passwd" not in files


@pytest.mark.parametrize("name", ["hf-hub:someone/x", "local-dir:/etc", "hf_hub:x/y", "resnet18.local-dir:/etc", "a/b"])
def test_names_that_are_addresses_are_refused(bundle, opened, name):
    for change in ({"name": name}, {"name": "shahzad2022", "backbones": [name]}):
        edit(bundle / "config.json", lambda data, change=change: data["classifier"].update(change))
        with suppress(FileNotFoundError):
            (bundle / "seal.json").unlink()
        with opened() as files, pytest.raises(RunError):
            Model.load(bundle)
        assert not [file for file in files if file.startswith("/etc/") and "config" in file]


@pytest.mark.slow
def test_files_named_by_a_recipe_are_never_read_from_a_model(
    trained, trained_graph, shapes, tmp_path, opened, monkeypatch
):
    """A recipe in a shared folder names weights and cells elsewhere."""
    monkeypatch.setattr("urnet.export.engine_graph.to_onnx", lambda model: trained_graph)
    run = tmp_path / "run"
    shutil.copytree(trained.folder, run)
    bundle = tmp_path / "bundle"
    shutil.copytree(trained.model, bundle)
    secrets = [tmp_path / "secret.pth", tmp_path / "secret.png"]
    for secret in secrets:
        secret.write_bytes(b"secret")
    for folder in (run, bundle):
        recipe = (trained.folder / "recipe.yaml").read_text(encoding="utf-8")
        recipe = recipe.replace("weights: null", f"weights: {secrets[0]}").replace(
            "perceptual: null", f"perceptual: {secrets[0]}"
        )
        recipe = recipe.replace("loss: mse", "loss: huang2018")
        assert str(secrets[0]) in recipe
        (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    (bundle / "cells.csv").write_text(f"path,label,split\n{secrets[1]},bar,train\n", encoding="utf-8")
    from urnet.serve.services import Services
    from urnet.serve.settings import read_settings

    with opened() as files:
        for number, folder in enumerate((run, bundle)):
            for name in commands("", "", ""):
                arguments = commands(folder, shapes, tmp_path / f"{name}-{number}")[name]
                if name == "serve":
                    services = Services.open(folder, read_settings(()))
                    services.start()
                    services.stop()
                elif name != "evaluate" or folder == run:
                    more = ["--cells", str(shapes)] if name in ("evaluate", "export") else []
                    assert command([*arguments, *more]) in (0, 1), name
    assert not [secret for secret in secrets if str(secret) in files]
    assert str(bundle / "recipe.yaml") not in files


@pytest.mark.slow
def test_no_command_takes_a_bundle_for_a_run(trained, shapes, tiny, tmp_path, opened, capsys, raises_code):
    """A table in a bundle names images anywhere on the machine."""
    from urnet.export.formats import export_run
    from urnet.run_folder import Run
    from urnet.serve.cell_images import CellImages

    elsewhere = shutil.copytree(shapes, tmp_path / "elsewhere")
    bundle = shutil.copytree(trained.model, tmp_path / "bundle")
    shutil.copyfile(trained.recipe_path, bundle / "recipe.yaml")
    table = Run(trained.folder).cells().table[["path", "label", "split"]]
    files = [elsewhere.resolve().joinpath(*path.split("/")[-2:]).as_posix() for path in table["path"]]
    assert all(Path(file).is_file() for file in files)
    table.assign(path=files).to_csv(bundle / "cells.csv", index=False)
    shutil.copytree(bundle, bundle / "fold0")
    arguments = {
        "evaluate": [bundle],
        "evaluate --cells": [bundle, "--cells", shapes],
        "stress": [bundle, shapes, "--out", tmp_path / "stress"],
        "export": [bundle, "--format", "torch", "--out", tmp_path / "out.pt2"],
        "calibrate": [bundle],
        "train --resume": [shapes, "--recipe", tiny, "--out", bundle, "--resume"],
    }
    with opened() as seen:
        for name, given in arguments.items():
            assert command([name.split()[0], *map(str, given)]) == 2, name
            assert "not a run folder" in " ".join(capsys.readouterr().err.split()), name
        for refused in (
            lambda: Run.open(bundle),
            lambda: Run.open(bundle / "fold0"),
            lambda: urnet.evaluate(bundle),
            lambda: export_run(bundle, "torch", tmp_path / "out.pt2"),
        ):
            with raises_code("run.is_bundle"):
                refused()
        shutil.rmtree(bundle / "fold0")
        assert command(["differential", str(bundle), str(shapes), "--out", str(tmp_path / "count")]) in (0, 1)
        CellImages.open(shapes, model=Model.load(bundle), run=bundle)
    assert not [file for file in seen if file.startswith(str(elsewhere.resolve()))]


def test_an_option_that_a_bundle_cannot_hold_is_refused_before_training(shapes, tiny, tmp_path, raises_code):
    from urnet.training.fit import train

    with raises_code("model.config_invalid") as caught:
        train(shapes, tiny, tmp_path / "run", overrides=["classifier.options.act_layer=../x"])
    assert "act_layer" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_every_network_that_is_registered_may_be_in_a_bundle():
    from urnet.nets import list_enhancers
    from urnet.nets.enhancers.registry import list_enhancer_options
    from urnet.recipe import list_recipes, load_recipe

    networks = [({"name": name, **list_enhancer_options(name)}, {"name": "resnet10t"}) for name in list_enhancers()]
    for recipe in map(load_recipe, list_recipes()):
        classifier = {"name": recipe.classifier.name, "input": recipe.classifier.input, **recipe.classifier.options}
        networks.append(({"name": recipe.enhancer.name, **recipe.enhancer.options}, classifier))
    for enhancer, classifier in networks:
        check_config(ModelConfig("x", ("a", "b"), 64, 1, Scaling(0.0, 1.0, "float32"), enhancer, classifier))

"""A trained model on disk and in memory."""

import doctest
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import urnet
from urnet.bundle.model import Model
from urnet.bundle.predictions import Predictions
from urnet.cells.read import read_cells
from urnet.errors import RunError
from urnet.images.read import read_image
from urnet.nets.gradcam import grad_cam


@pytest.fixture
def bundle(trained, tmp_path):
    """A copy that tests may damage. It has no seal, so that the check of each file is tested."""
    folder = shutil.copytree(trained.model, tmp_path / "bündel")
    (folder / "seal.json").unlink()
    return folder


@pytest.fixture(scope="module")
def model(trained) -> Model:
    return trained.load_model()


@pytest.mark.slow
def test_a_model_is_read_exactly(model, tmp_path, shapes):
    model.save(tmp_path / "copy")
    copy = Model.load(tmp_path / "copy")
    assert copy.config == model.config
    state = copy.joint.state_dict()
    assert state.keys() == model.joint.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.joint.state_dict().items())
    paths = sorted(shapes.rglob("*.png"))
    assert copy.predict(paths).to_frame().equals(model.predict(paths).to_frame())
    files = {"config.json", "model.safetensors", "calibration.json", "calibration.safetensors", "seal.json"}
    assert {path.name for path in (tmp_path / "copy").iterdir()} == files
    Model(model.config, model.joint).save(tmp_path / "copy")  # another model's calibration would be wrong
    assert Model.load(tmp_path / "copy").calibration is None


@pytest.mark.slow
def test_a_run_folder_and_its_bundle_are_the_same_model(trained):
    assert Model.load(trained.folder).config == Model.load(str(trained.model)).config


def test_the_configuration_is_complete(model, bundle):
    config = json.loads((bundle / "config.json").read_text(encoding="utf-8"))
    assert config["format"] == 1
    assert config["classes"] == ["bar", "disc", "ring"]
    assert config["scaling"]["dtype"] == "uint8"
    assert 95 < config["scaling"]["low"] < 115  # background 120, shapes 190, noise 6
    assert 200 < config["scaling"]["high"] < 220
    assert config["size"] == 24
    assert config["channels"] == 1
    assert config["protocol"] == "honest"
    assert config["enhancer"] == {"name": "urnet", "width": 4, "residual": True}


def test_a_folder_without_a_model_is_refused(tmp_path, raises_code):
    with raises_code("model.not_found"):
        Model.load(tmp_path / "nothing")


def change(bundle, **keys) -> None:
    path = bundle / "config.json"
    data = json.loads(path.read_text(encoding="utf-8")) | keys
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda b: (b / "model.safetensors").unlink(), "model.weights_invalid"),
        (lambda b: (b / "model.safetensors").write_bytes(b"\x10" * 100), "model.weights_invalid"),
        (lambda b: (b / "config.json").write_text("{", encoding="utf-8"), "model.config_invalid"),
        (lambda b: (b / "config.json").write_bytes(b"\xff\xfe"), "model.config_invalid"),
        (lambda b: (b / "config.json").write_text("[]", encoding="utf-8"), "model.config_invalid"),
        (lambda b: change(b, format=2), "model.newer"),
        (lambda b: change(b, format=None), "model.config_invalid"),
        (lambda b: change(b, scaling=None), "model.config_invalid"),
        (lambda b: change(b, classes=["a", "b"]), "model.weights_invalid"),
        (lambda b: change(b, surprise=1), "model.config_invalid"),
    ],
)
def test_a_damaged_bundle_is_refused_in_one_line(bundle, damage, code, raises_code):
    damage(bundle)
    with raises_code(code) as error:
        Model.load(bundle)
    assert "\n" not in str(error.value)


def test_half_the_weights_are_refused(bundle, raises_code):
    path = bundle / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with raises_code("model.weights_invalid"):
        Model.load(bundle)


def test_an_interrupted_save_leaves_no_configuration(model, tmp_path, monkeypatch):
    def full(state):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save", full)
    with pytest.raises(OSError, match="No space left"):
        model.save(tmp_path / "model")
    assert not list((tmp_path / "model").iterdir())


def test_one_image_or_several_by_path_or_as_arrays(model, shapes):
    path = sorted((shapes / "disc").iterdir())[0]
    image = read_image(path)
    several = (path, str(path), [path], image, [image], np.stack([image] * 3)[:1])
    tables = [model.predict(images).to_frame() for images in several]
    assert [len(table) for table in tables] == [1] * 6
    for table in tables[1:]:
        assert table.drop(columns="path").equals(tables[0].drop(columns="path"))
    assert tables[0]["path"].item() == str(path)
    assert tables[3]["path"].item() == ""
    row = tables[0].iloc[0]
    probabilities = [row[f"p_{name}"] for name in model.classes]
    assert sum(probabilities) == pytest.approx(1, abs=1e-5)
    assert row["predicted"] == model.classes[int(np.argmax(probabilities))]
    colour = model.predict(np.stack([image] * 3, axis=-1)).to_frame()  # (H, W, 3) is one colour image, not H images
    assert len(colour) == 1
    assert colour["predicted"].item() == row["predicted"]


def test_an_unusable_image_gets_a_row_with_its_reason(model, shapes, tmp_path):
    good = sorted((shapes / "disc").iterdir())[0]
    deep = tmp_path / "deep.png"
    Image.fromarray(np.full((24, 24), 30_000, np.uint16)).save(deep)
    images = [deep, good, tmp_path / "none.png", np.zeros((24, 24)), np.zeros((24, 4), np.uint8), np.zeros(5, np.uint8)]
    table = model.predict(images, on_error="record").to_frame()
    assert table["error"].astype(bool).tolist() == [True, False, True, True, True, True]
    assert "uint16 pixels, but the model was trained on uint8" in table["error"][0]
    assert "no such file" in table["error"][2]
    assert "float64 pixels" in table["error"][3]
    assert "(24, 4)" in table["error"][4]
    assert table["predicted"].astype(bool).tolist() == [False, True, False, False, False, False]
    assert table.loc[table["error"] != "", "p_disc"].isna().all()


def test_no_images_give_an_empty_table(model):
    columns = ["path", "predicted", "p_bar", "p_disc", "p_ring", "rejected", "set", "error"]
    assert model.predict([]).to_frame().columns.tolist() == columns


def test_a_montage_gives_a_row_for_each_tile(model, shapes, tmp_path):
    from dataclasses import replace

    tiled = Model(replace(model.config, tile=24), model.joint, model.calibration)
    paths = [sorted((shapes / name).iterdir())[0] for name in ("bar", "disc", "ring", "ring")]
    tiles = [read_image(path) for path in paths]
    montage = np.block([[tiles[0], tiles[1]], [tiles[2], tiles[3]]])
    Image.fromarray(montage).save(tmp_path / "montage.png")
    Image.fromarray(montage[:30, :30]).save(tmp_path / "odd.png")
    table = tiled.predict(tmp_path / "montage.png").to_frame()
    addresses = [f"{(tmp_path / 'montage.png').as_posix()}#r{r:02d}c{c:02d}" for r in (0, 1) for c in (0, 1)]
    assert table["path"].tolist() == addresses
    single = model.predict(paths).to_frame()
    assert table.drop(columns="path").equals(single.drop(columns="path"))
    assert tiled.predict(addresses[2])["predicted"].item() == table["predicted"][2]
    assert len(tiled.predict(tmp_path / "odd.png")) == 1
    assert len(model.predict(tmp_path / "montage.png")) == 1


def test_every_page_of_a_stack_is_an_image(model, shapes, tmp_path):
    import tifffile

    pages = [read_image(path) for path in sorted((shapes / "ring").iterdir())[:3]]
    tifffile.imwrite(tmp_path / "stack.tif", np.stack(pages), photometric="minisblack")
    table = model.predict(tmp_path / "stack.tif")
    assert [path.rpartition("#")[2] for path in table["path"]] == ["p000", "p001", "p002"]


def test_resize_crop_keeps_raw_counts_and_prepare_scales_them(model):
    crop = np.random.default_rng(0).integers(0, 256, (30, 20, 3)).astype(np.uint8)
    low, high = model.config.scaling.low, model.config.scaling.high
    raw, inputs = model.resize_crop(crop), model.prepare(crop)
    assert raw.shape == inputs.shape == (1, 24, 24)
    assert raw.dtype == np.uint8
    assert np.allclose(inputs, ((raw - low) / (high - low)).clip(0, 1), atol=1e-6)


def test_a_pixel_that_is_not_finite_is_refused(model, raises_code):
    from dataclasses import replace

    floating = Model(replace(model.config, scaling=replace(model.config.scaling, dtype="float32")), model.joint)
    crop = np.linspace(0, 1, 576, dtype=np.float32).reshape(24, 24)
    floating.resize_crop(crop)
    crop[3, 3] = np.nan
    with raises_code("images.not_finite"):
        floating.resize_crop(crop)


@pytest.mark.parametrize(
    ("keys", "part"),
    [
        ({"size": 0}, "size is 0"),
        ({"size": 10**9}, "size is 1000000000"),
        ({"size": "24"}, "size is '24'"),
        ({"channels": 2}, "channels is 2"),
        ({"classes": ["a", "a", "b"]}, "a class is listed twice"),
        ({"classes": "abc"}, "classes is 'abc'"),
        ({"tile": 0}, "tile is 0"),
        ({"scaling": {"low": 5.0, "high": 5.0, "dtype": "uint8"}}, "low is 5 and high is 5"),
        ({"scaling": {"low": float("nan"), "high": 5.0, "dtype": "uint8"}}, "low is nan"),
        ({"enhancer": {}}, "'name'"),
        ({"enhancer": {"name": "urnet", "width": 10**6}}, "option 'width' is 1000000"),
        ({"enhancer": {"name": "urnet", "width": 2000}}, "width"),
        ({"classifier": {"name": "hf-hub:somebody/something"}}, "'name' is 'hf-hub:somebody/something'"),
        ({"classifier": {"name": "nothing"}}, "not in timm"),
    ],
)
def test_impossible_values_in_a_configuration_are_refused(bundle, keys, part, raises_code):
    change(bundle, **keys)
    with raises_code("model.config_invalid") as caught:
        Model.load(bundle)
    assert "config.json" in str(caught.value)
    assert part in str(caught.value)


def test_a_deeply_nested_configuration_is_refused(bundle, raises_code):
    (bundle / "config.json").write_text("[" * 100_000, encoding="utf-8")
    with raises_code("model.config_invalid"):
        Model.load(bundle)


def test_weights_that_are_not_finite_are_refused(bundle, raises_code):
    from safetensors.numpy import load_file, save_file

    path = bundle / "model.safetensors"
    state = load_file(path)
    next(values for values in state.values() if values.dtype.kind == "f").flat[0] = np.nan
    save_file(state, path)
    with raises_code("model.weights_invalid"):
        Model.load(bundle)


def test_a_constant_image_is_refused(model, raises_code):
    with raises_code("images.constant"):
        model.resize_crop(np.full((24, 24), 7, np.uint8))


def test_a_cross_validation_is_not_a_model(tmp_path, bundle, raises_code):
    shutil.copytree(bundle, tmp_path / "fold0" / "model")
    with raises_code("model.several"):
        Model.load(tmp_path)


def test_a_bundle_without_calibration_predicts_without_sets_and_rejection(model, bundle, shapes):
    for name in ("calibration.json", "calibration.safetensors"):
        (bundle / name).unlink()
    plain = Model.load(bundle)
    assert plain.calibration is None
    paths = sorted((shapes / "disc").iterdir())
    table, calibrated = plain.predict(paths).to_frame(), model.predict(paths).to_frame()
    assert table.columns.tolist() == ["path", "predicted", "p_bar", "p_disc", "p_ring", "error"]
    assert table["predicted"].equals(calibrated["predicted"])
    assert not np.allclose(table["p_disc"], calibrated["p_disc"])
    assert plain.reject(np.zeros((2, 1, 24, 24), np.uint8), np.zeros((2, 5))) == ["", ""]


def test_probabilities_use_the_temperature_and_keep_every_decision(model, shapes):
    inputs = np.stack([model.prepare(read_image(path)) for path in sorted(shapes.rglob("*.png"))])
    outputs = list(model.outputs(inputs, 7))
    logits = np.concatenate([one.logits for one in outputs])
    probabilities = np.concatenate([p for p, _ in model.forward(inputs)])
    scaled = torch.from_numpy(logits).double() / model.calibration.temperature
    assert np.allclose(probabilities, scaled.softmax(dim=1), atol=1e-5)
    assert (probabilities.argmax(axis=1) == logits.argmax(axis=1)).all()
    assert all(one.features.shape == (len(one.logits), sum(one.sizes)) for one in outputs)
    plain = Model(model.config, model.joint)
    assert np.allclose(np.concatenate([one.logits for one in plain.outputs(inputs)]), logits, atol=1e-5)


def test_noise_is_rejected_and_cells_are_not(model, shapes):
    noise = np.random.default_rng(0).integers(0, 256, (24, 24)).astype(np.uint8)
    table = model.predict([noise, *sorted(shapes.rglob("*.png"))]).to_frame()
    assert table["rejected"][0] != ""
    assert table["predicted"][0] in model.classes
    assert (table["rejected"][1:] == "").mean() > 0.9
    assert all(row["predicted"] in row["set"].split("|") for _, row in table.iterrows())


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: (b / "calibration.json").write_text("{", encoding="utf-8"),
        lambda b: (b / "calibration.json").write_text("[]", encoding="utf-8"),
        lambda b: (b / "calibration.safetensors").unlink(),
        lambda b: (b / "calibration.safetensors").write_bytes(b"x" * 99),
    ],
)
def test_a_damaged_calibration_is_refused_in_one_line(bundle, damage):
    damage(bundle)
    with pytest.raises(RunError) as error:
        Model.load(bundle)
    assert error.value.code in ("model.calibration_invalid", "model.damaged")
    assert "\n" not in str(error.value)
    assert "urnet calibrate" in str(error.value)
    assert Model.load(bundle, calibrated=False).calibration is None


def test_a_calibration_of_other_classes_is_refused(bundle, raises_code):
    path = bundle / "calibration.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"ring"', '"square"'), encoding="utf-8")
    with raises_code("model.calibration_invalid"):
        Model.load(bundle)


def test_folders_tables_and_frames_are_classified(model, shapes, tmp_path):
    expected = model.predict(sorted((shapes / "disc").iterdir())).to_frame()
    assert model.predict(shapes / "disc").to_frame().equals(expected)
    table = pd.DataFrame({"path": [str(path) for path in sorted((shapes / "disc").iterdir())]})
    table.to_csv(tmp_path / "cells.csv", index=False)
    for images in (tmp_path / "cells.csv", str(tmp_path), table, read_cells(tmp_path / "cells.csv", labelled=False)):
        assert model.predict(images).to_frame()["predicted"].tolist() == expected["predicted"].tolist()


@pytest.mark.parametrize("method", ["predict", "enhance", "explain"])
def test_an_image_that_cannot_be_used_is_an_error(model, shapes, tmp_path, raises_code, method):
    run = getattr(model, method)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no image", encoding="utf-8")
    good = sorted((shapes / "disc").iterdir())[0]
    with raises_code("images.not_found") as caught:
        run([good, tmp_path / "none.png"])
    assert "none.png" in str(caught.value)
    with raises_code("images.format_unknown") as caught:
        run([good, tmp_path / "text.png"])
    assert "text.png" in str(caught.value)
    with raises_code("cells.no_images"):
        run(tmp_path / "empty")
    with raises_code("images.other_depth") as caught:
        run([read_image(good), np.zeros((24, 24), np.uint16)])
    assert "image 1" in str(caught.value)
    for wrong in ([None], [3.5]):
        with raises_code("cells.not_an_image"):
            run(wrong)


def test_predictions_are_arrays_counts_and_a_figure(model, shapes, tmp_path):
    (tmp_path / "text.png").write_text("no image", encoding="utf-8")
    noise = np.random.default_rng(0).integers(0, 256, (24, 24)).astype(np.uint8)
    predictions = model.predict([noise, tmp_path / "text.png", shapes / "disc"], on_error="record")
    table = predictions.to_frame()
    assert len(predictions) == len(table) == 22
    assert predictions.labels.tolist() == table["predicted"].tolist()
    assert predictions.probabilities.shape == (22, 3)
    assert np.isnan(predictions.probabilities[1]).all()
    assert (predictions.rejected[0], predictions.failed.tolist()) == (True, [False, True] + [False] * 20)
    countable = (table["rejected"] == "") & (table["error"] == "")
    assert predictions.counts == {name: int((table["predicted"][countable] == name).sum()) for name in model.classes}
    assert predictions["predicted"].equals(table["predicted"])
    figure = predictions.plot(columns=4, maximum=10)
    titles = [axes.get_title() for axes in figure.axes]
    assert len(titles) == 10
    assert titles[0] == table["rejected"][0]
    share = 100 * predictions.probabilities[2].max()
    assert titles[1] == (table["rejected"][2] or f"{table['predicted'][2]} {share:.0f} %")
    assert repr(predictions).startswith("Predictions for 22 images: bar ")
    assert repr(predictions).endswith("1 could not be used")
    assert "<table" in predictions._repr_html_()
    with pytest.warns(DeprecationWarning, match="to_frame"):
        assert predictions.columns.tolist() == table.columns.tolist()
    with pytest.raises(AttributeError):
        _ = predictions.no_such_name


def test_enhanced_images_and_explanations_have_the_shape_of_the_input(model, shapes):
    paths = sorted((shapes / "disc").iterdir())
    enhanced = model.enhance(paths)
    inputs = np.stack([model.prepare(read_image(path)) for path in paths])
    assert enhanced.shape == (20, 24, 24)
    assert np.allclose(enhanced, np.concatenate([part for _, part in model.forward(inputs)])[:, 0], atol=1e-6)
    maps = model.explain(paths)
    assert maps.shape == (20, 24, 24)
    assert ((maps >= 0) & (maps <= 1)).all()
    expected = grad_cam(model.joint, torch.from_numpy(inputs), torch.full((20,), 2))
    assert np.allclose(model.explain(paths, "ring"), expected, atol=1e-6)


def test_a_class_that_the_model_does_not_have_cannot_be_explained(model, shapes, raises_code):
    with raises_code("model.class_unknown"):
        model.explain(shapes / "disc", "square")


def test_a_model_has_a_text_and_an_html_table(model):
    for text in (repr(model), model._repr_html_()):
        for part in ("tiny", "bar, disc, ring", "24 x 24 px", "uint8", model.digest()):
            assert part in text
    assert "; calibrated;" in repr(model)
    assert "; not calibrated;" in repr(Model(model.config, model.joint))


@pytest.mark.parametrize("documented", [Model, Model.load, Model.predict, Model.enhance, Model.explain, Predictions])
def test_examples_in_docstrings_run(documented, trained, shapes, tmp_path, monkeypatch):
    shutil.copytree(trained.folder, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    shutil.copytree(shapes, tmp_path / "cells")
    monkeypatch.chdir(tmp_path)
    names = {"urnet": urnet, "Model": Model}
    (example,) = doctest.DocTestFinder(recurse=False).find(documented, "example", globs=names)
    assert example.examples
    results = doctest.DocTestRunner().run(example)
    assert results.failed == 0
